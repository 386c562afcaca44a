"""What random tasks draw: the kernels of shaken cameras and the strokes of brushes.

Each function takes NumPy's generator, which has the beta and triangular draws that the published generators need, and
reads no other source of randomness.
"""

import math

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageDraw, ImageFilter

from stsl.shapes import Tensor


def motion_kernel(draws: np.random.Generator, size: int = 61, intensity: float = 0.5) -> Tensor:
    """Kernel of a random walk that bends smoothly and at times flips the sense of its bend.

    Drawn on a canvas of twice the size: a line of 1/150 of the diagonal, blurred, reduced, divided by its sum. Below 61
    pixels it is drawn at 61 and averaged over areas, since line width and blur would round to nothing.

    Args:
        draws: source of randomness; used up.
        size: side of the kernel in pixels, odd.
        intensity: 0 is nearly straight, 1 is most crooked.

    Returns:
        shape (size, size), sum 1, 8-bit precision.

    Source: the kernels of DPS, arXiv:2209.14687 (the generator of the `motionblur` package).
    """
    drawn = max(size, 61)
    canvas = 2 * drawn
    diagonal = canvas * math.sqrt(2)
    path = motion_path(draws, drawn, intensity) + complex(canvas / 2, canvas / 2)
    picture = Picture.new("L", (canvas, canvas))
    ImageDraw.Draw(picture).line([(v.real, v.imag) for v in path], fill=255, width=int(diagonal / 150))
    picture = picture.filter(ImageFilter.GaussianBlur(int(0.01 * diagonal)))
    picture = picture.resize((drawn, drawn), Picture.Resampling.LANCZOS)
    kernel = torch.from_numpy(np.asarray(picture, dtype=np.float64))
    if size < drawn:
        average = _area_average(drawn, size)
        kernel = average @ kernel @ average.T
    return (kernel / kernel.sum()).float()


def motion_path(draws: np.random.Generator, size: int = 61, intensity: float = 0.5) -> np.ndarray:
    """Vertices of the path of `motion_kernel` as complex numbers around 0, in pixels of a canvas of side 2 · size.

    Steps s_k ~ Beta(1, 30) (1.1 − q) D until their sum reaches L = ¾ D (U(0, 1) + U(0, q²)); absolute directions φ_k of
    magnitude Triangular(0, q φ_max, φ_max + 0.1), the sign flipped with probability Beta(2, 20); then the whole path is
    turned by U(0, π). D is the canvas's diagonal, q the intensity, φ_max ~ U(0, q π).
    """
    diagonal = 2 * size * math.sqrt(2)
    limit = 0.0
    while limit < 1:  # a path below a pixel would make the search for shorter steps endless
        limit = 0.75 * diagonal * (draws.uniform() + draws.uniform(0, intensity**2))
    steps: list[float] = []
    while sum(steps) < limit:
        step = draws.beta(1, 30) * (1.1 - intensity) * diagonal
        if step < limit:
            steps.append(step)
    widest = draws.uniform(0, intensity * math.pi)
    flip = draws.beta(2, 20)
    angles = [draws.uniform(-widest, widest)]
    while len(angles) < len(steps):
        sign = math.copysign(1, angles[-1]) * (-1 if draws.uniform() < flip else 1)
        angles.append(sign * draws.triangular(0, intensity * widest, widest + 0.1))
    path = np.cumsum(np.array(steps) * np.exp(1j * np.array(angles)))
    return (path - path.mean()) * np.exp(1j * draws.uniform(0, math.pi))


def brush_mask(draws: np.random.Generator, height: int, width: int, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Mask (1 = known) of 1 to 3 brush strokes, drawn again until the lost share lies in [low, high].

    A stroke has 4 to 11 segments of length N(r, (r/2)²) cut to [0, 2r], r = diagonal/8, in directions within
    2π/5 ± U(0, 2π/15), every other one replaced by 2π minus itself. Round joints, width 12 to 39 pixels at 256, random
    flips.

    Args:
        draws: source of randomness; used up.
        height, width: size of the mask; brush widths follow the shorter side.
        low, high: bounds of the lost share, both included.

    Returns:
        shape (height, width), 0 or 1.

    Raises:
        ValueError: no such mask came up in 1000 tries.

    Source: the strokes of Palette's free-form masks, arXiv:2111.05826, after a public re-implementation.
    """
    for _ in range(1000):
        lost = _strokes(draws, height, width)
        if low <= lost.mean() <= high:
            return torch.from_numpy(1 - lost).float()
    raise ValueError(f"brush strokes do not cover {low:g} to {high:g} of {height}×{width} pixels; widen that range")


def _strokes(draws: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One try of `brush_mask`: 1 where a stroke covers the pixel."""
    picture = Picture.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    length = math.hypot(height, width) / 8
    for _ in range(draws.integers(1, 4)):
        first = 2 * math.pi / 5 - draws.uniform(0, 2 * math.pi / 15)
        last = 2 * math.pi / 5 + draws.uniform(0, 2 * math.pi / 15)
        x, y = float(draws.uniform(0, width)), float(draws.uniform(0, height))
        points = [(x, y)]
        for k in range(draws.integers(4, 12)):
            angle = draws.uniform(first, last)
            angle = angle if k % 2 else 2 * math.pi - angle
            reach = float(np.clip(draws.normal(length, length / 2), 0, 2 * length))
            x = min(max(x + reach * math.cos(angle), 0.0), float(width))
            y = min(max(y + reach * math.sin(angle), 0.0), float(height))
            points.append((x, y))
        brush = max(1, round(int(draws.integers(12, 40)) * min(height, width) / 256))
        pen.line(points, fill=1, width=brush)
        for x, y in points:
            pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
    lost = np.asarray(picture)
    lost = lost[::-1] if draws.uniform() < 0.5 else lost
    return np.ascontiguousarray(lost[:, ::-1] if draws.uniform() < 0.5 else lost)


def _area_average(many: int, few: int) -> Tensor:
    """Matrix (few, many) that averages over areas of many/few pixels, whole or in part."""
    edges = torch.arange(few, dtype=torch.float64)[:, None] * many / few
    pixels = torch.arange(many, dtype=torch.float64)
    overlap = torch.minimum(pixels + 1, edges + many / few) - torch.maximum(pixels, edges)
    return overlap.clamp(min=0) * few / many
