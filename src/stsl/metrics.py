"""How close a restored image is to the truth, pixel by pixel."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from stsl.shapes import Image, PerImage

WINDOW = 11  # pixels: the Gaussian of std 1.5 cut at 3.5 std


def psnr(x: Image, truth: Image, *, rounded: bool = False) -> PerImage:
    """Peak signal-to-noise ratio of each image in dB, after clamping both to [0, 1].

    -10 log10 mean (x − truth)², the mean over all pixels and channels; infinite for equal images.

    Args:
        x: images, shape (B, C, H, W).
        truth: what they are compared with, same shape.
        rounded: round both to 8 bits first, as they would be in a PNG.

    Returns:
        dB, shape (B,).

    Raises:
        ValueError: shapes differ.
    """
    x, truth = _in_range(x, truth)
    if rounded:
        x, truth = (255 * x).round() / 255, (255 * truth).round() / 255
    return -10 * (x - truth).square().flatten(1).mean(dim=1).log10()


def ssim(x: Image, truth: Image) -> PerImage:
    """Structural similarity of each image, after clamping both to [0, 1]; 1 for equal images.

    Gaussian window of 11 x 11 pixels with std 1.5, K1 = 0.01, K2 = 0.03, data range 1, covariances without Bessel's
    correction, mean over channels and over the windows that lie inside the image.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".

    Args:
        x: images, shape (B, C, H, W).
        truth: what they are compared with, same shape.

    Returns:
        Similarities of shape (B,), at most 1.

    Raises:
        ValueError: shapes differ, or an image is smaller than the window.
    """
    x, truth = _in_range(x, truth)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs sides of {WINDOW} pixels, got {tuple(x.shape[-2:])}")
    _, everywhere = structural_similarity_index_measure(
        x, truth, sigma=1.5, kernel_size=WINDOW, data_range=1.0, k1=0.01, k2=0.03, return_full_image=True
    )
    edge = WINDOW // 2  # torchmetrics also counts windows on a mirrored border, which the standard does not have
    return everywhere[..., edge:-edge, edge:-edge].flatten(1).mean(dim=1)


def _in_range(x: Image, truth: Image) -> tuple[torch.Tensor, torch.Tensor]:
    if x.shape != truth.shape or x.ndim != 4:
        raise ValueError(
            f"compare two (B, C, H, W) batches of one shape, got {tuple(x.shape)} and {tuple(truth.shape)}"
        )
    return x.clamp(0, 1), truth.clamp(0, 1)
