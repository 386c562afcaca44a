"""The pictures to learn from: read once from a folder, a Parquet file or the hub, kept as bytes on disk."""

import csv
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stsl import images
from stsl.files import atomic
from stsl.options import nearest
from stsl.priors.load import is_hub_id
from stsl.shapes import Image

log = logging.getLogger("stsl")

NAMED = 5  # bad files that are named in the report; the rest are counted

Row = tuple[str, bytes | Path, dict[str, str]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Square pictures of one size and what is known about each.

    Args:
        pixels: shape (N, 3, size, size), 8 bits, a file mapped into memory.
        columns: the data's columns, N texts each; an unknown value is "".
        key: SHA-256 of the pixels and columns.
    """

    pixels: np.ndarray
    columns: Mapping[str, Sequence[str]]
    key: str

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, rows: Tensor) -> Image:
        """Pictures as images in [0, 1], shape (B, 3, size, size)."""
        return torch.from_numpy(self.pixels[rows.numpy()]).float() / 255

    def row(self, index: int) -> dict[str, str]:
        """What is known about one picture."""
        return {name: values[index] for name, values in self.columns.items()}


def prepare(data: str | Path, size: int, folder: Path) -> Iterator[tuple[int, int | None] | Pictures]:
    """Read every picture once: the largest square in its middle, scaled to `size`.

    Bad files, and pictures smaller than `size`, are skipped and reported. What was read is kept in `folder`, so that
    the next call with the same data takes no time.

    Args:
        data: a folder with pictures in it or below it, and maybe a `metadata.csv` with a column `file_name`; a Parquet
            file with a column `image`; or the hub id of a data set, of which the split `train` is used.
        size: side in pixels.
        folder: where to keep the pixels.

    Yields:
        (pictures read, pictures in all or None) now and then, and the `Pictures` at the end.

    Raises:
        FileNotFoundError: there is no such data.
        ValueError: no usable picture in it.
    """
    stamp = _stamp(data)
    kept = folder / "pictures.json"
    if kept.is_file() and (facts := json.loads(kept.read_text("utf-8")))["stamp"] == [stamp, size]:
        yield _mapped(folder, size, facts)
        return
    digest, names, columns, bad = hashlib.sha256(), list[str](), list[dict[str, str]](), dict[str, str]()
    with atomic(folder / "pictures.bin") as target, target.open("wb") as file:
        for seen, (name, source, row) in enumerate(_rows(data)):
            try:
                pixels = _square(source, name, size)
            except (ValueError, OSError) as error:
                bad[name] = str(error)
                continue
            file.write(pixels)
            digest.update(pixels)
            names.append(name)
            columns.append(row)
            if seen % 50 == 0:
                yield seen + 1, None
        _report(data, bad, len(names))  # while what was kept of other data is still there
        kept.unlink(missing_ok=True)
    known = dict.fromkeys(key for row in columns for key in row)
    table = {key: [row.get(key, "") for row in columns] for key in known}
    digest.update(json.dumps(table).encode())
    facts = {"stamp": [stamp, size], "key": digest.hexdigest(), "names": names, "columns": table, "bad": bad}
    with atomic(kept) as target:
        target.write_text(json.dumps(facts), encoding="utf-8")
    yield _mapped(folder, size, facts)


def _mapped(folder: Path, size: int, facts: Mapping[str, Any]) -> Pictures:
    shape = (len(facts["names"]), 3, size, size)
    pixels = np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r", shape=shape)
    return Pictures(pixels, facts["columns"], facts["key"])


def _report(data: str | Path, bad: Mapping[str, str], good: int) -> None:
    if bad:
        log.warning("%d of %d pictures of %s were skipped:", len(bad), len(bad) + good, data)
        for name, error in list(bad.items())[:NAMED]:
            log.warning("  %s", error if name in error else f"{name}: {error}")
        if len(bad) > NAMED:
            log.warning("  and %d more; all are listed in pictures.json", len(bad) - NAMED)
    if not good:
        why = f": all {len(bad)} were skipped, the first because {next(iter(bad.values()))}" if bad else ""
        raise ValueError(f"{data} has no picture to learn from{why}")


def _square(source: bytes | Path, name: str, size: int) -> bytes:
    photo = images.read(source) if isinstance(source, Path) else images.decode(source, Path(name))
    height, width = photo.size
    if min(height, width) < size:
        raise ValueError(f"{name} has {width} x {height} pixels (width x height), and {size} x {size} are needed")
    return (images.square(photo, size)[0] * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()


def _rows(data: str | Path) -> Iterator[Row]:
    path = Path(data)
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        yield from _parquet(path)
    else:
        yield from _hub(str(data))


def _stamp(data: str | Path) -> list[Any]:
    """Changes when the data does, and is quick to make.

    Raises:
        FileNotFoundError, ValueError: there is no such data.
    """
    path = Path(data)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"{path} is no data to learn from: give a folder of pictures, a .parquet file or a hub id")
        return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    if path.is_dir():
        found = [source.path for source in _photos(path)] + list(path.glob("metadata.csv"))
        digest = hashlib.sha256()
        for file in found:
            digest.update(f"{file}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n".encode())
        return [str(path.resolve()), len(found), digest.hexdigest()]
    if isinstance(data, Path) or not is_hub_id(data):
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"{data} does not exist{nearest(path.name, near)}; give a folder of pictures, a .parquet file or the hub "
            "id owner/name of a data set"
        )
    return [data]


def _photos(folder: Path) -> list[images.Source]:
    return [source for source in images.find([folder]) if source.path.suffix != ".safetensors"]


def _folder(folder: Path) -> Iterator[Row]:
    """Pictures by name. A picture in a sub-folder has that folder's name as its `label`."""
    table = folder / "metadata.csv"
    facts: dict[str, dict[str, str]] = {}
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file_name" not in (reader.fieldnames or ()):
                raise ValueError(f"{table} has the columns {', '.join(reader.fieldnames or ())}; it needs file_name")
            facts = {row.pop("file_name") or "": {k: v or "" for k, v in row.items() if k} for row in reader}
    for source in _photos(folder):
        name = source.relative.as_posix()
        label = {} if source.relative.parent == Path() else {"label": source.relative.parent.as_posix()}
        yield name, source.path, label | facts.pop(name, {})
    if facts:
        log.warning(
            "%s has rows for %d files that are no pictures of this folder, such as %s", table, len(facts), min(facts)
        )


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has its own kinds
        raise ValueError(f"{path} is not a Parquet file, or is damaged: {error}") from error
    columns = file.schema_arrow.names
    if "image" not in columns:
        raise ValueError(f"{path} has the columns {', '.join(columns)}; it needs one called image")
    index = 0
    for batch in file.iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield *_picture(row.pop("image"), f"{path.stem}-{index}"), _texts(row)
            index += 1


def _hub(name: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('a data set of the hub needs the extra: pip install "stsl[train]"') from error
    try:
        table = datasets.load_dataset(name, split="train")
    except Exception as error:  # datasets and the hub have many kinds
        raise ValueError(f"the data set {name!r} cannot be loaded from the hub: {error}") from error
    if "image" not in table.column_names:
        raise ValueError(f"the data set {name!r} has the columns {', '.join(table.column_names)}; it needs image")
    table = table.cast_column("image", datasets.Image(decode=False))
    classes = {key: kind.names for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    for index, row in enumerate(table):
        cell = row.pop("image")
        title, source = _picture(cell, f"{name}-{index}")
        # Pictures that are files in the hub's repository are files in its cache; their bytes are not in the table.
        path = cell.get("path") if isinstance(cell, Mapping) and not source else None
        labels = {key: (None if row[key] in (None, -1) else names[row[key]]) for key, names in classes.items()}
        yield title, Path(path) if path else source, _texts(row | labels)


def _picture(cell: Any, name: str) -> tuple[str, bytes]:
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return name, data if isinstance(data, bytes) else b""


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Plain values as text; true and false as in JSON."""
    plain = {key: value for key, value in row.items() if value is None or isinstance(value, str | int | float)}
    return {
        key: "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
        for key, value in plain.items()
    }
