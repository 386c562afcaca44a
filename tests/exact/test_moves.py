"""Moves between levels: identities, and their gains on a Gaussian of unit variance.

The gains were computed apart from this library when the methods were specified; each is given with the digits it had.
"""

import logging
from dataclasses import replace

import pytest
import torch
from dense import ALPHA_BAR, Tape, ddpm, level
from torch.testing import assert_close

from stsl import operators
from stsl.loop import iterate
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.samplers import STSL
from stsl.schedule import VariancePreserving

# One fused multiplication more or less of float64 numbers of order 1.
ROUNDING = {"rtol": 0, "atol": 1e-12}
PAIRS = [(981, 961), (999, 0), (501, 481), (21, 1), (1, 0), (1, -1), (999, -1)]
SD = VariancePreserving(tuple(ALPHA_BAR), offset=1)


def normal(seed):
    return torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("t", "t_next"), PAIRS)
def test_the_ddpm_mean_is_ddim_with_eta_1_and_no_noise(t, t_next):
    z, eps = normal(0), normal(1)
    z0 = SD.clean(z, eps, t)
    assert_close(SD.mean(z, z0, t, t_next), SD.move(z0, eps, t, t_next, eta=1.0, noise=torch.zeros_like(z)), **ROUNDING)
    assert_close(SD.mean(z, z0, t, t_next), ddpm(z, z0, t, t_next)[0], **ROUNDING)


@pytest.mark.parametrize(("t", "t_next"), PAIRS)
def test_fresh_noise_has_the_ddpm_standard_deviation(t, t_next):
    z0, eps, noise = normal(0), normal(1), normal(2)
    fresh = SD.move(z0, eps, t, t_next, eta=1.0, noise=noise) - SD.move(z0, eps, t, t_next, eta=1.0, noise=0 * noise)
    assert_close(fresh, ddpm(z0, z0, t, t_next)[1] * noise, **ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_move_keeps_the_noise_level(eta):
    """The shares of predicted and fresh noise add up to σ'² in squares: numbers, no statistics, by unit inputs."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t, t_next in PAIRS:
        predicted = SD.move(zero, one, t, t_next, eta=eta, noise=zero)
        fresh = SD.move(zero, zero, t, t_next, eta=eta, noise=one)
        assert_close(predicted**2 + fresh**2, torch.tensor([level(t_next)[1] ** 2], dtype=torch.float64), **ROUNDING)


@pytest.mark.parametrize("t", [0, 1, 481, 999])
def test_clean_and_noise_are_inverse(t):
    z, eps = normal(0), normal(1)
    z0 = SD.clean(z, eps, t)
    # At t = 0 the noise is 34 times smaller than the latent, at t = 999 the latent 15 times smaller than the noise.
    close = {"rtol": 0, "atol": 1e-11}
    assert_close(SD.noise(z, z0, t), eps, **close)
    assert_close(SD.diffuse(z0, eps, t), z, **close)
    assert_close(SD.score(eps, t), -eps / (1 - ALPHA_BAR[t]) ** 0.5, **ROUNDING)
    # Divided by σ² = 8e-4 at t = 0.
    assert_close(SD.score(eps, t), (level(t)[0] * z0 - z) / (1 - ALPHA_BAR[t]), rtol=0, atol=1e-9)


def test_the_clean_end_is_the_latent_itself():
    z = normal(0)
    assert torch.equal(SD.clean(z, normal(1), -1), z)
    assert torch.equal(SD.diffuse(z, normal(1), -1), z)


# --- a unit Gaussian, where ε(z, t) = σ_t z and every run is a number times its beginning

IMAGE = (1, 4, 8)


@pytest.fixture
def toy(one_thread):
    d = 32
    prior = GaussianPrior(torch.zeros(IMAGE, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    y = 0.2 + 0.6 * torch.rand(2, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(y, operators.bicubic(IMAGE, 2), prior)


def gains(problem, **settings):
    """How much the way up and the way down of an unguided run multiply the latent."""
    sampler = STSL(inner_steps=0, **settings)
    start = problem.prior.encode(problem.start())
    z = [frame.state.z for frame in iterate(problem, sampler, Tape())]
    top = z[sampler.steps - 1]
    up, down = top / start, z[-1] / top
    assert_close(up, up.mean().expand_as(up), rtol=1e-9, atol=0)
    return float(up.mean()), float(down.mean())


def test_ddim_up_and_down_have_gains_that_cancel(toy):
    up, down = gains(toy, init="ddim")
    # Known to three decimals.
    assert up == pytest.approx(1.027, abs=5e-4)
    assert down == pytest.approx(0.973, abs=5e-4)


@pytest.mark.parametrize(("steps", "loss"), [(50, 3e-3), (200, 5e-4)])
def test_the_inversion_round_trip_loses_next_to_nothing(toy, steps, loss):
    """0.08 % and 0.01 % are what the discretisation loses; the bounds leave room for no error of another order."""
    up, down = gains(toy, init="ddim", steps=steps)
    assert 0 < abs(up * down - 1) < loss


def test_a_source_level_query_would_lose_five_percent(toy):
    """5.4 % at T = 50: the bound of the round trip tells the two queries apart."""
    z = torch.ones(1, dtype=torch.float64)
    for t, t_next in SD.ascend(50):
        eps = level(t)[1] * z
        z = SD.move(SD.clean(z, eps, t), eps, t, t_next)
    _, down = gains(toy, init="ddim")
    assert float(z) == pytest.approx(0.973, abs=5e-4)
    assert 1 - float(z) * down == pytest.approx(0.054, abs=5e-4)


@pytest.mark.parametrize(("steps", "loss"), [(50, 3e-3), (200, 5e-4)])
def test_an_unguided_ddim_run_returns_the_encoded_lift(toy, steps, loss):
    sampler = STSL(init="ddim", reverse="ddim", inner_steps=0, steps=steps)
    image = Restorer(toy.prior, sampler)(toy.y, toy.physics)
    start = toy.start()
    # The loss is a share of the latent, which is 2 x - 1: at most 1 here.
    assert_close(image, start, rtol=0, atol=loss / 2)


def test_the_noise_free_ddpm_mean_contracts_to_the_priors_mean(toy):
    _, down = gains(toy, init="ddim", reverse="ddpm_mean")
    assert down == pytest.approx(0.076, abs=5e-4)  # known to three decimals
    assert down == pytest.approx(ALPHA_BAR[981] ** 0.5, abs=1e-12)  # every step multiplies by √α


@pytest.mark.parametrize(("steps", "gain", "half_a_digit"), [(50, 4.5e3, 50), (200, 1.5e9, 5e7)])
def test_the_printed_ascent_explodes_and_says_so(toy, steps, gain, half_a_digit, caplog):
    with caplog.at_level(logging.WARNING, logger="stsl"):
        up, _ = gains(toy, init="printed", steps=steps)
    assert up == pytest.approx(gain, abs=half_a_digit)  # known to two digits
    (record,) = caplog.records
    assert 'init="printed"' in record.getMessage()
    assert 'init="gaussian"' in record.getMessage()


@pytest.mark.parametrize(("size", "warnings"), [(0.4, 1), (0.6, 0), (1.8, 0), (2.1, 1)])
def test_an_ascent_warns_when_an_images_std_leaves_half_to_twice(toy, size, warnings, caplog):
    std = toy.prior.encode(toy.start()).flatten(1).std(1)[:, None, None, None]
    first_only = torch.tensor([size, 1.0], dtype=torch.float64)[:, None, None, None]
    y = (1 + (2 * toy.y - 1) * first_only / std) / 2
    with caplog.at_level(logging.WARNING, logger="stsl"):
        gains(replace(toy, y=y), init="ddim")
    assert len(caplog.records) == warnings


def test_with_final_first_the_way_up_and_down_share_their_last_level(toy):
    """As in the null-text inversion code: no step ends at ᾱ = 1, so a round trip begins and ends at the first level."""
    schedule = replace(SD, final="first")
    assert schedule.at(-1) == schedule.at(0)
    assert schedule.ascend(50)[0] == (-1, 1)
    assert schedule.descend(50)[-1] == (1, -1)
    z, eps = normal(0), normal(1)
    z0 = schedule.clean(z, eps, 1)
    assert_close(schedule.move(z0, eps, 1, -1), SD.move(z0, eps, 1, 0), **ROUNDING)
