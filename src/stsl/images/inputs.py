"""Which files a command line means, and where their results go."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsl.images.photo import FORMATS

MEASUREMENT = ".safetensors"
OPERATOR_ENDING = "_operator.safetensors"


@dataclass(frozen=True)
class Source:
    """A file to restore, and its place relative to the folder that was given."""

    path: Path
    relative: Path


def find(inputs: Sequence[str | Path]) -> list[Source]:
    """Files, folders (with everything below them) and globs, in order, each file once.

    In folders, photos and measurement files count; hidden files, operator files and anything else do not.

    Raises:
        FileNotFoundError: something given matches no file, or a folder has none.
        PermissionError: a folder cannot be read.
    """
    found: dict[Path, Source] = {}
    for given in inputs:
        sources = list(_expand(str(given)))
        if not sources:
            raise FileNotFoundError(
                f"{given}: no such file or folder, no match, or no photo in it ({', '.join(FORMATS)}, or {MEASUREMENT})"
            )
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    if not found:
        raise FileNotFoundError("nothing to restore: give photos, folders or globs")
    return list(found.values())


def _expand(given: str) -> Iterator[Source]:
    path = Path(given).expanduser()
    if path.is_file():
        yield Source(path, Path(path.name))
    elif path.is_dir():
        yield from _folder(path)
    else:
        for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - also absolute patterns
            if Path(match).is_file():
                yield Source(Path(match), Path(Path(match).name))


def _folder(folder: Path) -> Iterator[Source]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            is_measurement = name.endswith(MEASUREMENT) and not name.endswith(OPERATOR_ENDING)
            if not name.startswith(".") and (path.suffix.lower() in FORMATS or is_measurement):
                yield Source(path, path.relative_to(folder))


def outputs(sources: Sequence[Source], folder: Path) -> list[Path]:
    """Where each result goes: `folder`, then the source's relative place and name; measurements become PNG.

    Two results never share a name, whatever the letters' case: the second gets "-2", in the order given.

    Raises:
        ValueError: a result would replace one of the sources.
    """
    originals = {source.path.resolve() for source in sources}
    taken: set[str] = set()
    targets = []
    for source in sources:
        plain = folder / source.relative
        if plain.suffix.lower() not in FORMATS:
            plain = plain.with_suffix(".png")
        target, number = plain, 1
        while str(target).casefold() in taken:
            number += 1
            target = plain.with_stem(f"{plain.stem}-{number}")
        taken.add(str(target).casefold())
        if target.resolve() in originals:
            raise ValueError(f"the result of {source.path} would replace it: give another folder by --out")
        targets.append(target)
    return targets


def safe_stem(name: str) -> str:
    """A name as part of a file name: no separators, control characters or leading dots; never empty."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name).strip().lstrip(".") or "image"
