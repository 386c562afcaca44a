"""The options of a task: the keyword-only parameters of its function, read off the signature."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """What an option means and, for a number, between which ends it lies (both included)."""

    help: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Parameter:
    """A keyword-only parameter, annotated `Annotated[float, Option(...)]` or `Annotated[Literal[...], Option(...)]`."""

    kind: Any
    option: Option
    default: float | str

    @property
    def help(self) -> str:
        return self.option.help

    @property
    def allowed(self) -> str:
        if get_origin(self.kind) is Literal:
            return " or ".join(get_args(self.kind))
        return f"a number from {self.option.low:g} to {self.option.high:g}"

    def read(self, what: str, text: str) -> float | str:
        """The value in `text`.

        Raises:
            ValueError: it is not what is allowed; the message starts with `what`.
        """
        if get_origin(self.kind) is Literal:
            if text not in get_args(self.kind):
                raise ValueError(f"{what} is {self.allowed}, got {text!r}")
            return text
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{what} is {self.allowed}, got {text!r}") from None
        if not self.option.low <= value <= self.option.high:
            raise ValueError(f"{what} is {self.allowed}, got {text}")
        return value


def parameters(function: Callable[..., object]) -> dict[str, Parameter]:
    """The options of a function by name, in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind, option = get_args(hints[key])
            found[key] = Parameter(kind, option, parameter.default)
    return found


def read_options(task: str, text: str, known: Mapping[str, Parameter]) -> dict[str, float | str]:
    """Read `key=value,key=value`, the options of `task`.

    Raises:
        ValueError: a key is unknown or given twice, or a value is missing, of the wrong type or outside its range; the
            message tells what is allowed.
    """
    options: dict[str, float | str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"task {task} has no option {key!r}{nearest(key, known)}; {allowed}")
        if not equals:
            raise ValueError(f"task {task}: option {key} needs a value, as in {task}:{key}={known[key].default}")
        if key in options:
            raise ValueError(f"task {task}: option {key} is given twice")
        options[key] = known[key].read(f"task {task}: {key}", value)
    return options


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what was probably meant, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {near[0]!r}?" if near else ""
