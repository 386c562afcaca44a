"""Schedules: values, plans and refusals. The moves' identities are in tests/exact/test_moves.py."""

import itertools

import pytest

from stsl.schedule import VariancePreserving

SD_CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2, "steps_offset": 1}
SD = VariancePreserving.from_config(SD_CONFIG)
DDPM = VariancePreserving.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2})
SPACINGS = ("leading", "trailing", "linspace")


def levels(schedule, steps, spacing="leading"):
    return [t for t, _ in schedule.descend(steps, spacing)]


@pytest.mark.parametrize(
    ("schedule", "t", "alpha_bar", "half_a_digit"),
    [(SD, 0, 0.99915, 5e-6), (SD, 981, 0.00578, 5e-6), (SD, 999, 0.00466, 5e-6), (DDPM, 999, 4.04e-5, 5e-8)],
)
def test_alpha_bar_is_that_of_the_trained_models(schedule, t, alpha_bar, half_a_digit):
    assert schedule.alpha_bar[t] == pytest.approx(alpha_bar, abs=half_a_digit)
    scale, sigma = schedule.at(t)
    assert scale**2 == pytest.approx(schedule.alpha_bar[t], abs=1e-15)
    assert scale**2 + sigma**2 == pytest.approx(1, abs=1e-15)


def test_six_point_eight_percent_of_the_signal_remains_at_the_last_level():
    assert SD.at(999)[0] == pytest.approx(0.068, abs=5e-4)


def test_fifty_steps_are_the_levels_of_the_papers():
    """1, 21, ..., 981: identical to CompVis DDIM and to diffusers with steps_offset=1."""
    assert levels(SD, 50) == list(range(981, 0, -20))
    assert SD.descend(50)[-1] == (1, -1)
    assert levels(DDPM, 50) == list(range(980, -1, -20))


def test_a_thousand_steps_stay_inside_the_training_range():
    """CompVis asks the network at 1..1000, of which 1000 was never trained."""
    assert levels(SD, 1000) == list(range(999, -1, -1))
    assert levels(DDPM, 1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 10, 11, 30, 60, 333, 501, 600, 999, 1000])
def test_any_number_of_steps_gives_distinct_levels_that_begin_in_noise_and_end_clean(steps, spacing):
    for schedule in (SD, DDPM):
        plan = schedule.descend(steps, spacing)
        assert len(plan) == steps
        assert all(t > t_next for t, t_next in plan)
        assert all(b == a for (_, b), (a, _) in itertools.pairwise(plan))
        assert plan[-1][1] == -1
        assert all(0 <= t < 1000 for t, _ in plan)
        # "Noisy": at most 0.15 of the signal's amplitude; ten leading steps begin lowest, at level 900 or 901.
        assert schedule.at(plan[0][0])[0] < 0.15


@pytest.mark.parametrize("steps", [1, 5, 50, 333])
def test_the_way_up_is_the_way_down_turned_round(steps):
    assert SD.ascend(steps) == [(b, a) for a, b in reversed(SD.descend(steps))]
    assert SD.ascend(steps)[0][0] == -1


def test_quad_spacing_is_that_of_diffpir():
    """999 − ⌊1000 √(j/(n − 1))⌋, the last reduced to 0: large steps in noise, dense ones near the image."""
    assert levels(DDPM, 5, "quad") == [999, 499, 292, 133, 0]
    # DiffPIR's two settings: 20 and 100 steps.
    for steps in (20, 100):
        times = levels(DDPM, steps, "quad")
        assert times[0] == 999
        assert times[-1] == 0
        gaps = [a - b for a, b in itertools.pairwise(times)]
        assert all(a >= b - 1 for a, b in itertools.pairwise(gaps))  # falling, up to the rounding of two levels


def test_final_first_ends_at_the_first_training_level():
    first = VariancePreserving(SD.alpha_bar, offset=1, final="first")
    assert SD.at(-1) == (1.0, 0.0)
    assert first.at(-1) == SD.at(0)
    assert VariancePreserving.from_config({**SD_CONFIG, "set_alpha_to_one": False}).final == "one"


def test_betas_may_come_as_a_list_or_by_the_cosine_rule():
    trained = VariancePreserving.from_config({"trained_betas": [0.5, 0.5], "num_train_timesteps": 2})
    assert trained.alpha_bar == (0.5, 0.25)
    cosine = VariancePreserving.from_config({"beta_schedule": "squaredcos_cap_v2"})
    # cos²((t/T + 0.008)/1.008 · π/2) over its value at 0, halfway: 0.4939.
    assert cosine.alpha_bar[499] == pytest.approx(0.49384, abs=1e-4)
    assert all(a > b for a, b in itertools.pairwise(cosine.alpha_bar))


@pytest.mark.parametrize("t", [-2, 1000])
def test_a_level_outside_the_schedule_is_refused(t):
    with pytest.raises(IndexError, match=r"outside \[-1, 1000\)"):
        SD.at(t)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_more_steps_than_levels_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 1000"):
        SD.descend(steps)


def test_what_cannot_be_spaced_or_read_is_refused():
    with pytest.raises(ValueError, match="unknown spacing 'cubic': leading, trailing, linspace or quad"):
        SD.descend(10, "cubic")
    with pytest.raises(ValueError, match="fewer steps"):
        SD.descend(1000, "quad")
    with pytest.raises(ValueError, match="'sigmoid' is not known: linear, scaled_linear"):
        VariancePreserving.from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(ValueError, match="zero terminal SNR"):
        VariancePreserving.from_config({**SD_CONFIG, "rescale_betas_zero_snr": True})


def test_ddim_with_fresh_noise_asks_for_it():
    with pytest.raises(ValueError, match="needs noise"):
        SD.move(0.0, 0.0, 981, 961, eta=0.5)
    assert SD.move(1.0, 0.0, 961, 981, eta=0.5) == SD.at(981)[0]  # upward moves take none
