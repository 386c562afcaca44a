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
    from stsl.samplers import Sampler

# What a sampler runs with when no preset is named: the best value for the time, where it has one.
PREFERRED = "balanced"


def choose_sampler(
    name: str, preset: str | None = None, sets: Sequence[str] = (), task: str | None = None, *, fast: bool = False
) -> "Sampler":
    """The sampler that `--sampler`, `--preset`, `--fast` and `--set` describe.

    Args:
        name: a name of `stsl list samplers`, or `file.py:Class`.
        preset: a named setting; None is "balanced" where the sampler has it, else its defaults.
        sets: "key=value" for single fields, applied last.
        task: for presets that depend on it.
        fast: the preset "fast"; not together with another one.

    Raises:
        ValueError, TypeError: unknown name, preset or field, or a value outside its range.
    """
    cls = _sampler_class(name)
    if fast:
        if preset not in (None, "fast"):
            raise ValueError(f"--fast is the preset fast; it cannot go with --preset {preset}")
        preset = "fast"
    if preset is None:
        preset = PREFERRED if PREFERRED in cls.presets else None
    base = cls.preset(preset, task) if preset else cls()
    return dataclasses.replace(base, **_changes(base, sets))  # type: ignore[type-var]


def _sampler_class(name: str) -> "type[Sampler]":
    from stsl.samplers import SAMPLERS, Sampler

    if name in SAMPLERS:
        return SAMPLERS[name]
    if ".py:" in name:
        found = load_attribute(name, "--sampler")
        if not (isinstance(found, type) and issubclass(found, Sampler)):
            raise TypeError(f"--sampler {name}: needs a subclass of stsl.Sampler")
        return found
    meant = nearest(name.lower().replace("-", "_"), SAMPLERS)
    raise ValueError(f"unknown sampler {name!r}{meant}; there are {', '.join(SAMPLERS)}, or file.py:Class")


def _changes(sampler: "Sampler", sets: Sequence[str]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(sampler)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if key not in fields:
            owner = type(sampler).__name__
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
