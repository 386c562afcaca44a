"""Faces for the measurements in this folder: read from a Parquet file of the user's, never shipped."""

import io
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def read_faces(
    path: Path, colour: int | None, grey: int | None, emotion: str | None = None
) -> tuple[Tensor, tuple[str, ...], list[bool]]:
    """The first colour and the first grey faces of a file with columns `image` (bytes) and `color`.

    Args:
        path: of the file.
        colour, grey: how many of each; None takes all.
        emotion: only those with this label in the column `emotion`.

    Returns:
        images (B, 3, H, W) in [0, 1], an id for each, and whether each is in colour; colour ones first.
    """
    columns = ["image", "color", *(["emotion"] if emotion else [])]
    table = parquet.read_table(path, columns=columns)
    found: dict[bool, list[tuple[int, bytes, bool]]] = {True: [], False: []}
    for index, (image, color, *label) in enumerate(zip(*(table[name] for name in columns), strict=True)):
        if not label or label[0].as_py() == emotion:
            found[color.as_py()].append((index, image.as_py()["bytes"], color.as_py()))
    rows = found[True][:colour] + found[False][:grey]
    if not rows or len(rows) < (colour or 0) + (grey or 0):
        which = f" labelled {emotion}" if emotion else ""
        raise SystemExit(f"{path} has {len(found[True])} colour and {len(found[False])} grey faces{which}")
    images = [pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255 for _, data, _ in rows]
    return torch.stack(images), tuple(f"{path.stem}-{i}" for i, *_ in rows), [is_colour for *_, is_colour in rows]
