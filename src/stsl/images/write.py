"""Writing restored photos the way the originals were."""

import io
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn.functional import interpolate

from stsl.files import atomic
from stsl.images.photo import FORMATS, Photo
from stsl.shapes import Image

SOFTWARE = "stsl"


def write(path: str | Path, x: Image, *, like: Photo | None = None) -> None:
    """Write an image; the file appears whole or not at all.

    Values are clamped to [0, 1] and rounded to the nearest level, half to even. JPEG is written at quality 95 without
    chroma subsampling, WebP without loss.

    Args:
        path: its suffix is the format.
        x: shape (1, 1 or 3, H, W).
        like: the photo this was made from. Its greyness, 16 bits (PNG, TIFF), alpha, colour profile and EXIF block are
            kept where the format can hold them; the GPS position is part of EXIF and is kept too. 16-bit TIFF keeps the
            profile, not EXIF.

    Raises:
        ValueError: values that are not finite, more than one image, an unknown suffix.
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: the suffix {path.suffix!r} is not one of {', '.join(FORMATS)}")
    if x.ndim != 4 or x.shape[0] != 1 or x.shape[1] not in (1, 3):
        raise ValueError(f"{path}: one image of shape (1, 1 or 3, H, W) can be written, not {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{path} was not written: the image has values that are not finite")
    planes = x.detach().cpu().double().clamp(0, 1)
    if like is not None and like.is_grey and planes.shape[1] == 3:
        planes = planes.mean(1, keepdim=True)
    if like is not None and like.alpha is not None and kind in ("PNG", "WEBP", "TIFF"):
        planes = torch.cat([planes, _resized(like.alpha.double(), planes)], 1)
    deep = like is not None and like.bits == 16 and kind in ("PNG", "TIFF")
    levels = (planes[0].permute(1, 2, 0) * (65535 if deep else 255)).round().numpy()
    exif, icc = (like.exif, like.icc) if like is not None else (b"", b"")
    with atomic(path) as temporary:
        if not deep:
            _write_8_bits(temporary, levels.astype(np.uint8), kind, exif, icc)
        elif kind == "PNG":
            temporary.write_bytes(_png_16_bits(levels.astype(np.uint16), exif, icc))
        else:
            _tiff_16_bits(temporary, levels.astype(np.uint16), icc)


def _resized(alpha: Tensor, planes: Tensor) -> Tensor:
    size = planes.shape[-2:]
    return alpha if alpha.shape[-2:] == size else interpolate(alpha, size, mode="bilinear", align_corners=False)


def _write_8_bits(path: Path, levels: NDArray[np.uint8], kind: str, exif: bytes, icc: bytes) -> None:
    picture = Pillow.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    if kind == "PNG":
        text = PngInfo()
        text.add_text("Software", SOFTWARE)
        picture.save(path, kind, pnginfo=text, exif=exif, icc_profile=icc)
    elif kind == "JPEG":
        picture.save(path, kind, quality=95, subsampling=0, exif=exif, icc_profile=icc)
    elif kind == "WEBP":
        # WebP has no grey: three equal channels are what a grey photo was read from, too.
        picture.save(path, kind, lossless=True, exact=True, exif=exif, icc_profile=icc)
    elif kind == "TIFF":
        picture.save(path, kind, compression="tiff_deflate", exif=exif, icc_profile=icc)
    else:
        picture.save(path, kind)


def _png_16_bits(levels: NDArray[np.uint16], exif: bytes, icc: bytes) -> bytes:
    import png

    height, width, channels = levels.shape
    writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16)
    plain = io.BytesIO()
    writer.write(plain, levels.reshape(height, width * channels))
    header, *rest = png.Reader(bytes=plain.getvalue()).chunks()
    more = [(b"tEXt", b"Software\0" + SOFTWARE.encode())]
    if icc:
        more.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        more.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    whole = io.BytesIO()
    png.write_chunks(whole, [header, *more, *rest])
    return whole.getvalue()


def _tiff_16_bits(path: Path, levels: NDArray[np.uint16], icc: bytes) -> None:
    import tifffile

    channels = levels.shape[-1]
    tifffile.imwrite(
        path,
        levels[..., 0] if channels == 1 else levels,
        photometric="minisblack" if channels < 3 else "rgb",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=icc or None,
        software=SOFTWARE,
        metadata=None,
    )
