"""benchmarks/priors.py on a small prior of pixels and a few drawn faces: its rows, their splits, what it keeps."""

import csv
import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from models import pixel_folder
from scripts import benchmark
from stsl import Rng, load_prior

GREY, COLOUR = 6, 4


class Means(torch.nn.Module):
    """In VGG's place, whose weights need not be there: the means of four rows of every channel."""

    def forward(self, x):
        return x.unflatten(2, (4, -1)).mean((3, 4)).flatten(1)


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    module = benchmark("priors")
    monkeypatch.setattr(module, "PooledVGG", Means)
    # The network knows nothing: of its samples, every other one shall be grey.
    monkeypatch.setattr(module, "spread_of_channels", lambda x: torch.arange(len(x)) % 2.0)
    return module


@pytest.fixture
def faces(tmp_path) -> Path:
    source, cells = np.random.default_rng(0), []
    for index in range(GREY + COLOUR):
        pixels = source.integers(0, 256, (16, 16, 3 if index >= GREY else 1), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.broadcast_to(pixels, (16, 16, 3)).copy()).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    color = [index >= GREY for index in range(len(cells))]
    table = pa.table({"image": cells, "color": color, "emotion": ["neutral", "happiness"] * (len(cells) // 2)})
    parquet.write_table(table, tmp_path / "faces.parquet")
    return tmp_path / "faces.parquet"


@pytest.fixture
def run(bench, faces, tmp_path, monkeypatch) -> Callable[..., dict[tuple[str, str], dict[str, str]]]:
    """Run it in this process; its rows by figure and split."""

    def command(folder: Path, *more: object) -> dict[tuple[str, str], dict[str, str]]:
        given = [folder, "--data", faces, "--out", tmp_path / "p.csv", "--work", tmp_path / "work"]
        given += ["--samples", 8, "--steps", 2, *more]
        monkeypatch.setattr(sys, "argv", ["priors.py", *map(str, given)])
        bench.main()
        with (tmp_path / "p.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({(row["figure"], row["split"], row["setting"]) for row in rows}) == len(rows)
        return {(row["figure"], row["split"]): row for row in rows}

    return command


def test_a_prior_of_pixels_gets_every_figure_for_all_colour_and_grey(bench, run, faces, tmp_path, monkeypatch):
    folder = pixel_folder(tmp_path / "prior", size=16)
    rows = run(folder, "--train", faces, "--precision", "fp32")
    for figure in ("noise error, all levels", "noise error, t in [0, 200)", "noise error, t in [800, 1000)"):
        counts = [int(rows[figure, split]["n"]) for split in ("all", "colour", "grey")]
        assert counts == [GREY + COLOUR, COLOUR, GREY]
        every, coloured, grey = (float(rows[figure, split]["value"]) for split in ("all", "colour", "grey"))
        assert every == pytest.approx((COLOUR * coloured + GREY * grey) / (COLOUR + GREY), rel=1e-4)
    for split, n in {"all": 8, "colour": 4, "grey": 4}.items():
        for figure in ("Fréchet distance", "KID", "Fréchet distance of training faces", "KID of training faces"):
            assert int(rows[figure, split]["n"]) == n
        assert float(rows["KID", split]["error"]) > 0
        # The faces are the training faces here: each is its own nearest, and no ratio can be taken to that.
        assert float(rows["nearest training face of test faces, median", split]["value"]) < 1e-3
        assert float(rows["nearest training face of samples, 1 % quantile", split]["value"]) > 1e-2
    assert float(rows["Fréchet distance of training faces", "colour"]["value"]) == pytest.approx(0, abs=1e-5)
    assert float(rows["samples in colour, share", "all"]["value"]) == 0.5
    (sheet,) = (tmp_path / "work").rglob("sheets/*.png")
    assert Image.open(sheet).size == (8 * 18 + 2, 8 * 18 + 2)

    prior, x = load_prior(folder, precision="fp32"), torch.cat([*bench.Faces(faces, 16).batches(16)])
    ids, errors = tuple(f"faces-{i}" for i in range(len(x))), []
    for t in (50, 150):
        noise = Rng(0, ids, stage="benchmark", step=t).normal(x)
        a = prior.schedule.at(t)
        errors.append((prior.epsilon(a[0] * (2 * x - 1) + a[1] * noise, t) - noise).square().mean())
    value = float(rows["noise error, t in [0, 200)", "all"]["value"])
    assert value == pytest.approx(float(sum(errors) / 2), rel=1e-3)

    monkeypatch.setattr(bench.Bench, "_draw", None)  # a second run draws and adds nothing
    assert run(folder, "--train", faces, "--precision", "fp32") == rows
    (folder / "training").mkdir()
    shutil.copy(next((folder / "unet").glob("*.safetensors")), folder / "training" / "checkpoint.safetensors")
    assert run(folder, "--train", faces, "--precision", "fp32") == rows


def test_copies_are_told_by_their_distance_over_that_of_test_faces(bench, run, faces, tmp_path, monkeypatch):
    x = torch.cat([*bench.Faces(faces, 16).batches(16)])
    drawn = x[GREY:].repeat(2, 1, 1, 1)
    monkeypatch.setattr(bench.Bench, "_draw", lambda *_: (255 * drawn).round().to(torch.uint8))
    parquet.write_table(parquet.read_table(faces).slice(0, GREY), tmp_path / "train.parquet")
    given = ["--figures", "copies", "--train", tmp_path / "train.parquet", "--batch", 8]
    rows = run(pixel_folder(tmp_path / "prior", size=16), *given)

    features = Means()(x)
    nearest = torch.cdist(features, features[:GREY]).amin(1)
    of_faces, of_samples = nearest[GREY:], nearest[GREY:].repeat(2)[1::2]  # every other sample is in colour
    for figure, number in (("median", torch.median), ("1 % quantile", lambda d: d.double().quantile(0.01))):
        expected = {"samples": number(of_samples), "test faces": number(of_faces)}
        expected["samples over test faces"] = expected["samples"] / expected["test faces"]
        for name, value in expected.items():
            row = rows[f"nearest training face of {name}, {figure}", "colour"]
            assert float(row["value"]) == pytest.approx(float(value), rel=1e-3)  # of five digits in the table
            assert int(row["n"]) == 4
    assert float(rows["nearest training face of test faces, median", "grey"]["value"]) < 1e-3
    assert ("nearest training face of samples over test faces, median", "grey") not in rows
    (line,) = [
        line for line in bench.Table(tmp_path / "p.csv").markdown().splitlines() if "over test faces, median" in line
    ]
    assert re.search(r"\| – / [\d.]+ / – \|$", line)


def test_samples_of_another_precision_are_others(bench, run, tmp_path, monkeypatch):
    folder = pixel_folder(tmp_path / "prior", size=16)
    monkeypatch.setattr(bench, "pick_precision", lambda precision, device: "bf16" if precision == "auto" else precision)
    run(folder, "--figures", "samples")
    run(folder, "--figures", "samples", "--precision", "fp32")
    kept = sorted(file.name for file in (tmp_path / "work").rglob("samples/*"))
    assert kept == ["unconditional-2-00000-16-fp32.safetensors", "unconditional-2-00000-16.safetensors"]
