"""LatentDAPS is its equations: levels, the ODE, the Monte Carlo steps and the fresh noise."""

import numpy as np
import pytest
import torch
from dense import ALPHA_BAR, Tape, apply, level
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.samplers import LatentDAPS, State

# float64, values of order 1 and a few dozen linear maps in a row.
EXACT = {"rtol": 0, "atol": 1e-10}
SIGMAS = [((1 - a) / a) ** 0.5 for a in ALPHA_BAR]


def nearest(sigma):
    return min(range(1000), key=lambda t: abs(SIGMAS[t] - sigma))


def spaced(top, bottom, share):
    """The noise level at a share of the way, evenly in the 7th root."""
    return (top ** (1 / 7) + share * (bottom ** (1 / 7) - top ** (1 / 7))) ** 7


def by_hand(sampler, dense, z, t, t_next, number, draws):
    """One level. The ODE in z/scale against σ has the slope ε."""
    end = spaced(SIGMAS[t], 1e-3, 1 / 2)
    z0, sigma = z / level(t)[0], SIGMAS[t]
    for here, there in ((SIGMAS[t], SIGMAS[nearest(end)]), (SIGMAS[nearest(end)], 0.0)):
        at = SIGMAS.index(here)
        z0 = z0 + (there - here) * dense.eps(level(at)[0] * z0, at)
    mean, lr = z0, sampler.lr * (1 + number / sampler.steps * (sampler.lr_min_ratio - 1))
    slope = (dense.operator @ dense.decoder).transpose(-1, -2)
    velocity = next(draws)
    for _ in range(sampler.mcmc_steps):
        score = 2 * apply(slope, dense.residual(z0)) / sampler.tau**2 - (z0 - mean) / sigma**2
        velocity = sampler.momentum * velocity + lr**0.5 * score
        velocity = velocity + (2 * (1 - sampler.momentum)) ** 0.5 * next(draws)
        z0 = z0 + lr**0.5 * velocity
    scale_next, sigma_next = level(t_next)
    return z0, scale_next * z0 + sigma_next * next(draws)


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "anything"])
def test_every_level_of_a_run_is_the_papers(make, operator, components):
    problem, dense = make(operator, components=components)
    sampler = LatentDAPS(steps=6, mcmc_steps=4, lr=1e-3, lr_min_ratio=0.3, momentum=0.6, tau=0.2)
    tape = Tape()
    ours = [frame.state for frame in iterate(problem, sampler, tape)]
    draws = tape.replay()
    z, times = next(draws), [nearest(spaced(10, 0.1, i / 6)) for i in range(6)]
    for number, (state, t, t_next) in enumerate(zip(ours, times, [*times[1:], -1], strict=True)):
        z0, z = by_hand(sampler, dense, z, t, t_next, number, draws)
        assert_close(state.clean.flatten(1), z0, **EXACT)
        assert_close(state.z.flatten(1), z, **EXACT)
    assert torch.equal(ours[-1].z, ours[-1].clean)
    # The last draw multiplies the clean end's sigma, 0.
    assert next(draws, None) is None


def test_without_momentum_it_is_langevin_dynamics(make):
    problem, dense = make("superresolution")
    sampler, tape = LatentDAPS(steps=5, mcmc_steps=3, lr=2e-3, momentum=0.0, tau=0.3), Tape()
    z = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = sampler.step(problem, State(z, clean=z, memory=0), 481, 301, tape)
    _, *noises, _ = tape.replay()  # an initial velocity that is forgotten at once, and the next level's noise
    mean = LatentDAPS(steps=5, mcmc_steps=1, lr=0.0, momentum=0.0)
    mean = mean.step(problem, State(z, clean=z, memory=0), 481, 301, Tape()).clean.flatten(1)
    z0, slope = mean, (dense.operator @ dense.decoder).T
    for noise in noises:
        score = 2 * apply(slope, dense.residual(z0)) / 0.3**2 - (z0 - mean) / SIGMAS[481] ** 2
        z0 = z0 + 2e-3 * score + (2 * 2e-3) ** 0.5 * noise
    assert_close(ours.clean.flatten(1), z0, **EXACT)


def test_the_published_levels_run_from_10_to_a_tenth(make):
    problem, _ = make()
    plan = LatentDAPS().plan(problem.schedule)
    sigmas = [SIGMAS[t] for t, _ in plan]
    wanted = np.array([spaced(10, 0.1, i / 50) for i in range(50)])
    # The schedule's levels are at most 0.09 apart at the top and 0.005 at the bottom.
    assert np.abs(sigmas - wanted).max() < 0.05
    assert np.abs(sigmas - wanted)[-5:].max() < 0.003
    assert [t_next for _, t_next in plan] == [*(t for t, _ in plan[1:]), -1]


def test_more_euler_steps_come_nearer_to_the_ode(make):
    """On a Gaussian the flow is known: along each axis of C the distance from the mean keeps its share of the std."""
    problem, dense = make()
    z = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = nearest(1.0)
    variances, axes = torch.linalg.eigh(dense.latents.covariances[0])
    mean, scale = dense.latents.means[0], level(t)[0]
    away = (z.flatten(1) / scale - mean) @ axes
    exact = mean + away * (variances / (variances + SIGMAS[t] ** 2)).sqrt() @ axes.T
    errors = []
    for ode_steps in (1, 2, 4, 8):
        sampler = LatentDAPS(mcmc_steps=1, lr=0.0, ode_steps=ode_steps)
        ours = sampler.step(problem, State(z, clean=z, memory=0), t, 1, Tape()).clean.flatten(1)
        errors.append(float((ours - exact).norm() / exact.norm()))
    # An error of first order halves with the step; measured 0.33, 0.27, 0.15 and 0.08.
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.6 * errors[2] < 0.1


def test_the_network_is_not_differentiated(make):
    problem, _ = make()

    class Closed(Prior):
        name, schedule, family = "closed", problem.schedule, "latent"
        latent_shape, image_shape, dtype = problem.prior.latent_shape, problem.prior.image_shape, torch.float64
        encode, decode = problem.prior.encode, problem.prior.decode

        def epsilon(self, z, t, condition=None):
            assert not torch.is_grad_enabled()
            return problem.prior.epsilon(z, t)

    frames = list(iterate(Problem(problem.y, problem.physics, Closed()), LatentDAPS(steps=5, mcmc_steps=2), Tape()))
    assert len(frames) == 5


def test_a_schedule_with_too_few_levels_is_refused(make):
    problem, _ = make()
    with pytest.raises(ValueError, match=r"LatentDAPS: this prior's schedule has \d+ levels near the 300 asked for"):
        LatentDAPS(steps=300).plan(problem.schedule)
