"""What a sampler is: hyper-parameters, a plan of levels, a beginning, and one step."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from deepinv.physics import DecomposablePhysics, Inpainting, LinearPhysics

from stsl.options import nearest
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.schedule import Plan, Schedule
from stsl.shapes import Latent, PerImage


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
            "mask", "text"}.
        presets: named settings: name -> fields that differ from the defaults; or name -> {task -> fields}, where ""
            is any other task.
        source: paper, arXiv id, algorithm or equation.
        family: "latent", "pixel" or "any": the priors the method is meant for.
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

    def check(self, problem: Problem) -> None:
        """Refuse a problem this method cannot serve, before the first network call.

        Raises:
            TypeError: the operator or the prior lacks something of `requires`.
        """
        missing = self.requires - capabilities(problem)
        if missing:
            name = type(self).__name__
            raise TypeError(
                f"{name} needs an operator or prior with: {', '.join(sorted(self.requires))}; "
                f"{type(problem.physics).__name__} with prior {problem.prior.name!r} lacks "
                f"{', '.join(sorted(missing))}. LDPS takes any differentiable operator"
            )

    @classmethod
    def preset(cls, name: str, task: str | None = None) -> Self:
        """A named setting, for one task where the setting depends on it.

        Raises:
            ValueError: unknown name; the nearest one is suggested.
        """
        if name not in cls.presets:
            there = ", ".join(cls.presets) or "none"
            raise ValueError(f"{cls.__name__} has no preset {name!r}{nearest(name, cls.presets)}; there are {there}")
        chosen = cls.presets[name]
        if "" in chosen:
            chosen = chosen.get(task or "", chosen[""])
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
    if isinstance(physics, DecomposablePhysics):
        can |= {"svd"}
    if isinstance(physics, Inpainting):
        can |= {"mask"}
    if problem.prior.has_text:
        can |= {"text"}
    return frozenset(can)
