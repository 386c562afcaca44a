"""Pictures to try the page on: the astronaut's face (NASA, public domain), damaged in a few ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stsl import images, tasks
from stsl.app.pictures import write_mask
from stsl.shapes import Image

NOISE = 0.005
SEED = 0


@dataclass(frozen=True)
class Example:
    """A picture to try, with what is wrong with it.

    Args:
        label: what it is called.
        photo: the file.
        kind: of its damage; "" is none.
        noise: std on [0, 1].
        mask: picture of what is missing.
    """

    label: str
    photo: Path
    kind: str
    noise: float = NOISE
    mask: Path | None = None


def make_examples(folder: Path, side: int) -> Sequence[Example]:
    """Write the examples, and tell them.

    Args:
        folder: where to.
        side: pixels of the face, those of the model.
    """
    face = images.astronaut_face(side)
    examples = []
    for kind, label, noise in (
        ("sr4", "Small", NOISE),
        ("gaussian_blur", "Blurred", NOISE),
        ("denoise", "Noisy", 0.1),
        ("salt_pepper", "Specks", NOISE),
    ):
        y, _ = tasks.measure(kind, face, noise=noise, ids=["astronaut"], seed=SEED)
        examples.append(Example(label, _write(folder / f"astronaut-{label.lower()}.png", y), kind, noise))
    hole = _scratches(side)
    holes, mask = folder / "astronaut-scratched.png", folder / "astronaut-scratches.png"
    _write(holes, torch.where(hole > 0, torch.ones(()), face))
    write_mask(mask, hole)
    examples.append(Example("Scratched", holes, "mask", 0.0, mask))
    return examples


def whole_face(folder: Path, side: int) -> Example:
    """The face without damage: to edit, or to paint on."""
    return Example("Astronaut", _write(folder / "astronaut.png", images.astronaut_face(side)), "", 0.0)


def _write(path: Path, x: Image) -> Path:
    images.write(path, x.clamp(0, 1))
    return path


def _scratches(side: int) -> Image:
    """Two thin slanted scratches and a spot, (1, 1, side, side): 1 is missing."""
    rows = torch.linspace(0, 1, side)[:, None]
    columns = torch.linspace(0, 1, side)[None]
    first = (columns - 0.25 - 0.35 * rows).abs() < 0.022
    second = (columns - 0.85 + 0.2 * rows).abs() < 0.016
    spot = (rows - 0.68) ** 2 + (columns - 0.36) ** 2 < 0.055**2
    return (first | second | spot).float()[None, None]
