"""Counters against counts by hand."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from stsl.cost import Cost, Metered
from stsl.priors.base import Condition
from stsl.restorer import Restorer
from stsl.samplers import GMLDPS, LDPS, PSLD, STSL

COUNTS = [f.name for f in dataclasses.fields(Cost) if f.name != "seconds"]


def counts(world, sampler, ids=("a",), samples=1):
    result = Restorer(world.prior, sampler).solve(*world.measure("sr4", ids), ids=ids, samples=samples)
    return result, {name: getattr(result.cost, name) for name in COUNTS}


def test_the_papers_setting_costs_350_calls_where_the_paper_counts_250(world):
    """T = 50, K = 5, N = 2, one image: T K refinements of 1 + N rows, T steps up and T steps down of one row.

    At every fifth of the 50 levels the two gradients are told apart once, for r2, which takes one more backward pass of
    the 1 + N rows through the network, and none through the decoder.
    """
    result, cost = counts(world, STSL(init="ddim"))
    assert result.nfe_paper == 250
    assert cost == {
        "unet_calls": 350,
        "unet_samples": 850,
        "unet_backward_samples": 750 + 10 * 3,
        "decoder_samples": 250 + 1,
        "decoder_backward_samples": 250,
        "encoder_samples": 1,
        "encoder_backward_samples": 0,
    }


@pytest.mark.parametrize(
    ("settings", "calls", "samples", "backward"),
    [
        # T = 10, K = 3, N = 2: T K refinements, T outer steps, 2 of 10 levels compare.
        ({}, 30 + 10, 30 * 3 + 10, 30 * 3 + 2 * 3),
        ({"init": "noise"}, 30 + 10, 30 * 3 + 10, 30 * 3 + 2 * 3),
        ({"init": "ddim"}, 10 + 30 + 10, 10 + 30 * 3 + 10, 30 * 3 + 2 * 3),
        ({"init": "printed"}, 10 + 30 + 10, 10 + 30 * 3 + 10, 30 * 3 + 2 * 3),
        ({"reuse_last": True}, 30, 30 * 3, 30 * 3 + 2 * 3),
        ({"probes": 5}, 30 + 10, 30 * 6 + 10, 30 * 6 + 2 * 6),
        ({"eta": 0.0}, 30 + 10, 30 + 10, 30),
        ({"probes": 0}, 30 + 10, 30 + 10, 30),
        ({"inner_steps": 0}, 10, 10, 0),
    ],
)
def test_stsl_costs_its_formula(world, settings, calls, samples, backward):
    sampler = STSL(**({"steps": 10, "inner_steps": 3} | settings))
    result, cost = counts(world, sampler)
    assert (cost["unet_calls"], cost["unet_samples"], cost["unet_backward_samples"]) == (calls, samples, backward)
    assert cost["decoder_samples"] == 10 * sampler.inner_steps + 1
    assert cost["decoder_backward_samples"] == 10 * sampler.inner_steps
    assert cost["encoder_samples"] == 1
    assert result.nfe_paper == 10 * max(sampler.inner_steps, 1)


@pytest.mark.parametrize(("method", "encodes"), [(LDPS, 0), (GMLDPS, 1), (PSLD, 1)])
def test_gradient_methods_cost_one_pass_per_step(world, method, encodes):
    """One more decoding makes the image."""
    result, cost = counts(world, method(steps=10))
    assert result.nfe_paper == 10
    assert cost == {
        "unet_calls": 10,
        "unet_samples": 10,
        "unet_backward_samples": 10,
        "decoder_samples": 11,
        "decoder_backward_samples": 10,
        "encoder_samples": 10 * encodes,
        "encoder_backward_samples": 10 * encodes,
    }


def test_rows_grow_with_batch_and_samples_and_calls_with_samples(world):
    one, several = counts(world, PSLD(steps=10))[1], counts(world, PSLD(steps=10), ("a", "b"), samples=3)[1]
    assert several == {name: count * (3 if name == "unet_calls" else 6) for name, count in one.items()}


def test_a_record_gives_rows_per_image(world):
    result, _ = counts(world, PSLD(steps=10), ("a", "b"), samples=3)
    record = result.record()
    assert record["unet_samples"] == 10
    assert record["cost_per_image"]["decoder_samples"] == 11
    assert record["cost_per_image"]["unet_calls"] == 30


def test_a_gradient_that_does_not_reach_the_network_is_not_counted(world):
    metered = Metered(world.prior)
    z = torch.zeros(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    eps = metered.epsilon(z, 481)
    torch.autograd.grad(metered.decode(z).sum(), z)
    assert metered.cost.unet_backward_samples == 0
    assert metered.cost.decoder_backward_samples == 2
    torch.autograd.grad(eps.sum(), z)
    assert metered.cost.unet_backward_samples == 2


def test_a_guided_prompt_is_two_rows(world):
    metered = Metered(world.prior)
    text = torch.zeros(2, 1, 1)
    z = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    metered.epsilon(z, 481, Condition(text, text + 1, 7.5))
    assert (metered.cost.unet_calls, metered.cost.unet_samples) == (1, 4)
    # Guidance between equal prompts, or of scale 1, changes nothing and is not computed.
    metered.epsilon(z, 481, Condition(text, text, 7.5))
    metered.epsilon(z, 481, Condition(text, text + 1, 1.0))
    assert (metered.cost.unet_calls, metered.cost.unet_samples) == (3, 8)


def test_a_metered_prior_is_otherwise_the_one_it_wraps(world):
    metered, prior = Metered(world.prior), world.prior
    z = torch.ones(2, 4, 8, 8, dtype=torch.float64)
    for ours, theirs in (
        (metered.epsilon(z, 481), prior.epsilon(z, 481)),
        (metered.decode(z), prior.decode(z)),
        (metered.encode(world.x), prior.encode(world.x)),
        (metered.clip(5 * z), prior.clip(5 * z)),
    ):
        assert_close(ours, theirs, rtol=0, atol=0)
    for name in ("name", "schedule", "latent_shape", "image_shape", "has_text", "family", "dtype", "device"):
        assert getattr(metered, name) == getattr(prior, name)
    assert metered.describe() == prior.describe()
    with pytest.raises(TypeError, match="no text encoder"):
        metered.condition("a face")


def test_seconds_are_those_of_the_steps_not_of_the_pauses(world, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("stsl.restorer.time.perf_counter", lambda: float(next(clock)))
    run = Restorer(world.prior, LDPS(steps=5)).frames(*world.measure())
    for _ in run:
        next(clock)  # whoever watches takes its time
    # 5 steps and the end of the iteration; result() asks once more and then decodes.
    assert run.result().cost.seconds == 5 + 1 + 1 + 1
