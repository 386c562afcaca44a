"""What a form shows for a method or a task, read off their fields and options."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from stsl import tasks
from stsl.options import parameters
from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers import SAMPLERS, Sampler

# The controls of the web application that was shown in PSLD's talk, under the names they had there.
TALK = {
    "steps": "Number of diffusion steps",
    "gamma": "Gluing factor",
    "kernel": "Gluing kernel size",
    "kernel_sigma": "Gluing kernel sigma",
    "omega": "Measurement factor",
}
LABELS = {"psld": TALK}

# The presets that a quality stands for, the first that a method has; without one "Paper" is the method's defaults.
QUALITIES = {
    "Fast": ("fast",),
    "Balanced": ("balanced",),
    "Paper": ("sd15", "ldm-ffhq", "ffhq-256", "published"),
}

# The field that decides how near a result keeps to its measurement, and whether more of it is nearer.
# STSL refines by Adam, which takes no notice of the weight of a loss's only term: its step length decides.
FAITHFUL: Mapping[str, tuple[str, Literal[1, -1]]] = {
    "stsl": ("lr", 1),
    "psld": ("omega", 1),
    "gml_dps": ("omega", 1),
    "ldps": ("omega", 1),
    "p2l": ("rho", 1),
    "ldir": ("rho", 1),
    "resample": ("zeta", 1),
    "latent_daps": ("tau", -1),
    "dps": ("zeta", 1),
    "mcg": ("alpha", 1),
    "dmps": ("lam", 1),
    "ddrm": ("eta_b", 1),
    "diffpir": ("lam", -1),
    "admm_tv": ("lam", -1),
    "pnp_admm": ("rho", -1),
}
STRENGTH = 4.0  # at either end of "Faithful to detailed" the weight is this many times smaller or larger

# What people call the tasks; a task without a name here goes by the first line of its documentation.
TASKS = {
    "sr4": "Too small: enlarge 4 times",
    "sr8": "Too small: enlarge 8 times",
    "gaussian_blur": "Blurred",
    "salt_pepper": "Black and white specks",
    "denoise": "Noisy",
}
OWN = {"mask": "Parts are missing (mask file)", "kernel": "Blurred (kernel file)"}


@dataclass(frozen=True)
class Control:
    """One control of a form.

    Args:
        name: of the field or option.
        label, info: what it is called, and a sentence.
        kind: slider, number, choice or switch.
        default: its value at first.
        low, high, step: of a slider or number.
        whole: whether it is a whole number.
        choices: of a choice.
    """

    name: str
    label: str
    info: str
    kind: Literal["slider", "number", "choice", "switch"]
    default: Any
    low: float | None = None
    high: float | None = None
    step: float | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()


def methods() -> dict[str, type[Sampler]]:
    """Every registered method by its name."""
    return SAMPLERS | RECONSTRUCTORS


def controls_of(name: str, method: type[Sampler]) -> list[Control]:
    """A control for every field of a method but free text, which may name files or models.

    Args:
        name: what the registry calls the method.
        method: the dataclass.
    """
    labels = LABELS.get(name, {})
    controls = []
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        label = labels.get(field.name, field.name.replace("_", " ").capitalize())
        info, low, high, choices = (field.metadata.get(key) for key in ("help", "low", "high", "choices"))
        info = _more_than(label, info or "")
        if choices:
            controls.append(Control(field.name, label, info, "choice", field.default, choices=tuple(choices)))
        elif isinstance(field.default, bool):
            controls.append(Control(field.name, label, info, "switch", field.default))
        elif isinstance(field.default, int | float):
            controls.append(_numeric(field.name, label, info, field.default, low, high))
    order = list(labels)
    return sorted(controls, key=lambda control: order.index(control.name) if control.name in order else len(order))


def _more_than(label: str, info: str) -> str:
    """What a sentence says beside a label that it begins with."""
    begins = info.lower().startswith(label.lower())
    return info[len(label) :].lstrip(" :,") if begins else info


def controls_of_task(name: str) -> list[Control]:
    """A control for every option of a task."""
    controls = []
    for key, option in parameters(tasks.TASKS[name]).items():
        label = key.capitalize()
        if get_origin(option.kind) is Literal:
            controls.append(
                Control(key, label, option.help, "choice", option.default, choices=tuple(get_args(option.kind)))
            )
        else:
            low, high = option.option.low, option.option.high
            controls.append(_numeric(key, label, option.help, float(option.default), low, high))
    return controls


def _numeric(name: str, label: str, info: str, default: float, low: float | None, high: float | None) -> Control:
    """A slider where the default is neither lost at an end of the range nor between two of its steps."""
    whole = isinstance(default, int)
    if low is None or high is None:
        return Control(name, label, info, "number", default, low, high, whole=whole)
    span = high - low
    step = 1.0 if whole else 10.0 ** (math.floor(math.log10(span)) - 3)
    places = (default - low) / step
    is_on_step = abs(places - round(places)) < 1e-6
    fits = is_on_step and span <= (1000 if whole else 100) and (default == low or default >= low + span / 100)
    return Control(name, label, info, "slider" if fits else "number", default, low, high, step if fits else None, whole)


def value_of(control: Control, given: Any) -> Any:
    """What a form sent, as the field wants it. A gluing kernel has a centre: even sizes become the next odd one."""
    if control.kind in ("choice", "switch"):
        return given
    if given is None:
        raise ValueError(f"{control.label} is empty: give a number")
    if not control.whole:
        return float(given)
    whole = round(given)
    return whole | 1 if control.name == "kernel" and whole else whole


def qualities(method: type[Sampler]) -> list[str]:
    """The qualities that a method has."""
    return [name for name, presets in QUALITIES.items() if name == "Paper" or set(presets) & set(method.presets)]


def at_quality(method: type[Sampler], quality: str, task: str | None = None) -> Sampler:
    """A method as a quality sets it.

    Args:
        method: the dataclass.
        quality: of `QUALITIES`.
        task: for presets that depend on it; "mask" and "kernel" stand for a user's own.

    Raises:
        ValueError: the method has no such quality.
    """
    if quality not in qualities(method):
        raise ValueError(f"{method.__name__} has no quality {quality!r}; it has {', '.join(qualities(method))}")
    preset = next((name for name in QUALITIES[quality] if name in method.presets), None)
    return method() if preset is None else method.preset(preset, task)


def leaning(name: str, sampler: Sampler, towards: float) -> Sampler:
    """A sampler that keeps nearer to its measurement, or follows its prior more.

    w ← w · 4^(∓towards), w the field of `FAITHFUL`, kept in its range.

    Args:
        name: what the registry calls the method; one that `FAITHFUL` does not know stays as it is.
        sampler: with the settings to change.
        towards: from -1, faithful, over 0, as it was, to 1, detailed.
    """
    if name not in FAITHFUL or not towards:
        return sampler
    field, sign = FAITHFUL[name]
    knob = next(each for each in dataclasses.fields(sampler) if each.name == field)  # type: ignore[arg-type]
    value = getattr(sampler, field) * STRENGTH ** (-sign * towards)
    value = min(max(value, knob.metadata["low"]), knob.metadata["high"])
    return dataclasses.replace(sampler, **{field: float(f"{value:.3g}")})  # type: ignore[type-var]


def task_choices(*, own: tuple[str, ...] = tuple(OWN)) -> list[tuple[str, str]]:
    """(label, value) of the tasks that a photo can be restored by: those without random parts, and a user's own."""
    named = []
    for row in tasks.describe():
        if not tasks.is_random(row["name"]):
            label = TASKS.get(row["name"], row["description"].partition(":")[0].rstrip("."))
            named.append((label, row["name"]))
    return named + [(OWN[name], name) for name in own]
