"""Counting the steps of a run before it is run, and what follows from their seconds."""

import pytest
from test_cost import COUNTS, counts

from stsl import LDPS, P2L, PSLD, STSL, LatentDAPS, estimate
from stsl.cost import Cost
from stsl.estimate import plain_problem, predict_seconds, rehearse


@pytest.mark.parametrize(
    "sampler",
    [
        STSL(steps=7),
        STSL(steps=7, init="ddim"),
        STSL(steps=7, init="printed", eta=0.0),
        STSL(steps=7, reuse_last=True, probes=1),
        PSLD(steps=7),
        LDPS(steps=7),
    ],
    ids=str,
)
def test_a_rehearsal_counts_what_the_run_will_ask_for(sampler, world, unasked):
    """But for what a run asks before its first step and after its last one: one encoding, one decoding."""
    kinds = rehearse(plain_problem(unasked, sampler), sampler)
    told = {name: sum(kind.count * getattr(kind.cost, name) for kind in kinds) for name in COUNTS}
    _, real = counts(world, sampler)
    ends = {"decoder_samples": 1, "encoder_samples": 1 if isinstance(sampler, STSL) else 0}
    assert {name: told[name] + ends.get(name, 0) for name in COUNTS} == real
    assert sum(kind.count for kind in kinds) == len(sampler.plan(world.prior.schedule))


def test_a_rehearsal_does_not_diverge_where_a_place_of_the_latent_has_many_pixels(unasked):
    """Stable Diffusion's has 64; this method walks down the misfit, whose slope must not grow with them."""
    unasked.image_shape = (3, 64, 64)
    sampler = LatentDAPS()
    kinds = rehearse(plain_problem(unasked, sampler), sampler)
    assert [(kind.count, kind.cost.decoder_backward_samples) for kind in kinds] == [(50, 40)]


def test_inversion_steps_are_a_kind_of_their_own(world):
    kinds = rehearse(plain_problem(world.prior, STSL()), STSL(init="ddim", steps=10, inner_steps=2))
    assert [(kind.count, kind.t_next > kind.t, kind.cost.unet_backward_samples) for kind in kinds] == [
        (10, True, 0),
        (2, False, 9),  # one more backward pass of three rows where the two gradients are told apart
        (8, False, 6),
    ]


def test_seconds_are_those_of_each_kind_times_its_number(world, monkeypatch):
    """A clock that moves by one second per inversion step, and by ten per step with gradients."""
    now = [0.0]
    real = estimate._step

    def step(problem, sampler, kind):
        now[0] += 1.0 if kind.t_next > kind.t else 10.0
        return real(problem, sampler, kind)

    monkeypatch.setattr(estimate, "_step", step)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    assert predict_seconds(world.prior, STSL(init="ddim", steps=10, inner_steps=2)) == 10 * 1 + 10 * 10
    assert predict_seconds(world.prior, LDPS(steps=10)) == 100
    assert predict_seconds(world.prior, LDPS(steps=1)) == 10


def test_a_tuned_prompt_is_rehearsed_too(tmp_path):
    from models import sd15_folder
    from stsl import load_prior

    prior = load_prior(sd15_folder(tmp_path / "sd"), device="cpu", precision="fp32")
    sampler = P2L(steps=3)
    kinds = rehearse(plain_problem(prior, sampler), sampler)
    assert sum(kind.count for kind in kinds) == 3
    assert all(kind.cost.unet_backward_samples > 0 for kind in kinds)


def test_kinds_that_ask_for_less_are_part_of_those_that_ask_for_more(world):
    first, second, third = rehearse(plain_problem(world.prior, STSL()), STSL(init="ddim", steps=10, inner_steps=2))
    assert first.is_part_of(second)
    assert third.is_part_of(second)
    assert not second.is_part_of(third)
    assert not second.is_part_of(second)
    assert isinstance(first.cost, Cost)
