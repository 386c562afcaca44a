"""demo, list, estimate, fetch: what they print and write."""

import json

import pytest

from stsl.cli import main
from stsl.perceptual import LPIPS


def test_the_demo_writes_pictures_and_prints_its_rows(run_json, tmp_path):
    code, rows = run_json("demo", "--fast", "--out", tmp_path / "demo")
    assert code == 0
    assert [(row["task"], row["sampler"]) for row in rows] == [
        (task, sampler) for task in ("sr4", "gaussian_blur", "random_inpaint") for sampler in ("stsl", "psld")
    ]
    for row in rows:
        assert set(row) == {
            "task",
            "sampler",
            "preset",
            "psnr",
            "ssim",
            "lpips_vgg",
            "lpips_alex",
            "nfe_paper",
            "unet_samples",
            "seconds",
        }
        assert row["psnr"] > 5
        assert (row["lpips_alex"] is None) == (not LPIPS.available("alex"))
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names >= {"truth.png", "sr4_degraded.png", "sr4_stsl.png", "sr4_psld.png", "comparison.png", "run.json"}
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["runs"]["sr4_stsl"]["sampler"] == "STSL"


def test_the_demo_shows_a_table_to_people(run, tmp_path):
    code, out, err = run("demo", "--fast", "--out", tmp_path / "demo")
    assert code == 0, err
    for word in ("degraded", "stsl", "psld", "random_inpaint", "psnr"):
        assert word in out
    assert "comparison.png" in err


@pytest.mark.parametrize("what", ["tasks", "samplers", "priors"])
def test_lists_are_the_registries(what, run_json, run):
    from stsl import SAMPLERS, tasks
    from stsl.priors.load import builtin_names

    code, rows = run_json("list", what)
    assert code == 0
    names = {"tasks": list(tasks.TASKS), "samplers": list(SAMPLERS), "priors": builtin_names()}[what]
    assert [row["name"] for row in rows][: len(names)] == names
    code, out, _ = run("list", what)
    assert code == 0
    assert all(name in out for name in names)


def test_what_cannot_be_listed_or_fetched_is_said(run):
    code, _, err = run("list", "cats")
    assert code == 2
    assert "tasks, samplers, priors" in err
    code, _, err = run("fetch", "cats")
    assert code == 2
    assert "lpips" in err


def test_estimate_predicts_seconds_and_memory(run_json):
    code, row = run_json("estimate", "--fast", "--images", 3)
    assert code == 0
    assert row["seconds_per_image"] > 0
    assert row["nfe_paper"] == 2
    assert row["peak_gib"] > 0


def test_help_has_an_example_everywhere(capsys):
    for command in ("demo", "restore", "degrade", "list", "estimate", "fetch"):
        assert main([command, "--help"]) == 0
        assert "Example" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()
