"""What a sampler is: hyper-parameters, a plan of levels, a beginning, and one step."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from deepinv.physics import Inpainting, LinearPhysics

from stsl.options import nearest
from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.schedule import Plan, Schedule
from stsl.shapes import Latent, PerImage
from stsl.solvers import has_spectrum

# Tasks of a kind, as keys of presets; "mask" and "kernel" stand for a user's own.
INPAINTING = "random_inpaint box_inpaint freeform_inpaint mask"
BLURS = "gaussian_blur motion_blur kernel"
SUPERRESOLUTION = "sr4 sr8"
# What `Sampler.requires` may hold, as an error message says it.
NEEDS = {
    "differentiable": "an operator that can be differentiated",
    "linear": "a linear operator",
    "adjoint": "its adjoint",
    "prox": "its proximal step",
    "svd": "its singular values",
    "mask": "a mask",
    "text": "a text encoder",
    "sigma_y": "a known noise level (the `sigma` of the operator's noise model)",
    "pixels": "a prior on pixels",
}


def knob(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A hyper-parameter: a dataclass field that knows its meaning and range.

    The command line's `--set`, the app's sliders, the docs' tables and the contract tests all read it.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, eq=False)
class State:
    """What goes from step to step.

    Args:
        z: the iterate, shape (B, C, h, w).
        clean: the latest estimate of the clean latent, for previews.
        memory: what a method carries along; only that method looks inside.
        log: numbers of the step, one per image: residual (rms on [0, 1]), ratios of gradients.
    """

    z: Latent
    clean: Latent
    memory: Any = None
    log: Mapping[str, PerImage] = field(default_factory=dict)


class Sampler(ABC):
    """A method as a value: a frozen dataclass whose repr is the reproducible setting.

    Attributes:
        requires: what the operator or prior must offer, of {"differentiable", "linear", "adjoint", "prox", "svd",
            "mask", "text", "sigma_y"}.
        presets: named settings: name -> fields that differ from the defaults; or name -> {tasks -> fields}, where
            tasks are names with blanks between them, and "" holds the fields of every task.
        source: paper, arXiv id, algorithm or equation.
        family: "latent", "pixel" or "any": the priors the method is meant for. A pixel method takes no other prior.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    source: ClassVar[str]
    family: ClassVar[str] = "any"

    steps: int

    def plan(self, schedule: Schedule) -> Plan:
        """Pairs (t, t_next) of the levels to visit."""
        return schedule.descend(self.steps)

    def begin(self, problem: Problem, rng: Rng) -> State:
        """The first iterate: noise from N(0, I)."""
        z = rng.normal(problem.y.new_empty(problem.batch, *problem.prior.latent_shape, dtype=problem.prior.dtype))
        return State(z, clean=z)

    @abstractmethod
    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        """From level t to t_next."""

    @property
    def nfe(self) -> int:
        """Network evaluations as the paper counts them."""
        return self.steps

    def space(self, prior: Prior) -> Prior:
        """The prior whose latents are the iterates: the given one, unless a method works on its images instead."""
        return prior

    @classmethod
    def needs(cls) -> frozenset[str]:
        """Everything a problem must offer: `requires`, and pixels where the method works on them."""
        return cls.requires | ({"pixels"} if cls.family == "pixel" else set())

    def check(self, problem: Problem) -> None:
        """Refuse a problem this method cannot serve, before the first network call.

        Raises:
            TypeError: the operator or the prior lacks something the method needs; the message names the registered
                methods that would do.
        """
        offered = capabilities(problem)
        missing = self.needs() - offered
        if missing:
            from stsl.samplers import SAMPLERS  # not above: that module imports this one

            physics, prior = type(problem.physics).__name__, problem.prior
            lacks = ", ".join(f"{NEEDS[what]} ({what})" for what in sorted(missing))
            others = ", ".join(cls.__name__ for cls in SAMPLERS.values() if cls.needs() <= offered)
            raise TypeError(
                f"{type(self).__name__} needs {lacks}, which {physics} with the {prior.family} prior {prior.name!r} "
                f"does not offer. These methods take both: {others or 'none'}"
                + (". A prior on pixels is a folder with a diffusers UNet2DModel" if "pixels" in missing else "")
            )

    @classmethod
    def preset(cls, name: str, task: str | None = None) -> Self:
        """A named setting, for one task where the setting depends on it.

        Args:
            name: one of `presets`.
            task: a task, with or without its options, or "mask" or "kernel"; None takes what holds for every task.

        Raises:
            ValueError: unknown name; the nearest one is suggested.
        """
        if name not in cls.presets:
            there = ", ".join(cls.presets) or "none"
            raise ValueError(f"{cls.__name__} has no preset {name!r}{nearest(name, cls.presets)}; there are {there}")
        chosen = cls.presets[name]
        if "" in chosen:
            kind = (task or "").partition(":")[0]
            special = (fields for tasks, fields in chosen.items() if kind and kind in tasks.split())
            chosen = chosen[""] | next(special, {})
        return cls(**chosen)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, fit for JSON; `type(self)(**settings)` is this sampler again."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            _validate(type(self).__name__, each, getattr(self, each.name))


def _validate(owner: str, knob: "dataclasses.Field[Any]", value: Any) -> None:
    low, high, choices = (knob.metadata[key] for key in ("low", "high", "choices"))
    where = f"{owner}: {knob.name} = {value!r}"
    kind = knob.type if isinstance(knob.type, type) else type(knob.default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where}: needs {kind.__name__}")
    if choices is not None and value not in choices:
        raise ValueError(f"{where}{nearest(str(value), choices)}; choose one of {', '.join(choices)}")
    if isinstance(value, int | float) and not (
        math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
    ):
        raise ValueError(f"{where}: must be a finite number in [{low}, {high}]")


def capabilities(problem: Problem) -> frozenset[str]:
    """What the operator and the prior of a problem offer, in the words of `Sampler.requires`."""
    physics, can = problem.physics, {"differentiable"}
    if isinstance(physics, LinearPhysics):
        can |= {"linear", "adjoint", "prox"}
    if has_spectrum(physics):
        can |= {"svd"}
    if isinstance(physics, Inpainting):
        can |= {"mask"}
    if problem.sigma_y is not None:
        can |= {"sigma_y"}
    if problem.prior.has_text:
        can |= {"text"}
    if problem.prior.family == "pixel":
        can |= {"pixels"}
    return frozenset(can)
