"""Pictures to look at: the astronaut, and results side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from torch.nn.functional import interpolate

from stsl.shapes import Image

# (top, left, side) of the face in scikit-image's astronaut, framed as the built-in prior's training data.
ASTRONAUT_FACE = (57, 165, 120)
# (top, left, side) of the zoomed inset as shares of the picture: an eye, of a face framed like that.
INSET = (0.28, 0.22, 0.26)
CELL, GAP, LABEL = 256, 12, 22
INK, FRAME = (40, 40, 40), (230, 60, 40)


def astronaut_face(size: int = 128) -> Image:
    """The face of astronaut Eileen Collins (NASA, public domain) from the picture that ships in scikit-image.

    Args:
        size: side in pixels.

    Returns:
        shape (1, 3, size, size) in [0, 1].
    """
    from skimage.data import astronaut

    top, left, side = ASTRONAUT_FACE
    x = torch.from_numpy(astronaut()[top : top + side, left : left + side]).permute(2, 0, 1)[None].float() / 255
    return interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def comparison(rows: Sequence[Sequence[tuple[str, Image]]]) -> Image:
    """Labelled images in rows, each with a zoomed inset in its corner and a frame around the place it shows.

    Args:
        rows: (label, image of shape (1, 3, H, W)) per cell.

    Returns:
        one picture, (1, 3, H, W).
    """
    columns = max(len(row) for row in rows)
    width = columns * (CELL + GAP) + GAP
    height = len(rows) * (CELL + LABEL + GAP) + GAP
    sheet = Pillow.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for r, row in enumerate(rows):
        for c, (label, x) in enumerate(row):
            left, top = GAP + c * (CELL + GAP), GAP + r * (CELL + LABEL + GAP)
            pen.text((left, top), label, fill=INK, font=font)
            sheet.paste(_cell(x), (left, top + LABEL))
    return torch.from_numpy(np.asarray(sheet)).permute(2, 0, 1)[None].float() / 255


def _cell(x: Image) -> Pillow.Image:
    levels = (x[0].detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Pillow.fromarray(levels)
    side = picture.width
    top, left, share = INSET
    place = [round(left * side), round(top * side), round((left + share) * side), round((top + share) * side)]
    zoom = round(0.4 * CELL)
    inset = picture.crop((place[0], place[1], place[2], place[3])).resize((zoom, zoom), Pillow.Resampling.NEAREST)
    cell = picture.resize((CELL, CELL), Pillow.Resampling.NEAREST)
    pen = ImageDraw.Draw(cell)
    pen.rectangle([value * CELL / side for value in place], outline=FRAME)
    corner = CELL - zoom
    cell.paste(inset, (corner, corner))
    pen.rectangle((corner - 1, corner - 1, CELL - 1, CELL - 1), outline=FRAME)
    return cell
