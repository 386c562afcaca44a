"""Large holes are filled, and the talk's five controls do something."""

from dataclasses import replace

import pytest
import torch

from stsl import LPIPS, PSLD, STSL, Restorer, images, tasks

# One in every hole, of which 48 x 48 pixels are more than an eighth of the side.
HOLE = (slice(None), slice(None), slice(40, 88), slice(40, 88))


@pytest.fixture(scope="module")
def hole():
    """(truth, y, physics): the astronaut without the middle of her face."""
    x = images.astronaut_face()
    known = torch.ones(1, 1, 128, 128)
    known[HOLE] = 0
    physics = tasks.from_mask(known, (3, 128, 128), noise=0.005)
    return x, physics.A(x), physics


def std_ratio(x: torch.Tensor) -> float:
    """Standard deviation inside the hole over that outside."""
    outside = torch.ones_like(x, dtype=torch.bool)
    outside[HOLE] = False
    return float(x[HOLE].std() / x[outside].std())


def test_a_wide_hole_is_filled_with_something_like_a_face(faces_prior, hole, caplog):
    x, y, physics = hole
    caplog.set_level("INFO", logger="stsl")
    sampler = STSL.preset("fast")
    assert sampler.init == "auto"
    filled = Restorer(faces_prior, sampler).solve(y, physics, ids=["astronaut"]).image
    assert "starting from noise" in caplog.text
    assert 0.5 < std_ratio(filled) < 1.5
    if LPIPS.available("alex"):
        grey = torch.where(physics.mask > 0, y, 0.5)
        distance = LPIPS("alex")
        assert distance(filled, x) < distance(grey, x)


def test_inversion_would_have_left_it_grey(faces_prior, hole):
    _, y, physics = hole
    inverted = Restorer(faces_prior, replace(STSL.preset("fast"), init="ddim")).solve(y, physics, ids=["astronaut"])
    assert std_ratio(inverted.image) < 0.5


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"gamma": 0.5}, {"kernel": 5}, {"kernel_sigma": 0.5}, {"omega": 3.0}],
    ids=lambda change: next(iter(change)),
)
def test_each_of_the_talks_controls_changes_an_inpainting(change, faces_prior, hole):
    _, y, physics = hole
    sampler = replace(PSLD.preset("web-demo"), steps=4)
    before = Restorer(faces_prior, sampler).solve(y, physics, ids=["a"]).image
    after = Restorer(faces_prior, replace(sampler, **change)).solve(y, physics, ids=["a"]).image
    assert (before - after).abs().max() > 1 / 255
