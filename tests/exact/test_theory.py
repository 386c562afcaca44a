"""What the papers prove or claim, where it can be checked to the digit. docs/exactness.md has the figures."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from stsl.exact import make, observe
from stsl.exact.posterior import Observation
from stsl.exact.rivals import Unguided
from stsl.exact.theory import (
    centred,
    divergence,
    forward_mode,
    full_trace,
    jensen_gap,
    joint_draws,
    lower_bound,
    uncentred,
)
from stsl.loop import iterate
from stsl.numerics import trace_estimate
from stsl.priors.gaussian import GaussianPrior
from stsl.priors.mixture import Mixture
from stsl.problem import Problem
from stsl.rng import Rng, generator
from stsl.samplers import State

pytestmark = pytest.mark.usefixtures("one_thread")


def points(name, sigma_y, t, n, seed=0):
    problem = make(name, sigma_y)
    z, seen = joint_draws(problem.prior, observe(problem), t, n, generator("theory", name, sigma_y, t, seed))
    return problem.prior, z, seen


# --- Theorem 4.4


def test_theorem_4_4_holds_as_the_proof_gives_it_and_not_as_it_is_printed():
    defined, printed, violated = 0, 0, 0
    for name in ("bimodal", "degenerate"):
        for sigma_y in (0.1, 0.6):
            for t in (0, 20, 100, 300):
                prior, z, seen = points(name, sigma_y, t, 100)
                bound = lower_bound(prior, seen, z, t)
                here = ~bound.corrected.isnan()
                defined += int(here.sum())
                # Rounding of numbers of order 1 to 10.
                assert (bound.corrected[here] <= bound.truth[here] + 1e-9).all()
                there = ~bound.printed.isnan()
                printed += int(there.sum())
                violated += int((bound.printed[there] > bound.truth[there] + 1e-9).sum())
    assert defined >= 200
    assert violated >= 50
    assert violated < printed


def test_the_bounds_constant_is_the_worst_curvature_of_the_likelihood():
    """m is sup over z of −λ_min(∇² p(y | z)) / (2 p(y | z̄₀)), here by a search over a grid of z."""
    prior, z, seen = points("bimodal", 0.6, 100, 6)
    mean, h = prior.denoised(z, 100).mean, seen.matrix
    grid = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    step = grid[1] - grid[0]
    for row in range(6):
        p = torch.exp(-((seen.seen[row] - h[0, 0] * grid) ** 2) / (2 * 0.6**2))
        curvature = (p[2:] - 2 * p[1:-1] + p[:-2]) / step**2
        there = torch.exp(-((seen.seen[row] - h[0, 0] * mean[row]) ** 2) / (2 * 0.6**2))
        m = float((-curvature).max() / (2 * there))
        bound = lower_bound(prior, Observation(h, seen.seen[row : row + 1], 0.6), z[row : row + 1], 100)
        spread = prior.denoised(z[row : row + 1], 100).spread
        first = -0.5 * ((seen.seen[row] - h @ mean[row]) ** 2 / 0.36).sum()
        first = first - 0.5 * torch.log(torch.tensor(2 * torch.pi * 0.36))
        expected = first + torch.log(1 - m * spread)
        if expected.isfinite():
            assert_close(bound.corrected, expected.double(), rtol=0, atol=1e-4)  # the grid's second differences
        else:
            assert bound.corrected.isnan().all()


# --- the trace


def test_centring_changes_no_mean_and_lowers_the_variance_at_high_noise():
    prior, z, _ = points("inpainting", 0.1, 900, 1)
    probes = torch.randn(20_000, 1, 8, 8, dtype=torch.float64, generator=generator("probes"))
    rows = z.expand(len(probes), 1, 8, 8)
    score = lambda v: prior.score(v, 900)  # noqa: E731
    ours, without = centred(score, rows, probes), uncentred(score, rows, probes)
    error = (ours - without).std() / len(probes) ** 0.5
    assert (ours - without).mean().abs() < 5 * error
    assert ours.var() < 0.9 * without.var()


def test_the_libraries_estimate_is_the_centred_one():
    prior, z, _ = points("degenerate", 0.1, 500, 5)
    probe = torch.randn(z.shape, dtype=torch.float64, generator=generator("probe"))
    for scale in (1.0, 0.1):
        library = trace_estimate(probe[None], prior.score(z + scale * probe, 500)[None], prior.score(z, 500), scale)
        assert_close(library, centred(lambda v: prior.score(v, 500), z, probe, scale), rtol=1e-12, atol=1e-12)


def test_the_forward_mode_estimate_has_no_bias_and_the_papers_probe_has():
    t, n = 100, 20_000
    prior, z, _ = points("degenerate", 0.1, t, 1)
    exact = prior.hessian_trace(z, t)[0]
    probes = torch.randn(n, 1, 1, 2, dtype=torch.float64, generator=generator("probes"))
    rows = z.expand(n, 1, 1, 2)
    score = lambda v: prior.score(v, t)  # noqa: E731
    by_jvp = forward_mode(score, rows, probes)
    by_paper = centred(score, rows, probes)
    by_small = centred(score, rows, probes, 1e-4)
    for estimate in (by_jvp, by_small):
        assert (estimate.mean() - exact).abs() < 5 * estimate.std() / n**0.5
    assert (by_paper.mean() - exact).abs() > 10 * by_paper.std() / n**0.5
    assert_close(full_trace(score, z)[0], exact, rtol=1e-9, atol=1e-9)


# --- the first-order estimate


def test_the_jensen_gap_of_a_gaussian_is_its_closed_form():
    """With one component p(y | z_t) is a Gaussian, and the logarithms' gap a quadratic."""
    problem = make("bimodal", 0.6)
    prior = problem.prior
    seen = observe(problem)
    gap = jensen_gap(prior, seen, 0, 50, generator(0), samples=50)
    # At the lowest level z₀ is known to 0.03 and its likelihood has a width of 0.6: nothing is left to average.
    assert gap.log_gap < 0.01
    assert gap.violated == 0.0
    wide = jensen_gap(prior, seen, 700, 200, generator(0), samples=50)
    assert wide.log_gap > 20 * gap.log_gap


def test_theorem_a_2_fails_as_printed_at_low_noise():
    """Its slope exp(−1/2σ²)/√(2πσ²) is the density's at a distance of 1, not its largest one."""
    problem = make("bimodal", 0.1)
    assert jensen_gap(problem.prior, observe(problem), 300, 200, generator(0), samples=50).violated > 0.5


def test_the_divergence_of_two_gaussians_is_the_known_one():
    one, eye = torch.ones(1, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None]
    p = Mixture(one, torch.tensor([[1.0, 0.0]]).double(), 4 * eye)
    q = Mixture(one, torch.zeros(1, 2).double(), eye)
    expected = 0.5 * (8 + 1 - 2 - 2 * torch.log(torch.tensor(4.0)))
    assert divergence(p, q, 100_000, generator(0)) == pytest.approx(float(expected), rel=0.02)


# --- the reverse process


def test_the_deterministic_reverse_process_is_of_first_order():
    """From the last level down, DDIM's error against the exact flow of a Gaussian halves with twice the steps."""
    mean, variance = 0.4, 0.3
    prior = GaussianPrior(torch.full((1, 1, 1), mean), torch.tensor([[variance]]))
    scale, sigma = prior.schedule.at(999)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    exact = mean + (variance / (scale**2 * variance + sigma**2)) ** 0.5 * (start - scale * mean)
    errors = []
    for steps in (25, 50, 100):
        sampler = Unguided(steps=steps, noise=0.0, spacing="trailing")
        problem = Problem(torch.zeros(9, 1, 1, 1, dtype=torch.float64), None, prior)
        for frame in iterate(problem, sampler, Rng(0, ("a",) * 9), start=State(start, clean=start)):
            z = frame.state.z
        errors.append(float((z - exact).abs().max()))
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
