"""What a result depends on, as hashes: the prior's files, the code, and a unit of work."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stsl.files import sha256
from stsl.priors.folder import CONFIGS, Folder
from stsl.priors.load import builtin_folder, builtin_names, download, is_hub_id

# Of the package, what no result depends on.
NO_METHOD = ("bench", "cli", "app", "exact", "training", "photos.py", "estimate.py", "__main__.py")


@dataclass(frozen=True)
class PriorChoice:
    """Which prior, and what it computes with: what `load_prior` takes, picklable."""

    name: str
    device: str | None = None
    precision: str = "auto"
    offline: bool = False


@dataclass(frozen=True)
class PriorFiles:
    """A prior as it lies on disk: its side in pixels, "latent" or "pixel", and a hash of its weights and configs."""

    side: int
    family: str
    hash: str


def prior_files(choice: PriorChoice) -> PriorFiles:
    """Find a prior's files, from the hub where they are not here yet, and read what the driver must know.

    Raises:
        FileNotFoundError, ValueError, PermissionError, ConnectionError: as `load_prior`; nothing of that name says
            what to place where.
    """
    folder = prior_folder(choice)
    files = Folder(folder)
    unet = files.config("unet")
    side, family = unet["sample_size"], "pixel" if unet["_class_name"] == "UNet2DModel" else "latent"
    side = side if isinstance(side, int) else side[0]
    if family == "latent":
        vae = files.config("vae")
        side *= 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)
    return PriorFiles(side, family, _hash_of(folder.resolve(), choice.precision))


def prior_folder(choice: PriorChoice) -> Path:
    """Where a prior's files are, fetched from the hub where they are not here yet.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: as `prior_files`.
    """
    name = choice.name
    if name in builtin_names():
        return builtin_folder() / name
    if Path(name).is_dir():
        return Path(name)
    if is_hub_id(name):
        return download(name, None, choice.offline, instead="or give a folder by --prior BLOCK=FOLDER")
    raise FileNotFoundError(
        f"no prior {name!r} here (built in are {', '.join(builtin_names())}): give a folder in diffusers layout or "
        "a hub id by --prior BLOCK=NAME"
    )


@cache
def _hash_of(folder: Path, precision: str) -> str:
    found = {folder / name for name in CONFIGS} | set(folder.rglob("*.safetensors"))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in found if path.is_file()}
    return digest({"files": files, "precision": precision})


def unit_key(sampler: str, settings: dict[str, Any], seed: int, measurement: str, prior_hash: str) -> str:
    """What a unit's result depends on beside the code: the same key is the same work, whatever table it stands in."""
    return digest([sampler, settings, seed, measurement, prior_hash])


@cache
def code_version() -> str:
    """The package's version and a hash of the files that results depend on."""
    root = Path(__file__).parents[1]
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in NO_METHOD or path == Path(__file__).with_name("inpainting.py")
    )
    return f"{version('stsl')}+{digest({path.relative_to(root).as_posix(): sha256(path) for path in paths})[:12]}"


def digest(facts: Any) -> str:
    """SHA-256 of plain values, written one way."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
