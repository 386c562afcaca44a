"""What a step may see: residuals on the papers' scale, and the measurement as an image."""

from dataclasses import replace

import pytest
import torch
from deepinv.physics import Inpainting
from torch.testing import assert_close

from stsl import tasks
from stsl.priors.base import Condition
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.samplers import LDPS

SHAPE = (1, 16, 16)
# float64 images of order 1, through operators whose matrices are float32 numbers.
ROUNDING = {"rtol": 0, "atol": 1e-12}


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior(one_thread):
    return GaussianPrior(torch.zeros(SHAPE, dtype=torch.float64), torch.eye(16 * 16, dtype=torch.float64))


def problem(prior, spec, y=None):
    physics = tasks.make(spec, SHAPE, ids=("a", "b"), noise=0.025).double()
    return Problem(physics.A(uniform(2, *SHAPE)) if y is None else y, physics, prior)


@pytest.mark.parametrize("spec", ["gaussian_blur", "sr4", "random_inpaint", "denoise"])
def test_both_conventions_of_noise_give_the_same_measurement_and_residual(prior, spec):
    """Images on [-1, 1] with noise 0.05, or on [0, 1] with 0.025: y and its residual are the same."""
    physics = tasks.make(spec, SHAPE, ids=("a", "b")).double()
    x, guess = uniform(2, *SHAPE), uniform(2, *SHAPE, seed=1)
    n = torch.randn(physics.A(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    known = physics.A(torch.ones_like(x))  # these operators keep brightness; a hole measures 0 in both conventions
    ours = physics.A(x) + 0.025 * n * known
    papers = physics.A(2 * x - 1) + 0.05 * n * known
    assert_close(2 * ours - known, papers, rtol=0, atol=1e-6)  # rows of float32 taps sum to 1 within 1e-7
    residual = Problem(ours, physics, prior).residual(2 * guess - 1)
    assert_close(residual, papers - physics.A(2 * guess - 1), rtol=0, atol=1e-6)


def test_the_noise_level_is_doubled_for_the_papers_scale(prior):
    run = Restorer(prior, LDPS(steps=1)).frames(uniform(2, *SHAPE), tasks.make("denoise", SHAPE, noise=0.025))
    assert run.problem.sigma_y == pytest.approx(0.05, abs=1e-9)  # the noise model keeps its sigma in float32


def test_the_residual_is_the_misfit_of_the_decoded_latent(prior):
    p = problem(prior, "sr4")
    z0 = uniform(2, *SHAPE, seed=3)
    assert_close(p.residual(z0), 2 * (p.y - p.physics.A((1 + z0) / 2)), **ROUNDING)


def test_a_start_is_the_measurement_with_holes_of_mid_grey(prior):
    p = problem(prior, "box_inpaint")
    known = p.physics.mask.expand(2, *SHAPE) > 0
    assert torch.equal(p.seen().expand(2, *SHAPE), known)
    assert torch.equal(p.start()[known], p.y[known])
    assert (p.start()[~known] == 0.5).all()
    assert (p.lift(p.y)[~known] == 0).all()


@pytest.mark.parametrize("adjoint", ["paper", "exact"])
@pytest.mark.parametrize("spec", ["sr4", "gaussian_blur", "denoise"])
def test_a_start_is_as_bright_as_the_image(prior, spec, adjoint):
    p = problem(prior, spec)
    flat = replace(p, y=p.physics.A(torch.full((2, *SHAPE), 0.7, dtype=torch.float64)))
    # float32 taps sum to 1 within 1e-7; the exact transpose divides by A^T A 1, which has the same error.
    assert_close(flat.start(adjoint), torch.full((2, *SHAPE), 0.7, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("adjoint", ["paper", "exact"])
def test_gluing_with_the_misfit_corrects_an_image_on_0_to_1(prior, adjoint):
    """x + glue(misfit) puts y into the known pixels: the misfit is doubled, the correction is not."""
    p = problem(prior, "random_inpaint")
    x = uniform(2, *SHAPE, seed=4)
    known = p.seen().expand_as(x)
    glued = x + p.glue(p.misfit(x), adjoint)
    assert_close(glued, torch.where(known, p.y, x), **ROUNDING)


@pytest.mark.parametrize(("side", "wide"), [(2, False), (3, True), (8, True)])
def test_a_hole_is_wide_when_an_unseen_square_is_wider_than_the_share(prior, side, wide):
    """An eighth of 16 pixels is 2: a square of 2 is not wider than that, one of 3 is."""
    masks = torch.ones(2, 1, 16, 16)
    masks[0, :, 5 : 5 + side, 3 : 3 + side] = 0
    p = Problem(uniform(2, *SHAPE), Inpainting(SHAPE, mask=masks).double(), prior)
    assert p.holes_wider_than(1 / 8).tolist() == [wide, False]


def test_a_long_thin_scratch_is_no_wide_hole(prior):
    mask = torch.ones(1, 1, 16, 16)
    mask[:, :, 7:9, :] = 0
    p = Problem(uniform(1, *SHAPE), Inpainting(SHAPE, mask=mask).double(), prior)
    assert p.holes_wider_than(1 / 8).tolist() == [False]


@pytest.mark.parametrize("spec", ["gaussian_blur", "sr4", "denoise"])
def test_the_rms_of_a_misfit_is_the_noise_on_0_to_1(prior, spec):
    p = problem(prior, spec)
    misfit = 2 * 0.025 * torch.ones_like(p.y)
    assert_close(p.rms(misfit), torch.full((2,), 0.025, dtype=torch.float64), **ROUNDING)


def test_the_rms_of_an_inpainting_counts_known_pixels_only(prior):
    p = problem(prior, "random_inpaint:drop=0.9")
    known = p.physics.mask.expand_as(p.y)
    assert_close(p.rms(2 * 0.025 * known), torch.full((2,), 0.025, dtype=torch.float64), **ROUNDING)


def test_a_prompt_is_repeated_for_stacked_batches():
    seen = []

    class Texts(GaussianPrior):
        def epsilon(self, z, t, condition=None):
            seen.append(condition)
            return z

    prior = Texts(torch.zeros(1, 1, 1), torch.eye(1))
    text = torch.arange(2.0).reshape(2, 1, 1)
    p = Problem(torch.zeros(2, 1, 1, 1), None, prior, Condition(text, -text, 1.0))
    p.epsilon(torch.zeros(6, 1, 1, 1), 1)
    p.epsilon(torch.zeros(2, 1, 1, 1), 1)
    assert seen[0].positive.flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert seen[0].negative.flatten().tolist() == [0, -1, 0, -1, 0, -1]
    assert torch.equal(seen[1].positive, text)
