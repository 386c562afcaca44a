"""`stsl restore` and `stsl degrade`, as a user calls them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from stsl import images
from stsl.loop import Diverged
from stsl.priors.latent import LatentPrior

ROOT = Path(__file__).parents[2]


def pixels(path: Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("task", ["sr4", "gaussian_blur", "motion_blur", "random_inpaint", "salt_pepper", "denoise"])
def test_what_degrade_writes_restore_reads(task, run, run_json, photo, tmp_path):
    code, files = run_json("degrade", photo, "--task", task, "--out", tmp_path / "d")
    assert code == 0
    assert {Path(name).name for name in files.values()} == {
        "photo.png",
        "photo.safetensors",
        "photo_truth.png",
        "photo_operator.safetensors",
    }
    code, rows = run_json("restore", files["measurement"], "--operator", files["operator"], "--out", tmp_path / "r")
    assert code == 0
    (row,) = rows
    assert set(row) >= {
        "input",
        "output",
        "sampler",
        "task",
        "seed",
        "seconds",
        "network_evaluations",
        "residual_rms",
        "expected_noise_rms",
    }
    assert row["expected_noise_rms"] == pytest.approx(0.005)
    assert row["network_evaluations"] == 4  # two steps of one refinement and one outer evaluation
    assert pixels(Path(row["output"])).shape == (128, 128, 3)
    # The preview holds the same measurement in 8 bits; through the same operator it gives nearly the same residual.
    code, again = run_json("restore", files["preview"], "--operator", files["operator"], "--out", tmp_path / "p")
    assert code == 0
    assert again[0]["residual_rms"] == pytest.approx(row["residual_rms"], rel=0.1)


def test_a_small_photo_comes_back_four_times_as_large(run_json, tmp_path):
    images.write(tmp_path / "small.png", images.astronaut_face(32))
    code, rows = run_json("restore", tmp_path / "small.png", "--task", "sr4", "--out", tmp_path / "r")
    assert code == 0
    assert pixels(Path(rows[0]["output"])).shape == (128, 128, 3)
    record = json.loads((tmp_path / "r" / "small.png.json").read_text())
    assert record["sampler_settings"]["steps"] == 2
    assert record["seed"] == 0
    assert torch.__version__.startswith(record["versions"]["torch"])


def test_a_grey_photo_stays_grey_and_a_deep_one_deep(run_json, tmp_path):
    face = (images.astronaut_face(128).mean(1)[0] * 65535).round().numpy()
    Pillow.fromarray(face.astype(np.uint16)).save(tmp_path / "grey.png")
    code, rows = run_json("restore", tmp_path / "grey.png", "--task", "denoise", "--out", tmp_path / "r")
    assert code == 0
    restored = pixels(Path(rows[0]["output"]))
    assert restored.shape == (128, 128)
    assert restored.max() > 255


def test_known_pixels_of_a_noise_free_inpainting_stay_equal(run_json, photo, tmp_path):
    mask = np.zeros((128, 128), np.uint8)
    mask[50:80, 40:70] = 255  # white is what is missing
    Pillow.fromarray(mask).save(tmp_path / "mask.png")
    code, rows = run_json("restore", photo, "--mask", tmp_path / "mask.png", "--noise", 0, "--out", tmp_path / "r")
    assert code == 0
    restored, before = pixels(Path(rows[0]["output"])), pixels(photo)
    assert (restored[mask == 0] == before[mask == 0]).all()
    assert (restored[mask > 0] != before[mask > 0]).any()


def test_a_face_is_cut_out_restored_and_put_back(run_json, tmp_path):
    from skimage.data import astronaut

    Pillow.fromarray(astronaut()).save(tmp_path / "whole.png")
    code, rows = run_json(
        "restore", tmp_path / "whole.png", "--task", "denoise", "--crop", "face", "--out", tmp_path / "r"
    )
    assert code == 0
    restored = pixels(Path(rows[0]["output"]))
    assert restored.shape == (512, 512, 3)
    changed = (restored != astronaut()).any(-1)
    rows_, columns = changed.nonzero()
    assert (restored[300:] == astronaut()[300:]).all()  # nothing below the face
    assert rows_.min() > 20
    assert rows_.max() < 230
    assert columns.max() - columns.min() < 180


def test_a_photo_of_another_size_is_refused_with_the_ways_out(run, tmp_path):
    images.write(tmp_path / "large.png", images.astronaut_face(200))
    code, _, err = run("restore", tmp_path / "large.png", "--task", "denoise", "--out", tmp_path / "r")
    assert code == 1
    for way in ("--crop face", "--crop mask", "--resize", "200", "128"):
        assert way in err
    code, _, _ = run("restore", tmp_path / "large.png", "--task", "denoise", "--resize", "--out", tmp_path / "r")
    assert code == 0
    assert pixels(tmp_path / "r" / "large.png").shape == (200, 200, 3)


def test_one_bad_file_never_stops_a_folder(run_json, photo, tmp_path):
    folder = tmp_path / "in" / "ünï cödé"
    folder.mkdir(parents=True)
    good = photo.read_bytes()
    (folder / "a b.png").write_bytes(good)
    (folder / "a b.jpg").write_bytes(b"not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "torn.png").write_bytes(good[: len(good) // 2])
    (folder / "z.png").write_bytes(good)
    code, rows = run_json("restore", tmp_path / "in", "--task", "denoise", "--out", tmp_path / "r")
    assert code == 1
    done = {Path(row["input"]).name for row in rows if row["output"]}
    assert done == {"a b.png", "z.png"}
    assert all(row["error"] for row in rows if not row["output"])
    written = {path.relative_to(tmp_path / "r").as_posix() for path in (tmp_path / "r").rglob("*.png")}
    assert written == {"ünï cödé/a b_png.png", "ünï cödé/z.png"}  # "a b.jpg" would have been the other
    code, rows = run_json(
        "restore", tmp_path / "in", "--task", "denoise", "--out", tmp_path / "s", "--on-error", "stop"
    )
    assert code == 1
    assert rows[-1]["output"] is None
    assert len(rows) < 5


def test_two_photos_with_one_stem_keep_their_own_results(run_json, photo, tmp_path):
    for name in ("x/photo.png", "y/photo.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(photo.read_bytes())
    code, rows = run_json(
        "restore",
        tmp_path / "x" / "photo.png",
        tmp_path / "y" / "photo.png",
        "--task",
        "denoise",
        "--out",
        tmp_path / "r",
    )
    assert code == 0
    assert len({row["output"] for row in rows}) == 2
    assert all(Path(row["output"]).is_file() for row in rows)


def test_resume_skips_what_is_done_with_these_settings_and_nothing_else(run_json, photo, tmp_path):
    arguments = ("restore", photo, "--task", "denoise", "--out", tmp_path / "r", "--resume")
    assert len(run_json(*arguments)[1]) == 1
    assert run_json(*arguments)[1] == []
    assert len(run_json(*arguments, "--seed", 1)[1]) == 1
    photo.write_bytes(photo.read_bytes() + b" ")  # another file under the same name
    assert len(run_json(*arguments, "--seed", 1)[1]) == 1


def test_a_long_run_says_beforehand_how_long_it_takes(run, photo, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    quick = ("--task", "denoise", "--fast", "--set", "steps=2", "--set", "inner_steps=1", "--out", tmp_path / "r")
    _, _, err = run("restore", tmp_path / "a.png", tmp_path / "b.png", *quick)
    assert "hours:minutes:seconds" not in err
    monkeypatch.setattr(sys.modules["stsl.cli.restore"], "WORTH_A_REHEARSAL", 4)
    _, _, err = run("restore", tmp_path / "a.png", tmp_path / "b.png", *quick, "--seed", 1)
    assert re.search(r"expected: \d:\d\d:\d\d a photo, \d:\d\d:\d\d for 2 \(hours", err)


def test_results_never_replace_their_photos(run, photo):
    before = photo.read_bytes()
    code, _, err = run("restore", photo, "--task", "denoise", "--out", photo.parent)
    assert code == 2
    assert "--out" in err
    assert photo.read_bytes() == before


def test_several_samples_give_mean_and_std(run, photo, tmp_path):
    code, _, _ = run("restore", photo, "--task", "denoise", "--samples", 2, "--out", tmp_path / "r")
    assert code == 0
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {
        "photo.png",
        "photo_sample0.png",
        "photo_sample1.png",
        "photo_mean.png",
        "photo_std.png",
        "photo.png.json",
    }
    assert (pixels(tmp_path / "r" / "photo_sample0.png") != pixels(tmp_path / "r" / "photo_sample1.png")).any()


def test_a_write_that_fails_leaves_no_torn_file(run_json, photo, tmp_path, monkeypatch):
    whole = Path.replace

    def fails(self, target):
        if "photo" in Path(target).name:
            raise OSError("no space left on device")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    code, rows = run_json("restore", photo, "--task", "denoise", "--out", tmp_path / "r")
    assert code == 1
    assert "no space left" in rows[0]["error"]
    assert list((tmp_path / "r").iterdir()) == []


def test_a_network_that_gives_nan_writes_no_image(run_json, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(LatentPrior, "epsilon", lambda self, z, t, condition=None: z * float("nan"))
    code, rows = run_json("restore", photo, "--task", "denoise", "--out", tmp_path / "r")
    assert code == 1
    assert "diverged" in rows[0]["error"]
    assert "step 1" in rows[0]["error"]
    assert issubclass(Diverged, RuntimeError)
    assert not (tmp_path / "r").exists()


def test_the_samplers_of_contributing_runs_as_an_outside_file(run_json, photo, tmp_path):
    (code_block,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_method.py").write_text(code_block, encoding="utf-8")
    images.write(tmp_path / "small.png", images.astronaut_face(32))
    code, rows = run_json(
        "restore",
        tmp_path / "small.png",
        "--task",
        "sr4",
        "--sampler",
        f"{tmp_path / 'my_method.py'}:Mine",
        "--set",
        "steps=2",
        "--out",
        tmp_path / "r",
    )
    assert code == 0
    assert rows[0]["sampler"] == "Mine"
    assert rows[0]["network_evaluations"] == 2


def test_an_operator_function_of_ones_own(run_json, photo, tmp_path):
    x = images.read(photo).x
    images.write(tmp_path / "rows.png", x[..., ::2, :])
    operator = f"{ROOT / 'examples' / 'own_operator.py'}:every_second_row"
    code, rows = run_json("restore", tmp_path / "rows.png", "--operator", operator, "--out", tmp_path / "r")
    assert code == 0, rows
    assert pixels(Path(rows[0]["output"])).shape == (128, 128, 3)


def test_a_kernel_picture_is_an_operator(run, photo, tmp_path):
    kernel = np.zeros((9, 9), np.uint8)
    kernel[4] = 255
    Pillow.fromarray(kernel).save(tmp_path / "kernel.png")
    code, _, err = run("restore", photo, "--kernel", tmp_path / "kernel.png", "--out", tmp_path / "r")
    assert code == 0, err
    Pillow.fromarray(kernel[:8, :8]).save(tmp_path / "even.png")
    code, _, err = run("restore", photo, "--kernel", tmp_path / "even.png", "--out", tmp_path / "r")
    assert code != 0
    assert "odd" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "sr5"], ["sr5", "sr4"]),
        (["--task", "gaussian_blur:st=2"], ["st", "std"]),
        (["--task", "random_inpaint"], ["--mask", "--operator"]),
        (["--task", "motion_blur"], ["--kernel", "--operator"]),
        ([], ["--task", "--mask", "--kernel", "--operator"]),
        (["--task", "denoise", "--noise", "-1"], ["-1", "[0, 1]"]),
        (["--task", "denoise", "--noise", "nan"], ["nan"]),
        (["--task", "denoise", "--sampler", "stls"], ["stls", "stsl"]),
        (["--task", "denoise", "--preset", "balancd"], ["balancd", "balanced"]),
        (["--task", "denoise", "--set", "stepz=3"], ["stepz", "steps"]),
        (["--task", "denoise", "--set", "steps=many"], ["steps", "whole number"]),
        (["--task", "denoise", "--set", "steps=0"], ["steps", "1"]),
        (["--task", "denoise", "--set", "init=ddmi"], ["ddmi", "ddim"]),
        (["--task", "denoise", "--preset", "paper", "--set", "vit=nowhere"], ["nu", "ViT", "nowhere"]),
        (["--task", "denoise", "--on-error", "explode"], ["skip", "stop"]),
        (["--task", "denoise", "--mask", "nowhere.png"], ["nowhere.png"]),
        (["--operator", "nowhere.safetensors"], ["nowhere.safetensors", "degrade"]),
        (["--task", "denoise", "--sampler", "nowhere.py:Mine"], ["nowhere.py"]),
        (["--task", "denoise", "--fast", "--preset", "paper"], ["--fast"]),
    ],
)
def test_wrong_words_are_refused_before_anything_is_restored(arguments, words, run, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(LatentPrior, "epsilon", lambda *_: pytest.fail("the network was called"))
    code, _, err = run("restore", photo, *arguments, "--out", tmp_path / "r")
    assert code in (1, 2)
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not (tmp_path / "r").exists()


def test_a_mask_of_another_size_or_without_holes_is_refused(run, photo, tmp_path):
    for size, value, words in ((64, 255, ["64", "128"]), (128, 0, ["white"]), (128, 255, ["white"])):
        Pillow.fromarray(np.full((size, size), value, np.uint8)).save(tmp_path / "mask.png")
        code, _, err = run("restore", photo, "--mask", tmp_path / "mask.png", "--out", tmp_path / "r")
        assert code == 1
        assert all(word in err for word in words), err


def test_ctrl_c_keeps_what_is_finished(photo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02}.png").write_bytes(photo.read_bytes())
    command = [sys.executable, "-m", "stsl", "restore", str(folder), "--task", "denoise", "--out", str(tmp_path / "r")]
    settings = ["--set", "steps=2", "--set", "inner_steps=1"]
    process = subprocess.Popen(
        [*command, *settings],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = tmp_path / "r" / "00.png.json"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    pictures = sorted((tmp_path / "r").glob("*.png"))
    assert pictures
    assert len(pictures) < 40
    assert all(pixels(picture).shape == (128, 128, 3) for picture in pictures)
    assert not list((tmp_path / "r").glob(".tmp*"))
