"""From a photo of any size to the square a prior knows, and back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stsl.images.reading import Photo, _pixels
from stsl.shapes import Image, Tensor

CROPS = ("face", "mask")

# An aligned face of the training photos over the cascade's box around it: 0.96 of the square in the mean of 113 faces,
# and the same centre to half a percent.
FACE_OVER_BOX = 1.04
# The cascade was trained on windows of 24 pixels; on photos of this longer side it finds faces of a twentieth of it.
SEARCH_SIDE, SMALLEST_FACE = 512, 26
# A square around a hole is this much larger than the hole, so that the prior sees what lies around it.
MASK_MARGIN = 1.5
FEATHER = 1 / 32  # of the square's side


@dataclass(frozen=True)
class Box:
    """A rectangle of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """The rectangle of `x`, a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def times(self, factor: int) -> "Box":
        """The same rectangle of a photo `factor` times as large."""
        return Box(self.top * factor, self.left * factor, self.height * factor, self.width * factor)


@dataclass(frozen=True)
class Fit:
    """How a region of a photo went to the size a prior needs, and how it goes back.

    Args:
        x: what goes to the prior, shape (1, 3, h, w).
        known: the mask that goes with it, 1 = known, shape (1, 1, h, w); None without a mask.
        photo: the whole photo, shape (1, 3, H, W).
        photo_known: the whole mask, shape (1, 1, H, W); None without a mask.
        box: the region, in pixels of the photo.
        inner: where in `x` the region lies; around it the edge is mirrored.
    """

    x: Image
    known: Tensor | None
    photo: Image
    photo_known: Tensor | None
    box: Box
    inner: Box

    @property
    def is_exact(self) -> bool:
        """Whether `x` is the whole photo, unchanged."""
        return tuple(self.x.shape) == tuple(self.photo.shape)

    def paste(self, x: Image, *, factor: int = 1, keep_known: bool = False) -> Image:
        """Put a restored square back into the photo.

        Outside the region the photo is as it was, enlarged bicubically where `factor` is above 1. Inside, the
        result fades in over 1/32 of the region's side, from the sides where the photo goes on.

        Args:
            x: the restored square, shape (1, 3, h · factor, w · factor).
            factor: how many times larger it is than what went in, as super-resolution makes it.
            keep_known: known pixels of the mask are the photo's own, bit by bit.

        Returns:
            shape (1, 3, H · factor, W · factor).

        Raises:
            ValueError: `x` has another shape.
        """
        needed = (1, self.photo.shape[1], self.x.shape[2] * factor, self.x.shape[3] * factor)
        if tuple(x.shape) != needed:
            raise ValueError(f"got a restored image of shape {tuple(x.shape)}, this fit needs {needed}")
        whole = self.photo if factor == 1 else _enlarge(self.photo, factor)
        box = self.box.times(factor)
        region = _resample(self.inner.times(factor).cut(x), (box.height, box.width))
        weight = _fade(box, (whole.shape[2], whole.shape[3])).to(x.dtype)
        pasted = whole.to(x.dtype, copy=True)
        old = box.cut(pasted)
        # Written out so that weight 1 gives the result's own bits, and weight 0 the photo's.
        old.copy_(torch.where(weight == 1, region, weight * region + (1 - weight) * old))
        if keep_known and self.photo_known is not None:
            known = F.interpolate(self.photo_known, scale_factor=factor, mode="nearest")
            pasted = torch.where(known > 0.5, whole.to(x.dtype), pasted)
        return pasted


def fit(
    photo: Photo,
    size: int | tuple[int, int],
    *,
    crop: str | None = None,
    resize: bool = False,
    box: Box | None = None,
    known: Tensor | None = None,
) -> Fit:
    """Bring a photo, or its interesting part, to the size a prior needs.

    A photo of that size stays as it is, to the bit. Where one with a mask is resampled, a pixel is the mean over the
    known pixels it comes from, so that nothing of a hole's colour leaks, and it is known if half its weight is.

    Args:
        photo: the photo.
        size: (height, width), or the side of a square.
        crop: "face": the largest face, framed as the training photos are. "mask": a square around the mask's holes,
            unscaled if they fit.
        resize: scale the whole photo to fit, and mirror its edge on the shorter side.
        box: this rectangle, widened to the sides' ratio of `size` and moved into the photo.
        known: mask of the photo, 1 = known, shape (1, 1, H, W).

    Raises:
        ValueError: the photo has another size and no way was chosen; no face was found; no mask to crop around; an
            unknown or a second way; a mask of another size.
    """
    size = (size, size) if isinstance(size, int) else size
    if crop is not None and crop not in CROPS:
        raise ValueError(f"unknown crop {crop!r}; there are {' and '.join(CROPS)}")
    if crop is not None and resize:
        raise ValueError(f"--crop {crop} takes a part of the photo and --resize all of it: choose one")
    if box is not None and (crop is not None or resize):
        raise ValueError("a box says which part of the photo is taken: give no crop and no resize with it")
    if box is not None and min(box.height, box.width) < 1:
        raise ValueError(f"a box has at least one pixel on each side, this one {box.height} x {box.width}")
    _check_mask(photo, known)
    if box is not None:
        box = _around(box, photo.size, size)
    elif crop == "face":
        box = _around(find_face(photo), photo.size, size)
    elif crop == "mask":
        if known is None:
            raise ValueError("--crop mask cuts around the holes of a mask, and there is none: add --mask FILE")
        box = _mask_box(known, photo.size, size)
    elif resize or photo.size == size:
        box = Box(0, 0, *photo.size)
    else:
        raise ValueError(
            f"{photo.path} has {_pixels(photo.size)}, and {size[1]} x {size[0]} are needed: --crop face takes the "
            "largest face, --crop mask a square around the mask's holes, --resize scales the whole photo, and --tiles "
            "restores all of it at its own size"
        )
    return _fitted(photo, box, size, known)


def cover(photo: Photo, size: tuple[int, int], *, known: Tensor | None = None) -> Fit:
    """The whole photo at its own size, its right and lower edges mirrored to fill `size`.

    Raises:
        ValueError: the photo is larger; a mask of another size.
    """
    height, width = photo.size
    if size[0] < height or size[1] < width:
        raise ValueError(f"{photo.path} has {_pixels(photo.size)}, more than the {_pixels(size)} of the operator")
    _check_mask(photo, known)
    rows, columns = _mirrored(0, height, size[0]), _mirrored(0, width, size[1])
    x, mask = (None if whole is None else whole[:, :, rows][:, :, :, columns] for whole in (photo.x, known))
    assert x is not None
    all_of_it = Box(0, 0, height, width)
    return Fit(x=x, known=mask, photo=photo.x, photo_known=known, box=all_of_it, inner=all_of_it)


def _check_mask(photo: Photo, known: Tensor | None) -> None:
    if known is not None and tuple(known.shape[-2:]) != photo.size:
        raise ValueError(
            f"the mask has {_pixels((known.shape[-2], known.shape[-1]))}, {photo.path} {_pixels(photo.size)}"
        )


def square(photo: Photo, side: int) -> Image:
    """The largest square in the middle of a photo, scaled to a side; (1, 3, side, side) in [0, 1]."""
    height, width = photo.size
    least = min(height, width)
    return _resample(Box((height - least) // 2, (width - least) // 2, least, least).cut(photo.x), (side, side))


def _fitted(photo: Photo, box: Box, size: tuple[int, int], known: Tensor | None) -> Fit:
    scale = min(size[0] / box.height, size[1] / box.width)
    height, width = max(1, round(box.height * scale)), max(1, round(box.width * scale))
    inner = Box((size[0] - height) // 2, (size[1] - width) // 2, height, width)
    x, mask = box.cut(photo.x), None if known is None else box.cut(known)
    if mask is None:
        x = _resample(x, (height, width))
    elif (height, width) != (box.height, box.width):
        weight = _resample(mask, (height, width), clamp=False)
        x = (_resample(x * mask, (height, width), clamp=False) / weight.clamp(min=0.5)).clamp(0, 1)
        mask = (weight >= 0.5).float()
    rows, columns = _mirrored(inner.top, height, size[0]), _mirrored(inner.left, width, size[1])
    x = x[:, :, rows][:, :, :, columns]
    mask = None if mask is None else mask[:, :, rows][:, :, :, columns]
    return Fit(x=x, known=mask, photo=photo.x, photo_known=known, box=box, inner=inner)


def find_face(photo: Photo) -> Box:
    """The largest face, as a square of the framing of the training photos; it may reach over the photo's edge.

    The detector is the cascade of local binary patterns that ships with scikit-image. It knows upright frontal faces.

    Raises:
        ValueError: no face was found.
    """
    from skimage import data
    from skimage.feature import Cascade

    height, width = photo.size
    scale = min(1.0, SEARCH_SIDE / max(height, width))
    small = _resample(photo.x, (max(1, round(height * scale)), max(1, round(width * scale))))
    # The edge goes on for an eighth of the side, since the cascade finds no face that the edge cuts.
    margin = max(small.shape[2:]) // 8
    small = F.pad(small, (margin,) * 4, mode="replicate")
    picture = (255 * small[0]).round().byte().permute(1, 2, 0).contiguous().numpy()
    found = Cascade(data.lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=picture,
        scale_factor=1.1,
        step_ratio=1,
        min_size=(SMALLEST_FACE, SMALLEST_FACE),
        max_size=(max(picture.shape[:2]),) * 2,
    )
    if not found:
        raise ValueError(
            f"no upright frontal face was found in {photo.path}: cut the face out by hand, from forehead to chin, "
            "and use --resize, or leave --crop out"
        )
    face = max(found, key=lambda box: box["width"])
    side = max(1, round(face["width"] / scale * FACE_OVER_BOX))
    row, column = (face[axis] + face["width"] / 2 - margin for axis in ("r", "c"))
    return Box(round(row / scale - side / 2), round(column / scale - side / 2), side, side)


def _mask_box(known: Tensor, photo: tuple[int, int], size: tuple[int, int]) -> Box:
    """The rectangle around all holes: at least `size`, so that what fits is not scaled."""
    hole = known[0, 0] < 0.5
    rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("--crop mask cuts around the holes of a mask, and this mask has none")
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    scale = max(height * MASK_MARGIN / size[0], width * MASK_MARGIN / size[1])
    if height <= size[0] and width <= size[1]:
        scale = 1.0
    wanted = round(size[0] * scale), round(size[1] * scale)
    box = Box(top + (height - wanted[0]) // 2, left + (width - wanted[1]) // 2, *wanted)
    return _around(box, photo, size)


def _around(box: Box, photo: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box with the sides' ratio of `size`, moved into the photo, and cut where the photo is too small for it."""
    scale = max(box.height / size[0], box.width / size[1])
    height, width = min(round(size[0] * scale), photo[0]), min(round(size[1] * scale), photo[1])
    top, left = box.top + (box.height - height) // 2, box.left + (box.width - width) // 2
    return Box(min(max(top, 0), photo[0] - height), min(max(left, 0), photo[1] - width), height, width)


def _mirrored(before: int, length: int, total: int) -> Tensor:
    """Which of `length` pixels stands at each of `total` places when the edges are mirrored again and again."""
    place = (torch.arange(total) - before) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def _resample(x: Tensor, size: tuple[int, int], *, clamp: bool = True) -> Tensor:
    """Bicubic, averaging over areas where it gets smaller; the same bits where the size stays."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
    return x.clamp(0, 1) if clamp else x


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return _resample(x, (x.shape[2] * factor, x.shape[3] * factor))


def _fade(box: Box, photo: tuple[int, int]) -> Tensor:
    """Weight of a region's new pixels, (height, width): 1 inside, a ramp to 0 at sides where the photo goes on."""
    ramp = max(1, round(max(box.height, box.width) * FEATHER))

    def side(start: int, length: int, total: int) -> Tensor:
        place = torch.arange(length) + 0.5
        weight = torch.ones(length)
        if start > 0:
            weight = torch.minimum(weight, place / ramp)
        if start + length < total:
            weight = torch.minimum(weight, (length - place) / ramp)
        return weight

    return side(box.top, box.height, photo[0])[:, None] * side(box.left, box.width, photo[1])
