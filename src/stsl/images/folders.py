"""Which files to work on, and what the results are called."""

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stsl.images.writing import FORMATS

MEASUREMENT = ".safetensors"
# Inside folders these belong to a photo and are none: operators that `stsl degrade` wrote.
NO_PHOTO = "_operator.safetensors"
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # device names on Windows
LONGEST_STEM = 200  # bytes; systems take 255, and words and suffixes follow


@dataclass(frozen=True)
class Source:
    """A file to work on.

    Args:
        path: where it is.
        relative: its place below the folder or glob that was given, or its name; results mirror it.
    """

    path: Path
    relative: Path


def find(inputs: Sequence[str | Path], *, skip: Path | None = None) -> list[Source]:
    """Every photo and measurement file among files, folders (with their sub-folders) and globs.

    In the order given, inside a folder by name; each file once. Hidden files and other kinds are passed over in folders
    and globs; a file named itself is always taken.

    Args:
        inputs: paths or globs; a path that exists is no glob, whatever signs are in it.
        skip: a folder not to search, such as that of the results; a file named itself is taken from there, too.

    Raises:
        FileNotFoundError: an input does not exist, a glob matches nothing, or a folder has no photo.
        ValueError: nothing given.
        OSError: a folder cannot be read.
    """
    if not inputs:
        raise ValueError("no input: give photos, folders or globs")
    skipped = None if skip is None else skip.resolve()
    sources: dict[Path, Source] = {}
    for given in inputs:
        named = Path(given).is_file()
        found = [source for source in _expand(Path(given)) if named or not _is_below(source.path, skipped)]
        if not found:
            raise FileNotFoundError(f"{given} holds no photo: looked for {', '.join([*FORMATS, MEASUREMENT])}")
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    return list(sources.values())


def outputs(sources: Sequence[Source], folder: Path) -> list[Path]:
    """A distinct path below `folder` for the result of each source, in the same order.

    Sub-folders, names and formats stay; a measurement file gives a PNG. Sources whose results would have one stem get
    their suffix into it (a.png, a.jpg: a_png.png, a_jpg.jpg), and a number if that is not enough. Upper and lower case
    count as equal, as they do on some disks.

    Raises:
        ValueError: a result would take the place of one of the sources.
    """
    stems = Counter(_folded(source.relative.with_suffix("")) for source in sources)
    taken: set[str] = set()
    paths = []
    for source in sources:
        name = source.relative
        suffix = name.suffix if name.suffix.lower() in FORMATS else ".png"
        stem = safe_stem(name.stem)
        if stems[_folded(name.with_suffix(""))] > 1 and name.suffix:
            stem = f"{stem}_{name.suffix[1:].lower()}"
        number, target = 1, name.with_name(stem)
        while _folded(target) in taken:
            number += 1
            target = name.with_name(f"{stem}-{number}")
        taken.add(_folded(target))
        paths.append(folder / target.with_name(target.name + suffix))
    originals = {source.path.resolve() for source in sources}
    for path in paths:
        if path.resolve() in originals:
            raise ValueError(
                f"the result {path} would overwrite a photo that was given: choose another folder by --out"
            )
    return paths


def safe_stem(name: str) -> str:
    """A file name without folders or suffix that every system accepts, as near to `name` as that allows."""
    short = name.strip(" .").encode("utf-8", "replace")[:LONGEST_STEM].decode("utf-8", "ignore")
    stem = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", short).strip(" .")
    return f"_{stem}" if not stem or RESERVED.fullmatch(stem) else stem


def _expand(given: Path) -> Iterator[Source]:
    if given.is_dir():
        yield from _walk(given, given)
    elif given.exists():
        yield Source(given, Path(given.name))
    elif glob.has_magic(str(given)):
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(f"{given} matches no file (searched from {Path.cwd()})")
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), given.parts))
        for match in matches:
            if match.is_dir():
                yield from _walk(match, root)
            elif _is_photo(match.name):
                yield Source(match, match.relative_to(root))
    else:
        there = [path.name for path in given.parent.iterdir()] if given.parent.is_dir() else []
        near = difflib.get_close_matches(given.name, there, 1)
        hint = f"; did you mean {given.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"{given} does not exist{hint}")


def _walk(folder: Path, root: Path) -> Iterator[Source]:
    def stop(error: OSError) -> None:
        raise type(error)(f"folder {error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_photo(name):
                path = Path(parent, name)
                yield Source(path, path.relative_to(root))


def _is_photo(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return not name.startswith(".") and not name.endswith(NO_PHOTO) and (suffix in FORMATS or suffix == MEASUREMENT)


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder)


def _folded(path: Path) -> str:
    return path.as_posix().casefold()
