"""The bench: exact samples pass, broken samplers do not, and what is known beforehand comes out."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from stsl.exact import Yardstick, control, make, posterior, score
from stsl.exact.bench import draw, exact_score, with_trace_ratio, within
from stsl.exact.problems import PROBLEMS, SIGMAS
from stsl.exact.rivals import TMPD, Unguided
from stsl.loop import Diverged
from stsl.priors.mixture import GaussianMixturePrior
from stsl.problem import Problem
from stsl.rng import generator
from stsl.samplers import LDPS, STSL, Sampler, State, knob

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("sigma_y", SIGMAS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_samples_are_within_chance(name, sigma_y):
    row = control(make(name, sigma_y), n=500, name=name)
    assert row.beyond_chance == []
    # n δᵀΣ⁻¹δ has mean d and standard deviation √(2d), for a posterior that is nearly one Gaussian.
    d = 64 if name in ("inpainting", "blur", "sr4") else 1 if name == "bimodal" else 2
    assert row.mean_error**2 * 500 < 1 + 5 * math.sqrt(2 / d)
    assert row.spread == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("wrong", [0.5, 2.0], ids=["half the noise", "twice the noise"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_of_a_wrong_noise_level_are_flagged(name, wrong):
    yardstick = Yardstick(posterior(make(name, 0.6)), 500, 0)
    samples = posterior(make(name, 0.6 * wrong)).sample(500, generator(1))
    found = yardstick.beyond_chance(yardstick.measure(samples))
    assert "spread" in found or "mean_error" in found


def test_a_sampler_that_believes_in_another_noise_level_is_flagged():
    problem = make("bimodal", 0.6)
    right = score(problem, TMPD(steps=50), n=500)
    wrong = score(problem, Mistaken(steps=50), n=500)
    assert right.sliced_w2 < 0.2
    assert {"spread", "sliced_w2"} <= set(wrong.beyond_chance)
    assert wrong.sliced_w2 > 3 * right.sliced_w2


@dataclass(frozen=True)
class Mistaken(Sampler):
    """TMPD that takes the noise for half of what it is."""

    source = "nowhere"
    steps: int = knob(100, "steps")

    def begin(self, problem, rng):
        return TMPD(self.steps).begin(replace(problem, sigma_y=0.3), rng)

    def step(self, problem, state, t, t_next, rng):
        return TMPD(self.steps).step(problem, state, t, t_next, rng)


def test_distances_have_the_values_of_their_definitions():
    """One Gaussian N(0, 4 I) in two dimensions, and samples that are shifted or shrunk exact ones."""
    prior = GaussianMixturePrior(torch.ones(1), torch.zeros(1, 1, 1, 2), 4 * torch.eye(2)[None])
    yardstick = Yardstick(prior.latents, 4000, 0)
    exact = yardstick.draw("reference")
    zero = yardstick.measure(exact)
    assert zero.sliced_w2 == 0.0
    assert zero.weight_error == 0.0
    shift = torch.tensor([3.0, 0.0], dtype=torch.float64)
    centred = exact - exact.mean(0)
    moved = yardstick.measure(centred + shift)
    assert moved.mean_error == pytest.approx(1.5 / 2**0.5)  # 1.5 standard deviations along one axis of two
    assert moved.spread == pytest.approx(zero.spread)
    # A shift moves every projection by its component along a random direction: 3 √(1/2) / 2 in the root mean square.
    assert yardstick.measure(exact + shift).sliced_w2 == pytest.approx(1.5 / 2**0.5, rel=0.1)
    half = yardstick.measure(centred / 2)
    assert half.spread == pytest.approx(zero.spread / 4)
    assert half.mean_error == pytest.approx(0.0, abs=1e-9)


def test_the_weight_error_is_the_share_of_samples_in_the_wrong_mode():
    exact = posterior(make("bimodal", 0.6))
    apart = replace(exact, means=torch.tensor([[-9.0], [9.0]]).double())
    yardstick = Yardstick(apart, 1000, 0)
    all_left = torch.full((1000, 1), -9.0, dtype=torch.float64)
    assert yardstick.measure(all_left).weight_error == pytest.approx(float(apart.weights[1]))


def test_the_exact_score_leaves_only_the_error_of_the_steps():
    problem = make("inpainting", 0.6)
    rows = [exact_score(problem, steps=steps, n=300) for steps in (20, 200)]
    assert [row.evaluations for row in rows] == [20, 200]
    assert rows[0].spread < 0.8 < 0.88 < rows[1].spread < 1.05
    assert rows[1].mean_error < 2 / 300**0.5


def test_tmpd_is_exact_for_one_gaussian():
    """There p(y | z_t) is the Gaussian of the two moments, so that guiding by it is the posterior's own process."""
    prior = GaussianMixturePrior(torch.ones(1), 0.3 * torch.ones(1, 1, 1, 2), torch.tensor([[[1.0, 0.5], [0.5, 0.8]]]))
    given = make("degenerate", 0.3)
    problem = Problem(given.y, given.physics, prior, sigma_y=0.3)
    exact = posterior(problem)
    guided = GaussianMixturePrior(exact.weights, exact.means.reshape(1, 1, 1, 2), exact.covariances)
    ours = draw(problem, TMPD(steps=30), 20, 0).samples
    assert_close(ours, draw(replace(problem, prior=guided), Unguided(steps=30), 20, 0).samples, rtol=0, atol=1e-8)


def test_a_sample_does_not_depend_on_how_many_are_drawn(monkeypatch):
    problem = make("degenerate", 0.1)
    for sampler in (LDPS(steps=12), STSL(steps=12), STSL.preset("calibrated")):
        sampler = replace(sampler, steps=12)
        many = draw(problem, sampler, 7, 0).samples
        monkeypatch.setattr("stsl.exact.bench.CHUNK", 3)
        assert_close(draw(problem, sampler, 4, 0).samples, many[:4], rtol=0, atol=1e-10)
        monkeypatch.undo()


def test_the_budget_counts_what_the_network_is_asked():
    problem = make("bimodal", 0.1)
    # A step of STSL asks K (1 + N) + 1 times, of the calibrated option twice.
    expected = {LDPS(): 40, STSL(eta=0.0, probes=0): 6, STSL(): 2, STSL.preset("calibrated"): 20}
    for sampler, steps in expected.items():
        fitting = within(problem, sampler, 40)
        assert fitting.steps == steps
        assert draw(problem, fitting, 1, 0).cost.unet_samples <= 40
        assert draw(problem, replace(fitting, steps=steps + 1), 1, 0).cost.unet_samples > 40
    assert within(problem, LDPS(), 40, steps=20).steps == 20
    assert within(problem, LDPS(), budget=None).steps == 1000
    with pytest.raises(ValueError, match="takes 501 evaluations for a step"):
        within(problem, STSL(inner_steps=100, probes=4))


def test_eta_is_found_for_a_share_of_the_data_gradient():
    problem = make("bimodal", 0.6)
    found = with_trace_ratio(problem, STSL(steps=12), 0.1, 0)
    assert draw(problem, found, 64, 0).trace_ratio == pytest.approx(0.1, rel=0.25)
    assert found.eta > 0.02


def test_the_calibrated_option_keeps_the_spread_that_the_default_loses():
    """At noise 0.6, where the posterior is wide, descending the loss ends in a point; sampling it does not."""
    for name in ("bimodal", "sr4"):
        problem = make(name, 0.6)
        default = score(problem, STSL.preset("balanced"), n=100)
        calibrated = score(problem, STSL.preset("calibrated"), n=100)
        assert default.spread < 0.7
        assert 0.8 < calibrated.spread < 1.2
        assert calibrated.sliced_w2 < default.sliced_w2 / 2


def test_the_calibrated_option_needs_to_know_the_noise():
    problem = make("bimodal", 0.6)
    with pytest.raises(TypeError, match="needs a known noise level"):
        STSL.preset("calibrated").check(replace(problem, sigma_y=None))


def test_a_sampler_that_diverges_gets_a_row_that_says_so():
    row = score(make("bimodal", 0.6), Exploding(), n=4, called="boom")
    assert row.mean_error is None
    assert "diverged" in row.note
    with pytest.raises(Diverged):
        draw(make("bimodal", 0.6), Exploding(), 4, 0)


@dataclass(frozen=True)
class Exploding(Sampler):
    """Divides by nothing."""

    source = "nowhere"
    steps: int = knob(10, "steps")

    def step(self, problem, state, t, t_next, rng):
        return State(state.z / 0.0, clean=state.z)


def test_two_samples_at_least():
    with pytest.raises(ValueError, match="two samples"):
        score(make("bimodal", 0.6), LDPS(steps=10), n=1)
