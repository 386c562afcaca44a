"""`stsl edit`, as a user runs it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from stsl import images, tasks
from stsl.cli import main

QUICK = ("--set", "steps=2", "--set", "null_steps=1", "--set", "probes=0")
FACES = ("--from", "a neutral face", "--to", "a smiling face")


@pytest.fixture
def small(tmp_path):
    """A photo made four times smaller."""
    y, _ = tasks.measure("sr4", images.astronaut_face(128), noise=0.005, ids=["a"])
    path = tmp_path / "small.png"
    images.write(path, y.clamp(0, 1))
    return path


def test_a_corrupted_photo_is_restored_and_edited(run, small, tmp_path):
    out = tmp_path / "out"
    code, said, err = run("edit", small, *FACES, "--task", "sr4", *QUICK, "--maps", "--out", out)
    assert code == 0, err
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["editor"] == "STSLCAT"
    assert record["editor_settings"]["restorer"]["sampler"] == "STSL"
    assert record["edit"]["target"] == "a smiling face"
    for name in ("restored", "edited", "side_by_side", "attention"):
        assert (out / f"small_{name}.png").is_file()
        assert f"small_{name}.png" in said
    assert Picture.open(out / "small_edited.png").size == (128, 128)
    restored, edited = (np.asarray(Picture.open(out / f"small_{name}.png"), int) for name in ("restored", "edited"))
    assert np.abs(restored - edited).max() > 3


def test_a_second_edit_runs_the_last_stage_only(run_json, small, tmp_path):
    out = tmp_path / "out"
    arguments = ("--task", "sr4", *QUICK, "--out", out)
    code, first = run_json("edit", small, *FACES, *arguments)
    assert code == 0
    code, second = run_json("edit", small, "--from", "a neutral face", "--to", "a sad face", *arguments)
    assert code == 0
    assert (first["inversion_was_kept"], second["inversion_was_kept"]) == (False, True)
    assert {entry["stage"] for entry in second["log"]} == {"edit"}
    assert {entry["stage"] for entry in first["log"]} == {"restore", "invert", "null", "edit"}


def test_a_clean_photo_is_edited_in_its_square_and_keeps_the_rest(run_json, tmp_path):
    photo = images.astronaut_face(128)
    wide = torch.cat([photo, torch.full((1, 3, 128, 60), 0.25)], 3)
    images.write(tmp_path / "wide.png", wide)
    quick = [part for part in QUICK if "null" not in part]
    words = ("--blend", "neutral,smiling", "--weight", "smiling=2", "--set", "cross=0.5", "--set", "guidance=3")
    arguments = ("--editor", "p2p", *quick[:2], *words, "--crop", "face", "--out", tmp_path / "out")
    code, record = run_json("edit", tmp_path / "wide.png", *FACES, *arguments)
    assert code == 0
    assert record["edit"]["blend"] == ["neutral", "smiling"]
    assert record["edit"]["weights"] == {"smiling": 2.0}
    assert record["edit"]["cross"] == 0.5
    assert record["editor_settings"]["guidance"] == 3.0
    before, after = (
        np.asarray(Picture.open(path), int) for path in (tmp_path / "wide.png", record["output"]["edited"])
    )
    assert after.shape == before.shape
    assert (after[:, 150:] == before[:, 150:]).all()
    assert np.abs(after[:, :100] - before[:, :100]).max() > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--editor", "stsl_cat"), "unknown editor 'stsl_cat', did you mean 'stsl-cat'"),
        (("--editor", "nti", "--preset", "fast"), "nti has none: give --restorer stsl"),
        (("--set", "restorer=psld"), "give --restorer NAME"),
        (("--set", "stepps=3"), "has no field 'stepps', did you mean 'steps'"),
        (("--weight", "smiling"), "needs WORD=FACTOR"),
        (("--blend", "face"), "give two words"),
        (("--blend", "nose,face"), "has no word 'nose'"),
        (("--task", "random_inpaint"), "draws its mask or kernel at random"),
        (("--set", "mode=replace", "--to", "a very happy face"), "use mode=refine"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, run, photo, tmp_path):
    code, _, err = run("edit", photo, *FACES, *QUICK, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_a_prior_that_is_not_there_or_has_no_text(photo, tmp_path):
    assert main(["edit", str(tmp_path / "none.png"), *FACES, "--out", str(tmp_path / "out")]) == 2
