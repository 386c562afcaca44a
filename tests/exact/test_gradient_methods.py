"""A step of LDPS, GMLDPS and PSLD is its paper's equation."""

import pytest
import torch
from dense import MixturePrior, Tape
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.samplers import GMLDPS, LDPS, PSLD, State

# Everything is float64 with matrices of 50 rows and values of order 1: rounding stays below 1e-13.
EXACT = {"rtol": 0, "atol": 1e-10}
OPERATORS = ("inpainting", "superresolution", "blur", "anything")
LEVELS = ((981, 961), (481, 461), (1, -1))


def by_hand(sampler, dense, z, t, t_next, weights=None):
    """DDIM from z, minus the gradient of the sampler's losses at z."""
    g = sampler.omega * dense.data_gradient(z, t)
    if isinstance(sampler, GMLDPS):
        g = g + sampler.gamma * dense.gluing_gradient(z, t)
    if isinstance(sampler, PSLD):
        correction = dense.glue if weights is None else weights[:, :, None] * dense.glue
        g = g + sampler.gamma * dense.gluing_gradient(z, t, correction)
    return dense.ddim(z, t, t_next) - g


def begin(problem, seed=5):
    z = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return State(z, clean=z)


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sampler", [LDPS(omega=0.7), GMLDPS(omega=0.7, gamma=0.4)], ids=["LDPS", "GMLDPS"])
def test_a_step_is_the_papers_equation(make, sampler, operator, components):
    problem, dense = make(operator, components=components)
    state = begin(problem)
    for t, t_next in LEVELS:
        ours = sampler.step(problem, state, t, t_next, Tape())
        assert_close(ours.z.flatten(1), by_hand(sampler, dense, state.z.flatten(1), t, t_next), **EXACT)
        assert_close(ours.clean.flatten(1), dense.clean(state.z.flatten(1), t), **EXACT)


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("adjoint", ["paper", "exact"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_psld_step_is_the_papers_equation_with_either_adjoint(make, operator, adjoint, components):
    sampler = PSLD(omega=0.7, gamma=0.4, adjoint=adjoint)
    problem, dense = make(operator, adjoint, components)
    state = begin(problem)
    for t, t_next in LEVELS:
        ours = sampler.step(problem, state, t, t_next, Tape())
        assert_close(ours.z.flatten(1), by_hand(sampler, dense, state.z.flatten(1), t, t_next), **EXACT)


def test_the_two_adjoints_of_psld_differ_where_they_should(make):
    """Nearest upsampling is no transpose of bicubic downsampling; for a mask both are the mask."""
    for operator, differ in (("superresolution", True), ("blur", True), ("inpainting", False)):
        problem, _ = make(operator)
        state = begin(problem)
        z = [PSLD(adjoint=adjoint).step(problem, state, 481, 461, Tape()).z for adjoint in ("paper", "exact")]
        assert ((z[0] - z[1]).abs().max() > 1e-3) == differ


def test_pslds_gluing_kernel_blurs_the_map_of_seen_pixels(make):
    sampler = PSLD(omega=0.7, gamma=0.4, kernel=3, kernel_sigma=0.8)
    problem, dense = make("inpainting", components=2)
    g = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) ** 2) / (2 * 0.8**2))
    line = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for k in range(3):
            j = abs(i + k - 1)
            line[i, 6 - j if j > 3 else j] += (g / g.sum())[k]
    seen = dense.seen[:, :16].double().reshape(2, 4, 4)
    weights = (line @ seen @ line.T).reshape(2, 16).repeat(1, 3)

    state = sampler.begin(problem, Tape())
    ours = sampler.step(problem, state, 481, 461, Tape())
    assert_close(ours.z.flatten(1), by_hand(sampler, dense, state.z.flatten(1), 481, 461, weights), **EXACT)
    without = by_hand(sampler, dense, state.z.flatten(1), 481, 461)
    assert (ours.z.flatten(1) - without).abs().max() > 1e-3


def test_pslds_gluing_kernel_changes_nothing_where_every_pixel_is_seen(make):
    problem, _ = make("blur")
    z = [[f.state.z for f in iterate(problem, PSLD(steps=3, kernel=k), Tape())][-1] for k in (0, 3)]
    # The blurred map of ones is 1 up to the rounding of a sum of 9 weights.
    assert_close(z[0], z[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("method", [LDPS, GMLDPS, PSLD])
def test_a_whole_run_is_the_papers_algorithm(make, method, components):
    problem, dense = make("superresolution", components=components)
    sampler, tape = method(steps=10), Tape()
    frames = list(iterate(problem, sampler, tape))
    (z,) = tape.replay()  # N(0, I) at the noisiest level, and nothing random after
    levels = [901 - 100 * i for i in range(10)]
    assert [frame.t for frame in frames] == levels
    for frame, t, t_next in zip(frames, levels, [*levels[1:], -1], strict=True):
        z = by_hand(sampler, dense, z, t, t_next)
        assert_close(frame.state.z.flatten(1), z, **EXACT)


@pytest.mark.parametrize("method", [LDPS, GMLDPS, PSLD])
def test_the_logged_residual_is_the_rms_over_measured_numbers_on_0_to_1(make, method):
    problem, dense = make("inpainting")
    state = begin(problem)
    log = method().step(problem, state, 481, 461, Tape()).log
    r = dense.residual(dense.clean(state.z.flatten(1), 481)) / 2
    known = dense.operator.diagonal(dim1=1, dim2=2).sum(1)
    assert_close(log["residual"], (r.square().sum(1) / known).sqrt(), **EXACT)


def test_the_mixture_prior_is_what_the_formulas_say(make):
    problem, dense = make(components=2)
    assert isinstance(problem.prior, MixturePrior)
    z = begin(problem).z
    assert_close(problem.prior.epsilon(z, 481).flatten(1), dense.eps(z.flatten(1), 481), **EXACT)
    there_and_back = problem.prior.encode(problem.prior.decode(z)).flatten(1)
    assert_close(there_and_back, dense.encode(dense.decode(z.flatten(1))), **EXACT)
