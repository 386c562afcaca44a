"""Faces for the measurements in this folder: read from a Parquet file of the user's, never shipped."""

import io
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def read_faces(path: Path, colour: int, grey: int) -> tuple[Tensor, tuple[str, ...], list[bool]]:
    """The first colour and the first grey faces of a file with columns `image` (bytes) and `color`.

    Returns:
        images (B, 3, H, W) in [0, 1], an id for each, and whether each is in colour; colour ones first.
    """
    table = parquet.read_table(path, columns=["image", "color"])
    found: dict[bool, list[tuple[int, bytes]]] = {True: [], False: []}
    for index, (image, color) in enumerate(zip(table["image"], table["color"], strict=True)):
        found[color.as_py()].append((index, image.as_py()["bytes"]))
    rows = [(i, b, True) for i, b in found[True][:colour]] + [(i, b, False) for i, b in found[False][:grey]]
    if len(rows) < colour + grey:
        raise SystemExit(f"{path} has {len(found[True])} colour and {len(found[False])} grey faces")
    images = [pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255 for _, data, _ in rows]
    return torch.stack(images), tuple(f"{path.stem}-{i}" for i, _, _ in rows), [is_colour for *_, is_colour in rows]
