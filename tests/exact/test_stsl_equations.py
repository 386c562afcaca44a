"""A step and a run of STSL are the paper's equations, for every option, on a Gaussian and on a mixture of two."""

from dataclasses import replace

import pytest
import torch
from dense import ALPHA_BAR, HandAdam, HandSTSL, Tape, apply, ddpm, level
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.restorer import Restorer
from stsl.rng import Rng
from stsl.samplers import STSL, State
from stsl.samplers.stsl import FIT_LR, FIT_STEPS, Memory

# float64, values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into lr · 1e-12.
EXACT = {"rtol": 0, "atol": 1e-10}
PLAN = [(999, 665), (665, 332), (332, -1)]  # three levels; below ten the spacing trails
UP = [(-1, 332), (332, 665), (665, 999)]
CASES = {
    "default": {},
    "ddpm_mean": {"reverse": "ddpm_mean"},
    "ddpm": {"reverse": "ddpm"},
    "sqnorm": {"meas_loss": "sqnorm"},
    "mse": {"meas_loss": "mse"},
    "lam": {"lam": 2.5, "meas_loss": "mse"},
    "one probe": {"probes": 1},
    "no probe": {"probes": 0},
    "sigma probes": {"probe_scale": "sigma"},
    "persistent Adam": {"adam_state": "persistent"},
    "plain gradient": {"adam_state": "none", "lr": 0.05},
    "falling lr": {"lr": 0.05, "lr_decay": 0.5},
    "one refinement": {"inner_steps": 1},
    "no refinement": {"inner_steps": 0},
    "stale": {"reuse_last": True},
    "noise": {"init": "noise"},
    "ddim": {"init": "ddim"},
    "printed ascent": {"init": "printed", "reverse": "ddpm_mean"},
    "pulled to the DDIM path": {"init": "ddim", "kappa": 0.3},
    "pulled to the printed path": {"init": "printed", "kappa": 0.3},
}


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "anything"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_iterate_of_a_run_is_the_papers(make, case, operator, components):
    problem, dense = make(operator, components=components)
    settings = {"steps": 3, "inner_steps": 3, "eta": 20.0, "init": "gaussian"} | case
    tape = Tape()
    ours = [frame.state for frame in iterate(problem, STSL(**settings), tape)]
    draws = tape.replay()
    hand = HandSTSL(**settings)
    plan = UP + PLAN if hand.init in ("ddim", "printed") else PLAN
    theirs = hand.run(dense, plan, draws)
    assert next(draws, None) is None, "the library drew noise that the equations do not contain"
    assert len(ours) == len(theirs) == len(plan)
    for state, z in zip(ours, theirs, strict=True):
        # The printed ascent multiplies its latents, and with them the rounding errors, by hundreds.
        scale = max(1.0, float(z.abs().max()))
        assert_close(state.z.flatten(1) / scale, z / scale, **EXACT)


@pytest.mark.parametrize("reverse", ["ddim", "ddpm_mean", "ddpm"])
def test_a_step_at_the_default_settings_is_the_papers(make, reverse):
    """T = 50, K = 5, N = 2, η = 0.02, lr = 0.01 · 0.998^level, at the tenth level."""
    problem, dense = make("superresolution", components=2)
    z = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tape = Tape()
    ours = STSL(reverse=reverse).step(problem, State(z, clean=z, memory=Memory(level=10)), 781, 761, tape)
    hand = HandSTSL(reverse=reverse)
    theirs = hand.down(dense, z.flatten(1), 781, 761, tape.replay(), None, HandAdam(), 0.01 * 0.998**10)
    assert_close(ours.z.flatten(1), theirs, **EXACT)


@pytest.mark.parametrize("adjoint", ["paper", "exact"])
@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "blur", "anything"])
def test_the_beginning_is_the_encoded_lift_at_the_noisiest_level(make, operator, adjoint):
    problem, dense = make(operator, adjoint)
    tape = Tape()
    state = STSL(init="gaussian", adjoint=adjoint).begin(problem, tape)
    (noise,) = tape.replay()
    a = ALPHA_BAR[981]
    assert_close(state.z.flatten(1), a**0.5 * dense.start() + (1 - a) ** 0.5 * noise, **EXACT)
    assert_close(state.clean.flatten(1), dense.start(), **EXACT)


def test_auto_begins_from_the_measurement_where_all_is_seen_and_from_noise_where_a_hole_is_wide(make):
    for operator, named in (("superresolution", "gaussian"), ("inpainting", "noise")):
        problem, _ = make(operator)
        begun = [STSL(init=init).begin(problem, Tape()).z for init in ("auto", named)]
        assert torch.equal(*begun)


def test_argmin_is_adam_on_the_residual_of_the_latent(make):
    problem, dense = make("superresolution")
    tape = Tape()
    state = STSL(init="argmin").begin(problem, tape)
    z, adam = dense.start(), HandAdam()
    slope = -(dense.operator @ dense.decoder)
    for _ in range(FIT_STEPS):
        r = dense.residual(z)
        z = z - FIT_LR * adam.step(apply(slope.T, r) / (r.square().sum(1, keepdim=True) + 1e-12).sqrt())
    (noise,) = tape.replay()
    scale, sigma = level(981)
    assert_close(state.z.flatten(1), scale * z + sigma * noise, **EXACT)
    assert (dense.residual(z).norm(dim=1) < 0.5 * dense.residual(dense.start()).norm(dim=1)).all()


# --- the second-order term


def balanced(dense, z, t, probes, wanted=1.0):
    """η for which the trace's gradient is `wanted` times as long as the measurement's, averaged over the images."""
    data, trace = dense.data_gradient(z, t).norm(dim=1), dense.trace_gradient(z, t, probes).norm(dim=1)
    return float((wanted * z.shape[1] * data / trace).mean())


@pytest.fixture
def between_modes(make):
    """A latent between the two modes, where the curvature of the log density changes most."""
    problem, dense = make("superresolution", components=2)
    t, t_next = 481, 461
    middle = level(t)[0] * dense.latents.means.mean(0)
    z = middle + 0.3 * torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    state = State(z.reshape(2, 2, 5, 5), clean=z.reshape(2, 2, 5, 5), memory=Memory())
    return problem, dense, state, t, t_next


@pytest.mark.parametrize("adam_state", ["none", "per_level"])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_dropping_the_trace_or_flipping_its_sign_is_another_step(between_modes, inner_steps, adam_state):
    problem, dense, state, t, t_next = between_modes
    z = state.z.flatten(1)
    first = Tape()
    probes = torch.stack([first.normal(state.z, draw).flatten(1) for draw in range(2)])
    settings = {"inner_steps": inner_steps, "adam_state": adam_state, "lr": 0.05, "eta": balanced(dense, z, t, probes)}
    tape = Tape()
    ours = STSL(**settings).step(problem, state, t, t_next, tape)
    # No two images have the same ratio; its mean over the images was set to 1.
    assert ours.log["r2"].min() > 0.3
    assert ours.log["r2"].max() < 3

    def by_hand(**changes):
        # A trace term of another weight takes the same probes from the tape.
        return replace(HandSTSL(**settings), **changes).down(
            dense, z, t, t_next, tape.replay(), None, HandAdam(), settings["lr"]
        )

    assert_close(ours.z.flatten(1), by_hand(), **EXACT)
    # Adam moves every coordinate by about inner_steps · lr, a plain step by lr times the gradient: 1e-3 is far above
    # rounding and below either.
    for wrong in ({"eta": 0.0}, {"eta": -settings["eta"]}, {"eta": 0.5 * settings["eta"]}):
        assert (ours.z.flatten(1) - by_hand(**wrong)).abs().max() > 1e-3


def test_the_trace_uses_the_score_not_the_noise(between_modes):
    """s = −ε/σ: with ε in its place the term would be −σ times itself ."""
    problem, dense, state, t, t_next = between_modes
    z = state.z.flatten(1)
    eta = 50.0
    tape = Tape()
    sampler = STSL(inner_steps=1, adam_state="none", lr=0.05, eta=eta)
    ours = sampler.step(problem, state, t, t_next, tape).z.flatten(1)
    hand = HandSTSL(inner_steps=1, adam_state="none", lr=0.05, eta=-level(t)[1] * eta)
    wrong = hand.down(dense, z, t, t_next, tape.replay(), None, HandAdam(), 0.05)
    assert (ours - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("case", [{}, {"meas_loss": "mse", "lam": 3.0}, {"probe_scale": "sigma"}, {"probes": 1}])
def test_r2_is_the_ratio_of_the_two_gradients_of_each_image(between_modes, case):
    problem, dense, state, t, t_next = between_modes
    tape = Tape()
    log = STSL(**({"eta": 20.0} | case)).step(problem, state, t, t_next, tape).log
    hand = HandSTSL(**({"eta": 20.0} | case))
    draws = tape.replay()
    probes = torch.stack([next(draws) for _ in range(hand.probes)])
    data, trace, _ = hand.terms(dense, state.z.flatten(1), t, probes, None)
    # The library has 1e-12 under the root of the measurement's norm, whose square is above 1e-2.
    assert_close(log["r2"], trace.norm(dim=1) / data.norm(dim=1), rtol=1e-9, atol=0)


def test_r2_compares_with_the_measurement_alone_when_kappa_pulls_too(make):
    problem, dense = make("superresolution", components=2)
    tape = Tape()
    settings = {"steps": 3, "inner_steps": 1, "eta": 20.0, "init": "ddim", "kappa": 5.0}
    frames = list(iterate(problem, STSL(**settings), tape))
    first = next(frame for frame in frames if "r2" in frame.state.log)
    z = frames[2].state.z.flatten(1)  # where the first refinement begins: at the top of three steps up
    probes = torch.stack([noise for noise, _ in zip(tape.replay(), range(2), strict=False)])
    data, trace, _ = HandSTSL(**settings).terms(dense, z, 999, probes, z)
    assert_close(first.state.log["r2"], trace.norm(dim=1) / data.norm(dim=1), rtol=1e-9, atol=0)


def test_r2_is_nothing_on_a_gaussian_prior(make):
    """A floor under the trace's own norm would show here as 1e-6 over the measurement's norm."""
    problem, _ = make("superresolution")
    for frame in iterate(problem, STSL(steps=6), Tape()):
        # Rounding of probes · P (z + ε) summed over 50 coordinates, times η/d = 4e-4, over norms above 1e-2.
        assert all((r2 < 1e-14).all() for name, r2 in frame.state.log.items() if name == "r2")


def test_r2_is_logged_at_every_fifth_level(make):
    problem, _ = make("superresolution", components=2)
    frames = list(iterate(problem, STSL(steps=12, inner_steps=2), Tape()))
    assert [frame.index for frame in frames if "r2" in frame.state.log] == [0, 5, 10]
    assert not any("r2" in f.state.log for f in iterate(problem, STSL(steps=6, eta=0.0), Tape()))


def test_eta_changes_nothing_on_a_gaussian_prior(make):
    """There ∇² log p is the same everywhere, so the trace has no gradient."""
    problem, _ = make("superresolution")
    final = []
    for eta in (0.0, 0.02, 20.0):
        *_, last = iterate(problem, STSL(steps=10, eta=eta), Rng(0, ("a", "b")))
        final.append(last.state.z)
    # What is left of the gradient is rounding, 1e-16 times η/d, before Adam divides by |g| of about 1e-3.
    assert_close(final[0], final[1], **EXACT)
    assert_close(final[0], final[2], **EXACT)


def test_eta_changes_the_image_on_a_mixture(make):
    problem, _ = make("superresolution", components=2)
    final = [list(iterate(problem, STSL(steps=10, eta=eta), Rng(0, ("a", "b"))))[-1].state.z for eta in (0.0, 20.0)]
    assert (final[0] - final[1]).abs().max() > 1e-2


# --- presets as limits


def test_eta_0_and_one_refinement_are_the_biased_preset(make):
    problem, _ = make("superresolution", components=2)
    images = [
        Restorer(problem.prior, sampler)(problem.y, problem.physics)
        for sampler in (STSL(eta=0.0, inner_steps=1), STSL.preset("biased"))
    ]
    assert torch.equal(*images)


def test_no_probes_are_the_same_as_eta_0(make):
    problem, _ = make("superresolution", components=2)
    images = [
        Restorer(problem.prior, sampler)(problem.y, problem.physics)
        for sampler in (STSL(eta=0.0, steps=10), STSL(probes=0, steps=10))
    ]
    assert torch.equal(*images)


# --- sampling in place of optimising


def test_a_calibrated_step_is_langevin_and_ddpm_with_the_likelihoods_own_weight(make):
    problem, dense = make("superresolution", components=2)
    problem = replace(problem, sigma_y=0.3)
    z = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    gain, (t, t_next), tape = torch.tensor([0.7, 1.3], dtype=torch.float64), (481, 471), Tape()
    state = State(z, clean=z, memory=Memory(level=3, gain=gain))
    ours = STSL.preset("calibrated").step(problem, state, t, t_next, tape)
    moved, last = tape.replay()

    scale, sigma = level(t)
    unsure = problem.sigma_y**2 + gain[:, None] * sigma**2

    def guidance(z):
        return dense.data_gradient(z, t, "sqnorm") / (2 * unsure)

    z, length = z.flatten(1), 0.3 * sigma**2
    z = z + length / 2 * (dense.latents.score(z, t) - guidance(z)) + length**0.5 * moved
    eps = dense.eps(z, t) + sigma * guidance(z)
    mean, std = ddpm(z, (z - sigma * eps) / scale, t, t_next)
    assert_close(ours.z.flatten(1), mean + std * last, **EXACT)


@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "blur"])
def test_the_gain_of_an_operator_is_its_largest_singular_value_squared(make, operator):
    problem, dense = make(operator)
    gain = STSL.preset("calibrated").begin(replace(problem, sigma_y=0.3), Tape()).memory.gain
    largest = torch.linalg.matrix_norm(dense.operator, 2).square().expand(2)
    assert (gain <= largest * (1 + 1e-9)).all()
    assert_close(gain, largest, rtol=0.05, atol=0)  # the power method comes from below
