"""Pixel methods and reconstructors from the command line and from Python, on every task they take."""

import json

import pytest
import torch

from models import pixel_folder
from stsl import SAMPLERS, Restorer, images, load_prior, tasks
from stsl.cli import main
from stsl.problem import Problem
from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers.base import capabilities

PIXEL = {name: method for name, method in (SAMPLERS | RECONSTRUCTORS).items() if method.family == "pixel"}
MINE = PIXEL | RECONSTRUCTORS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pixel_folder(tmp_path_factory.mktemp("pixels"), size=32)


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(str(folder), device="cpu", precision="fp32")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    images.write(path, images.astronaut_face(32))
    return path


def test_the_pixel_methods_are_there():
    assert set(PIXEL) == {"dps", "mcg", "dmps", "ddrm", "diffpir", "score_sde", "pnp_admm"}


@pytest.mark.parametrize("name", MINE)
def test_a_method_runs_on_every_task_it_declares_and_refuses_the_others(name, prior):
    method, x = MINE[name], images.astronaut_face(32)
    ran = []
    for task in tasks.TASKS:
        y, physics = tasks.measure(task, x, noise=0.005, ids=("a",))
        restorer = Restorer(prior, method(steps=2))
        if method.needs() <= capabilities(Problem(y, physics, prior, sigma_y=0.01)):
            restored = restorer(y, physics, ids=["a"])
            assert restored.shape == x.shape
            assert restored.isfinite().all()
            ran.append(task)
        else:
            with pytest.raises(TypeError, match=r"These methods take both: .*DiffPIR"):
                restorer(y, physics)
    assert set(tasks.TASKS) - set(ran) == ({"motion_blur"} if name == "ddrm" else set())


def restore(photo, out, *more):
    return main(["restore", str(photo), "--out", str(out), "--device", "cpu", "--json", *map(str, more)])


@pytest.mark.parametrize("name", MINE)
def test_the_command_line_restores_a_photo(name, folder, photo, tmp_path, capsys):
    given = ("--task", "gaussian_blur", "--prior", folder, "--sampler", name, "--fast", "--set", "steps=2")
    assert restore(photo, tmp_path / "out", *given) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sampler"] == MINE[name].__name__
    assert images.read(tmp_path / "out" / "photo.png").size == (32, 32)
    record = json.loads((tmp_path / "out" / "photo.png.json").read_text())
    assert record["source"] == MINE[name].source
    assert record["unet_samples"] == (0 if name == "admm_tv" else 2)


def test_admm_tv_needs_no_pixel_prior(photo, tmp_path, capsys):
    """The default prior gives it the size of the photo, and its latents are never seen."""
    assert restore(photo, tmp_path / "out", "--task", "denoise", "--sampler", "admm_tv", "--fast", "--resize") == 0
    record = json.loads((tmp_path / "out" / "photo.png.json").read_text())
    assert record["prior"]["name"] == "faces-128"
    assert record["cost_per_image"]["encoder_samples"] > 0  # of images, into [−1, 1]
    assert record["unet_samples"] == 0


def test_a_reconstructor_of_ones_own_is_taken_by_file(photo, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from deepinv.models import Reconstructor\n"
        "class Back(Reconstructor):\n"
        "    def forward(self, y, physics):\n"
        "        return physics.A_adjoint(y)\n"
        "ready = Back()\n"
        "number = 3\n"
    )
    for what in ("Back", "ready"):
        given = ("--task", "denoise", "--sampler", f"{tmp_path / 'mine.py'}:{what}", "--resize")
        assert restore(photo, tmp_path / what, *given) == 0
        record = json.loads((tmp_path / what / "photo.png.json").read_text())
        assert record["source"].endswith(f"mine.py:{what}")
        assert record["residual_rms"][0] < 0.01
    assert restore(photo, tmp_path / "no", "--task", "denoise", "--sampler", f"{tmp_path / 'mine.py'}:number") == 2
    assert "a deepinv Reconstructor" in capsys.readouterr().err


def test_a_mask_of_ones_own_takes_the_settings_of_inpainting(folder, photo, tmp_path, capsys):
    holes = torch.zeros(1, 3, 32, 32)
    holes[..., 8:16, 8:16] = 1
    images.write(tmp_path / "mask.png", holes)
    given = ("--mask", tmp_path / "mask.png", "--prior", folder, "--sampler", "dps", "--preset", "ffhq-256")
    assert restore(photo, tmp_path / "out", *given, "--set", "steps=2") == 0
    record = json.loads((tmp_path / "out" / "photo.png.json").read_text())
    assert record["sampler_settings"] == {"steps": 2, "zeta": 0.5}


def test_a_pixel_method_on_latents_is_refused_and_what_would_work_is_said(photo, tmp_path, capsys):
    given = ("--task", "sr4", "--prior", "faces-128", "--sampler", "dps", "--resize")
    assert restore(photo, tmp_path / "out", *given) == 1
    said = capsys.readouterr().err
    for word in ("DPS needs a prior on pixels", "faces-128", "PSLD", "UNet2DModel"):
        assert word in said


def test_without_a_prior_a_pixel_method_takes_the_built_in_one_or_says_that_it_is_missing(
    photo, tmp_path, capsys, monkeypatch
):
    from stsl.cli.choose import choose_prior
    from stsl.priors import load

    monkeypatch.setattr(load, "builtin_names", lambda: ["faces-128"])
    assert restore(photo, tmp_path / "out", "--task", "sr4", "--sampler", "diffpir") == 2
    said = capsys.readouterr().err
    for word in ("DiffPIR works on pixels", "faces-64-pixel is not installed", "--prior", "UNet2DModel"):
        assert word in said
    monkeypatch.setattr(load, "builtin_names", lambda: ["faces-128", "faces-64-pixel"])
    assert choose_prior(None, SAMPLERS["diffpir"]()) == "faces-64-pixel"
    assert choose_prior(None, SAMPLERS["stsl"]()) == "faces-128"
    assert choose_prior("mine", SAMPLERS["diffpir"]()) == "mine"


def test_the_list_shows_paper_requirements_and_family_of_all(capsys):
    assert main(["list", "samplers", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(SAMPLERS) | set(RECONSTRUCTORS)
    assert rows["ddrm"]["family"] == "pixel"
    assert rows["ddrm"]["requires"] == ["adjoint", "linear", "sigma_y", "svd"]
    assert all("arXiv:" in row["source"] for row in rows.values())
