"""What the command-line tests share: one loaded prior, quick presets, a photo."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stsl import STSL, images
from stsl.cli import main
from stsl.priors import load
from stsl.samplers import PSLD

QUICK = {"steps": 2, "inner_steps": 1, "eta": 0.0, "probes": 0}


@pytest.fixture(scope="session")
def faces_prior():
    return load.load_prior("faces-128")


@pytest.fixture
def one_prior(faces_prior, monkeypatch):
    """Commands get the prior that is loaded already; what they ask for is recorded."""
    asked: list[tuple[Any, dict[str, Any]]] = []

    def loaded(name="faces-128", **options):
        asked.append((name, options))
        return faces_prior

    monkeypatch.setattr(load, "load_prior", loaded)
    return asked


@pytest.fixture
def quick_fast(monkeypatch):
    """The presets fast and balanced with two steps: these tests ask whether things work, not how well."""
    for name in ("fast", "balanced"):
        monkeypatch.setitem(STSL.presets, name, QUICK)
        monkeypatch.setitem(PSLD.presets, name, {"steps": 2})


@pytest.fixture
def run(one_prior, quick_fast, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, stdout, stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def run_json(run) -> Callable[..., tuple[int, Any]]:
    def command(*arguments: object) -> tuple[int, Any]:
        code, out, err = run(*arguments, "--json")
        assert out, err
        return code, json.loads(out)

    return command


@pytest.fixture
def photo(tmp_path) -> Path:
    """A photo of the prior's size."""
    path = tmp_path / "photo.png"
    images.write(path, images.astronaut_face(128))
    return path
