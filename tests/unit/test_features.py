"""Pooled VGG features against torchvision's own network."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.testing import assert_close

from stsl.perceptual import PooledVGG
from stsl.perceptual.lpips import trunk, weights_path


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """torchvision's layers with drawn weights, which are in the cache as if they had been fetched."""
    monkeypatch.setenv("STSL_CACHE", str(tmp_path))
    rng = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # without memory for the half gigabyte of its classifier
        features = torchvision.models.vgg16(weights=None).features[:30]
    features = features.to_empty(device="cpu").requires_grad_(False)
    for parameter in features.parameters():
        fan = max(parameter[0].numel(), 1)
        parameter.copy_(torch.randn(parameter.shape, generator=rng) * (2 / fan) ** 0.5)
    weights_path("vgg").parent.mkdir(parents=True)
    save_file(features.state_dict(), weights_path("vgg"))
    assert features.state_dict().keys() == trunk("vgg").state_dict().keys()
    return features


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_features_are_the_mean_of_the_last_relu_of_imagenet_pixels(theirs):
    x = pictures(2, 3, 48, 32)
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    before_pooling = theirs(normalise(x))
    assert before_pooling.shape == (2, 512, 3, 2)
    # float32 sums over 512 channels and 9 positions in another order
    assert_close(PooledVGG()(x), before_pooling.mean((2, 3)), rtol=1e-4, atol=1e-4 * float(before_pooling.max()))
    assert PooledVGG()(x).min() >= 0


def test_a_pictures_features_do_not_depend_on_its_batch(theirs):
    x, vgg = pictures(3, 3, 32, 32), PooledVGG()
    # a convolution may choose another algorithm for another batch size: float32 rounding
    assert_close(vgg(x)[1:2], vgg(x[1:2]), rtol=1e-4, atol=1e-4 * float(vgg(x).max()))


def test_what_is_no_picture_or_too_small_is_refused(theirs):
    vgg = PooledVGG()
    for shape in ((2, 1, 32, 32), (3, 32, 32), (1, 3, 15, 32)):
        with pytest.raises(ValueError, match="at least 16 x 16"):
            vgg(pictures(*shape))


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("STSL_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="stsl fetch lpips"):
        PooledVGG()
