"""From tensors to files."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, PngImagePlugin, TiffImagePlugin
from PIL import Image as Picture

from stsl.files import atomic
from stsl.images.reading import TIFF_FACTS, Photo
from stsl.shapes import Image, Tensor

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383}  # what the formats can hold
SOFTWARE = "stsl"


def write(path: str | Path, x: Image, *, like: Photo | None = None) -> None:
    """Write an image, whole or not at all, in the format of the path's suffix.

    Clamped to [0, 1] and rounded half to even. PNG, TIFF, BMP and WebP are without loss, JPEG is of quality 95 with
    full colour resolution. A PNG names stsl as its software.

    Args:
        path: .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp; folders above it are made.
        x: shape (1, 3, H, W), or (1, 1, H, W) for a grey picture, float in [0, 1].
        like: the photo that `x` came from. Kept where the format can: alpha (scaled to x; for JPEG and BMP the picture
            is laid on white), one grey channel (the mean of three), 16 bits (PNG and TIFF), the colour profile, and
            EXIF WITH THE GPS POSITION, upright: strip it from pictures that must not say where they were taken.

    Raises:
        ValueError: unknown suffix, another shape, more pixels than the format holds, or a value that is not finite.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: cannot write {path.suffix or 'without a suffix'}; use one of {', '.join(FORMATS)}")
    try:
        data = _encode(x, FORMATS[path.suffix.lower()], like)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def encode_png(x: Image, *, like: Photo | None = None) -> bytes:
    """The bytes of the PNG file that `write` would write.

    Raises:
        ValueError: another shape than (1, 3, H, W) or (1, 1, H, W), or a value that is not finite.
    """
    return _encode(x, "PNG", like)


def _encode(x: Image, format_: str, like: Photo | None) -> bytes:
    if x.ndim != 4 or x.shape[0] != 1 or x.shape[1] not in (1, 3):
        raise ValueError(f"an image has the shape (1, 3, H, W) or (1, 1, H, W), not {tuple(x.shape)}")
    x = x.detach().cpu().double()
    if wrong := int((~x.isfinite()).sum()):
        raise ValueError(f"{wrong} of its {x.numel()} values are not finite")
    if max(x.shape[2:]) > (limit := LONGEST_SIDE.get(format_, 2**31)):
        raise ValueError(f"{format_} holds at most {limit} pixels a side, this has {max(x.shape[2:])}; use .png")
    x = x.clamp(0, 1)
    icc, exif = (like.icc, like.exif) if like else (b"", b"")
    if like and like.is_grey:
        x = x.sum(1, keepdim=True) / x.shape[1]  # in float64, exact for equal float32 channels
    if icc[16:20] == b"RGB ":  # a profile says for how many channels it is
        x = x.expand(-1, 3, -1, -1)
    if like and like.alpha is not None:
        x = _with_alpha(x, like.alpha.double(), format_)
    pixels = _integers(x, 16 if like and like.bits == 16 and format_ in ("PNG", "TIFF") else 8)
    if format_ == "TIFF":
        return _tiff(pixels, exif, icc)
    if pixels.dtype == np.uint16:
        return _png_16(pixels, exif, icc)
    return _eight_bits(pixels, format_, exif, icc)


def _with_alpha(x: Tensor, alpha: Tensor, format_: str) -> Tensor:
    if alpha.shape[2:] != x.shape[2:]:
        size = (x.shape[2], x.shape[3])
        alpha = F.interpolate(alpha, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    if format_ in ("JPEG", "BMP"):
        return alpha * x + (1 - alpha)
    return torch.cat([x, alpha], 1)


def _integers(x: Tensor, bits: int) -> np.ndarray:
    """Rounded half to even to 8 or 16 bits, shape (H, W, channels)."""
    values = (x * (2**bits - 1)).round()[0].permute(1, 2, 0).contiguous().numpy()
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def _eight_bits(pixels: np.ndarray, format_: str, exif: bytes, icc: bytes) -> bytes:
    picture = Picture.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    ways: dict[str, dict[str, Any]] = {
        "PNG": {"pnginfo": _png_text()},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
        "BMP": {},
    }
    options = ways[format_]
    if format_ != "BMP":
        options |= {key: value for key, value in (("exif", exif), ("icc_profile", icc)) if value}
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def _png_text() -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", SOFTWARE)
    return text


def _png_16(pixels: np.ndarray, exif: bytes, icc: bytes) -> bytes:
    """16-bit colours by pypng, since Pillow writes 8; its chunks and those of the photo in the order PNG wants."""
    import png

    height, width, channels = pixels.shape
    plain = io.BytesIO()
    rows = pixels.astype(">u2").reshape(height, -1)
    writer = png.Writer(width, height, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16)
    writer.write_packed(plain, (row.tobytes() for row in rows))
    plain.seek(0)
    first, *rest = png.Reader(file=plain).chunks()
    extra = [(b"tEXt", b"Software\0" + SOFTWARE.encode())]
    if icc:
        extra.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        extra.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    whole = io.BytesIO()
    png.write_chunks(whole, [first, *extra, *rest])
    return whole.getvalue()


def _tiff(pixels: np.ndarray, exif: bytes, icc: bytes) -> bytes:
    """A directory and one deflated strip: Pillow writes 8 bits only, and compresses none with fractions in its EXIF."""
    if pixels.shape[2] == 2:  # grey with alpha, which few programs read
        pixels = pixels[..., [0, 0, 0, 1]]
    height, width, channels = pixels.shape
    strip = zlib.compress(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    facts = Picture.Exif()
    facts.load(exif)
    directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=b"II*\0\0\0\0\0")
    for tag, value in facts.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            directory[tag] = {key: entry for key, entry in facts.get_ifd(tag).items() if key != ExifTags.IFD.Interop}
        elif tag in TIFF_FACTS:
            directory[tag] = value
    directory[TiffImagePlugin.IMAGEWIDTH] = width
    directory[TiffImagePlugin.IMAGELENGTH] = height
    directory[TiffImagePlugin.BITSPERSAMPLE] = (8 * pixels.itemsize,) * channels
    directory[TiffImagePlugin.COMPRESSION] = 8  # deflate
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels == 1 else 2  # black is zero, or RGB
    directory[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    directory[TiffImagePlugin.ROWSPERSTRIP] = height
    directory[TiffImagePlugin.STRIPOFFSETS] = 0  # counted from the end of the directory
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = len(strip)
    if channels == 4:
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha that colours are not multiplied by
    if icc:
        directory[TiffImagePlugin.ICCPROFILE] = icc
    buffer = io.BytesIO()
    directory.save(buffer)
    buffer.write(strip)
    return buffer.getvalue()
