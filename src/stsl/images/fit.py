"""From a photo of any size to the square a prior works on, and back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from stsl.images.photo import Photo
from stsl.shapes import Image

# Side of the crop over that of the detected face: the framing of the data the built-in prior has learned.
FACE_MARGIN = 1.1
# Room around a hole, as a share of the crop's side, from which the prior can guess what belongs there.
MASK_MARGIN = 0.5
# Width of the blend at the border of a pasted square, as a share of its side.
FEATHER = 1 / 16


@dataclass(frozen=True, eq=False)
class Fit:
    """A region of a photo, scaled to what the operator takes.

    Args:
        photo: the whole photo, (1, 3, H, W).
        box: (top, left, height, width) of the region.
        scaled: (height, width) of the region after scaling, before padding.
        x: the region as the operator takes it, (1, 3, h, w).
        known: 1 where `x` is known, (1, 1, h, w); None without a mask.
        whole: the mask of the whole photo, (1, 1, H, W); None without a mask.
    """

    photo: Image
    box: tuple[int, int, int, int]
    scaled: tuple[int, int]
    x: Image
    known: Tensor | None = None
    whole: Tensor | None = None

    def paste(self, x: Image, *, factor: int = 1, keep_known: bool = False) -> Image:
        """The whole photo with the restored region in its place.

        Outside the region pixels stay bit-equal (for `factor` > 1: the photo is enlarged by bicubic interpolation).
        Inside its border a narrow blend hides the seam, unless the region is the whole photo.

        Args:
            x: restored region, (1, 3, factor h, factor w).
            factor: how many times the result is larger than the photo.
            keep_known: known pixels of a mask stay bit-equal, too.
        """
        if self.x.shape == self.photo.shape:  # the whole photo, at its own size
            return torch.where(self.whole > 0.5, self.photo, x) if keep_known and self.whole is not None else x
        top, left, height, width = (factor * side for side in self.box)
        rows, columns = (factor * side for side in self.scaled)
        offset = [(full - used) // 2 for full, used in zip(x.shape[-2:], (rows, columns), strict=True)]
        region = x[..., offset[0] : offset[0] + rows, offset[1] : offset[1] + columns]
        region = _scale(region, (height, width))
        size = [factor * side for side in self.photo.shape[-2:]]
        if (height, width) == tuple(size):
            result = region.clone()
        else:
            result = _scale(self.photo, (size[0], size[1])).clone()
            place = result[..., top : top + height, left : left + width]
            weight = _feather(height, width).to(x)
            place.copy_(weight * region + (1 - weight) * place)
        if keep_known and self.whole is not None and factor == 1:
            result = torch.where(self.whole > 0.5, self.photo, result)
        return result


def fit(
    photo: Photo,
    size: tuple[int, int],
    *,
    crop: str | None = None,
    resize: bool = False,
    known: Tensor | None = None,
) -> Fit:
    """Fit a photo to (height, width) of the operator's input.

    Args:
        photo: the photo.
        size: what is needed.
        crop: "face" (the largest face) or "mask" (the square around what is missing).
        resize: scale the whole photo; what its shape lacks to a square is padded by repeating the border.
        known: mask of the photo, 1 where known.

    Raises:
        ValueError: the photo has another size and no way to fit it was chosen; no face; no mask to crop to.
    """
    if crop is not None and resize:
        raise ValueError("--crop and --resize are two ways to fit a photo: give one")
    if crop not in (None, "face", "mask"):
        raise ValueError(f"--crop {crop}: give face or mask")
    height, width = photo.size
    if crop == "face":
        box = find_face(photo)
    elif crop == "mask":
        box = _around_holes(photo, size, known)
    elif photo.size == size or resize:
        box = (0, 0, height, width)
    else:
        raise ValueError(
            f"{photo.path.name} has {width}×{height} pixels, and {size[1]}×{size[0]} are needed. Ways out: --crop face "
            "(restore the face and put it back), --crop mask (the square around what is missing), --resize (scale the "
            "whole photo and back)"
        )
    top, left, rows, columns = box
    share = min(size[0] / rows, size[1] / columns)
    scaled = (min(size[0], max(1, round(rows * share))), min(size[1], max(1, round(columns * share))))
    region = photo.x[..., top : top + rows, left : left + columns]
    x = _padded(_scale(region, scaled).clamp(0, 1), size)
    fitted = None
    if known is not None:
        part = known[..., top : top + rows, left : left + columns]
        # A pixel that a hole reached into while scaling is lost: its colour is mixed with what lies in the hole.
        fitted = _padded((_scale(part, scaled, mode="area") > 0.999).float(), size)
    return Fit(photo.x, box, scaled, x, fitted, known)


def find_face(photo: Photo) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a square around the largest face, framed as the built-in prior's training data.

    Raises:
        ValueError: no face was found.
    """
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    height, width = photo.size
    longest = max(height, width)
    # The detector slows down with the number of pixels and knows faces from 24 pixels on.
    share = min(1.0, 640 / longest)
    small = _scale(photo.x, (max(1, round(height * share)), max(1, round(width * share))))
    picture = (small[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    least = max(24, min(picture.shape[:2]) // 8)
    faces = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=picture, scale_factor=1.1, step_ratio=1, min_size=(least, least), max_size=picture.shape[:2]
    )
    if not faces:
        raise ValueError(
            f"no face was found in {photo.path.name}. Cut the photo to the face by hand, or restore the whole of it by --resize"
        )
    face = max(faces, key=lambda face: face["width"])
    side = min(round(FACE_MARGIN * face["width"] / share), height, width)
    middle = ((face["r"] + face["height"] / 2) / share, (face["c"] + face["width"] / 2) / share)
    top, left = (
        min(max(round(centre - side / 2), 0), full - side) for centre, full in zip(middle, (height, width), strict=True)
    )
    return top, left, side, side


def _around_holes(photo: Photo, size: tuple[int, int], known: Tensor | None) -> tuple[int, int, int, int]:
    if known is None:
        raise ValueError("--crop mask needs --mask FILE")
    rows, columns = (known[0, 0] < 0.5).nonzero().unbind(1)
    height, width = photo.size
    extent = int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1
    # At least the prior's own size, so that nothing is resampled where the hole is small.
    side = min(max(size[0], round(extent * (1 + 2 * MASK_MARGIN))), height, width)
    centre = (int(rows.min() + rows.max()) / 2, int(columns.min() + columns.max()) / 2)
    top, left = (
        min(max(round(middle - side / 2), 0), full - side) for middle, full in zip(centre, (height, width), strict=True)
    )
    if side < extent:
        raise ValueError(
            f"what is missing in {photo.path.name} spans {extent} pixels, more than the photo's shorter side {side}: "
            "use --resize"
        )
    return top, left, side, side


def _scale(x: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Antialiased resampling; the tensor itself where it has the size already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if mode == "area":
        return interpolate(x, size, mode="area")
    return interpolate(x, size, mode=mode, antialias=True, align_corners=False)


def _padded(x: Tensor, size: tuple[int, int]) -> Tensor:
    spare = [full - have for full, have in zip(size, x.shape[-2:], strict=True)]
    if not any(spare):
        return x
    top, left = spare[0] // 2, spare[1] // 2
    return pad(x, (left, spare[1] - left, top, spare[0] - top), mode="replicate")


def _feather(height: int, width: int) -> Tensor:
    """Weights (height, width) that rise from the border to 1 within `FEATHER` of the side."""

    def ramp(side: int) -> Tensor:
        reach = max(1.0, FEATHER * side)
        place = torch.arange(side) + 0.5
        return (torch.minimum(place, side - place) / reach).clamp(max=1.0)

    return torch.minimum(ramp(height)[:, None], ramp(width)[None, :])
