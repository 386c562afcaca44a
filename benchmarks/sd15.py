"""A model of the shape of Stable Diffusion 1.5 at 512 x 512 with random weights: what speed and memory depend on.

The sizes are those of the published configs; as tensors without values, for figures that need none, and as a folder
that `load_prior` reads.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch._subclasses import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel

from stsl.priors.base import Condition, Precision
from stsl.priors.latent import LatentPrior
from stsl.priors.tiny import TinyDecoder

UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def text_config() -> CLIPTextConfig:
    """The text encoder's: CLIP ViT-L/14."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )


class Shapes(LatentPrior):
    """The prior with a prompt whose embedding nobody needs to compute."""

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        rows = 1 if isinstance(prompt, str) else len(prompt)
        text = torch.zeros(rows, 77, 768, device=self.device)
        return Condition(text, text, scale)


def shapes(
    precision: Precision = "bf16", *, checkpointing: bool = True, tiny: bool = False, device: str = "cpu"
) -> LatentPrior | TinyDecoder:
    """The prior as tensors without values: its step can be followed, not computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        parts = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(text_config())
        small = AutoencoderTiny() if tiny else None
    prior = Shapes(*parts, None, SCHEDULER, name="sd15-shaped", precision=precision, checkpointing=checkpointing)
    return prior if small is None else TinyDecoder(prior, small, name="TAESD-shaped")


def folder(path: Path) -> Path:
    """The prior as a folder with random weights, written unless it is there; its tokenizer knows letters only."""
    if (path / "model_index.json").is_file():
        return path
    tokens = sorted(ByteLevel.alphabet())
    words = [*tokens, *(f"{token}</w>" for token in tokens), "<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    parts = {
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(text_config()),
    }
    for name, part in parts.items():
        part.to(torch.float16).save_pretrained(path / name)
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    for name, value in {
        "tokenizer/vocab.json": {word: number for number, word in enumerate(words)},
        "tokenizer/special_tokens_map.json": special,
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return path


def tiny_folder(path: Path) -> Path:
    """An autoencoder of TAESD's shape with random weights, written unless it is there."""
    if not (path / "config.json").is_file():
        torch.manual_seed(0)
        AutoencoderTiny().save_pretrained(path)
    return path
