"""ReSample is its equations: the levels it solves at, time travel, both fits with their stops, and resampling."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dense import HandAdam, Tape, apply, level
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.restorer import Restorer
from stsl.samplers import ReSample

# float64 and values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into lr · 1e-12.
EXACT = {"rtol": 0, "atol": 1e-10}
OPERATORS = ("inpainting", "superresolution", "anything")


def fit(dense, v, jacobian, misfit, lr, steps, tolerance):
    """Adam on the mean of r² for each image alone, r the misfit on [-1, 1]; stops where the rms of what was measured
    is down to the tolerance. `jacobian` is minus dr/dv."""
    rows = []
    for b in range(len(v)):
        slope = jacobian if jacobian.ndim == 2 else jacobian[b]
        measured = slope.abs().sum(1) > 0  # the rows of lost pixels are 0
        row, adam = v[b], HandAdam()
        for _ in range(steps):
            r = misfit(torch.cat([v[:b], row[None], v[b + 1 :]]))[b]
            if r[measured].square().mean().sqrt() <= tolerance:
                break
            row = row - lr * adam.step(-2 / len(r) * slope.T @ r)
        rows.append(row)
    return torch.stack(rows)


def solve_pixels(sampler, dense, x, tolerance):
    """Images on [0, 1]: r = 2 (y − A x), and a step of pixel_lr on [-1, 1] is half as long."""

    def misfit(x):
        return 2 * (dense.y - apply(dense.operator, x))

    return fit(dense, x, 2 * dense.operator, misfit, sampler.pixel_lr / 2, sampler.pixel_steps, tolerance)


def solve_latent(sampler, dense, z, tolerance):
    jacobian = dense.operator @ dense.decoder
    return fit(dense, z, jacobian, dense.residual, sampler.latent_lr, sampler.latent_steps, tolerance)


def by_hand(sampler, dense, draws, levels, tolerance):
    """The algorithm with its time travel inside the level: the latent at the end of every level, and the result."""
    z, path, total = next(draws), [], len(levels) - 1
    for k, (t, t_next) in enumerate(pairwise(levels)):
        a, a_next = level(t)[0] ** 2, level(t_next)[0] ** 2
        z = dense.ddim(z, t, t_next) - sampler.zeta * a * dense.data_gradient(z, t)
        left = total - 1 - k
        if 0 < left <= total - total // 3 and left % sampler.every == 0:
            ahead = z
            for s, s_next in list(pairwise(levels[k + 1 :]))[: sampler.travel]:
                estimate, ahead = dense.clean(ahead, s), dense.ddim(ahead, s, s_next)
            if left >= total // 3:
                solved = dense.encode(solve_pixels(sampler, dense, dense.decode(estimate), tolerance))
            else:
                solved = solve_latent(sampler, dense, estimate, tolerance)
            v = sampler.gamma * (1 - a_next) / (1 - a) * (1 - a / a_next)
            spread = 1 / (1 / v + 1 / (1 - a_next))
            z = spread * (a_next**0.5 * solved / (1 - a_next) + z / v) + spread**0.5 * next(draws)
        path.append(z)
    path[-1] = solve_latent(sampler, dense, z, tolerance)
    return path


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_level_of_a_run_is_the_papers(make, operator, components):
    problem, dense = make(operator, components=components)
    sampler = ReSample(steps=12, every=2, travel=3, gamma=4.0, pixel_steps=4, latent_steps=4, latent_lr=0.02)
    tape = Tape()
    frames = list(iterate(problem, sampler, tape))
    draws = tape.replay()
    theirs = by_hand(sampler, dense, draws, [*(1 + i * 1000 // 12 for i in range(11, -1, -1)), -1], 1e-3)
    assert next(draws, None) is None, "the library drew noise that the equations do not contain"
    # A level ends with its resampling where it has one; the steps ahead of it are no levels.
    ours = [frame.state for frame in frames if frame.state.memory.anchor is None]
    assert len(ours) == len(theirs) == 12
    assert len(frames) == 12 + 4 + 3 + 3 + 3 + 2  # four solutions; the last has only two levels ahead of it
    for state, z in zip(ours, theirs, strict=True):
        assert_close(state.z.flatten(1), z, **EXACT)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_image_that_fits_stops_and_its_neighbour_goes_on(make, operator):
    problem, dense = make(operator)
    sampler = ReSample(steps=3, every=100, latent_steps=60, latent_lr=0.02)
    unfitted = list(iterate(problem, replace(sampler, latent_steps=0), Tape()))[-1].state.z.flatten(1)
    start = dense.residual(unfitted).square().sum(1)
    known = dense.operator.diagonal(dim1=1, dim2=2).sum(1) if operator == "inpainting" else dense.y.shape[1]
    rms = (start / known).sqrt()
    assert rms[0] != rms[1]
    between = float(rms.mean())  # one image is there already
    fitted = list(iterate(replace(problem, sigma_y=between), sampler, Tape()))[-1].state.z.flatten(1)
    done = int(rms.argmin())
    assert torch.equal(fitted[done], unfitted[done])
    assert_close(fitted, solve_latent(sampler, dense, unfitted, between), **EXACT)
    assert not torch.allclose(fitted[1 - done], unfitted[1 - done])


def test_a_run_at_the_published_settings_solves_where_the_code_does(make):
    """500 levels; every tenth of the last two thirds but the last, with five network evaluations ahead."""
    problem, _ = make()
    plan = ReSample().plan(problem.schedule)
    up = [index for index, (t, t_next) in enumerate(plan) if t_next > t]
    levels = [t for t, _ in problem.schedule.descend(500)]
    # The level that a solution returns to is the one after level number `left`, counted from the clean end.
    assert [499 - levels.index(plan[index][1]) for index in up] == [left - 1 for left in range(330, 0, -10)]
    assert all(b - a == 10 + 6 for a, b in pairwise(up))
    assert ReSample().nfe == len(plan) - len(up) == 500 + 33 * 5
    assert ReSample(steps=50).nfe == sum(t_next < t for t, t_next in ReSample(steps=50).plan(problem.schedule))


def test_the_final_fit_reaches_the_noise(world):
    y, physics = world.measure("random_inpaint")
    result = Restorer(world.prior, ReSample(steps=10, every=2, travel=2, latent_lr=0.02)).solve(y, physics)
    assert (result.residual_rms <= 0.0105).all()  # sigma 0.01; the result is clamped to [0, 1] on the way out
