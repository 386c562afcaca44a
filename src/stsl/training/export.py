"""Model folders as diffusers and transformers write them, safetensors only, in files of at most 15 MB."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from torch import nn

from stsl.files import atomic, make_ordinary, sha256
from stsl.priors.folder import WEIGHTS

SHARD = "15MB"
SUMS = "SHA256SUMS"


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A folder to write into whose files take their places in `folder` when the block ends well.

    Weights of an earlier training that have other names, being in one file or in another number of files, go: readers
    would take them for the new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as name, _silent():
        yield Path(name)
        made = sorted(path for path in Path(name).rglob("*") if path.is_file())
        kept = {folder / file.relative_to(name) for file in made}
        for home in {file.parent for file in kept if file.suffix == ".safetensors"}:
            for stem in set(WEIGHTS.values()):
                for old in {*home.glob(f"{stem}.safetensors*"), *home.glob(f"{stem}-*-of-*.safetensors")} - kept:
                    old.unlink()
        for file in made:
            if file.suffix == ".json":
                _forget_origin(file)
            make_ordinary(file)
            target = folder / file.relative_to(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


@contextmanager
def stored_as(networks: Mapping[str, nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """The networks with weights of another type, for as long as they are written."""
    own = [(weight, weight.data) for network in networks.values() for weight in network.parameters()]
    try:
        for weight, data in own:
            weight.data = data.to(dtype)
        yield
    finally:
        for weight, data in own:
            weight.data = data


def sign(folder: Path) -> None:
    """Write the SHA-256 of every file that is loaded from a model folder, as `sha256sum --check` reads it."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    mine = [path for path in files if not any(map(_is_apart, path.relative_to(folder).parts))]
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in mine]
    with atomic(folder / SUMS) as target:
        target.write_text("".join(lines), encoding="utf-8")


def _is_apart(name: str) -> bool:
    """Whether a folder is none of the model: the training's, or one that a killed training was writing."""
    return name == "training" or name.startswith(".tmp-")


def _forget_origin(config: Path) -> None:
    """Take out where on this machine a network was loaded from, which diffusers writes down."""
    content = json.loads(config.read_text("utf-8"))
    if "_name_or_path" in content:
        del content["_name_or_path"]
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bars of `save_pretrained`."""
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
