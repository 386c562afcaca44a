"""P2L is its equations: the prompt, the projection, and the step, against dense matrices."""

import logging
from dataclasses import replace

import pytest
import torch
from dense import HandAdam, Tape, level
from prompted import HandPrompt, PromptedPrior, matrix
from torch.testing import assert_close

from models import sd15_folder
from stsl import tasks
from stsl.loop import iterate
from stsl.priors.load import load_prior
from stsl.restorer import Restorer
from stsl.samplers import P2L

# float64 and values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into lr · 1e-12. Conjugate gradients of a condition number below 10 leave 1e-12 of the
# residual after 50 steps.
EXACT = {"rtol": 0, "atol": 1e-10}
OPERATORS = ("inpainting", "superresolution", "blur", "anything")


def prompted(make, operator="inpainting"):
    problem, dense = make(operator)
    return replace(problem, prior=PromptedPrior(problem.prior, matrix())), HandPrompt(dense, matrix())


def projected(dense, x0, lam):
    """argmin_x ‖y − A x‖² + λ ‖x − x₀‖² by a dense solve per image."""
    rows = []
    for b in range(len(x0)):
        a = dense.operator if dense.operator.ndim == 2 else dense.operator[b]
        rows.append(
            torch.linalg.solve(a.T @ a + lam * torch.eye(a.shape[1], dtype=a.dtype), a.T @ dense.y[b] + lam * x0[b])
        )
    return torch.stack(rows)


def by_hand(sampler, hand, z, c, plan):
    """Every (z, c) of a run."""
    dense, of_prompt, of_latent, path = hand.dense, HandAdam(), HandAdam(), []
    for left, (t, t_next) in zip(range(len(plan) - 1, -1, -1), plan, strict=True):
        for _ in range(sampler.prompt_steps):
            c = c - sampler.prompt_lr * of_prompt.step(hand.gradients(z, c, t)[1])
        g, _ = hand.gradients(z, c, t)
        z0, eps = hand.clean(z, c, t), hand.eps(z, c, t)
        if left % sampler.every == 1 % sampler.every:
            z0 = dense.encode(projected(dense, dense.decode(z0), sampler.lam))
            eps = (z - level(t)[0] * z0) / level(t)[1]
        step = of_latent.step(g) if sampler.optimiser == "adam" else g
        z = level(t_next)[0] * z0 + level(t_next)[1] * eps - sampler.rho * step
        path.append((z, c))
    return path


@pytest.mark.parametrize("optimiser", ["plain", "adam"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_iterate_of_a_run_is_the_equations(make, operator, optimiser):
    """Warm starts and moments across levels, projections with and without closed form, and the steps between them."""
    problem, hand = prompted(make, operator)
    sampler = P2L(steps=10, prompt_steps=2, prompt_lr=0.02, rho=0.3, optimiser=optimiser, every=3, lam=0.4)
    tape = Tape()
    ours = [frame.state for frame in iterate(problem, sampler, tape)]
    (z,) = tape.replay()  # N(0, I) at the noisiest level, and nothing random after
    c = problem.prior.condition(["", ""]).positive.flatten(1)
    theirs = by_hand(sampler, hand, z, c, sampler.plan(problem.schedule))
    for state, (z, tuned) in zip(ours, theirs, strict=True):
        assert_close(state.z.flatten(1), z, **EXACT)
        assert_close(state.memory.prompt.condition.positive.flatten(1), tuned, **EXACT)
        assert_close(state.log["prompt"], (tuned - c).square().mean(1).sqrt(), **EXACT)


def test_the_users_prompt_is_where_tuning_begins(make):
    problem, hand = prompted(make)
    problem = replace(problem, condition=problem.prior.condition(["a face", "a smiling face"]))
    sampler, tape = P2L(steps=2, prompt_steps=1, prompt_lr=0.02, every=2), Tape()
    *_, last = iterate(problem, sampler, tape)
    start = problem.condition.positive.flatten(1)
    *_, (z, c) = by_hand(sampler, hand, next(tape.replay()), start, sampler.plan(problem.schedule))
    assert_close(last.state.z.flatten(1), z, **EXACT)
    assert_close(last.state.memory.prompt.condition.positive.flatten(1), c, **EXACT)


@pytest.mark.parametrize(("every", "published"), [(8, lambda t: t % 8 == 1), (1, lambda t: True), (0, lambda t: False)])
def test_the_projected_levels_are_the_published_ones(make, every, published):
    """Of 1000 levels those with t mod 8 = 1."""
    problem, _ = make()
    sampler = P2L(every=every)
    times = [t for t, _ in sampler.plan(problem.schedule)]
    assert times == list(range(999, -1, -1))
    assert [t for level, t in enumerate(times) if sampler._projects(level)] == [t for t in times if published(t)]


def test_a_prior_without_text_is_ldps_with_projection_and_says_so(make, caplog):
    problem, _ = make("blur")
    with caplog.at_level(logging.WARNING, logger="stsl"):
        tuned = Restorer(problem.prior, P2L(steps=10)).solve(problem.y, problem.physics)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "prior 'gaussian' has no text: P2L runs without prompt tuning, which is LDPS with projection"
    assert all(entry["prompt"] == [0.0, 0.0] for entry in tuned.log)
    assert torch.equal(tuned.image, Restorer(problem.prior, P2L(steps=10, prompt_steps=0))(problem.y, problem.physics))


def test_the_tuned_prompt_of_an_image_does_not_depend_on_its_batch(world):
    width = world.prior.latent_shape[0] * world.prior.latent_shape[1] * world.prior.latent_shape[2]
    wide = torch.randn(width, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(11)) / 4
    restore = Restorer(PromptedPrior(world.prior, wide), P2L(steps=5, prompt_steps=2, prompt_lr=0.05, every=2))
    both = restore.solve(*world.measure("motion_blur"), ids=["a", "b"])
    alone = restore.solve(*world.measure("motion_blur", ("b",)), ids=["b"])
    assert_close(both.image[1:], alone.image, **EXACT)
    assert_close(both.log[-1]["prompt"][1], alone.log[-1]["prompt"][0], **EXACT)
    assert alone.log[-1]["prompt"][0] > 0.01


def test_a_network_of_stable_diffusions_layout_has_its_prompt_tuned(tmp_path):
    prior = load_prior(str(sd15_folder(tmp_path / "model")), device="cpu", precision="fp32")
    x = torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0))
    y, physics = tasks.measure("random_inpaint", x, noise=0.01, ids=("a",))
    result = Restorer(prior, P2L(steps=2, prompt_steps=2, prompt_lr=1e-3)).solve(y, physics, ids=["a"])
    # Two steps of Adam at each of two levels, each at most about 1e-3 per number.
    assert 1e-4 < result.log[-1]["prompt"][0] < 5e-3
    assert result.cost.unet_samples == result.cost.unet_backward_samples == result.nfe_paper == 2 * 3


def test_evaluations_are_counted_as_the_papers_do():
    assert P2L().nfe == 2000
    assert P2L.preset("best").nfe == 5000
