"""The rules of docs/architecture.md that a machine can check."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stsl

ROOT = Path(stsl.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
TABLE = "__init__.py"  # names every module, imports none before it is used

# From the bottom up. A module imports from its own package and from lower layers, never sideways or upwards.
LAYERS = (
    ("shapes", "files"),
    ("rng", "schedule", "numerics", "operators", "options", "drawings", "images", "metrics", "distances"),
    ("tasks", "priors", "solvers"),
    ("problem", "measurements", "perceptual"),
    ("samplers",),
    ("loop", "cost", "memory"),
    ("result",),
    ("restorer", "editors", "reconstructors"),
    ("photos", "estimate", "editing"),
    ("exact", "training", "bench"),
    ("app",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "deepinv", "gradio", "ray", "matplotlib", "transformers", "diffusers")


def part(file: str) -> str:
    """`priors` of priors/base.py, `loop` of loop.py."""
    return file.partition("/")[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[str]:
    """Every part of stsl that a file imports, also inside functions."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("stsl."):
                yield name.split(".")[1]


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), None)


@pytest.mark.parametrize("file", [file for file in SOURCES if file != TABLE])
def test_imports_point_down(file):
    own = part(file)
    assert own in LEVEL, f"{file} has no layer yet: give {own} a place in LAYERS and in docs/architecture.md"
    for name in set(imports(SOURCES[file])) - {own}:
        assert name in LEVEL, f"{file} imports stsl.{name}: import it from the module where it is defined"
        assert LEVEL[name] < LEVEL[own], f"{file} imports stsl.{name}, which is not below it"


@pytest.mark.parametrize("file", SOURCES)
def test_randomness_is_never_global(file):
    drawing = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")
    for name, call in calls(SOURCES[file]):
        assert not name.startswith(("torch.manual_seed", "torch.cuda.manual_seed", "torch.seed", "random."))
        assert not (name.startswith("torch.") and name.endswith(("rand_like", "randn_like", "randint_like")))
        if name in {f"torch.{draw}" for draw in drawing}:
            assert keyword(call, "generator"), f"line {call.lineno}: {name} without a generator"
        if name.startswith(("np.random.", "numpy.random.")):
            assert name.endswith(("default_rng", "Generator", "PCG64", "Philox")), f"line {call.lineno}: {name}"
            assert call.args, f"line {call.lineno}: {name} without a seed"


@pytest.mark.parametrize("file", SOURCES)
def test_nothing_unsafe_or_bound_to_one_device_is_called(file):
    for name, call in calls(SOURCES[file]):
        where = f"line {call.lineno}: {name}"
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True", where
        assert name not in {"eval", "exec", "hasattr", "os.system", "pickle.load", "pickle.loads"}, where
        assert not name.endswith(".cuda"), where
        assert keyword(call, "shell") in (None, "False"), where
        assert keyword(call, "trust_remote_code") in (None, "False"), where


@pytest.mark.parametrize("file", SOURCES)
def test_no_function_passes_unknown_keywords_through(file):
    for node in ast.walk(SOURCES[file]):
        if isinstance(node, ast.FunctionDef) and node.args.kwarg:
            passed = [
                given for _, call in calls(ast.Module([node], [])) for given in call.keywords if given.arg is None
            ]
            assert node.args.kwarg.arg not in [ast.unparse(given.value) for given in passed], f"line {node.lineno}"


def test_the_table_of_public_names_says_where_they_are():
    for name in stsl.__all__:
        assert getattr(stsl, name) is not None
    declared = {
        alias.name
        for node in ast.walk(SOURCES[TABLE])
        if isinstance(node, ast.ImportFrom) and node.module != "importlib" and node.module != "typing"
        for alias in node.names
    }
    assert declared == set(stsl.__all__)  # what type checkers see
    with pytest.raises(AttributeError, match="nothing"):
        _ = stsl.nothing


def test_a_cold_start_loads_no_library_it_does_not_need():
    script = f"""
import contextlib, io, json, sys
import stsl
loaded = {{"import": [name for name in {(*HEAVY, "typer")} if name in sys.modules]}}
from stsl.cli import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    loaded["code"] = main(["--help"])
loaded["help"] = [name for name in {HEAVY} if name in sys.modules]
loaded["said"] = said.getvalue()
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["import"] == []
    assert loaded["help"] == []
    assert loaded["code"] == 0
    assert "restore" in loaded["said"]
