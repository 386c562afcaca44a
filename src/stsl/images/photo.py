"""Reading photos as people have them."""

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from torch import Tensor

from stsl.shapes import Image

# Suffix -> format. Anything else is neither read nor written.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
# A decoded photo takes 12 bytes per pixel here: 64 megapixels are 0.8 GB.
MAX_MEGAPIXELS = 64
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, upright, and what must survive its restoration.

    Args:
        path: where it came from.
        x: shape (1, 3, H, W) in [0, 1], in the file's own colour space; a grey photo has three equal channels.
        alpha: shape (1, 1, H, W), or None where the file has no transparency. Colours are not multiplied by it.
        is_grey: whether the file has one colour channel.
        bits: 8 or 16 per channel.
        exif: the EXIF block with its orientation set to upright, GPS position included; empty if there is none.
        icc: the colour profile; empty if there is none, or if the colours were converted (CMYK).
    """

    path: Path
    x: Image
    alpha: Tensor | None
    is_grey: bool
    bits: int
    exif: bytes
    icc: bytes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        return self.x.shape[-2], self.x.shape[-1]


def read(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF or BMP, 8 or 16 bits, grey or colour, with or without alpha or palette.

    The size is read from the header and checked before anything is decoded. EXIF orientation is applied. CMYK becomes
    RGB, and loses its colour profile with that.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such an image, empty, damaged, animated, of floats, or too large; the message says what would work.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, laxer size limit; ours follows
            with Pillow.open(path, formats=tuple(dict.fromkeys(FORMATS.values()))) as picture:
                return _decode(path, picture, max_megapixels)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image stsl reads: give PNG, JPEG, WebP, TIFF or BMP") from None
    except Pillow.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}; the limit is {max_megapixels} megapixels") from None
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); fetch or export it again") from error


def _decode(path: Path, picture: Pillow.Image, max_megapixels: float) -> Photo:
    width, height = picture.size
    if width * height > max_megapixels * 1e6:
        raise ValueError(
            f"{path} has {width}×{height} pixels, {width * height / 1e6:.0f} megapixels; the limit is {max_megapixels:g}: "
            "scale it down or cut it"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"{path} is animated or has several pages; save the one to restore as its own file")
    exif = picture.getexif()
    orientation = exif.get(ORIENTATION, 1)
    if orientation != 1 and exif:
        exif[ORIENTATION] = 1
    keeps_profile = picture.mode not in ("CMYK", "LAB", "YCbCr", "HSV")
    icc = picture.info.get("icc_profile") if keeps_profile else None
    values, scale = _values(path, picture)
    planes = torch.from_numpy(np.ascontiguousarray(values.astype(np.float32))).permute(2, 0, 1)[None] / scale
    planes = _upright(planes, orientation)
    colours = planes.shape[1] - (planes.shape[1] in (2, 4))
    x = planes[:, :colours].expand(-1, 3, -1, -1).contiguous()
    alpha = planes[:, colours:].contiguous() if planes.shape[1] > colours else None
    return Photo(path, x, alpha, colours == 1, 16 if scale > 255 else 8, exif.tobytes() if exif else b"", icc or b"")


def _values(path: Path, picture: Pillow.Image) -> tuple[NDArray[np.uint8 | np.uint16], float]:
    """Pixel values (H, W, 1 to 4), and the value of white."""
    if deep := _sixteen_bits(path, picture):
        return deep[0], 65535.0
    mode = picture.mode
    if mode in ("F", "I"):
        raise ValueError(
            f"{path} holds {mode} values, not a photo of 8 or 16 bits per channel; convert it to 16-bit PNG"
        )
    if mode.startswith("I;16"):
        return np.asarray(picture.convert("I"))[..., None].astype(np.uint16), 65535.0
    transparent = "transparency" in picture.info or mode in ("PA", "La", "LA", "RGBa", "RGBA")
    grey = mode in ("1", "L", "LA", "La")
    target = ("LA" if transparent else "L") if grey else ("RGBA" if transparent else "RGB")
    if mode == "La":  # premultiplied grey has no direct way to LA
        picture, target = picture.convert("LA"), "LA"
    values = np.asarray(picture.convert(target))
    return values[..., None] if values.ndim == 2 else values, 255.0


def _sixteen_bits(path: Path, picture: Pillow.Image) -> tuple[NDArray[np.uint16]] | None:
    """What Pillow would cut to 8 bits: PNG and TIFF of 16 bits with more than one channel."""
    if picture.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        depth, kind = header[24], header[25]
        if depth != 16 or kind not in (2, 4, 6):
            return None
        from torchvision.io import ImageReadMode, decode_image, read_file

        return (decode_image(read_file(str(path)), mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy(),)
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        if tuple(bits)[0] != 16 or len(tuple(bits)) == 1:
            return None
        import tifffile

        with tifffile.TiffFile(path) as file:
            values = file.pages[0].asarray()
        if values.dtype != np.uint16:
            raise ValueError(f"{path} holds {values.dtype} values; convert it to 16-bit unsigned integers")
        return (np.moveaxis(values, 0, -1) if values.shape[-1] not in (2, 3, 4) else values,)
    return None


def _upright(planes: Tensor, orientation: int) -> Tensor:
    """Apply EXIF's orientation 1 to 8 to (1, C, H, W)."""
    if orientation in (5, 6, 7, 8):
        planes = planes.transpose(-1, -2)
    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation, ())
    return planes.flip(flips).contiguous() if flips else planes.contiguous()


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Read a mask picture: WHITE is what is missing, BLACK is kept, as image editors and inpainting tools have it.

    Args:
        path: the picture; grey values above one half count as white.
        size: (height, width) of the photo.

    Returns:
        shape (1, 1, H, W): 1 where the photo is known, 0 where it is to be filled.

    Raises:
        ValueError: another size, nothing white, nothing black.
    """
    mask = read(path)
    if mask.size != size:
        raise ValueError(
            f"the mask {path} has {mask.size[1]}×{mask.size[0]} pixels, the photo {size[1]}×{size[0]}: they must be equal"
        )
    missing = mask.x.mean(1, keepdim=True) > 0.5
    if not missing.any():
        raise ValueError(f"the mask {path} is all black: nothing is missing. Paint what to fill in white")
    if missing.all():
        raise ValueError(
            f"the mask {path} is all white: nothing would be kept. White is what is missing, black is kept"
        )
    return (~missing).float()


def read_kernel(path: str | Path) -> Tensor:
    """Read a blur kernel from a grey picture, black is 0. Shape (1, 1, h, w), not normalised."""
    return read(path, max_megapixels=1).x.mean(1, keepdim=True)
