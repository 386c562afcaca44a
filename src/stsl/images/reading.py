"""From files to tensors."""

import io
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import BmpImagePlugin, ExifTags, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from stsl.shapes import Image, Tensor

# What a damaged or hostile file makes Pillow raise; ValueError is also what its limit on text chunks raises.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error)

EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")

# How a stored picture is turned upright, by the value of its orientation tag: (transpose, then flip these axes).
UPRIGHT: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (3,)),
    3: (False, (2, 3)),
    4: (False, (2,)),
    5: (True, ()),
    6: (True, (3,)),
    7: (True, (2, 3)),
    8: (True, (2,)),
}

# What of a TIFF's first directory is about the photo; the rest says how its pixels were stored.
TIFF_FACTS = frozenset(
    {
        *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
        *(ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.HostComputer, ExifTags.Base.Copyright),
        *(ExifTags.Base.Orientation, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo),
    }
)


PHOTOMETRIC = 262


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, upright, and what its file said besides the pixels.

    Args:
        x: colours, not multiplied by alpha; shape (1, 3, H, W), float32 in [0, 1].
        alpha: opacity, shape (1, 1, H, W), or None where the file has none.
        is_grey: whether the three channels of `x` are equal everywhere.
        bits: 8 or 16, per channel.
        format: PNG, JPEG, WEBP, TIFF or BMP.
        exif: the EXIF block with GPS position, its orientation reset to upright; empty where there is none.
        icc: the colour profile; empty where there is none. Pixels are never converted by it.
        path: where it was read.
    """

    x: Image
    alpha: Tensor | None
    is_grey: bool
    bits: int
    format: str
    exif: bytes
    icc: bytes
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        return self.x.shape[2], self.x.shape[3]


def read(path: str | Path, *, max_megapixels: float = 64) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF or BMP photo of one frame.

    The size in the header is checked before anything is decoded. CMYK becomes RGB by Pillow's plain formula, and its
    profile, which would not fit RGB, is dropped. 16 bits per channel stay 16 bits.

    Args:
        path: the file.
        max_megapixels: limit on width times height, in millions.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        ValueError: not a picture, damaged, animated, too large, or with more than 16 bits per channel.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a photo")
    return decode(path.read_bytes(), path, max_megapixels=max_megapixels)


def decode(data: bytes, path: Path, *, max_megapixels: float = 64) -> Photo:
    """Read a photo from the bytes of a file; `path` is what errors call it.

    Raises:
        ValueError: as in `read`.
    """
    if not data:
        raise ValueError(f"{path} is empty (0 bytes): copy it again from where it came from")
    try:
        picture = _open(data)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no picture ({_short(error)}): {WAY_OUT}") from error
    if picture is None:
        raise ValueError(f"{path} is not a PNG, JPEG, WebP, TIFF or BMP picture: {WAY_OUT}")
    width, height = picture.size
    if width * height > max_megapixels * 1e6:
        raise ValueError(
            f"{path} has {width} x {height} pixels (width x height), {width * height / 1e6:,.1f} megapixels; the limit "
            f"is {max_megapixels:g}: make it smaller first"
        )
    # A phone's JPEG may hold a second picture, such as a brightness map (MPO): the first one is the photo.
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"{path} is animated or has several pages: save one frame as a PNG and give that")
    try:
        return _photo(path, data, picture)
    except DAMAGED as error:
        raise ValueError(f"{path} cannot be decoded ({_short(error)}): {WAY_OUT}") from error


WAY_OUT = "open it in an image editor and save it as PNG or JPEG"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _open(data: bytes) -> ImageFile.ImageFile | None:
    """Read the header, or return None where the first bytes are of no known format.

    `PIL.Image.open` would warn of large pictures through Python's global filters and refuse others by a global limit;
    its plugins do neither, and `read` has a limit of its own.
    """
    file = io.BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(file)
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.jpeg_factory(file)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile(file)
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file)
    return None


def _photo(path: Path, data: bytes, picture: ImageFile.ImageFile) -> Photo:
    raw = _rawmode(picture.tile[0].args) if picture.tile else ""  # WebP has no tile
    if ";16" in raw and picture.mode != "I":
        bits, values = 16, _decode_16(data, picture, raw) / np.float32(65535)
    elif picture.mode in EIGHT_BITS:
        target = "RGBA" if picture.has_transparency_data else "RGB"
        bits, values = 8, np.asarray(picture.convert(target)) / np.float32(255)
    else:
        raise ValueError(f"its pixels are of kind {picture.mode}; 8 or 16 bits per channel are supported")
    # Not before the pixels: a PNG's EXIF may stand after them, and looking for it decodes the picture.
    exif, orientation = _exif(picture)
    planes = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    transpose, flips = UPRIGHT.get(orientation, (False, ()))
    planes = (planes.transpose(2, 3) if transpose else planes).flip(flips)
    x = planes[:, :3].contiguous()
    return Photo(
        x=x,
        alpha=planes[:, 3:].contiguous() if planes.shape[1] == 4 else None,
        is_grey=torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 1], x[:, 2]),
        bits=bits,
        format="JPEG" if picture.format == "MPO" else str(picture.format),
        exif=exif,
        icc=b"" if picture.mode == "CMYK" else picture.info.get("icc_profile") or b"",
        path=path,
    )


def _rawmode(args: object) -> str:
    """How a tile's bytes are laid out, in Pillow's words, such as RGB;16B."""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _decode_16(data: bytes, picture: ImageFile.ImageFile, raw: str) -> np.ndarray:
    """All 16 bits of a picture that Pillow would cut to 8, shape (H, W, 3 or 4), 0 to 65535.

    Pillow's unpackers of 16-bit colours keep one byte of each channel: the first for big-endian data ("B"), the second
    for little-endian data ("L"). Told the one and then the other, they give both.
    """
    kind, _, layout = raw.partition(";")
    if kind == "I":
        grey = np.asarray(picture).astype(np.float32)
        if picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
            grey = 65535 - grey  # white is stored as 0, which Pillow undoes for 8 bits only
        return np.repeat(grey[..., None], 3, axis=2)
    if kind == "LA":  # one pixel is as long as one of 8-bit RGBA: light, its low byte, alpha, its low byte
        light, low, alpha, alpha_low = np.moveaxis(_decode_as(data, "RGBA"), 2, 0)
        grey = 256 * light + low
        return np.stack([grey, grey, grey, 256 * alpha + alpha_low], axis=2)
    if kind not in ("RGB", "RGBX", "RGBA", "RGBa"):
        raise ValueError(f"16 bits per channel are supported for grey and RGB, not for {kind}")
    straight = kind.upper()  # RGBa's own unpacker would divide by alpha, each byte for itself
    first, second = (_decode_as(data, f"{straight};16{order}") for order in "BL")
    # What libtiff unpacks is in this machine's order ("N").
    is_big_endian = layout == "16B" or (layout == "16N" and sys.byteorder == "big")
    pixels = 256 * first + second if is_big_endian else 256 * second + first
    if kind == "RGBa":
        pixels[..., :3] = np.minimum(pixels[..., :3] * 65535 / np.maximum(pixels[..., 3:], 1), 65535)
    return pixels


def _decode_as(data: bytes, raw: str) -> np.ndarray:
    """Decode with the unpacker `raw` in place of the one the file asks for; shape (H, W, channels), 0 to 255."""
    picture = cast(ImageFile.ImageFile, _open(data))
    picture.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in picture.tile
    ]
    return np.asarray(picture).astype(np.float32)


def _exif(picture: ImageFile.ImageFile) -> tuple[bytes, int]:
    """The EXIF block with its orientation reset, and the orientation it had. A damaged block counts as none."""
    try:
        exif = picture.getexif()
        # Pillow turns a TIFF upright as it decodes it.
        orientation = 1 if picture.format == "TIFF" else int(exif.get(ExifTags.Base.Orientation, 1))
        for tag in [tag for tag in exif if picture.format == "TIFF" and tag not in TIFF_FACTS]:
            del exif[tag]
        if not len(exif):
            return b"", orientation
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        return exif.tobytes(), orientation
    except DAMAGED:
        return b"", 1


def read_mask(path: str | Path, size: tuple[int, int] | None = None, *, max_megapixels: float = 64) -> Tensor:
    """Read what a user painted over a photo: WHITE IS THE HOLE, to be filled; black is known and kept.

    This is how image editors' masks for inpainting are drawn. The tensor follows the project's masks, where 1 is known:
    m = 1 where the picture is darker than half grey, else 0. Where a picture is transparent, nothing was painted.

    Args:
        path: picture as large as the photo.
        size: (height, width) of the photo, upright; None does not check.
        max_megapixels: as for `read`.

    Returns:
        shape (1, 1, H, W), float32, 1 = known.

    Raises:
        ValueError: another size than the photo, nothing white, nothing black, or not a picture.
    """
    photo = read(path, max_megapixels=max_megapixels)
    if size is not None and photo.size != tuple(size):
        raise ValueError(
            f"mask {path} has {_pixels(photo.size)}, the photo {_pixels(size)}: a mask is as large as its photo"
        )
    painted = photo.x.mean(1, keepdim=True) * (1 if photo.alpha is None else photo.alpha)
    known = (painted < 0.5).float()
    if known.all():
        raise ValueError(f"mask {path} has no hole: white marks what is to be filled, and nothing in it is white")
    if not known.any():
        raise ValueError(
            f"mask {path} is all hole: white marks what is to be filled, black what is kept; is it inverted?"
        )
    return known


def read_kernel(path: str | Path) -> Tensor:
    """Read a blur kernel: a grey picture, or a .safetensors file with one tensor (called "kernel" if there are more).

    Returns:
        shape (k, l), float32, not normalised.

    Raises:
        ValueError: another kind of file, colours, or not one two-dimensional tensor.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        return _kernel_tensor(path)
    if path.suffix.lower() in (".npy", ".npz", ".pt", ".pth", ".pkl", ".mat"):
        raise ValueError(f'kernel {path}: give a grey picture, or a .safetensors file with the tensor "kernel"')
    photo = read(path, max_megapixels=1)
    if not photo.is_grey:
        raise ValueError(f"kernel {path} is a colour picture; a kernel is a small grey one, bright where light goes")
    return photo.x[0, 0]


def _kernel_tensor(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"kernel {path} is damaged or no safetensors file: {error}") from error
    kernel = next(iter(tensors.values())) if len(tensors) == 1 else tensors.get("kernel")
    if kernel is None:
        raise ValueError(f'kernel {path} holds {", ".join(sorted(tensors)) or "nothing"}; needs one tensor "kernel"')
    while kernel.ndim > 2 and kernel.shape[0] == 1:
        kernel = kernel[0]
    if kernel.ndim != 2:
        raise ValueError(f"kernel {path} has the shape {tuple(kernel.shape)}; needs (k, l)")
    return kernel.float()


def _pixels(size: tuple[int, int]) -> str:
    """(height, width) in words."""
    return f"{size[1]} x {size[0]} pixels (width x height)"
