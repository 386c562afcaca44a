"""Pictures that the page shows beside a result."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from stsl import images
from stsl.images import Box, Photo
from stsl.shapes import Image, Tensor

SHOWN = 1280  # pixels of the longer side of what is only looked at
SMALLEST = 256  # measurements smaller than this are shown enlarged, each pixel a square
FRAME = (0.95, 0.35, 0.15)


def shown(x: Image, side: int = SHOWN) -> Image:
    """An image no larger than a screen needs."""
    scale = side / max(x.shape[2:])
    if scale >= 1:
        return x
    size = [max(1, round(length * scale)) for length in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def enlarged(x: Image) -> Image:
    """A small picture with its pixels as squares."""
    factor = -(-SMALLEST // min(x.shape[2:]))
    return x if factor <= 1 else x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def on_white(photo: Photo) -> Image:
    """A photo as a browser would show it: what is transparent is white."""
    return photo.x if photo.alpha is None else photo.alpha * photo.x + (1 - photo.alpha)


def before(photo: Photo, size: tuple[int, int]) -> Image:
    """A photo as large as its result, for a comparison."""
    x = on_white(photo)
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def framed(photo: Photo, box: Box) -> Image:
    """A photo with a frame around a part of it, and the rest paler."""
    x = enlarged(shown(on_white(photo)))
    height, width = x.shape[2:]
    scale = max(height, width) / max(photo.size)
    rows = np.clip([round(box.top * scale), round((box.top + box.height) * scale)], 0, height)
    columns = np.clip([round(box.left * scale), round((box.left + box.width) * scale)], 0, width)
    inside = torch.zeros(1, 1, height, width)
    inside[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 1
    line = max(2, round(max(height, width) / 200))
    core = -F.max_pool2d(-F.pad(inside, (line,) * 4), 2 * line + 1, stride=1)
    colour = torch.tensor(FRAME)[None, :, None, None]
    paler = torch.where(inside > 0, x, 0.55 * x + 0.45)
    return torch.where((inside > 0) & (core < 1), colour, paler)


def difference(y: Tensor, again: Tensor, expected: float | None) -> tuple[Image, float]:
    """|y - A(x)|, brightened, and the difference that is white: four times the noise, or a tenth."""
    white = max(4 * expected, 4 / 255) if expected else 0.1
    return ((y - again).abs() / white).clamp(0, 1), white


def without_exif(photo: Photo) -> Photo:
    """A photo that does not say where and when it was taken."""
    return replace(photo, exif=b"")


def mask_from_layers(layers: list[np.ndarray], size: tuple[int, int]) -> Tensor | None:
    """What was painted over a photo, at the photo's own size.

    Args:
        layers: RGBA, (h, w, 4), as the editor hands them over: the photo's copy, at any scale.
        size: (height, width) of the photo, upright.

    Returns:
        (1, 1, H, W), 1 where something was painted; None where nothing was.

    Raises:
        ValueError: a layer has other proportions than the photo.
    """
    painted = torch.zeros(1, 1, *size)
    for layer in layers:
        if layer.ndim != 3 or layer.shape[2] != 4:
            raise ValueError(f"a painted layer has red, green, blue and alpha, this one the shape {layer.shape}")
        height, width = layer.shape[:2]
        if abs(width * size[0] - height * size[1]) > max(width + size[1], height + size[0]):
            raise ValueError(
                f"what was painted has {width} x {height} pixels, and the photo {size[1]} x {size[0]}: other "
                "proportions; upload the photo again"
            )
        alpha = torch.from_numpy(np.ascontiguousarray(layer[..., 3])).float()[None, None]
        painted = torch.maximum(painted, F.interpolate(alpha, size=size, mode="nearest-exact"))
    hole = (painted > 127).float()
    return hole if hole.any() else None


def write_mask(path: Path, hole: Tensor) -> None:
    """Write a mask as `images.read_mask` reads it: white is the hole."""
    images.write(path, hole)


def pixels(x: Image) -> np.ndarray:
    """An image as bytes, (H, W, 3)."""
    x = x.detach().cpu().float().clamp(0, 1).expand(-1, 3, -1, -1)
    return (255 * x[0]).round().byte().permute(1, 2, 0).contiguous().numpy()
