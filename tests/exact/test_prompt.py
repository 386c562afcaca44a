"""Prompt tuning inside STSL is P2L's, before the refinements of each level."""

from dataclasses import replace

import pytest
import torch
from dense import HandAdam, Tape, level
from prompted import HandPrompt, PromptedPrior, matrix
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.restorer import Restorer
from stsl.samplers import STSL

# float64 and values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into lr · 1e-12.
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "anything"])
def test_every_level_tunes_the_prompt_and_then_refines_the_latent_under_it(make, operator):
    problem, dense = make(operator)
    problem, hand = replace(problem, prior=PromptedPrior(problem.prior, matrix())), HandPrompt(dense, matrix())
    sampler = STSL(steps=10, inner_steps=2, init="noise", eta=0.0, lr=0.03, prompt_steps=3, prompt_lr=0.02)
    tape = Tape()
    ours = [frame.state for frame in iterate(problem, sampler, tape)]
    (z,) = tape.replay()
    start = c = problem.prior.condition(["", ""]).positive.flatten(1)
    of_prompt = HandAdam()  # kept from level to level; the latent's restarts
    for number, (state, (t, t_next)) in enumerate(zip(ours, sampler.plan(problem.schedule), strict=True)):
        for _ in range(3):
            c = c - 0.02 * of_prompt.step(hand.gradients(z, c, t)[1])
        of_latent = HandAdam()
        for _ in range(2):
            z = z - 0.03 * 0.998**number * of_latent.step(hand.gradients(z, c, t)[0])
        z0 = hand.clean(z, c, t)
        z = level(t_next)[0] * z0 + level(t_next)[1] * hand.eps(z, c, t)
        assert_close(state.z.flatten(1), z, **EXACT)
        assert_close(state.log["prompt"], (c - start).square().mean(1).sqrt(), **EXACT)


def test_tuning_lowers_the_residual_at_its_level(make):
    """What one more step of the prompt is for."""
    problem, dense = make("superresolution")
    problem, hand = replace(problem, prior=PromptedPrior(problem.prior, matrix())), HandPrompt(dense, matrix())
    residuals = []
    for prompt_steps in (0, 5, 50):
        sampler = STSL(steps=10, inner_steps=0, init="noise", prompt_steps=prompt_steps, prompt_lr=0.02)
        first = next(iterate(problem, sampler, tape := Tape())).state
        (z,) = tape.replay()
        prompt = first.memory.prompt.condition if prompt_steps else problem.prior.condition(["", ""])
        residuals.append(dense.residual(hand.clean(z, prompt.positive.flatten(1), 901)).norm(dim=1))
    assert (residuals[0] > residuals[1]).all()
    assert (residuals[1] > residuals[2]).all()


def test_a_prior_without_text_is_refused_before_the_network_is_called(world, unasked):
    with pytest.raises(TypeError, match=r"STSL: prompt_steps = 2 tunes a prompt, and prior 'unasked' has no text"):
        Restorer(unasked, STSL(prompt_steps=2)).frames(*world.measure())


def test_steps_on_the_prompt_are_counted_on_top():
    assert STSL(steps=50, inner_steps=5, prompt_steps=2).nfe == 50 * (5 + 2)


def test_no_step_on_the_prompt_is_stsl_without_it(make):
    problem, _ = make("superresolution")
    prompted = replace(problem, prior=PromptedPrior(problem.prior, torch.zeros(50, 12, dtype=torch.float64)))
    sampler = STSL(steps=5, prompt_lr=1.0)
    ours, theirs = (list(iterate(each, sampler, Tape()))[-1].state.z for each in (prompted, problem))
    assert_close(ours, theirs, **EXACT)
