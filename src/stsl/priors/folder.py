"""Model folders in the layouts of diffusers and transformers, read without trusting them.

Nothing in a folder is run and nothing in it is believed: configs are plain JSON of which only the arguments of known
classes are used, weights are safetensors, and a network is compared with its weights before memory is set aside for
it. Links are followed, because the hub's cache is made of them; what they lead to is parsed like any other file.
"""

import functools
import inspect
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

log = logging.getLogger("stsl")

# What a folder may ask for; any other class is somebody's code. No scheduler is ever built: of these it is known that
# their betas mean what `VariancePreserving` reads in them.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "vit": ("ViTModel",),
    "clip": ("CLIPModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ),
}
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
# The only keys read of a text encoder's config: others can name attention kernels to be fetched and run.
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
VIT_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
CLIP_VISION_KEYS = tuple(key for key in VIT_KEYS if key != "qkv_bias")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vit": "model",
    "clip": "model",
}
PRIOR = ("unet", "vae", "text_encoder")  # the networks of a prior, each in its folder; a ViT is a folder of its own
VARIANTS = ("", ".fp16")  # the first one that is there is used
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
# Everything stsl reads of a prior's folder beside weights, and of a ViT's.
CONFIGS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in PRIOR),
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
)
VIT_CONFIGS = ("config.json", "preprocessor_config.json")
CLIP_CONFIGS = (*VIT_CONFIGS, *TOKENIZER_FILES)
ALONE = ("vit", "clip")  # networks that are a folder of their own
# What older files call tensors of today's networks.
OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
    "text_model.": "",
}
# The files of a ViT call its layers otherwise than the network does since transformers 5; each pair applies in turn.
VIT_NAMES = {
    "encoder.layer.": "layers.",
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
# Tensors that stand in files and are needed nowhere: positions that count up, and the head of a ViT.
NEEDLESS = ("position_ids", "pooler.dense.weight", "pooler.dense.bias")
FLOATS = ("F64", "F32", "F16", "BF16")

MAX_BYTES = 1 << 25  # of one config or vocabulary; Stable Diffusion's largest has 2 MB
MAX_SIZE = 1 << 20  # of anything in a network; the largest vocabulary has 49408 tokens
SLACK = 1000  # parameters that a config may ask for beyond those in the files, to name what is missing
MAX_SIDE = 4096  # of what a UNet works on
MAX_LEVELS = 10_000  # of a noise schedule


class OtherClass(ValueError):
    """A config asks for a class that is not loaded as this part; `given` names it."""

    def __init__(self, message: str, given: object) -> None:
        super().__init__(message)
        self.given = given


@dataclass(frozen=True)
class Folder:
    """A model folder that nobody vouches for.

    Each method raises FileNotFoundError for a file that is missing, and ValueError for one that is damaged, unsafe or
    does not fit the others; both name the file.
    """

    path: Path

    def home(self, part: str) -> Path:
        """Where the files of a part are. The hub's first pixel models have UNet and scheduler in one folder."""
        if part in ALONE:
            return self.path
        nested = self.path / part
        alone = part in ("unet", "scheduler") and (self.path / "scheduler_config.json").is_file()
        # TAESD's repositories are an autoencoder and nothing else.
        alone |= part == "vae" and not (self.path / "model_index.json").exists()
        return self.path if alone and not nested.is_dir() else nested

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, of a class that is known; its `_class_name` is that class."""
        path = self.home(part) / ("scheduler_config.json" if part == "scheduler" else "config.json")
        config = _json(path, _size)
        given = config.get("_class_name", config.get("architectures"))
        given = given[0] if isinstance(given, list) and len(given) == 1 else given
        if given not in CLASSES[part]:
            raise OtherClass(f"{path} asks for class {given!r}; as {part} stsl loads {', '.join(CLASSES[part])}", given)
        if part == "unet":
            _check_side(path, config)
        if part == "scheduler":
            _check_levels(path, config)
        if part == "vit":
            _check_patches(path, config)
        if part == "clip":
            _check_pair(path, config)
        return config | {"_class_name": given}

    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and std per channel that a ViT's pixels in [0, 1] are brought to 0 and 1 by."""
        path = self.path / "preprocessor_config.json"
        config = _json(path)
        if config.get("do_normalize") is False:
            return [0.0] * 3, [1.0] * 3
        mean, std = config.get("image_mean", []), config.get("image_std", [])
        if not _three_numbers(mean) or not _three_numbers(std) or min(std) <= 0:
            raise ValueError(
                f"{path}: image_mean is {mean!r} and image_std {std!r}; each is three numbers, a std above 0"
            )
        return [float(x) for x in mean], [float(x) for x in std]

    def check_index(self) -> None:
        """Refuse a model_index.json that names somebody's own classes. What is loaded never depends on it."""
        path = self.path / "model_index.json"
        if not path.is_file():
            return
        index = _json(path)
        name = index.get("_class_name")
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{path} asks for a pipeline of its own ({name!r}); stsl runs no code")
        for part, value in index.items():
            if isinstance(value, list):
                library, name = value if len(value) == 2 else (value, None)
                if library not in LIBRARIES or (library and name not in CLASSES.get(part, (name,))):
                    raise ValueError(f"{path} asks for {part} {value!r}; stsl loads classes it knows and runs no code")

    def weights(self, part: str) -> Path | None:
        """The file with the weights of a part, or the index of its shards."""
        home = self.home(part)
        names = (home / name for variant in VARIANTS for name in weight_names(part, variant)[:2])
        return next((file for file in names if file.is_file()), None)

    def tensors(self, part: str) -> dict[str, Path]:
        """The names of a part's tensors, and the file of each."""
        where: dict[str, Path] = {}
        for file in self._weight_files(part):
            with _opened(file) as tensors:
                where |= dict.fromkeys(tensors.keys(), file)
        return where

    def network(self, part: str, config: Mapping[str, Any], device: torch.device) -> Any:
        """The network of a part with its weights, float32.

        It is built without memory first; of the weights, what agrees with that in name and shape is read.
        """
        home, where = self.home(part), self.tensors(part)
        try:
            with torch.device("meta"), _at_most(len(where) + SLACK):
                network = _construct(config)
        except Exception as error:  # the constructors raise whatever a wrong value leads to
            raise ValueError(
                f"{home / 'config.json'} does not describe the {config['_class_name']} of its weights: {error}"
            ) from error

        expected = network.state_dict()
        given = {today: name for name in where if (today := _name_of_today(name, expected))}
        if missing := sorted(expected.keys() - given.keys()):
            raise ValueError(f"the weights in {home} do not fit its config.json: {_few(missing)} missing")
        if unused := sorted(name for name in where.keys() - given.values() if not name.endswith(NEEDLESS)):
            log.warning("%s: %s not used, its config.json does not ask for it", home, _few(unused))

        state: dict[str, Tensor] = {}
        for file in dict.fromkeys(where.values()):
            with _opened(file) as tensors:
                for today, name in given.items():
                    if where[name] == file:
                        state[today] = _read(tensors, name, expected[today].shape, file).to(device)
        network.load_state_dict(state, assign=True)
        _fill_buffers(network, device)
        return network

    def tokenizer(self, text_encoder: Mapping[str, Any]) -> Any:
        """The CLIP tokenizer that goes with the text encoder of a config.

        Not by its `from_pretrained`, which lets a config name other files and formats to be read.
        """
        from transformers import CLIPTokenizer

        # A pair of image and text encoder has its tokenizer beside its weights.
        alone = (self.path / "preprocessor_config.json").is_file()
        home = self.path if alone else self.path / "tokenizer"
        jsons = {name: _json(home / name) for name in TOKENIZER_FILES[:-1] if (home / name).is_file()}
        whole, settings = jsons.get("tokenizer.json", {}), jsons.get("tokenizer_config.json", {})
        if (given := settings.get("tokenizer_class")) not in (None, *CLASSES["tokenizer"]):
            known = ", ".join(CLASSES["tokenizer"])
            raise ValueError(f"{home / 'tokenizer_config.json'} asks for class {given!r}; stsl loads {known}")
        missing = [name for name in ("vocab.json", "merges.txt") if not (home / name).is_file()]
        if missing and not whole:
            raise FileNotFoundError(f"{home / missing[0]} is missing; what reads texts needs its CLIP tokenizer")
        try:
            if missing:
                vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
            else:
                vocab, lines = jsons["vocab.json"], _bytes(home / "merges.txt").decode().splitlines()
                merges = [line for line in lines if line and not line.startswith("#version")]
            pairs = [(left, right) for left, right in (m.split() if isinstance(m, str) else m for m in merges)]
            names = settings | jsons.get("special_tokens_map.json", {})
            special = {key: _content(names[key]) for key in SPECIAL_TOKENS if names.get(key)}
            tokenizer = CLIPTokenizer(vocab, pairs, **special)
            added = {_content(entry): int(number) for number, entry in settings.get("added_tokens_decoder", {}).items()}
            added |= {_content(entry): entry["id"] for entry in whole.get("added_tokens", [])}
            added |= jsons.get("added_tokens.json", {})
            tokenizer.add_tokens(sorted(added.keys() - vocab.keys(), key=added.__getitem__))
            numbers = tokenizer.get_vocab()
        except Exception as error:  # whatever a wrong value leads to
            raise ValueError(f"the tokenizer in {home} cannot be read: {error}") from error
        if not added.items() <= numbers.items():
            raise ValueError(f"the tokenizer in {home} leaves gaps between the numbers of its added tokens")
        size = text_encoder.get("vocab_size")
        if not isinstance(size, int) or max(numbers.values()) >= size:
            raise ValueError(f"the tokenizer in {home} knows more tokens than the {size} of its text encoder")
        return tokenizer

    def _weight_files(self, part: str) -> list[Path]:
        home, chosen = self.home(part), self.weights(part)
        if chosen is None:
            wanted = weight_names(part, "")[0]
            pickles = [file.name for file in home.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
            if pickles:
                raise ValueError(
                    f"{home} has only {_few(sorted(pickles))}: pickle files can run code when they are loaded. stsl "
                    f"loads safetensors; fetch {wanted}, or convert the file on a machine you can spare"
                )
            raise FileNotFoundError(f"{home / wanted} is missing, and so is its fp16 variant")
        if chosen.suffix == ".safetensors":
            return [chosen]
        shards = _json(chosen).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{chosen} has no weight_map")
        for shard in shards.values():
            if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
                raise ValueError(f"{chosen} names the shard {shard!r}; a shard is a safetensors file beside its index")
            if not (home / shard).is_file():
                raise FileNotFoundError(f"{home / shard} is missing: {chosen.name} lists it")
        return [home / shard for shard in dict.fromkeys(shards.values())]


def weight_names(part: str, variant: str) -> tuple[str, str, str]:
    """What the weights of a part are called: the single file, the index of shards, the shards (a pattern)."""
    stem = WEIGHTS[part]
    return (
        f"{stem}{variant}.safetensors",
        f"{stem}.safetensors.index{variant}.json",
        f"{stem}{variant}-*-of-*.safetensors",
    )


def _json(path: Path, integer: Callable[[str], int] = int) -> dict[str, Any]:
    """A JSON object that asks for no code; `integer` reads its whole numbers."""
    text = _bytes(path)
    try:
        config = json.loads(text, parse_int=integer, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    if key := next((key for key in CODE_KEYS if key in config), None):
        raise ValueError(f"{path} asks to run code of the model folder ({key}); stsl loads weights and runs no code")
    return config


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a prior is a folder in diffusers layout: model_index.json, unet/, scheduler/, and for "
            "a latent one vae/, text_encoder/, tokenizer/; a ViT is one in transformers layout: config.json, "
            "model.safetensors, preprocessor_config.json"
        )
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; stsl reads at most {MAX_BYTES}")
    return path.read_bytes()


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _size(digits: str) -> int:
    """A whole number of a network's config: a width or a count, which constructors make lists of."""
    if abs(number := int(digits)) > MAX_SIZE:
        raise ValueError(f"{digits} is no size of a network, at most {MAX_SIZE} is")
    return number


def _three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
    )


def _content(token: Any) -> str:
    """A token, which stands in the files as its text or as an object that has it."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _check_side(path: Path, unet: Mapping[str, Any]) -> None:
    size = unet.get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(
            f"{path}: sample_size is {size!r}; a prior needs the side of what its UNet was trained on, 1 to {MAX_SIDE}"
        )


def _check_levels(path: Path, scheduler: Mapping[str, Any]) -> None:
    trained, n = scheduler.get("trained_betas"), scheduler.get("num_train_timesteps")
    betas = [scheduler.get("beta_start"), scheduler.get("beta_end")] if trained is None else trained
    levels = n if trained is None else len(betas) if isinstance(betas, list) else None
    if (
        not (isinstance(levels, int) and 1 <= levels <= MAX_LEVELS)
        or not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas)
        or not isinstance(scheduler.get("steps_offset", 0), int)
        or (trained is None and "beta_schedule" not in scheduler)
    ):
        raise ValueError(
            f"{path} describes no noise levels: stsl needs beta_start and beta_end in (0, 1) with a beta_schedule and "
            f"1 to {MAX_LEVELS} num_train_timesteps, or as many trained_betas in (0, 1)"
        )


def _check_patches(path: Path, vit: Mapping[str, Any]) -> None:
    size, patch = vit.get("image_size"), vit.get("patch_size")
    if not (isinstance(size, int) and isinstance(patch, int) and 1 <= patch <= size <= MAX_SIDE) or size % patch:
        raise ValueError(
            f"{path}: image_size is {size!r} and patch_size {patch!r}; stsl needs the sides of square images and "
            f"patches, the first a multiple of the second and at most {MAX_SIDE}"
        )
    if vit.get("num_channels", 3) != 3:
        raise ValueError(f"{path}: num_channels is {vit['num_channels']!r}; stsl needs a ViT of RGB images")


def _check_pair(path: Path, clip: Mapping[str, Any]) -> None:
    for name in ("text_config", "vision_config"):
        if not isinstance(clip.get(name), dict):
            raise ValueError(
                f"{path}: {name} is {clip.get(name)!r}; a CLIPModel has the settings of that encoder there"
            )
    _check_patches(path, clip["vision_config"])


def _construct(config: Mapping[str, Any]) -> nn.Module:
    """A network of one of our classes, given the arguments of its constructor and nothing else of the config."""
    if config["_class_name"] == "CLIPTextModel":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**{key: config[key] for key in TEXT_KEYS if key in config}))
    if config["_class_name"] == "ViTModel":
        from transformers import ViTConfig, ViTModel

        return ViTModel(ViTConfig(**{key: config[key] for key in VIT_KEYS if key in config}), add_pooling_layer=False)
    if config["_class_name"] == "CLIPModel":
        from transformers import CLIPConfig, CLIPModel

        text = {key: config["text_config"][key] for key in TEXT_KEYS if key in config["text_config"]}
        vision = {key: config["vision_config"][key] for key in CLIP_VISION_KEYS if key in config["vision_config"]}
        dim = {"projection_dim": config["projection_dim"]} if "projection_dim" in config else {}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, **dim))

    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UNet2DModel

    classes = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UNet2DModel)}
    kind = classes[config["_class_name"]]
    return kind(**{key: config[key] for key in inspect.signature(kind.__init__).parameters if key in config})


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop a constructor at one parameter too many: a config of a few bytes can ask for a billion layers."""
    thread, seen = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal seen
        if threading.get_ident() == thread:
            seen += 1
            if seen > parameters:
                raise ValueError(f"it asks for more than {parameters} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _name_of_today(name: str, expected: Collection[str]) -> str | None:
    """What the tensor of a file is called in the network, None if nothing is called so."""
    in_vit = functools.reduce(lambda name, pair: name.replace(*pair), VIT_NAMES.items(), name)
    names = (name, f"text_model.{name}", in_vit, *(name.replace(old, new) for old, new in OLD_NAMES.items()))
    return next((name for name in names if name in expected), None)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is damaged or not safetensors ({error}); fetch it again (git without git-lfs leaves stubs)"
        ) from error


def _read(tensors: Any, name: str, shape: torch.Size, file: Path) -> Tensor:
    """A tensor in float32, after the header was seen to have its shape."""
    header = tensors.get_slice(name)
    if header.get_shape() != list(shape) or header.get_dtype() not in FLOATS:
        raise ValueError(
            f"{file} does not fit its config.json: {name} is {header.get_dtype()} of shape {header.get_shape()}, the "
            f"network has floats of shape {list(shape)} there"
        )
    # A copy: what shares memory with the file would change with it, and crash the program if the file shrank.
    return tensors.get_tensor(name).to(torch.float32, copy=True)


def _fill_buffers(network: nn.Module, device: torch.device) -> None:
    """Make the tensors that stand in no file. Of our classes only the text encoder has one: its positions."""
    for name, buffer in [*network.named_buffers()]:
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise ValueError(f"{type(network).__name__} has {name}, which is in no file and unknown to stsl")
            setattr(network.get_submodule(owner), leaf, torch.arange(buffer.shape[-1], device=device)[None])


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
