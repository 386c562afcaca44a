"""From words on the command line to samplers and operators."""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stsl.options import nearest

if TYPE_CHECKING:
    from stsl.photos import Corruption
    from stsl.samplers import Sampler

# What a sampler runs with when no preset is named: the best value for the time, where it has one.
PREFERRED = "balanced"
# The built-in prior that a method runs with when none is named, by the method's family.
PRIORS = {"latent": "faces-128", "any": "faces-128", "pixel": "faces-64-pixel"}


def choose_sampler(
    name: str, preset: str | None = None, sets: Sequence[str] = (), task: str | None = None, *, fast: bool = False
) -> "Sampler":
    """The sampler that `--sampler`, `--preset`, `--fast` and `--set` describe.

    Args:
        name: a name of `stsl list samplers`, or `file.py:Class` with a `Sampler` or a deepinv `Reconstructor`.
        preset: a named setting; None is "balanced" where the sampler has it, else its defaults.
        sets: "key=value" for single fields, applied last.
        task: for presets that depend on it; "mask" and "kernel" stand for a user's own.
        fast: the preset "fast"; not together with another one.

    Raises:
        ValueError, TypeError: unknown name, preset or field, or a value outside its range.
    """
    cls = _method(name)
    if fast:
        if preset not in (None, "fast"):
            raise ValueError(f"--fast is the preset fast; it cannot go with --preset {preset}")
        preset = "fast"
    if preset is None:
        preset = PREFERRED if PREFERRED in cls.presets else None
    base = cls.preset(preset, task) if preset else cls()
    return dataclasses.replace(base, **changes(base, sets))  # type: ignore[type-var]


def choose_prior(name: str | None, sampler: "Sampler") -> str:
    """The prior that `--prior` names, or the built-in one for the sampler's family.

    Raises:
        FileNotFoundError: no prior was named and the built-in one of that family is not installed.
    """
    from stsl.priors.load import builtin_names

    chosen = name or PRIORS[sampler.family]
    if name is None and chosen not in builtin_names():
        raise FileNotFoundError(
            f"{type(sampler).__name__} works on pixels, and its built-in prior {chosen} is not installed: give --prior "
            "a folder or hub id with a diffusers UNet2DModel, such as google/ddpm-celebahq-256"
        )
    return chosen


def kind_of(corruption: "Corruption") -> str | None:
    """What the presets call a corruption: the task, "mask" or "kernel"; None where nothing says it."""
    if corruption.operator is not None:
        from stsl.measurements import load_operator

        try:
            return load_operator(corruption.operator)[1].spec
        except (OSError, ValueError):
            return None  # the first photo says what is wrong with the file
    if corruption.mask is not None:
        return "mask"
    return "kernel" if corruption.kernel is not None else corruption.task


def _method(name: str) -> "type[Sampler]":
    from stsl.reconstructors import RECONSTRUCTORS
    from stsl.samplers import SAMPLERS

    known = SAMPLERS | RECONSTRUCTORS
    if name in known:
        return known[name]
    if ".py:" in name:
        return _own_method(name)
    meant = nearest(name.lower().replace("-", "_"), known)
    raise ValueError(f"unknown sampler {name!r}{meant}; there are {', '.join(known)}, or file.py:Class")


def _own_method(name: str) -> "type[Sampler]":
    from deepinv.models import Reconstructor

    from stsl.reconstructors import given
    from stsl.samplers import Sampler

    found = load_attribute(name, "--sampler")
    if isinstance(found, type) and issubclass(found, Sampler):
        return found
    if isinstance(found, type) and issubclass(found, Reconstructor):
        found = found()
    if isinstance(found, Reconstructor):
        return given(found, name)
    raise TypeError(
        f"--sampler {name}: needs a subclass of stsl.Sampler, or a deepinv Reconstructor or a class of one that is "
        "called without arguments"
    )


def changes(value: Any, sets: Sequence[str]) -> dict[str, Any]:
    """The fields of a dataclass that `--set` changes, as "key=value"; types are those of the fields' defaults."""
    fields = {f.name: f for f in dataclasses.fields(value)}
    changes: dict[str, Any] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if key not in fields:
            owner = type(value).__name__
            raise ValueError(f"{owner} has no field {key!r}{nearest(key, fields)}; it has {', '.join(fields)}")
        if not equals:
            raise ValueError(f"--set {item}: needs a value, as in --set {key}={fields[key].default}")
        changes[key] = _read(key, text, type(fields[key].default))
    return changes


def _read(key: str, text: str, kind: type) -> object:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--set {key}={text}: needs true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"--set {key}={text}: needs {what}") from None


def load_attribute(reference: str, option: str) -> Any:
    """What `file.py:name` names. Runs the file: it is the user's own code, named by the user.

    Raises:
        FileNotFoundError, ValueError: no such file, no such name in it, or the file fails.
    """
    file, _, attribute = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{option} {reference}: there is no file {file}")
    module = _run_file(path, option)
    if attribute not in vars(module):
        raise ValueError(f"{option}: {file} has no {attribute!r}{nearest(attribute, vars(module))}")
    return vars(module)[attribute]


def _run_file(path: Path, option: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{option}: {path} fails when it is loaded: {type(error).__name__}: {error}") from error
    return module
