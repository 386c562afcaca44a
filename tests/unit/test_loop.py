"""The loop: frames, noise of its own for every step, and failures that say where."""

import pytest
import torch

from stsl.loop import Diverged, iterate
from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.rng import Rng
from stsl.samplers import LDPS, STSL, State


class Spoilt(Prior):
    """A prior whose network gives NaN from one call on, or whose decoder does."""

    def __init__(self, prior, *, from_call=None, decoder=False):
        super().__init__()
        self.prior, self.from_call, self.decoder, self.calls = prior, from_call, decoder, 0
        self.name, self.schedule = "spoilt", prior.schedule
        self.latent_shape, self.image_shape = prior.latent_shape, prior.image_shape

    @property
    def dtype(self):
        return self.prior.dtype

    def epsilon(self, z, t, condition=None):
        self.calls += 1
        bad = self.from_call is not None and self.calls >= self.from_call
        return self.prior.epsilon(z, t) * (float("nan") if bad else 1.0)

    def encode(self, x):
        return self.prior.encode(x)

    def decode(self, z):
        # Without gradient only: the decoder of the steps stays whole, the one of the result does not.
        return self.prior.decode(z) * (float("nan") if self.decoder and not torch.is_grad_enabled() else 1.0)


def test_a_latent_that_is_not_finite_stops_the_run_and_says_where(world):
    y, physics = world.measure()
    problem = Problem(y, physics, Spoilt(world.prior, from_call=4))
    frames = iterate(problem, LDPS(steps=10), Rng(0, ("a", "b")))
    assert [next(frames).t for _ in range(3)] == [901, 801, 701]
    with pytest.raises(Diverged, match=r"LDPS diverged at step 4 of 10 \(t = 601\)"):
        next(frames)


def test_one_spoilt_image_of_a_batch_is_enough(world):
    y, physics = world.measure()
    problem = Problem(y, physics, world.prior)
    z = torch.zeros(2, *world.prior.latent_shape, dtype=torch.float64)
    z[1, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged):
        next(iterate(problem, LDPS(steps=10), Rng(0, ("a", "b")), start=State(z, clean=z)))


def test_a_decoded_image_that_is_not_finite_is_no_result(world):
    run = Restorer(Spoilt(world.prior, decoder=True), LDPS(steps=3)).frames(*world.measure())
    assert len(list(run)) == 3
    with pytest.raises(Diverged, match="LDPS: the decoded image is not finite"):
        run.result()


def test_nothing_is_computed_before_the_first_frame_is_asked_for(world):
    y, physics = world.measure()
    prior = Spoilt(world.prior)
    frames = iterate(Problem(y, physics, prior), LDPS(steps=5), Rng(0, ("a", "b")))
    assert prior.calls == 0
    next(frames)
    assert prior.calls == 1


def test_closing_early_is_clean(world):
    y, physics = world.measure()
    prior = Spoilt(world.prior)
    frames = iterate(Problem(y, physics, prior), STSL(steps=5), Rng(0, ("a", "b")))
    next(frames)
    calls = prior.calls
    frames.close()
    assert list(frames) == []
    assert prior.calls == calls
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_run_may_begin_elsewhere(world):
    y, physics = world.measure()
    problem = Problem(y, physics, world.prior)
    sampler, rng = LDPS(steps=10), Rng(0, ("a", "b"))
    z = torch.zeros(2, *world.prior.latent_shape, dtype=torch.float64)
    first = next(iterate(problem, sampler, rng, start=State(z, clean=z)))
    expected = sampler.step(problem, State(z, clean=z), 901, 801, rng)
    assert torch.equal(first.state.z, expected.z)


def test_frames_tell_step_level_and_stage(world):
    y, physics = world.measure()
    problem = Problem(y, physics, world.prior)
    frames = list(iterate(problem, LDPS(steps=10), Rng(0, ("a", "b")), stage="middle"))
    assert [(f.index, f.total, f.t, f.stage) for f in frames] == [(i, 10, 901 - 100 * i, "middle") for i in range(10)]


def test_an_inversion_is_part_of_the_plan(world):
    y, physics = world.measure()
    problem = Problem(y, physics, world.prior)
    times = [f.t for f in iterate(problem, STSL(steps=10, inner_steps=1, init="ddim"), Rng(0, ("a", "b")))]
    up = list(range(1, 1000, 100))
    assert times == [-1, *up[:-1], *reversed(up)]


def test_steps_and_stages_meet_different_noise(world, monkeypatch):
    asked, normal = [], Rng.normal

    def spy(self, like, draw=0):
        asked.append((self.stage, self.step, draw))
        return normal(self, like, draw)

    monkeypatch.setattr(Rng, "normal", spy)
    y, physics = world.measure()
    problem = Problem(y, physics, world.prior)
    for stage in ("first", "second"):
        for _ in iterate(problem, STSL(steps=3, reverse="ddpm"), Rng(0, ("a", "b")), stage=stage):
            pass
    # Per stage the beginning, and at each of 3 levels 5 · 2 probes and the outer step's noise.
    assert len(asked) == len(set(asked)) == 2 * (1 + 3 * (5 * 2 + 1))
