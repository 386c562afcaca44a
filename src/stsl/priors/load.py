"""From a name, a folder or a hub id to a prior."""

import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch

from stsl.files import sha256
from stsl.options import nearest
from stsl.priors.base import Precision, Prior
from stsl.priors.folder import CONFIGS, PRIOR, VARIANTS, Folder, weight_names
from stsl.priors.precision import pick_device, pick_precision

log = logging.getLogger("stsl")

DEFAULT = "faces-128"
TAESD = "madebyollin/taesd"


def builtin_folder() -> Path:
    """Where the weights that ship with the package are."""
    return Path(__file__).parent / "builtin"


def builtin_names() -> list[str]:
    """Names of the priors that ship with the package."""
    return sorted(path.parent.name for path in builtin_folder().glob("*/model_index.json"))


def load_prior(
    name: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision | Literal["auto"] = "auto",
    offline: bool = False,
    checkpointing: bool = False,
    decoder: str | Path = "full",
    compiled: bool = False,
) -> Prior:
    """Load a diffusion prior: one that ships with the package, a diffusers folder, or a hub id.

    >>> load_prior("faces-128")
    >>> load_prior("path/to/folder")
    >>> load_prior("stable-diffusion-v1-5/stable-diffusion-v1-5", revision="main")

    Only safetensors weights and known classes are loaded; no file of the folder is ever run.

    Args:
        name: built-in name, path of a folder, or hub id "owner/model", looked for in this order: where a folder and a
            hub id are called the same, the folder wins. A `Path` is always a folder.
        revision: commit, tag or branch of a hub id; a commit hash makes the run reproducible.
        device: None picks cuda, then mps, then cpu.
        precision: what the networks compute with; "auto" is bf16 where the hardware has it, fp32 elsewhere.
        offline: never touch the network; a hub id must already be in the cache. HF_HUB_OFFLINE=1 does the same.
        checkpointing: recompute activations in the backward pass: less memory, the same result, a third more time.
        decoder: "full", or what most steps decode with instead: "tiny" (TAESD, for Stable Diffusion 1.x and 2.x), a
            folder or a hub id with an `AutoencoderTiny`.
        compiled: run networks through `torch.compile`; worth its minutes where many images of one size follow.

    Raises:
        FileNotFoundError: nothing of that name, or a file is missing in the folder.
        ValueError: damaged or unsafe files, unknown classes, parts that do not fit together.
        PermissionError: the hub wants its terms accepted first.
        ConnectionError: the hub was needed and could not be reached.
    """
    chosen = pick_device(device)
    computes = pick_precision(precision, chosen)
    folder, title, commit = _find(name, revision, offline)
    # Under the caller's inference_mode the weights would be tensors that no gradient can pass.
    with torch.inference_mode(False):
        prior = _build(Folder(folder), title, commit, computes, chosen, checkpointing, compiled)
        if decoder != "full":
            prior = with_tiny(prior, decoder, offline=offline)
    log.info("prior %s%s on %s in %s", title, f" at {commit}" if commit else "", chosen, computes)
    return prior


def with_tiny(prior: Prior, decoder: str | Path = "tiny", *, offline: bool = False) -> Prior:
    """The prior with a tiny autoencoder for most of its steps; see `stsl.priors.tiny.TinyDecoder`.

    Args:
        prior: a latent one with a full autoencoder.
        decoder: "tiny" (TAESD, for Stable Diffusion 1.x and 2.x), a folder or a hub id with an `AutoencoderTiny`.
        offline: never touch the network.

    Raises:
        ValueError: the prior has no use for it, or the two do not fit.
        FileNotFoundError, PermissionError, ConnectionError: as for `load_prior`.
    """
    from stsl.priors.latent import LatentPrior
    from stsl.priors.tiny import TinyDecoder

    if not isinstance(prior, LatentPrior):
        raise ValueError(f"prior {prior.name!r} is one of pixels and decodes nothing: leave --decoder out")
    called = TAESD if decoder == "tiny" else str(decoder)
    if Path(called).is_dir():
        path = Path(called)
    elif is_hub_id(called):
        path = download(called, None, offline, parts=("vae",), instead="or leave --decoder out")
    else:
        raise FileNotFoundError(
            f"no decoder {called!r}: give full, tiny, or a folder or hub id with an AutoencoderTiny such as {TAESD}"
        )
    folder = Folder(path)
    config = folder.config("vae")
    if config["_class_name"] != "AutoencoderTiny":
        raise ValueError(f"{called} has an {config['_class_name']}; --decoder takes an AutoencoderTiny such as {TAESD}")
    tiny = folder.network("vae", config, prior.device)
    return TinyDecoder(prior, tiny, name=called)


def _find(name: str | Path, revision: str | None, offline: bool) -> tuple[Path, str, str | None]:
    """The folder of a name, what to call it, and the commit if it comes from the hub."""
    text, is_path = str(name), isinstance(name, Path)
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if text in builtin_names() and not is_path:
        folder = builtin_folder() / text
        verify(folder)
    elif text and path.is_dir():
        folder = path
    elif text and path.exists():
        raise ValueError(
            f"{text} is a file; a prior is a folder in diffusers layout with safetensors weights. diffusers makes one "
            "of a single-file checkpoint: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    elif not is_path and is_hub_id(text):
        folder = download(text, revision, offline, instead=f"or give a built-in prior ({', '.join(builtin_names())})")
        return folder, text, folder.name  # the cache calls a snapshot by its commit
    else:
        raise FileNotFoundError(
            f"no prior {text!r}{nearest(text, builtin_names())}; give a built-in one "
            f"({', '.join(builtin_names())}), the path of a diffusers folder, or a hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    if revision is not None:
        raise ValueError(f"prior {text!r} is a folder here and only hub ids have a revision: leave {revision!r} out")
    return folder, folder.resolve().name, None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form "owner/model"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def verify(folder: Path) -> None:
    """Compare a built-in model with its manifest.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or differs from what shipped.
    """
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the installed package; reinstall stsl")
        if sha256(file) != expected:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the one that shipped; reinstall stsl")


def download(
    name: str,
    revision: str | None,
    offline: bool,
    *,
    parts: tuple[str, ...] = PRIOR,
    configs: tuple[str, ...] = CONFIGS,
    instead: str,
) -> Path:
    """The hub's snapshot in the local cache, fetched as far as it is not there.

    Files are asked for by name, so neither pickles nor code are fetched, and of weights in several variants only one.

    Args:
        name, revision, offline: as for `load_prior`.
        parts: the networks that are wanted.
        configs: the files that are wanted beside weights.
        instead: the end of an error message: what would work without the hub.
    """
    from huggingface_hub import errors, is_offline_mode, snapshot_download

    # The error of the hub's HTTP client, which is another library from version to version.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    offline = offline or is_offline_mode()
    what = f"{name}{f' at revision {revision}' if revision else ''}"
    try:
        if offline:
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*configs], local_files_only=True))
        log.info("looking for %s on the Hugging Face hub and in its cache", what)
        lacking = [*parts]
        for variant in VARIANTS:
            wanted = [f for part in lacking for f in weight_names(part, variant)]
            nested = [f"{part}/{f}" for part in lacking for f in weight_names(part, variant)]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*configs, *wanted, *nested]))
            found = Folder(folder)
            lacking = [p for p in lacking if (found.home(p) / "config.json").is_file() and not found.weights(p)]
            if not lacking:
                break
        return folder
    except errors.GatedRepoError as error:
        raise PermissionError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r}; give a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub has no model {name!r} (or it is private: `hf auth login`), and there is no such folder here"
        ) from error
    except (errors.LocalEntryNotFoundError, HTTPError) as error:
        if offline:
            raise FileNotFoundError(
                f"{what} is not in the cache, and offline nothing is fetched. With a network run `hf download {name}`, "
                f"{instead}"
            ) from error
        raise ConnectionError(
            f"{what} is not in the cache, and the hub could not be reached ({type(error).__name__}). Behind a mirror "
            f"set HF_ENDPOINT; or run `hf download {name} --local-dir FOLDER` where there is a network and give that "
            f"folder; {instead}"
        ) from error


def _build(
    folder: Folder,
    title: str,
    commit: str | None,
    precision: Precision,
    device: torch.device,
    checkpointing: bool,
    compiled: bool,
) -> Prior:
    folder.check_index()
    scheduler, configs = folder.config("scheduler"), {"unet": folder.config("unet")}
    on_pixels = configs["unet"]["_class_name"] == "UNet2DModel"
    if not on_pixels:
        configs |= {part: folder.config(part) for part in ("vae", "text_encoder")}
    for part in configs:
        folder.tensors(part)  # a file that is missing or torn is found before gigabytes of the others are read
    settings: dict[str, Any] = {"name": title, "precision": precision, "commit": commit}
    settings |= {"checkpointing": checkpointing, "compiled": compiled}
    # Imported late: `stsl list` must not wait for diffusers and transformers.
    if on_pixels:
        from stsl.priors.pixel import PixelPrior

        unet = folder.network("unet", configs["unet"], device)
        return PixelPrior(unet, scheduler, **settings)

    from stsl.priors.latent import LatentPrior

    tokenizer = folder.tokenizer(configs["text_encoder"])
    unet, vae, text_encoder = (folder.network(part, config, device) for part, config in configs.items())
    return LatentPrior(unet, vae, text_encoder, tokenizer, scheduler, **settings)
