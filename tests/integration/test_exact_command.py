"""`stsl exact`: what it writes, prints and refuses."""

import csv
import json
import sys

import pytest

from stsl.cli import main
from stsl.exact import bench
from stsl.samplers import SAMPLERS

QUICK = ("--n", "20", "--steps", "5", "--workers", "1")


@pytest.fixture
def exact(capsys, tmp_path):
    def command(*arguments):
        code = main(["exact", "--out", str(tmp_path / "out"), *QUICK, *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_it_writes_the_table_twice_and_plots(exact, tmp_path):
    code, out, err = exact(
        "--problems", "bimodal,degenerate", "--sigma-y", "0.1,0.6", "--samplers", "stsl,ldps:omega=2"
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = written["rows"]
    arms = ["exact posterior", "exact score", "tmpd", "stsl, eta 0", "stsl, eta 0, fewer steps", "stsl"]
    arms += ["stsl, trace 1/10", "ldps:omega=2"]
    assert [(r["problem"], r["sigma_y"], r["sampler"]) for r in rows] == [
        (problem, sigma_y, arm) for problem in ("bimodal", "degenerate") for sigma_y in (0.1, 0.6) for arm in arms
    ]
    for row in rows:
        assert row["noise"] == row["sigma_y"] / 2
        assert row["n"] == 20
        assert all(row[key] >= 0 for key in ("mean_error", "spread", "sliced_w2", "weight_error", "seconds"))
        assert row["evaluations"] <= 200
    assert rows[7]["settings"]["omega"] == 2.0
    assert written["settings"]["budget"] == 200
    with (tmp_path / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["spread"]) for row in table] == pytest.approx([row["spread"] for row in rows], rel=1e-4)
    for word in ("exact posterior", "trace 1/10", "sliced"):
        assert word in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    if "no plots" not in err:
        assert names == {"results.csv", "results.json", "distances.png", "spread.png", "bimodal.png", "degenerate.png"}


def test_without_matplotlib_the_table_is_written_and_the_extra_named(exact, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = exact("--problems", "bimodal", "--sigma-y", "0.6", "--samplers", "ldps")
    assert code == 0
    assert 'pip install "stsl[bench]"' in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.csv", "results.json"}


def test_all_is_every_registered_sampler_and_says_who_cannot_serve(exact):
    code, out, err = exact("--problems", "bimodal", "--sigma-y", "0.6", "--samplers", "all", "--json")
    assert code == 0, err
    shown = [row["sampler"] for row in json.loads(out)]
    for name in set(SAMPLERS) - {"stsl"}:
        assert name in shown or f"{name} is left out" in err
    assert {"stsl", "stsl:calibrated", "psld", "ldps"} <= set(shown)


def test_two_processes_make_the_rows_of_one(tmp_path, capsys):
    rows = []
    given = ["exact", "--problems", "bimodal", "--sigma-y", "0.6", "--samplers", "ldps", "--n", "20", "--steps", "5"]
    for workers in (1, 2):
        code = main([*given, "--workers", str(workers), "--out", str(tmp_path), "--json"])
        assert code == 0
        rows.append([row | {"seconds": 0} for row in json.loads(capsys.readouterr().out)])
    assert rows[0] == rows[1]


def test_a_sampler_of_ones_own_is_scored(exact, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from stsl import Sampler, State, knob\n"
        "@dataclass(frozen=True)\n"
        "class Lazy(Sampler):\n"
        "    source = 'mine'\n"
        "    steps: int = knob(10, 'steps')\n"
        "    def step(self, problem, state, t, t_next, rng):\n"
        "        return State(state.z, clean=state.z)\n"
    )
    code, out, err = exact("--problems", "bimodal", "--sigma-y", "0.1", "--samplers", f"{file}:Lazy", "--json")
    assert code == 0, err
    row = json.loads(out)[-1]
    assert row["sampler"] == f"{file}:Lazy"
    assert row["spread"] > 10  # noise of unit variance where the posterior has 0.11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma-y", "0"), "above 0"),
        (("--sigma-y", "0.1,-0.2"), "above 0"),
        (("--sigma-y", "much"), "needs numbers"),
        (("--problems", "inpaintng"), "did you mean 'inpainting'"),
        (("--samplers", "stls"), "did you mean 'stsl'"),
        (("--samplers", "stsl:calibarted"), "did you mean 'calibrated'"),
        (("--samplers", "psld:omga=1"), "did you mean 'omega'"),
        (("--samplers", ","), "names nothing"),
    ],
)
def test_bad_input_is_refused_before_any_sampling(exact, monkeypatch, arguments, message):
    def drawn(*_):
        raise AssertionError("something was sampled")

    monkeypatch.setattr(bench, "draw", drawn)
    code, _, err = exact(*arguments)
    assert code == 2
    assert message in err
