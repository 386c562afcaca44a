"""What forms show for methods and tasks."""

from dataclasses import dataclass, fields

import pytest

from stsl.app import controls
from stsl.app.controls import Control, at_quality, controls_of, controls_of_task, leaning, qualities, value_of
from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers import PSLD, SAMPLERS, STSL, LatentDAPS, Sampler, State, knob

METHODS = SAMPLERS | RECONSTRUCTORS
TALK = [
    "Number of diffusion steps",
    "Gluing factor",
    "Gluing kernel size",
    "Gluing kernel sigma",
    "Measurement factor",
]


def test_psld_has_the_talks_five_controls_first_under_their_names():
    shown = controls_of("psld", PSLD)
    assert [control.label for control in shown[:5]] == TALK
    assert [control.name for control in shown[:5]] == ["steps", "gamma", "kernel", "kernel_sigma", "omega"]
    assert {control.kind for control in shown[:5]} == {"slider"}


@pytest.mark.parametrize(("name", "method"), METHODS.items(), ids=METHODS)
def test_every_field_but_free_text_has_a_control_that_takes_its_values(name, method):
    shown = {control.name: control for control in controls_of(name, method)}
    free = {f.name for f in fields(method) if isinstance(f.default, str) and not f.metadata["choices"]}
    assert set(shown) == {f.name for f in fields(method)} - free
    for quality in qualities(method):
        settings = at_quality(method, quality).settings()
        again = {key: value_of(control, settings[key]) for key, control in shown.items()}
        assert method(**again).settings() == settings


@pytest.mark.parametrize(("name", "method"), METHODS.items(), ids=METHODS)
def test_a_slider_can_stand_where_its_method_begins(name, method):
    sliders = [control for control in controls_of(name, method) if control.kind == "slider"]
    assert sliders
    for control in sliders:
        places = (control.default - control.low) / control.step
        assert control.low <= control.default <= control.high
        assert abs(places - round(places)) < 1e-6, control


def test_a_range_in_which_the_default_would_be_lost_is_a_number():
    kinds = {control.name: control.kind for control in controls_of("stsl", STSL)}
    assert (kinds["lam"], kinds["lr"], kinds["steps"], kinds["lr_decay"]) == ("number", "number", "slider", "slider")
    assert (kinds["init"], kinds["reuse_last"]) == ("choice", "switch")


def test_an_even_gluing_kernel_becomes_the_next_odd_one():
    kernel = next(control for control in controls_of("psld", PSLD) if control.name == "kernel")
    assert [value_of(kernel, size) for size in (0, 1, 14, 15, 100)] == [0, 1, 15, 15, 101]
    assert PSLD(kernel=value_of(kernel, 14.0)).kernel == 15


def test_an_empty_number_is_refused_by_its_label():
    with pytest.raises(ValueError, match="Weight is empty"):
        value_of(Control("w", "Weight", "", "number", 1.0), None)


@dataclass(frozen=True)
class Mine(Sampler):
    """A method that nobody has told the forms about."""

    source = "nobody 2026"
    presets = {"fast": {"steps": 7, "depth": 2.5}}

    steps: int = knob(10, "denoising steps", low=1, high=1000)
    depth: float = knob(5.0, "how deep it goes", low=0.0, high=10.0)
    mood: str = knob("calm", "its mood", choices=("calm", "wild"))

    def step(self, problem, state: State, t: int, t_next: int, rng) -> State:
        return state


def test_a_new_method_shows_up_unasked(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "mine", Mine)
    assert controls.methods()["mine"] is Mine
    steps, depth, mood = controls_of("mine", Mine)
    assert (depth.label, depth.info, depth.kind) == ("Depth", "how deep it goes", "slider")
    assert mood.choices == ("calm", "wild")
    assert steps.whole
    assert qualities(Mine) == ["Fast", "Paper"]
    assert at_quality(Mine, "Fast") == Mine(steps=7, depth=2.5)
    assert at_quality(Mine, "Paper") == Mine()
    assert leaning("mine", Mine(), -1) == Mine()  # nobody knows its weight


def test_a_quality_that_a_method_lacks_is_refused():
    with pytest.raises(ValueError, match="LatentDAPS has no quality 'Balanced'; it has Fast, Paper"):
        at_quality(LatentDAPS, "Balanced")


def test_qualities_are_the_presets_of_a_task():
    assert at_quality(STSL, "Fast") == STSL.preset("fast")
    assert at_quality(SAMPLERS["dps"], "Balanced", "mask") == SAMPLERS["dps"].preset("balanced", "mask")
    assert at_quality(PSLD, "Paper") == PSLD.preset("sd15")
    assert at_quality(STSL, "Paper") == STSL()


def test_faithful_to_detailed_scales_the_weight_of_the_measurement():
    psld = PSLD(omega=2.0)
    assert leaning("psld", psld, 0.0) == psld
    assert leaning("psld", psld, -1.0).omega == 8.0
    assert leaning("psld", psld, 1.0).omega == 0.5
    assert leaning("psld", PSLD(omega=5.0), -1.0).omega == 10.0  # the end of its range
    daps = LatentDAPS(tau=0.01)  # a noise level: less of it is more faithful
    assert leaning("latent_daps", daps, -1.0).tau == 0.0025
    assert leaning("latent_daps", daps, 1.0).tau == 0.04


def test_the_mapping_of_faithful_names_fields_that_exist():
    for name, (field, sign) in controls.FAITHFUL.items():
        method = METHODS[name]
        towards = leaning(name, method(), -1.0)
        before, after = getattr(method(), field), getattr(towards, field)
        assert sign * (after - before) >= 0
        assert {key for key, value in towards.settings().items() if value != method().settings()[key]} <= {field}


def test_only_tasks_that_a_photo_can_be_restored_by_are_offered():
    values = [value for _, value in controls.task_choices()]
    assert values == ["sr4", "sr8", "gaussian_blur", "salt_pepper", "denoise", "mask", "kernel"]


def test_the_options_of_a_task_have_controls():
    match, std = controls_of_task("gaussian_blur")
    assert (match.kind, match.choices) == ("choice", ("dps256", "stsl512"))
    assert (std.default, std.low, std.high) == (0.0, 0.0, 1000.0)
    assert controls_of_task("sr4") == []
