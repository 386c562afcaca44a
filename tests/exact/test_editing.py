"""Inversion and null-text optimisation are the papers' equations: float64, and a Gaussian whose mean the text moves."""

from dataclasses import replace

import pytest
import torch
from dense import ALPHA_BAR, HandAdam, apply
from prompted import PromptedPrior, matrix
from torch.testing import assert_close

from stsl.editors.base import FirstLevel, inverting, prepared, restoring
from stsl.editors.inversion import DDIMInversion
from stsl.editors.null_text import NullText
from stsl.loop import iterate
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers import STSL
from stsl.samplers.base import State
from stsl.tasks import make as task

# float64 and values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into lr · 1e-12.
EXACT = {"rtol": 0, "atol": 1e-10}
STEPS = 10
RNG = Rng(0, ("a", "b"))


def level(t):
    """√ᾱ and √(1 − ᾱ); the clean end is the first training level."""
    a = ALPHA_BAR[max(t, 0)]
    return a**0.5, (1 - a) ** 0.5


class Hand:
    """ε and DDIM of the prompted Gaussian, as matrices."""

    def __init__(self, dense):
        self.mean, self.covariance, self.matrix = dense.latents.means[0], dense.latents.covariances[0], matrix()

    def precision(self, t):
        scale, sigma = level(t)
        return torch.linalg.inv(scale**2 * self.covariance + sigma**2 * torch.eye(50, dtype=torch.float64))

    def eps(self, z, c, t):
        scale, sigma = level(t)
        return sigma * apply(self.precision(t), z - scale * (self.mean + apply(self.matrix, c)))

    def move(self, z, eps, t, t_next):
        (s, sigma), (s_next, sigma_next) = level(t), level(t_next)
        return s_next * (z - sigma * eps) / s + sigma_next * eps

    def slope(self, t, t_next):
        """d z_next / d ε."""
        (s, sigma), (s_next, sigma_next) = level(t), level(t_next)
        return sigma_next - s_next * sigma / s


def prompted(make, prompt="a face"):
    problem, dense = make("inpainting")
    problem = replace(problem, prior=PromptedPrior(problem.prior, matrix()))
    return replace(prepared(problem), condition=problem.prior.condition([prompt, prompt])), Hand(dense)


def test_inversion_asks_the_level_it_goes_to(make):
    problem, hand = prompted(make)
    stage = DDIMInversion(STEPS)
    z = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    c = problem.condition.positive.flatten(1)
    start = State(z.reshape(2, 2, 5, 5), z.reshape(2, 2, 5, 5))
    plan = stage.plan(problem.schedule)
    assert plan[0][0] == -1
    assert [t for _, t in plan] == [1 + 100 * i for i in range(STEPS)]
    for frame, (t, t_next) in zip(iterate(problem, stage, RNG, start=start), plan, strict=True):
        z = hand.move(z, hand.eps(z, c, t_next), t, t_next)
        assert_close(frame.state.z.flatten(1), z, **EXACT)


@pytest.mark.parametrize(("steps", "lost"), [(50, 3e-3), (200, 5e-4)])
def test_up_and_down_again_is_where_it_began(steps, lost):
    """A Gaussian of unit variance: what is lost is DDIM's discretisation, 0.08 % at 50 steps and 0.01 % at 200."""
    prior = FirstLevel(GaussianPrior(torch.zeros(3, 4, 4), torch.eye(48, dtype=torch.float64)))
    y = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem = Problem(y, task("denoise", (3, 4, 4)).double(), prior)
    *_, top = iterate(problem, DDIMInversion(steps), Rng(0, ("a",)))
    z = top.state.z
    for t, t_next in prior.schedule.descend(steps):
        eps = prior.epsilon(z, t)
        z = prior.schedule.move(prior.schedule.clean(z, eps, t), eps, t, t_next)
    start = prior.encode(y)
    assert (z - start).norm() / start.norm() < lost


def by_hand(hand, pivots, null, c, plan, *, guidance, inner, lr, stop):
    """Mokady et al. 2023, Algorithm 1, image by image."""
    z, nulls = pivots[plan[0][0]].clone(), []
    for j, (t, t_next) in enumerate(plan):
        wanted = pivots[t_next]
        rate, near = lr * (1 - j / (2 * len(plan))), stop + 2 * stop * 50 / len(plan) * j
        null = null.clone()
        for b in range(len(z)):
            adam, phi = HandAdam(), null[b : b + 1]
            row = slice(b, b + 1)
            for _ in range(inner):
                eps_c, eps_u = hand.eps(z[row], c[row], t), hand.eps(z[row], phi, t)
                gap = hand.move(z[row], eps_u + guidance * (eps_c - eps_u), t, t_next) - wanted[row]
                # ε = σ P (z − s (μ + M φ)), so dε/dφ = −σ s P M
                scale, sigma = level(t)
                by_phi = -sigma * scale * hand.precision(t) @ hand.matrix * (1 - guidance) * hand.slope(t, t_next)
                phi = phi - rate * adam.step(2 / 50 * apply(by_phi.T, gap))
                if gap.square().mean() < near:
                    break
            null[row] = phi
        nulls.append(null)
        eps_u = hand.eps(z, null, t)
        z = hand.move(z, eps_u + guidance * (hand.eps(z, c, t) - eps_u), t, t_next)
    return z, nulls


@pytest.mark.parametrize(
    "settings",
    [
        {"inner": 3, "lr": 0.05, "stop": 0.0, "guidance": 3.0},
        {"inner": 10, "lr": 0.05, "stop": 1e-2, "guidance": 7.5},
    ],
    ids=["all steps", "early stop"],
)
def test_null_text_is_the_papers_algorithm(make, settings):
    problem, hand = prompted(make)
    plan = problem.schedule.descend(STEPS)
    draws = torch.Generator().manual_seed(5)
    pivots = {-1: 0.5 * torch.randn(2, 50, dtype=torch.float64, generator=draws)}
    for t, t_next in problem.schedule.ascend(STEPS):  # a trajectory that the source prompt alone would not take
        eps = hand.eps(pivots[t], problem.condition.positive.flatten(1) + 0.1, t_next)
        pivots[t_next] = hand.move(pivots[t], eps, t, t_next)
    stage = NullText(STEPS, settings["guidance"], settings["inner"], settings["lr"], settings["stop"])
    shaped = {t: z.reshape(2, 2, 5, 5) for t, z in pivots.items()}
    frames = list(iterate(problem, stage, RNG, start=stage.start(problem, shaped)))
    null, c = problem.condition.negative.flatten(1), problem.condition.positive.flatten(1)
    z, nulls = by_hand(hand, pivots, null, c, plan, **settings)
    assert_close(frames[-1].state.z.flatten(1), z, **EXACT)
    for ours, theirs in zip(frames[-1].state.memory.nulls, nulls, strict=True):
        assert_close(ours.flatten(1), theirs, **EXACT)
    patient = iterate(problem, replace(stage, stop=0.0), RNG, start=stage.start(problem, shaped))
    assert torch.equal([*patient][-1].state.z, frames[-1].state.z) == (settings["stop"] == 0)  # it did stop early
    error = (z - pivots[-1]).square().mean(1)
    assert_close(frames[-1].state.log["null_error"], error, **EXACT)


def test_null_text_comes_back_to_the_photo_where_guidance_alone_does_not(make):
    problem, _ = prompted(make)
    z0 = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    up = DDIMInversion(STEPS)
    trajectory = {-1: z0}
    for frame, (_, t) in zip(iterate(problem, up, RNG, start=State(z0, z0)), up.plan(problem.schedule), strict=True):
        trajectory[t] = frame.state.z
    errors = []
    for inner in (0, 10):
        stage = NullText(STEPS, guidance=7.5, inner_steps=inner)
        *_, last = iterate(problem, stage, RNG, start=stage.start(problem, trajectory))
        errors.append(last.state.log["null_error"])
    assert (errors[1] < 0.2 * errors[0]).all()


def test_an_image_does_not_depend_on_its_batch(make):
    problem, _ = prompted(make)
    z0 = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    z0[1] *= 5  # one arrives long before the other
    stage, found = NullText(STEPS, guidance=3.0, inner_steps=20, lr=0.1, stop=1e-4), []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        part = replace(
            problem, y=problem.y[rows], condition=prompted(make)[0].prior.condition(["a face"] * len(z0[rows]))
        )
        pivots = dict.fromkeys([-1, *problem.schedule.timesteps(STEPS)], z0[rows])
        *_, last = iterate(part, stage, RNG, start=stage.start(part, pivots))
        found.append(last.state.z)
    assert_close(found[0], torch.cat(found[1:]), **EXACT)


def test_the_trajectory_of_a_restoration_is_that_of_its_refined_latents(make):
    """From each of its latents a DDIM step under the empty prompt leads to where the restorer went."""
    problem, dense = make("superresolution")
    problem = prepared(replace(problem, prior=PromptedPrior(problem.prior, 0 * matrix())))
    restorer = STSL(steps=STEPS, inner_steps=2, eta=0.0, probes=0, lr=0.05)
    frames = restoring(problem, restorer, RNG)
    states = []
    try:
        while True:
            states.append(next(frames).state)
    except StopIteration as end:
        image, trajectory = end.value
    hand = Hand(dense)
    nothing = torch.zeros(2, 12, dtype=torch.float64)
    plan = problem.schedule.descend(STEPS)
    assert set(trajectory) == {t for pair in plan for t in pair}
    for (t, t_next), state in zip(plan, states, strict=True):
        z = trajectory[t].flatten(1)
        assert_close(hand.move(z, hand.eps(z, nothing, t), t, t_next), state.z.flatten(1), **EXACT)
    assert torch.equal(trajectory[-1], states[-1].z)
    assert_close(image, problem.prior.decode(states[-1].z).clamp(0, 1), **EXACT)


def test_without_a_restorer_the_lifted_measurement_is_inverted(make):
    problem, _ = prompted(make)
    frames = restoring(problem, None, RNG)
    with pytest.raises(StopIteration) as end:
        next(frames)
    image, trajectory = end.value.value
    assert torch.equal(image, problem.start().clamp(0, 1))
    assert trajectory == {}
    up = inverting(problem, image, "a face", STEPS, RNG)
    assert len(list(up)) == STEPS
