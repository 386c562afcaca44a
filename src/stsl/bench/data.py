"""The pictures of a benchmark: from a folder, a Parquet file or the layouts of FFHQ, ImageNet and COCO."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stsl import images
from stsl.bench.suite import Data
from stsl.images import Photo

RESIZE = "largest square in the middle, bicubic with antialiasing"
PARQUET = ".parquet"
# WordNet ids of parts of ImageNet: its 118 breeds of dogs, n02085620 (Chihuahua) to n02113978 (Mexican hairless), and
# its five domestic cats, n02123045 (tabby) to n02124075 (Egyptian cat).
BREEDS = {"dogs": (2085620, 2113978), "cats": (2123045, 2124075)}
# Labels in a column `emotion`.
EMOTIONS = {"neutral": "neutral", "smiling": "happiness"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is read when it is asked for.

    Args:
        id: what it is called in results; its noise, mask and kernel are drawn for this name.
        source: where it comes from.
        load: reads it.
        tag: colour or grey, where the data say so; None asks the pixels.
    """

    id: str
    source: str
    load: Callable[[], Photo]
    tag: str | None = None


def find_pictures(path: Path, wanted: Data, limit: int | None = None) -> list[Picture]:
    """The pictures of a table, from the user's copy of a data set.

    Args:
        path: a folder or a Parquet file. A file is taken row by row; with a column `color`, colour and grey in turns.
        wanted: the data of the suite. A folder is looked at in the layout it names, or in any other as it lies.
        limit: at most so many of them.

    Raises:
        FileNotFoundError: nothing there, or too few pictures for the table; the message says what to place where.
    """
    if path.suffix == PARQUET:
        found: Sequence[Picture] = _parquet(path, EMOTIONS.get(wanted.only or ""))
    elif path.is_dir():
        found = _folder(path, wanted)
    else:
        raise FileNotFoundError(
            f"no data at {path}: give a folder of pictures or a .parquet file. {what_to_place(wanted)}"
        )
    if not found:
        raise FileNotFoundError(f"{path} has no picture for this table. {what_to_place(wanted)}")
    count = wanted.images if limit is None else min(limit, wanted.images)
    if limit is None and len(found) < count:
        raise FileNotFoundError(
            f"{path} has {len(found)} pictures where this table takes {count}; --limit {len(found)} takes what is "
            f"there. {what_to_place(wanted)}"
        )
    if wanted.choose == "random" and path.suffix != PARQUET:
        found = sorted(found, key=lambda picture: _draw(wanted.seed, picture.id))
    return list(found[:count])


def what_to_place(wanted: Data) -> str:
    """Which files a table needs, and where."""
    if wanted.layout == "ffhq":
        return (
            "FFHQ: the PNGs of images1024x1024 (00000.png to 69999.png, in one folder or in folders of a thousand), "
            "from github.com/NVlabs/ffhq-dataset"
        )
    if wanted.layout == "imagenet":
        ends = BREEDS.get(wanted.only or "")
        part = f" of the {wanted.only} (n{ends[0]:08} to n{ends[1]:08}), in folders by class" if ends else ""
        return (
            f"ImageNet: the validation pictures{part} (ILSVRC2012_val_*.JPEG, in one folder or in folders by class) "
            "from image-net.org; the papers' ctest10k.txt, one name per line, beside them where you have it"
        )
    if wanted.layout == "coco":
        return "COCO: the folder val2017 with its 5000 JPEGs, from cocodataset.org"
    part = f" that show {wanted.only} faces (with a column emotion, those are chosen)" if wanted.only else ""
    return (
        f"Faces: any folder of pictures, or a Parquet file with a column image{part}; without --data the built-in ones"
    )


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()


def _folder(path: Path, wanted: Data) -> list[Picture]:
    inner = {"coco": "val2017", "ffhq": "images1024x1024", "imagenet": "val"}.get(wanted.layout, "")
    root = path / inner if inner and (path / inner).is_dir() else path
    try:
        sources = images.find([root])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {what_to_place(wanted)}") from error
    sources = [source for source in sources if source.path.suffix != ".safetensors"]
    if ends := BREEDS.get(wanted.only or ""):
        sources = [source for source in sources if _is_among(source.path, ends)]
    listed = next((file for file in (path / "ctest10k.txt", root / "ctest10k.txt") if file.is_file()), None)
    if wanted.layout == "imagenet" and listed is not None:
        names = {Path(line.split()[0]).stem for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
        sources = [source for source in sources if source.path.stem in names]
    ids = _names([source.relative for source in sources])
    return [
        Picture(name, str(source.path), lambda file=source.path: images.read(file))  # type: ignore[misc]
        for name, source in zip(ids, sources, strict=True)
    ]


def _is_among(path: Path, ends: tuple[int, int]) -> bool:
    number = path.parent.name.removeprefix("n")
    return number.isdigit() and ends[0] <= int(number) <= ends[1]


def _names(paths: Iterable[Path]) -> list[str]:
    """A distinct, safe name for each file: its own, with its folders where two are called the same."""
    paths = list(paths)
    short = [images.safe_stem(path.stem) for path in paths]
    twice = {name for name, count in Counter(short).items() if count > 1}
    names = [
        images.safe_stem("_".join(path.with_suffix("").parts) + f"_{path.suffix[1:].lower()}")
        if name in twice
        else name
        for name, path in zip(short, paths, strict=True)
    ]
    return names if len(set(names)) == len(names) else [f"{name}-{place}" for place, name in enumerate(names)]


def _parquet(path: Path, emotion: str | None) -> list[Picture]:
    import pyarrow
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        columns = parquet.read_schema(path).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    if "image" not in columns:
        raise ValueError(f"{path} has no column image; it has {', '.join(columns)}")
    table = parquet.read_table(path, columns=[name for name in ("image", "color", "emotion") if name in columns])
    order = list(range(table.num_rows))
    if emotion is not None and "emotion" in columns:
        shown = table["emotion"].to_pylist()
        order = [i for i in order if shown[i] == emotion]
    tags: dict[int, str] = {}
    if "color" in columns:
        colour = table["color"].to_pylist()
        tags = {i: "colour" if colour[i] else "grey" for i in order}  # lossy files of grey pictures are not quite grey
        kinds = [[i for i in order if colour[i]], [i for i in order if not colour[i]]]
        shorter = min(map(len, kinds))
        order = [i for pair in zip(*kinds, strict=False) for i in pair] + kinds[0][shorter:] + kinds[1][shorter:]

    def load(row: int) -> Photo:
        cell: Any = table["image"][row].as_py()
        return images.decode(cell["bytes"] if isinstance(cell, dict) else cell, Path(f"{path}#{row}"))

    stem = images.safe_stem(path.stem)
    return [
        Picture(f"{stem}-{i}", f"{path}#{i}", lambda row=i: load(row), tags.get(i))  # type: ignore[misc]
        for i in order
    ]
