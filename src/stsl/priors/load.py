"""From a name, a folder or a hub id to a prior: files, their safety, and the device."""

import difflib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from stsl.files import sha256
from stsl.priors.base import Precision, Prior
from stsl.priors.precision import pick_device, pick_precision

log = logging.getLogger("stsl")

DEFAULT = "faces-128"
# Everything a folder of weights may say about which class to build. Any other class is somebody's code.
CLASSES = {
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
# Keys with which a config asks for code to be run.
CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
MAX_CONFIG_BYTES = 1 << 20
# What is fetched of a hub id: configs, tokenizer files and safetensors; never pickles, never code.
PATTERNS = ["model_index.json", "*/*.json", "*/merges.txt", "*/vocab.txt", "*/*.safetensors"]


def builtin_folder() -> Path:
    """Where the weights that ship with the package are."""
    return Path(str(files("stsl.priors"))) / "builtin"


def builtin_names() -> list[str]:
    """Names of the priors that ship with the package."""
    return sorted(path.name for path in builtin_folder().iterdir() if (path / "model_index.json").is_file())


def load_prior(
    name: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision | Literal["auto"] = "auto",
    offline: bool = False,
) -> Prior:
    """Load a diffusion prior: one that ships with the package, a diffusers folder, or a hub id.

    >>> load_prior("faces-128")
    >>> load_prior("path/to/folder")
    >>> load_prior("stable-diffusion-v1-5/stable-diffusion-v1-5", revision="main")

    Only safetensors weights and known classes are loaded; no file of the folder is ever run.

    Args:
        name: built-in name, path of a folder, or hub id "owner/model".
        revision: commit, tag or branch of a hub id; a commit hash makes the run reproducible.
        device: None picks cuda, then mps, then cpu.
        precision: what the networks compute with; "auto" is bf16 where the hardware has it, fp32 elsewhere.
        offline: never touch the network; a hub id must already be in the cache.

    Raises:
        FileNotFoundError: nothing of that name, or a file is missing in the folder.
        ValueError: damaged or unsafe files, unknown classes, parts that do not fit together.
        ConnectionError: the hub was needed and could not be reached.
    """
    chosen = pick_device(device)
    folder, title = _find(str(name), revision, offline)
    prior = _build(folder, title, pick_precision(precision, chosen), chosen)
    log.info("prior %s on %s in %s", title, chosen, prior.describe().get("precision"))
    return prior


def _find(name: str, revision: str | None, offline: bool) -> tuple[Path, str]:
    """The folder of a name, and what to call it."""
    path = Path(name).expanduser()
    if name in builtin_names():
        if revision is not None:
            raise ValueError(f"prior {name!r} ships with the package and has no revision; leave --revision out")
        folder = builtin_folder() / name
        _verify(folder)
        return folder, name
    if path.is_dir():
        return path, path.name
    if path.exists():
        raise ValueError(f"{name} is a file; a prior is a folder in diffusers layout, with model_index.json and safetensors")
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name:
        return _download(name, revision, offline), name
    near = difflib.get_close_matches(name, builtin_names(), 1)
    raise FileNotFoundError(
        f"no prior {name!r}{f'; did you mean {near[0]!r}?' if near else ''} Give a built-in one "
        f"({', '.join(builtin_names())}), the path of a diffusers folder, or a hub id such as "
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def _verify(folder: Path) -> None:
    """Compare a built-in prior with its manifest.

    Raises:
        ValueError: a file differs from what shipped.
    """
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the installed package; reinstall stsl")
        if sha256(file) != expected:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one that shipped; reinstall stsl")


def _download(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "ON", "YES")
    if not offline:
        log.info("looking for %s in the cache and on the Hugging Face hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, local_files_only=offline))
    except GatedRepoError as error:
        raise PermissionError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub has no model {name!r} (or it is private: `hf auth login`), and there is no such folder here"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if offline:
            raise FileNotFoundError(
                f"{name} is not in the cache, and --offline forbids to fetch it. On a machine with a network run "
                f"`hf download {name}`, and copy the folder here or set HF_HOME"
            ) from error
        raise ConnectionError(
            f"the hub could not be reached to fetch {name!r} ({type(error).__name__}). With a network: "
            f"`hf download {name} --local-dir FOLDER`, then --prior FOLDER; behind a mirror set HF_ENDPOINT; "
            f"without any network use a built-in prior ({', '.join(builtin_names())})"
        ) from error


def _build(folder: Path, title: str, precision: Precision, device: torch.device) -> Prior:
    unet = _config(folder / "unet" / "config.json", "unet")
    scheduler = _config(folder / "scheduler" / "scheduler_config.json", None)
    index = folder / "model_index.json"
    if index.exists():
        _config(index, None)
    if unet["_class_name"] == "UNet2DModel":
        from diffusers import UNet2DModel

        from stsl.priors.pixel import PixelPrior

        network = _load(UNet2DModel, folder / "unet", unet)
        with _as_value_error(folder):
            prior: Prior = PixelPrior(network, scheduler, name=title, precision=precision)
        return prior.to(device=device)

    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel

    from stsl.priors.latent import LatentPrior

    vae = _config(folder / "vae" / "config.json", "vae")
    text = _config(folder / "text_encoder" / "config.json", "text_encoder")
    parts = (
        _load(UNet2DConditionModel, folder / "unet", unet),
        _load(AutoencoderTiny if vae["_class_name"] == "AutoencoderTiny" else AutoencoderKL, folder / "vae", vae),
        _load(CLIPTextModel, folder / "text_encoder", text),
        _tokenizer(folder / "tokenizer"),
    )
    # Channels last is what convolutions of half precision are fast in; the values are the same.
    for network in parts[:2]:
        network.to(device=device, memory_format=torch.channels_last)
    with _as_value_error(folder):
        prior = LatentPrior(*parts, scheduler, name=title, precision=precision)
    return prior.to(device=device)


@contextmanager
def _as_value_error(folder: Path) -> Iterator[None]:
    """Missing or unfit config entries become one readable error."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the configs of {folder} do not describe a prior stsl knows: {error}") from error


def _config(path: Path, part: str | None) -> dict[str, Any]:
    """A part's config, after it was checked to ask for nothing but known classes.

    Raises:
        FileNotFoundError, ValueError: missing, not JSON, too large, or asking for code.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a prior is a folder in diffusers layout: model_index.json, unet/, scheduler/, and for a "
            "latent one vae/, text_encoder/, tokenizer/"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a config has at most {MAX_CONFIG_BYTES}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object")
    for key in CODE_KEYS:
        if key in config:
            raise ValueError(f"{path} asks to run code of the model folder ({key}); stsl loads weights, never code")
    if part is not None:
        given = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
        if given not in CLASSES[part]:
            raise ValueError(f"{path} asks for class {given!r}; stsl loads {' or '.join(CLASSES[part])} as {part}")
        config["_class_name"] = given
    if path.name == "model_index.json":
        _check_index(path, config)
    return config


def _check_index(path: Path, index: Mapping[str, Any]) -> None:
    if not str(index.get("_class_name", "")).isidentifier():
        raise ValueError(f"{path} asks for a custom pipeline class ({index.get('_class_name')!r}); stsl runs no code of folders")
    for part, value in index.items():
        if isinstance(value, list) and value and value[0] not in (None, "diffusers", "transformers", "stable_diffusion"):
            raise ValueError(f"{path} asks for {part} from {value[0]!r}; only classes of diffusers and transformers are loaded")


def _load(model: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """Load one part from safetensors, float32, after its files were checked.

    Raises:
        FileNotFoundError, ValueError: no safetensors, a damaged file, weights of other shapes.
    """
    _check_weights(folder)
    variant = "fp16" if not any(_stem(f) in ("model", "diffusion_pytorch_model") for f in folder.glob("*.safetensors")) else None
    previous = os.environ.get("DIFFUSERS_DISABLE_REMOTE_CODE")
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            network, report = model.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                variant=variant,
                torch_dtype=torch.float32,
                output_loading_info=True,
                low_cpu_mem_usage=False,
            )
    except (RuntimeError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {str(error).strip()}") from error
    finally:
        if previous is None:
            del os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"]
        else:
            os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = previous
    wrong = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the weights in {folder} do not fit its config.json: {wrong[0]}{more} missing or of another shape")
    return network


def _stem(file: Path) -> str:
    """`model` of model.safetensors and of model-00001-of-00002.safetensors."""
    return file.name.removesuffix(".safetensors").split("-0")[0]


def _check_weights(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        unsafe = [f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(pattern)]
        if unsafe:
            raise ValueError(
                f"{folder} has only {', '.join(unsafe)}: pickle files can run code when they are loaded. stsl loads "
                "safetensors; fetch the safetensors variant, or convert the file on a machine you can spare"
            )
        raise FileNotFoundError(f"{folder} has no .safetensors file")
    for index in folder.glob("*.index.json"):
        named = set(_config(index, None).get("weight_map", {}).values())
        for name in named:
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise ValueError(f"{index} names the shard {name!r}, which is outside its folder")
            if name.endswith(".safetensors") and not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: {index.name} lists it")
    for file in weights:
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or not safetensors ({error}); fetch it again") from error


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; a text-conditional prior needs its CLIP tokenizer")
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = _config(path, None)
        if (given := config.get("tokenizer_class")) not in (None, *CLASSES["tokenizer"]):
            raise ValueError(f"{path} asks for class {given!r}; stsl loads {' or '.join(CLASSES['tokenizer'])}")
    try:
        with _quiet():
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read (needs vocab.json and merges.txt): {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and remarks of the two loaders, and give their settings back."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    loggers = (diffusers_log, transformers_log)
    levels = [module.get_verbosity() for module in loggers]
    bars = [module.is_progress_bar_enabled() for module in loggers]
    for module in loggers:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level, bar in zip(loggers, levels, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()
