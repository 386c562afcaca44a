"""Photos from file to tensor and back, in every shape users have them."""

import contextlib
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, ImageCms, PngImagePlugin
from PIL import Image as Picture
from PIL.TiffImagePlugin import IFDRational
from torch.testing import assert_close

from stsl import images
from stsl.images import Photo, Source

PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF, GPS = int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)
ORIENTATION, MAKE, EXPOSURE, LATITUDE_REF, LATITUDE = 274, 271, 33434, 1, 2


def noise(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    kind = np.uint8 if high == 256 else np.uint16
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, C) integers to (1, C, H, W) on [0, 1], in float32 as `read` has it."""
    white = np.float32(255 if pixels.dtype == np.uint8 else 65535)
    return torch.from_numpy((pixels / white).astype(np.float32)).permute(2, 0, 1)[None]


def same(x: torch.Tensor, pixels: np.ndarray) -> None:
    white = 255 if pixels.dtype == np.uint8 else 65535
    back = (x[0].double() * white).round().permute(1, 2, 0).numpy()
    assert np.array_equal(back, pixels)
    assert_close(x, tensor(pixels), rtol=0, atol=1e-7)  # half a float32 step below 1


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Picture.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def photo_of(x: torch.Tensor, **fields: object) -> Photo:
    facts = {
        "alpha": None,
        "is_grey": False,
        "bits": 8,
        "format": "PNG",
        "exif": b"",
        "icc": b"",
        "path": Path("p.png"),
    }
    return Photo(x=x, **(facts | fields))  # type: ignore[arg-type]


def exif(orientation: int | None = None) -> bytes:
    facts = Picture.Exif()
    facts[MAKE] = "Camera"
    if orientation:
        facts[ORIENTATION] = orientation
    facts.get_ifd(EXIF)[EXPOSURE] = IFDRational(1, 60)
    facts.get_ifd(GPS).update({LATITUDE_REF: "N", LATITUDE: (52.0, 30.0, 15.5)})
    facts[EXIF], facts[GPS] = dict(facts.get_ifd(EXIF)), dict(facts.get_ifd(GPS))
    return facts.tobytes()


def facts_of(path: Path) -> tuple[object, object, object, object]:
    """(make, orientation, exposure, latitude) as another program reads them from a file."""
    with Picture.open(path) as picture:
        found = picture.getexif()
        gps = found.get_ifd(GPS)
        latitude = tuple(float(part) for part in gps[LATITUDE]) if LATITUDE in gps else None
        exposure = found.get_ifd(EXIF).get(EXPOSURE)
        return found.get(MAKE), found.get(ORIENTATION), exposure and float(exposure), latitude


def png_16(pixels: np.ndarray, **options: object) -> bytes:
    """A 16-bit PNG of any kind of colour, by hand: signature, IHDR, chunks, IDAT without filters, IEND."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2").reshape(height, -1))
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return png(header, [(b"IDAT", zlib.compress(rows))])


def png(header: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        whole += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return whole


def tiff_16(path: Path, pixels: np.ndarray, **options: object) -> Path:
    import tifffile

    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, **({"photometric": kind, "metadata": None} | options))
    return path


# Reading: what is kept


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_an_rgb_photo_is_read_to_the_bit(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    photo = images.read(save(tmp_path / f"a{suffix}", noise(5, 7, 3), **options))
    same(photo.x, noise(5, 7, 3))
    assert photo.x.dtype == torch.float32
    assert photo.size == (5, 7)
    assert photo.alpha is None
    assert not photo.is_grey
    assert (photo.bits, photo.exif, photo.icc) == (8, b"", b"")


def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path):
    path = save(tmp_path / "a.jpg", noise(16, 24, 3), quality=80)
    same(images.read(path).x, np.asarray(Picture.open(path)))
    assert images.read(path).format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_photo_is_upright_and_its_orientation_is_reset(tmp_path, orientation, suffix):
    smooth = np.kron(noise(2, 3, 3), np.ones((8, 8, 1), np.uint8))  # blocks of JPEG's size come through it unharmed
    path = save(tmp_path / f"a{suffix}", smooth, exif=exif(orientation))
    with Picture.open(path) as picture:
        from PIL import ImageOps

        upright = np.asarray(ImageOps.exif_transpose(picture))
    photo = images.read(path)
    same(photo.x, upright)
    result = tmp_path / f"b{suffix}"
    images.write(result, photo.x, like=photo)
    make, turned, exposure, latitude = facts_of(result)
    assert (make, exposure, latitude) == ("Camera", pytest.approx(1 / 60), (52.0, 30.0, 15.5))
    assert turned in (None, 1)
    assert_close(images.read(result).x, photo.x, rtol=0, atol=0.05 if suffix == ".jpg" else 0)  # JPEG's quantisation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_photo_is_upright_too(tmp_path, orientation, suffix):
    pixels = noise(5, 7, 3, high=65536)
    path = tmp_path / f"a{suffix}"
    images.write(path, tensor(pixels), like=photo_of(tensor(pixels), bits=16, exif=exif(orientation)))
    shallow = save(tmp_path / "b.png", (pixels // 256).astype(np.uint8), exif=exif(orientation))
    photo = images.read(path)
    assert torch.equal((photo.x * 65535).round() // 256, (images.read(shallow).x * 255).round())
    images.write(path, photo.x, like=photo)
    assert torch.equal(images.read(path).x, photo.x)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_a_picture_of_one_channel_is_grey(tmp_path, mode):
    picture = Picture.fromarray(noise(6, 5)).convert(mode)
    picture.save(tmp_path / "a.png")
    photo = images.read(tmp_path / "a.png")
    assert photo.is_grey
    same(photo.x, np.asarray(picture.convert("RGB")))


def test_grey_with_alpha_keeps_both(tmp_path):
    pixels = noise(6, 5, 2)
    photo = images.read(save(tmp_path / "a.png", pixels))
    assert photo.is_grey
    same(photo.x[:, :1], pixels[..., :1])
    same(photo.alpha, pixels[..., 1:])


def test_alpha_does_not_darken_colours(tmp_path):
    pixels = noise(6, 5, 4)
    photo = images.read(save(tmp_path / "a.png", pixels))
    same(photo.x, pixels[..., :3])
    same(photo.alpha, pixels[..., 3:])


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_a_palette_becomes_colours_with_and_without_alpha(tmp_path, transparency):
    picture = Picture.new("P", (3, 2))
    colours = [(10, 20, 30), (200, 100, 0), (0, 255, 7)]
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata([0, 1, 2, 2, 1, 0])
    picture.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    photo = images.read(tmp_path / "a.png")
    same(photo.x, np.array([[colours[0], colours[1], colours[2]], [colours[2], colours[1], colours[0]]], np.uint8))
    levels = {None: None, 1: [255, 0, 255]}.get(transparency, [0, 128, 255])
    if levels is None:
        assert photo.alpha is None
    else:
        same(photo.alpha, np.array([levels, levels[::-1]], np.uint8)[..., None])


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    picture = Picture.fromarray(noise(8, 8, 3)).convert("CMYK")
    picture.save(tmp_path / "a.tif", icc_profile=SRGB)
    photo = images.read(tmp_path / "a.tif")
    same(photo.x, np.asarray(picture.convert("RGB")))
    assert photo.icc == b""


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_png_keeps_all_its_bits(tmp_path, channels):
    pixels = noise(9, 7, channels, high=65536)
    (tmp_path / "a.png").write_bytes(png_16(pixels))
    photo = images.read(tmp_path / "a.png")
    assert photo.bits == 16
    colours = pixels if channels > 2 else pixels[..., [0, 0, 0, *range(1, channels)]]
    same(photo.x, colours[..., :3])
    assert photo.is_grey == (channels < 3)
    if channels in (2, 4):
        same(photo.alpha, pixels[..., -1:])
    else:
        assert photo.alpha is None


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_16_bit_tiff_keeps_all_its_bits(tmp_path, byteorder, options, channels):
    pixels = noise(9, 7, channels, high=65536)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    flat = pixels[..., 0] if channels == 1 else pixels
    photo = images.read(tiff_16(tmp_path / "a.tif", flat, byteorder=byteorder, **options, **extra))
    assert photo.bits == 16
    same(photo.x, pixels[..., [0, 0, 0] if channels == 1 else [0, 1, 2]])
    if channels == 4:
        same(photo.alpha, pixels[..., 3:])


def test_premultiplied_16_bit_alpha_is_divided_out(tmp_path):
    straight = np.array([[[60000, 30000, 100, 32768]]], np.uint16)
    stored = np.round(straight * (straight[..., 3:] / 65535)).astype(np.uint16)
    stored[..., 3] = straight[..., 3]
    photo = images.read(tiff_16(tmp_path / "a.tif", stored, extrasamples=["assocalpha"]))
    # Rounding to integers before the division by about a half.
    assert_close(photo.x, tensor(straight[..., :3]), rtol=0, atol=1.01 / 65535)


def test_white_may_be_zero_in_a_16_bit_tiff(tmp_path):
    pixels = noise(4, 5, high=65536)
    photo = images.read(tiff_16(tmp_path / "a.tif", pixels, photometric="miniswhite"))
    same(photo.x[:, :1], (65535 - pixels)[..., None])


def test_a_phones_jpeg_with_a_second_picture_is_read_as_its_first(tmp_path):
    first, second = (Picture.fromarray(noise(16, 16, 3, seed=seed)) for seed in (1, 2))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    photo = images.read(tmp_path / "a.jpg")
    assert photo.format == "JPEG"
    with Picture.open(tmp_path / "a.jpg") as picture:
        assert picture.n_frames == 2
        same(photo.x, np.asarray(picture))


def test_a_damaged_exif_block_does_not_lose_the_photo(tmp_path):
    block = bytearray(exif(6))
    for place in range(6, len(block)):
        broken = bytes(block[:place]) + bytes([block[place] ^ 0xA5]) + bytes(block[place + 1 :])
        save(tmp_path / "a.jpg", np.full((8, 16, 3), 90, np.uint8), exif=broken)
        photo = images.read(tmp_path / "a.jpg")
        assert photo.x.shape[2:] in ((8, 16), (16, 8))
        images.write(tmp_path / "b.jpg", photo.x, like=photo)
    save(tmp_path / "a.png", noise(4, 5, 3), exif=b"Exif\0\0no directory at all")
    photo = images.read(tmp_path / "a.png")
    same(photo.x, noise(4, 5, 3))
    assert photo.exif == b""


# Reading: what is refused


def test_a_header_of_50000_by_50000_is_refused_at_once_and_without_a_warning(tmp_path):
    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(png(header, [(b"IDAT", zlib.compress(bytes(1000)))]))
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"bomb\.png has 50000 x 50000 .* 2,500\.0 megapixels; the limit is 64"):
            images.read(tmp_path / "bomb.png")
    assert time.perf_counter() - began < 0.5  # decoding 2.5 billion pixels takes many seconds


def test_the_limit_is_an_argument_and_pillows_own_does_not_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", 10)
    path = save(tmp_path / "a.png", noise(100, 100, 3))
    with pytest.raises(ValueError, match=r"limit is 0\.009"):
        images.read(path, max_megapixels=0.009)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read(path, max_megapixels=0.01).size == (100, 100)


@pytest.mark.parametrize("after", [False, True])
def test_text_that_unpacks_to_a_hundred_megabytes_is_refused(tmp_path, after):
    bomb = (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(100_000_000), 1))
    pixels = (b"IDAT", zlib.compress(b"\0" + bytes(3)))
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png(header, [pixels, bomb] if after else [bomb, pixels]))
    with pytest.raises(ValueError, match=r"a\.png .*save it as PNG or JPEG"):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_an_animation_is_refused(tmp_path, suffix):
    frames = [Picture.fromarray(noise(8, 8, 3, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"animated or has several pages: save one frame"):
        images.read(tmp_path / f"a{suffix}")


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"a\.jpg is empty \(0 bytes\)"):
        images.read(tmp_path / "a.jpg")


@pytest.mark.parametrize("data", [b"hello, this is text" * 9, b"GIF89a" + bytes(50), b"%PDF-1.7 ..."])
def test_what_is_no_picture_is_refused_with_a_way_out(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png is not a PNG, JPEG.*save it as PNG or JPEG"):
        images.read(tmp_path / "a.png")


def test_a_folder_or_a_missing_file_is_not_a_photo(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        images.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        images.read(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path, suffix):
    data = save(tmp_path / f"whole{suffix}", noise(40, 50, 3)).read_bytes()
    path = tmp_path / f"a{suffix}"
    for part in (0.001, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(data[: max(1, int(part * len(data)))])
        with pytest.raises(ValueError, match=rf"a\{suffix} "):
            images.read(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_damaged_16_bit_files_are_refused_or_read_but_never_crash(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".png":
        whole.write_bytes(png_16(noise(9, 7, 3, high=65536)))
    else:
        tiff_16(whole, noise(9, 7, 3, high=65536), compression="zlib")
    data, path = whole.read_bytes(), tmp_path / f"a{suffix}"
    draws = np.random.default_rng(0)
    for place in draws.integers(0, len(data), 200):
        broken = bytearray(data)
        broken[place] ^= int(draws.integers(1, 256))
        path.write_bytes(broken)
        with contextlib.suppress(ValueError):
            assert images.read(path).x.isfinite().all()


def test_valid_chunks_around_damaged_16_bit_pixels_are_refused(tmp_path):
    # torchvision's reader ends the whole process on this file.
    rows = bytearray(zlib.compress(b"\0" + bytes(4200)))
    rows[-2] ^= 255
    (tmp_path / "a.png").write_bytes(png(struct.pack(">IIBBBBB", 70, 10, 16, 2, 0, 0, 0), [(b"IDAT", bytes(rows))]))
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_more_than_16_bits_are_refused(tmp_path, kind):
    Picture.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"8 or 16 bits per channel"):
        images.read(tmp_path / "a.tif")


# Writing


@PROPERTY
@given(
    seed=st.integers(0, 999),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    bits=st.sampled_from([8, 16]),
    suffix=st.sampled_from([".png", ".tif"]),
)
def test_any_photo_comes_back_from_its_file(tmp_path, seed, height, width, channels, bits, suffix):
    pixels = noise(height, width, channels, seed=seed, high=2**bits)
    colours = tensor(pixels[..., [0, 0, 0] if channels < 3 else [0, 1, 2]])
    alpha = tensor(pixels[..., -1:]) if channels in (2, 4) else None
    grey = torch.equal(colours[:, 0], colours[:, 1]) and torch.equal(colours[:, 1], colours[:, 2])
    photo = photo_of(colours, alpha=alpha, is_grey=grey, bits=bits)
    path = tmp_path / f"a{suffix}"
    images.write(path, photo.x, like=photo)
    back = images.read(path)
    assert torch.equal(back.x, photo.x)
    assert (back.is_grey, back.bits) == (grey, bits)
    if alpha is not None:
        assert back.alpha is not None
        assert torch.equal(back.alpha, alpha)


@PROPERTY
@given(values=st.lists(st.floats(-0.5, 1.5, width=32), min_size=3, max_size=30))
def test_values_are_clamped_and_rounded_half_to_even(tmp_path, values):
    x = torch.tensor(values[: len(values) // 3 * 3]).reshape(1, 3, 1, -1)
    images.write(tmp_path / "a.png", x)
    expected = [[round(min(max(value, 0.0), 1.0) * 255) for value in row] for row in x[0, :, 0].double().tolist()]
    assert np.asarray(Picture.open(tmp_path / "a.png"))[0].T.tolist() == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_the_middle_between_two_levels_goes_to_the_even_one(tmp_path, bits):
    x = torch.full((1, 3, 2, 2), 0.5)
    like = photo_of(x, bits=bits)
    images.write(tmp_path / "a.png", x, like=like)
    assert float(images.read(tmp_path / "a.png").x[0, 0, 0, 0] * (2**bits - 1)) == pytest.approx(2 ** (bits - 1))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_an_image_that_is_not_finite_is_never_written(tmp_path, wrong):
    x = torch.zeros(1, 3, 4, 4)
    x[0, 1, 2, 3] = wrong
    with pytest.raises(ValueError, match=r"a\.png was not written: 1 of its 48 values are not finite"):
        images.write(tmp_path / "a.png", x)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.write(path, torch.zeros(1, 3, 4, 4))
    before = path.read_bytes()

    def full(self, data):
        self.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        images.write(path, torch.ones(1, 3, 4, 4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_suffix_a_batch_and_too_long_a_side_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write \.gif; use one of \.png"):
        images.write(tmp_path / "a.gif", torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"not \(2, 3, 4, 4\)"):
        images.write(tmp_path / "a.png", torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"WEBP holds at most 16383 .* use \.png"):
        images.write(tmp_path / "a.webp", torch.zeros(1, 3, 1, 16384))


def test_a_png_names_its_software(tmp_path):
    for bits in (8, 16):
        x = torch.zeros(1, 3, 4, 4)
        images.write(tmp_path / "a.png", x, like=photo_of(x, bits=bits))
        assert Picture.open(tmp_path / "a.png").info["Software"] == "stsl"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_with_gps_and_the_profile_survive(tmp_path, suffix, bits):
    x = tensor(noise(8, 8, 3))
    images.write(tmp_path / f"a{suffix}", x, like=photo_of(x, exif=exif(), icc=SRGB, bits=bits))
    assert facts_of(tmp_path / f"a{suffix}") == ("Camera", None, pytest.approx(1 / 60), (52.0, 30.0, 15.5))
    back = images.read(tmp_path / f"a{suffix}")
    assert back.icc == SRGB
    assert back.bits == (bits if suffix in (".png", ".tif") else 8)
    # A second generation has the same facts as the first.
    images.write(tmp_path / f"b{suffix}", back.x, like=back)
    assert facts_of(tmp_path / f"b{suffix}") == facts_of(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", ["colour", "grey", "alpha", "deep"])
def test_every_kind_of_photo_can_be_written_in_every_format(tmp_path, suffix, kind):
    x = tensor(noise(8, 8, 3)).mean(1, keepdim=True).expand(-1, 3, -1, -1) if kind == "grey" else tensor(noise(8, 8, 3))
    alpha = torch.full((1, 1, 8, 8), 0.25) if kind == "alpha" else None
    like = photo_of(x, alpha=alpha, is_grey=kind == "grey", bits=16 if kind == "deep" else 8, exif=exif(), icc=SRGB)
    images.write(tmp_path / f"a{suffix}", x, like=like)
    back = images.read(tmp_path / f"a{suffix}")
    assert back.size == (8, 8)
    assert (back.alpha is not None) == (kind == "alpha" and suffix not in (".jpg", ".bmp"))
    if kind == "alpha" and suffix == ".bmp":  # laid on white
        assert_close(back.x, 0.25 * x + 0.75, rtol=0, atol=0.51 / 255)


def test_jpeg_keeps_the_colours_of_single_pixels(tmp_path):
    # Red and blue columns of one pixel: with the usual halved colour resolution both become purple.
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0, :, ::2] = 1
    x[:, 2, :, 1::2] = 1
    images.write(tmp_path / "a.jpg", x)
    assert_close(images.read(tmp_path / "a.jpg").x, x, rtol=0, atol=0.1)


def test_a_grey_photo_stays_grey_in_one_channel(tmp_path):
    path = save(tmp_path / "a.png", noise(6, 5))
    photo = images.read(path)
    images.write(tmp_path / "b.png", photo.x, like=photo)
    assert Picture.open(tmp_path / "b.png").mode == "L"
    assert np.array_equal(np.asarray(Picture.open(tmp_path / "b.png")), noise(6, 5))
    tinted = torch.tensor([0.1, 0.2, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 6, 5)
    images.write(tmp_path / "b.png", tinted, like=photo)
    assert np.asarray(Picture.open(tmp_path / "b.png")).tolist() == [[102] * 5] * 6


def test_a_grey_photo_with_an_rgb_profile_stays_one_of_three_channels(tmp_path):
    path = save(tmp_path / "a.png", np.repeat(noise(6, 5, 1), 3, 2), icc_profile=SRGB)
    photo = images.read(path)
    assert photo.is_grey
    images.write(tmp_path / "b.png", torch.rand(1, 3, 6, 5, generator=torch.Generator()), like=photo)
    back = images.read(tmp_path / "b.png")
    assert back.is_grey
    assert back.icc == SRGB
    assert Picture.open(tmp_path / "b.png").mode == "RGB"


def test_alpha_grows_with_super_resolution(tmp_path):
    alpha = torch.zeros(1, 1, 4, 6)
    alpha[..., :3] = 1
    like = photo_of(torch.zeros(1, 3, 4, 6), alpha=alpha)
    images.write(tmp_path / "a.png", torch.zeros(1, 3, 16, 24), like=like)
    grown = images.read(tmp_path / "a.png").alpha
    assert grown.shape == (1, 1, 16, 24)
    assert (grown[..., :8] == 1).all()
    assert (grown[..., 16:] == 0).all()


def test_encode_png_gives_the_bytes_of_the_file(tmp_path):
    x = tensor(noise(5, 6, 3))
    images.write(tmp_path / "a.png", x)
    assert images.encode_png(x) == (tmp_path / "a.png").read_bytes()


def test_names_with_spaces_and_any_letters_work(tmp_path):
    path = tmp_path / "Großmutter 祖母 🙂 (1).png"
    images.write(path, tensor(noise(5, 6, 3)))
    same(images.read(path).x, noise(5, 6, 3))
    assert [source.path for source in images.find([path])] == [path]


# Masks and kernels


def test_white_in_a_mask_file_is_the_hole(tmp_path):
    painted = np.zeros((4, 6), np.uint8)
    painted[1, 2], painted[3, 5], painted[0, 0] = 255, 128, 127
    known = images.read_mask(save(tmp_path / "m.png", painted), size=(4, 6))
    assert known.shape == (1, 1, 4, 6)
    assert known.dtype == torch.float32
    assert (1 - known).nonzero()[:, 2:].tolist() == [[1, 2], [3, 5]]


def test_transparent_places_of_a_mask_are_not_painted(tmp_path):
    painted = np.full((4, 6, 4), 255, np.uint8)
    painted[..., 3] = 0
    painted[2, 3, 3] = 255
    known = images.read_mask(save(tmp_path / "m.png", painted))
    assert (1 - known).nonzero()[:, 2:].tolist() == [[2, 3]]


def test_a_mask_of_another_size_or_of_one_colour_is_explained(tmp_path):
    black = save(tmp_path / "black.png", np.zeros((4, 6), np.uint8))
    white = save(tmp_path / "white.png", np.full((4, 6), 255, np.uint8))
    with pytest.raises(ValueError, match=r"black\.png has 6 x 4 pixels .* the photo 8 x 4"):
        images.read_mask(black, size=(4, 8))
    with pytest.raises(ValueError, match="no hole: white marks what is to be filled"):
        images.read_mask(black)
    with pytest.raises(ValueError, match=r"all hole: white marks .* is it inverted"):
        images.read_mask(white)


def test_a_kernel_is_a_grey_picture_or_a_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    pixels = noise(5, 7)
    assert_close(images.read_kernel(save(tmp_path / "k.png", pixels)), tensor(pixels[..., None])[0, 0])
    kernel = torch.arange(15.0).reshape(1, 1, 3, 5)
    save_file({"kernel": kernel, "other": torch.zeros(2)}, tmp_path / "k.safetensors")
    assert torch.equal(images.read_kernel(tmp_path / "k.safetensors"), kernel[0, 0])


def test_other_kernels_are_refused_with_what_would_work(tmp_path):
    from safetensors.torch import save_file

    np.save(tmp_path / "k.npy", np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"k\.npy: give a grey picture, or a \.safetensors"):
        images.read_kernel(tmp_path / "k.npy")
    with pytest.raises(ValueError, match="colour picture"):
        images.read_kernel(save(tmp_path / "k.png", noise(5, 5, 3)))
    save_file({"a": torch.ones(3, 3), "b": torch.ones(3, 3)}, tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match='holds a, b; needs one tensor "kernel"'):
        images.read_kernel(tmp_path / "k.safetensors")
    save_file({"a": torch.ones(2, 3, 3)}, tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 3\); needs \(k, l\)"):
        images.read_kernel(tmp_path / "k.safetensors")
    (tmp_path / "k.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        images.read_kernel(tmp_path / "k.safetensors")


# Finding files and naming results


@pytest.fixture
def album(tmp_path):
    for name in ("b.jpg", "a.png", "c.TIFF", "sub/d e.webp", "sub/deep/ü.bmp", "m.safetensors"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).touch()
    for name in (".hidden.png", "notes.txt", "m_operator.safetensors", ".trash/x.png", "a.png.json"):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).touch()
    return tmp_path / "album"


def names(sources):
    return [source.relative.as_posix() for source in sources]


def test_a_folder_gives_its_photos_sorted_with_their_sub_folders(album):
    sources = images.find([album])
    assert names(sources) == ["a.png", "b.jpg", "c.TIFF", "m.safetensors", "sub/d e.webp", "sub/deep/ü.bmp"]
    assert all(source.path == album / source.relative for source in sources)


def test_files_globs_and_folders_mix_and_no_file_comes_twice(album):
    sources = images.find([album / "b.jpg", str(album / "**" / "*.*"), album])
    assert names(sources)[0] == "b.jpg"
    assert sorted(names(sources)) == sorted(names(images.find([album])))
    assert names(images.find([str(album / "s*")])) == ["sub/d e.webp", "sub/deep/ü.bmp"]


def test_a_path_that_exists_is_no_glob(tmp_path):
    path = tmp_path / "photo [1].png"
    path.touch()
    assert images.find([path]) == [Source(path, Path("photo [1].png"))]


def test_the_results_folder_is_not_searched(album):
    before = images.find([album])
    (album / "restored").mkdir()
    (album / "restored" / "a.png").touch()
    assert len(images.find([album])) == len(before) + 1
    assert images.find([album], skip=album / "restored") == before


def test_nothing_found_says_what_was_given(tmp_path, album):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no photo: looked for \.png"):
        images.find([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"album/\*\.gif matches no file"):
        images.find([album / "*.gif"])
    with pytest.raises(FileNotFoundError, match=r"albun does not exist; did you mean .*album\?"):
        images.find([tmp_path / "albun"])
    with pytest.raises(ValueError, match="no input"):
        images.find([])


def test_a_folder_that_cannot_be_read_is_an_error(album, monkeypatch):
    import os

    scan = os.scandir

    def locked(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match=r"folder .*sub cannot be read: Permission denied"):
        images.find([album])


def test_results_mirror_sub_folders_and_keep_formats(album, tmp_path):
    sources = images.find([album])
    paths = [path.relative_to(tmp_path / "out").as_posix() for path in images.outputs(sources, tmp_path / "out")]
    assert paths == ["a.png", "b.jpg", "c.TIFF", "m.png", "sub/d e.webp", "sub/deep/ü.bmp"]


def test_equal_stems_get_distinct_results(tmp_path):
    results = {
        "x/a.png": "a_png.png",
        "x/a.jpg": "a_jpg.jpg",
        "y/a.png": "a_png-2.png",
        "y/A.PNG": "A_png-3.PNG",
        "x/b.png": "b.png",
        "x/c.safetensors": "c_safetensors.png",
        "x/c.png": "c_png.png",
        "x/a_png.png": "a_png-4.png",
    }
    sources = [Source(Path(name), Path(Path(name).name)) for name in results]
    assert [path.name for path in images.outputs(sources, tmp_path)] == list(results.values())


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from(["a", "A", "a-2", "a_png", "a_png-2"]),
                          st.sampled_from([".png", ".jpg", ".safetensors"])), max_size=12, unique=True))  # fmt: skip
def test_no_two_results_share_a_stem(tmp_path, files):
    sources = [Source(Path(folder, stem + suffix), Path(stem + suffix)) for folder, stem, suffix in files]
    paths = images.outputs(sources, tmp_path)
    assert len({path.stem.casefold() for path in paths}) == len(paths)
    assert paths == images.outputs(sources, tmp_path)


def test_a_result_never_overwrites_a_photo(album):
    with pytest.raises(
        ValueError, match=r"a\.png would overwrite a photo that was given: choose another folder by --out"
    ):
        images.outputs(images.find([album]), album)


@PROPERTY
@given(st.text(max_size=200))
def test_a_safe_stem_is_a_file_name_anywhere(tmp_path, name):
    stem = images.safe_stem(name)
    assert stem == images.safe_stem(stem)
    assert not set(stem) & set('<>:"/\\|?*\0')
    assert stem.strip(" .") == stem
    (tmp_path / f"{stem}.txt").touch()


def test_a_safe_stem_is_the_name_where_it_can_be():
    assert images.safe_stem("Großmutter 祖母 (1)") == "Großmutter 祖母 (1)"
    assert images.safe_stem("../../etc/passwd") == "_.._etc_passwd"
    assert images.safe_stem("NUL") == "_NUL"
    assert images.safe_stem("..") == "_"


# Fitting


def test_a_photo_of_the_right_size_is_not_touched():
    photo = photo_of(tensor(noise(16, 16, 3)))
    fit = images.fit(photo, 16)
    assert torch.equal(fit.x, photo.x)
    restored = tensor(noise(16, 16, 3, seed=1))
    assert torch.equal(fit.paste(restored), restored)
    larger = tensor(noise(64, 64, 3, seed=1))
    assert torch.equal(fit.paste(larger, factor=4), larger)


def test_a_photo_that_does_not_fit_is_told_the_ways_out():
    photo = photo_of(torch.zeros(1, 3, 30, 40))
    with pytest.raises(
        ValueError, match=r"p\.png has 40 x 30 .* 16 x 16 are needed: --crop face .*--crop mask .*--resize"
    ):
        images.fit(photo, (16, 16))


def test_wrong_ways_to_fit_are_refused():
    photo = photo_of(torch.zeros(1, 3, 30, 40))
    with pytest.raises(ValueError, match="unknown crop 'eye'; there are face and mask"):
        images.fit(photo, 16, crop="eye")
    with pytest.raises(ValueError, match="choose one"):
        images.fit(photo, 16, crop="face", resize=True)
    with pytest.raises(ValueError, match="add --mask"):
        images.fit(photo, 16, crop="mask")
    with pytest.raises(ValueError, match="mask has 8 x 8 pixels"):
        images.fit(photo, 16, resize=True, known=torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\), this fit needs \(1, 3, 16, 16\)"):
        images.fit(photo, 16, resize=True).paste(torch.zeros(1, 3, 8, 8))


@PROPERTY
@given(height=st.integers(1, 70), width=st.integers(1, 70), factor=st.sampled_from([1, 2, 4]))
def test_resizing_keeps_a_photos_size_and_flat_colours(height, width, factor):
    photo = photo_of(torch.tensor([0.2, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, height, width).contiguous())
    fit = images.fit(photo, 16, resize=True)
    assert fit.x.shape == (1, 3, 16, 16)
    # A resampling filter's weights sum to 1 within float32.
    assert_close(fit.x, photo.x[..., :1, :1].expand(1, 3, 16, 16), rtol=0, atol=1e-5)
    square = fit.x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    back = fit.paste(square, factor=factor)
    assert back.shape == (1, 3, height * factor, width * factor)
    assert_close(back, photo.x[..., :1, :1].expand_as(back), rtol=0, atol=1e-5)


def test_a_resized_smooth_photo_comes_back():
    ramp = torch.linspace(0.1, 0.9, 60)
    x = torch.stack([ramp.expand(40, 60), ramp.flip(0).expand(40, 60), torch.full((40, 60), 0.3)])[None]
    fit = images.fit(photo_of(x), 48, resize=True)
    inner = fit.x[:, :, 8:40]
    assert_close(fit.x[:, :, :8], inner[:, :, :8].flip(2))  # 48 / 60 of 40 rows are 32; the rest mirrors the edge
    assert_close(fit.x[:, :, 40:], inner[:, :, -8:].flip(2))
    assert_close(fit.paste(fit.x), x, rtol=0, atol=0.01)  # a ramp is bent within the filter's reach of the edge


def holes(height: int, width: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    known = torch.ones(1, 1, height, width)
    for top, left, bottom, right in boxes:
        known[..., top:bottom, left:right] = 0
    return known


def test_a_crop_around_the_mask_is_not_scaled_where_it_fits():
    photo = photo_of(tensor(noise(60, 80, 3)))
    known = holes(60, 80, (10, 50, 14, 60))
    fit = images.fit(photo, 32, crop="mask", known=known)
    top, left = fit.box.top, fit.box.left
    assert (fit.box.height, fit.box.width) == (32, 32)
    assert torch.equal(fit.x, photo.x[..., top : top + 32, left : left + 32])
    assert torch.equal(fit.known, known[..., top : top + 32, left : left + 32])
    assert (fit.known == 0).sum() == 40


def test_outside_the_region_a_photo_is_kept_to_the_bit_and_inside_the_result_fades_in():
    photo = photo_of(tensor(noise(60, 80, 3)))
    known = holes(60, 80, (20, 40, 30, 50))
    fit = images.fit(photo, 32, crop="mask", known=known)
    restored = torch.ones(1, 3, 32, 32)
    pasted = fit.paste(restored)
    outside = torch.ones(60, 80, dtype=torch.bool)
    box = fit.box
    outside[box.top : box.top + 32, box.left : box.left + 32] = False
    assert torch.equal(pasted[..., outside], photo.x[..., outside])
    assert (fit.box.cut(pasted)[..., 1:-1, 1:-1] == 1).all()  # 32 / 32 = 1 pixel of fading
    half = (fit.box.cut(photo.x)[..., 0, 5] + 1) / 2
    assert_close(fit.box.cut(pasted)[..., 0, 5], half)


def test_there_is_no_fading_at_the_photos_own_edge():
    photo = photo_of(torch.zeros(1, 3, 60, 80))
    fit = images.fit(photo, 32, crop="mask", known=holes(60, 80, (0, 0, 5, 5)))
    assert (fit.box.top, fit.box.left) == (0, 0)
    pasted = fit.paste(torch.ones(1, 3, 32, 32))
    assert (pasted[..., :31, :31] == 1).all()
    assert (pasted[..., 31, :31] == 0.5).all()


def test_a_hole_larger_than_the_prior_is_scaled_with_a_margin():
    photo = photo_of(tensor(noise(200, 300, 3)))
    fit = images.fit(photo, 32, crop="mask", known=holes(200, 300, (50, 100, 110, 140)))
    assert (fit.box.height, fit.box.width) == (90, 90)
    assert fit.x.shape == (1, 3, 32, 32)
    assert fit.paste(fit.x).shape == photo.x.shape


def test_known_pixels_stay_as_they_were_whatever_the_fit():
    photo = photo_of(tensor(noise(50, 70, 3)))
    known = holes(50, 70, (10, 10, 40, 50))
    for ways in ({"resize": True}, {"crop": "mask"}):
        fit = images.fit(photo, 16, known=known, **ways)
        pasted = fit.paste(torch.full((1, 3, 16, 16), 0.5), keep_known=True)
        assert torch.equal(pasted[..., known[0, 0] == 1], photo.x[..., known[0, 0] == 1])
        assert_close(pasted[..., 20:30, 20:40], torch.full((1, 3, 10, 20), 0.5))


def test_nothing_of_a_holes_colour_reaches_known_pixels_when_a_photo_is_resized():
    x = torch.full((1, 3, 64, 64), 0.25)
    known = holes(64, 64, (13, 21, 38, 50))
    x = torch.where(known == 1, x, 1.0)
    fit = images.fit(photo_of(x), 16, resize=True, known=known)
    assert 0 < fit.known.sum() < 256
    seen = fit.x[:, :, fit.known[0, 0] == 1]
    assert_close(seen, torch.full_like(seen, 0.25))


@pytest.fixture(scope="module")
def astronaut() -> Photo:
    from skimage import data

    return photo_of(tensor(data.astronaut()))


def test_the_face_of_the_astronaut_is_found_and_framed_as_in_training(astronaut):
    box = images.find_face(astronaut)
    # The framing chosen by eye in `astronaut_face`; the cascade's boxes have a std of a twelfth.
    assert abs(box.top + box.height / 2 - (57 + 60)) < 12
    assert abs(box.left + box.width / 2 - (165 + 60)) < 12
    assert 0.75 * 120 < box.height < 1.1 * 120
    fit = images.fit(astronaut, 64, crop="face")
    assert fit.x.shape == (1, 3, 64, 64)
    again = fit.paste(torch.zeros(1, 3, 64, 64))
    assert torch.equal(again[..., :20, :], astronaut.x[..., :20, :])


def test_the_larger_of_two_faces_is_taken(astronaut):
    face = images.astronaut_face(64)
    x = astronaut.x.clone()
    x[..., 380:444, 20:84] = face
    assert images.find_face(photo_of(x)) == images.find_face(astronaut)


def test_a_face_that_fills_the_photo_is_found_and_cut_to_the_photo():
    photo = photo_of(images.astronaut_face(160))
    fit = images.fit(photo, 64, crop="face")
    assert fit.box.top >= 0
    assert fit.box.left >= 0
    assert fit.box.height <= 160
    assert fit.box.width > 120


def test_a_photo_without_a_face_is_told_the_ways_out():
    with pytest.raises(ValueError, match=r"no upright frontal face was found in p\.png: .*--resize"):
        images.fit(photo_of(torch.full((1, 3, 100, 120), 0.5)), 64, crop="face")


# Pictures


def test_the_astronauts_face_is_the_same_wherever_and_needs_no_network(monkeypatch):
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    face = images.astronaut_face(128)
    assert face.shape == (1, 3, 128, 128)
    assert face.dtype == torch.float32
    assert 0 <= face.min() < face.max() <= 1
    # Eyes stand where they stand in the mean training photo, at 0.37 of the height: darker than the cheeks below.
    assert face[..., 42:53, 30:50].mean() < face[..., 64:75, 30:50].mean() - 0.05


def test_a_comparison_shows_each_picture_below_its_label_and_its_detail_below_that():
    red, green = (torch.tensor(c).reshape(3, 1) for c in ([1.0, 0, 0], [0, 1.0, 0]))
    x = red.reshape(1, 3, 1, 1).repeat(1, 1, 64, 64)
    x[..., 16:32, 32:64] = green[..., None]
    sheet = images.comparison([[("one", x), ("two", x)], [("three", x)]], inset=(0.25, 0.5, 0.25, 0.5))
    assert (sheet[..., 0, :] == 1).all()  # white around
    reds, greens = ((sheet[0].flatten(1) == colour).all(0).reshape(sheet.shape[2:]) for colour in (red, green))
    # Per picture 256 x 256 pixels, of which 64 x 128 are the detail, and the detail at twice the size. Frames and the
    # soft edges of enlarged colours take a few of them.
    assert 0.95 < float(reds.sum()) / (3 * (256**2 - 64 * 128)) <= 1
    assert 0.9 < float(greens.sum()) / (3 * 5 * 64 * 128) <= 1
    rows = (reds | greens).any(1).nonzero()[:, 0]
    ink = (sheet[0] < 0.5).all(0).any(1).nonzero()[:, 0]
    assert ink.min() < rows.min()
    assert not set(ink.tolist()) & set(rows.tolist())  # labels stand clear of the pictures
    with pytest.raises(ValueError, match="at least one"):
        images.comparison([])


def test_pillow_is_as_it_was_for_the_program_that_uses_stsl():
    assert Picture.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1024 * 1024
