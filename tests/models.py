"""Small models in the formats of the hub, made on the spot: the layout is real, the weights are random."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, ViTConfig, ViTModel
from transformers.utils import logging

from stsl.priors.base import Prior
from stsl.priors.load import builtin_names, load_prior

# What `scheduler_config.json` holds in stable-diffusion-v1-5, stable-diffusion-2-1 and google/ddpm-*.
PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
DDIM_V = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
DDPM = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# Names that the files of stable-diffusion-v1-5 have and today's networks have not.
NAMES_OF_2022 = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def sd15_folder(
    path: Path,
    *,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    size: int = 64,
    vae: Literal["kl", "tiny"] = "kl",
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
    variant: str | None = None,
    names: Literal["today", "2022"] = "today",
    seed: int = 0,
) -> Path:
    """A model in the layout of Stable Diffusion 1.5 with random weights, a thousandth of its size.

    Args:
        path: folder to make.
        prediction: what the UNet predicts; the scheduler is PNDM as in SD 1.5, or DDIM as in SD 2.1.
        size: side of its images in pixels, a multiple of 8.
        vae: `AutoencoderKL`, or `AutoencoderTiny` as in the TAESD repositories.
        dtype: of the weights in the files.
        sharded: split the UNet's weights into several files with an index.
        variant: "fp16" names the files as the hub's half precision variant.
        names: "2022" calls tensors as the files of SD 1.5 do.
        seed: of the weights.
    """
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=size // 8,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        attention_head_dim=8,  # in this layout the number of heads
        cross_attention_dim=32,
        norm_num_groups=32,
    )
    autoencoder: nn.Module
    if vae == "kl":
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            latent_channels=4,
            layers_per_block=1,
            sample_size=size,
        )
    else:
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=(16, 16, 16, 16),
            decoder_block_out_channels=(16, 16, 16, 16),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    numbers = tokenizer_files(path / "tokenizer")
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(numbers),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=numbers["<|startoftext|>"],
            eos_token_id=numbers["<|endoftext|>"],
            pad_token_id=1,
        )
    )
    torch.random.set_rng_state(torch_state)

    parts = {"unet": unet, "vae": autoencoder, "text_encoder": encoder}
    with _quiet():
        for part, network in parts.items():
            shards = {"max_shard_size": "1MB"} if sharded and part == "unet" else {}
            for parameter in network.parameters():
                parameter.data = parameter.data.to(dtype)
            network.save_pretrained(path / part, variant=variant, **shards)
    if names == "2022":
        rename(path / "vae" / "diffusion_pytorch_model.safetensors", NAMES_OF_2022)
        rename(path / "text_encoder" / "model.safetensors", {"": "text_model."})
    write_json(path / "feature_extractor" / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    write_json(path / "scheduler" / "scheduler_config.json", PNDM if prediction == "epsilon" else DDIM_V)
    write_json(path / "model_index.json", INDEX | {"vae": ["diffusers", type(autoencoder).__name__]})
    return path


def pixel_folder(path: Path, *, size: int = 32, flat: bool = False, seed: int = 0) -> Path:
    """A DDPM on pixels with random weights: `unet/` and `scheduler/`, or all in one folder as google/ddpm-* have it."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=size,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    torch.random.set_rng_state(torch_state)
    with _quiet():
        unet.save_pretrained(path if flat else path / "unet")
    write_json((path if flat else path / "scheduler") / "scheduler_config.json", DDPM)
    index = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    write_json(path / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"} | index)
    return path


def vit_folder(path: Path, *, size: int = 32, patch: int = 8, pooler: bool = False, seed: int = 0) -> Path:
    """A ViT in the layout of facebook/dino-vitb8, with random weights that tell pictures apart."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=size,
        patch_size=patch,
    )
    vit = ViTModel(config, add_pooling_layer=pooler)
    for parameter in vit.parameters():  # drawn with a std of 0.02, they would give all patches the same keys
        parameter.data = 0.3 * torch.randn(parameter.shape)
    torch.random.set_rng_state(torch_state)
    with _quiet():
        vit.save_pretrained(path)
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
    write_json(path / "preprocessor_config.json", pixels | {"feature_extractor_type": "ViTFeatureExtractor"})
    return path


def clip_folder(path: Path, *, size: int = 32, length: int = 16, seed: int = 0) -> Path:
    """A CLIPModel as transformers saves it, with random weights that tell pictures and texts apart."""
    numbers = tokenizer_files(path)
    text = {"vocab_size": len(numbers), "max_position_embeddings": length, "hidden_size": 24, "intermediate_size": 48}
    text |= {"bos_token_id": numbers["<|startoftext|>"], "eos_token_id": numbers["<|endoftext|>"]}
    vision = {"image_size": size, "patch_size": 8, "hidden_size": 24, "intermediate_size": 48}
    small = {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    clip = CLIPModel(CLIPConfig(text_config=text | small, vision_config=vision | small, projection_dim=8))
    for parameter in clip.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    torch.random.set_rng_state(torch_state)
    with _quiet():
        clip.save_pretrained(path)
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_normalize": True}
    write_json(path / "preprocessor_config.json", pixels | {"image_processor_type": "CLIPImageProcessor"})
    return path


def tokenizer_files(folder: Path) -> dict[str, int]:
    """CLIP's four tokenizer files with a vocabulary of all bytes and a few words; the numbers of its tokens."""
    letters = sorted(ByteLevel.alphabet())
    merges = ["p h", "ph o", "pho t", "phot o</w>", "f a", "fa c", "fac e</w>", "o f</w>", "a n"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    numbers = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    start, end = (
        {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for token in ("<|startoftext|>", "<|endoftext|>")
    )
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    write_json(folder / "vocab.json", numbers)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special | {"pad_token": "<|endoftext|>"})
    typed = {key: {"__type": "AddedToken"} | token for key, token in special.items()}
    more = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    more |= {"name_or_path": "openai/clip-vit-large-patch14", "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", typed | more | {"pad_token": "<|endoftext|>"})
    return numbers


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def prior_named(name: str, folder: Path) -> Prior:
    """A built-in prior, or one of 77 tokens made in `folder`: "kl", or "kl fp16 files", with weights kept in halves."""
    if name in builtin_names():
        return load_prior(name, device="cpu", precision="fp32")
    dtype = torch.float16 if "fp16" in name else torch.float32
    return load_prior(sd15_folder(folder, dtype=dtype), device="cpu", precision="fp32")


def rename(file: Path, names: dict[str, str]) -> None:
    """Call the tensors of a file differently; an empty old name puts the new one in front."""
    tensors = load_file(file)
    for old, new in names.items():
        tensors = {name.replace(old, new) if old else new + name: tensor for name, tensor in tensors.items()}
    if "text_model." in names.values():
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # stood in the files until 2023
    save_file(tensors, file, {"format": "pt"})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `save_pretrained`."""
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
