"""Pictures to look at."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from stsl.shapes import Image

# Eyes and mouth stand where they stand in the mean of the built-in prior's training photos.
ASTRONAUT_TOP, ASTRONAUT_LEFT, ASTRONAUT_SIDE = 57, 165, 120

# The eyes of a face framed as those photos are: top, left, height, width, as parts of the picture's sides.
EYES = (0.27, 0.14, 0.24, 0.38)

PICTURE = 256  # pixels a side in a comparison
MARGIN, GAP, LABEL, TEXT = 24, 12, 24, 15
INK, FRAME = (40, 40, 40), (230, 80, 40)


def astronaut_face(size: int = 128) -> Image:
    """The face of the astronaut Eileen Collins, a NASA photo in the public domain that ships with scikit-image.

    Cut as the built-in prior's training photos are, and scaled from 120 pixels a side.

    Returns:
        shape (1, 3, size, size).
    """
    from skimage import data

    rows = slice(ASTRONAUT_TOP, ASTRONAUT_TOP + ASTRONAUT_SIDE)
    columns = slice(ASTRONAUT_LEFT, ASTRONAUT_LEFT + ASTRONAUT_SIDE)
    face = torch.from_numpy(data.astronaut()[rows, columns].astype(np.float32) / 255).permute(2, 0, 1)[None]
    return F.interpolate(face, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def comparison(
    rows: Sequence[Sequence[tuple[str, Image]]], *, inset: tuple[float, float, float, float] | None = EYES
) -> Image:
    """One picture of labelled images side by side, with a detail of each enlarged below it.

    Args:
        rows: per row (label, image of shape (1, 3, H, W)); rows may differ in length.
        inset: the detail's top, left, height and width as parts of an image's sides; None shows none.

    Returns:
        shape (1, 3, H, W), on white.

    Raises:
        ValueError: no image.
    """
    if not any(rows):
        raise ValueError("a comparison needs at least one image")
    top, left, height, width = inset or (0.0, 0.0, 0.0, 1.0)
    detail = round(PICTURE * height / width)
    cell = (LABEL + PICTURE + (4 + detail if inset else 0), PICTURE)
    columns = max(len(row) for row in rows)
    canvas = Picture.new(
        "RGB",
        (
            2 * MARGIN + columns * (cell[1] + GAP) - GAP,
            2 * MARGIN + len(rows) * (cell[0] + MARGIN) - MARGIN,
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT)
    for r, row in enumerate(rows):
        for c, (label, x) in enumerate(row):
            at_x, at_y = MARGIN + c * (cell[1] + GAP), MARGIN + r * (cell[0] + MARGIN)
            picture = _picture(x)
            draw.text((at_x, at_y + LABEL - 6), label, fill=INK, font=font, anchor="ls")
            at_y += LABEL
            canvas.paste(picture.resize((PICTURE, PICTURE), Picture.Resampling.BICUBIC), (at_x, at_y))
            if inset is None:
                continue
            box = [round(PICTURE * part) for part in (left, top, left + width, top + height)]
            draw.rectangle((at_x + box[0], at_y + box[1], at_x + box[2], at_y + box[3]), outline=FRAME)
            wide, high = picture.size
            part = (left * wide, top * high, (left + width) * wide, (top + height) * high)
            below = (at_x, at_y + PICTURE + 4)
            canvas.paste(picture.resize((PICTURE, detail), Picture.Resampling.BICUBIC, box=part), below)
            draw.rectangle((*below, below[0] + PICTURE - 1, below[1] + detail - 1), outline=FRAME)
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def _picture(x: Image) -> Picture.Image:
    x = x.detach().cpu().float().clamp(0, 1).expand(-1, 3, -1, -1)
    return Picture.fromarray((255 * x[0]).round().byte().permute(1, 2, 0).contiguous().numpy())
