"""PSNR and SSIM against scikit-image, image by image."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from stsl.metrics import psnr, ssim


@pytest.fixture(params=[(3, 24, 33), (1, 11, 40)], ids=["colour", "grey"])
def pair(request):
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(3, *request.param, generator=rng, dtype=torch.float64)
    stds = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64).view(3, 1, 1, 1)
    return truth + stds * torch.randn(truth.shape, generator=rng, dtype=torch.float64), truth


def by_hand(measure, x, truth, **settings):
    images = zip(x.clamp(0, 1).numpy(), truth.numpy(), strict=True)
    return torch.tensor([measure(b, a, data_range=1.0, **settings) for a, b in images], dtype=torch.float64)


def test_psnr_is_that_of_the_clamped_images(pair):
    assert_close(psnr(*pair), by_hand(peak_signal_noise_ratio, *pair), rtol=1e-12, atol=0)  # float64 rounding


def test_ssim_is_the_standard_one(pair):
    expected = by_hand(
        structural_similarity,
        *pair,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        K1=0.01,
        K2=0.03,
    )
    assert_close(ssim(*pair), expected, rtol=0, atol=1e-12)  # float64 rounding


def test_rounding_to_8_bits_is_the_psnr_of_the_saved_picture(pair):
    x, truth = pair
    saved, kept = ((image.clamp(0, 1) * 255).round() for image in (x, truth))
    expected = torch.tensor(
        [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=255) for a, b in zip(saved, kept, strict=True)],
        dtype=torch.float64,
    )
    assert_close(psnr(x, truth, rounded=True), expected, rtol=1e-12, atol=0)
    assert not torch.equal(psnr(x, truth), psnr(x, truth, rounded=True))


def test_equal_images_have_infinite_psnr_and_ssim_1(pair):
    _, truth = pair
    assert psnr(truth, truth).isposinf().all()
    assert_close(ssim(truth, truth), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_images_of_different_shape_or_too_small_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="sides of 11 pixels"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
