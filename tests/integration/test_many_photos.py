"""Folders in batches, photos larger than the prior, memory that runs out, and what `--resume` looks at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from stsl import estimate, images
from stsl.images import reading
from stsl.memory import GIB
from stsl.priors.latent import LatentPrior


def pixels(path: Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(picture).astype(int)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three photos of the prior's size, one of another, and one that is none."""
    face = images.astronaut_face(128)
    for name, x in (("a", face), ("b", face.flip(-1)), ("c", 1 - face), ("large", images.astronaut_face(136))):
        images.write(tmp_path / "in" / f"{name}.png", x)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "in"


def test_a_batch_gives_the_results_of_single_runs_and_one_bad_file_stops_nothing(run_json, folder, tmp_path):
    results = {}
    for batch in (1, 2):
        code, rows = run_json(
            "restore", folder, "--task", "denoise", "--batch", batch, "--out", tmp_path / str(batch), "--seed", 3
        )
        assert code == 1
        assert [Path(row["input"]).name for row in rows] == ["a.png", "b.png", "bad.png", "c.png", "large.png"]
        assert [row["output"] is None for row in rows] == [False, False, True, False, True]
        results[batch] = rows
    for one, two in zip(results[1], results[2], strict=True):
        if one["output"]:
            # bf16 rounds sums of more rows in another order; a grey level or two of 255.
            assert np.abs(pixels(Path(one["output"])) - pixels(Path(two["output"]))).max() <= 3
            assert two["network_evaluations"] == one["network_evaluations"]
            assert two["residual_rms"] == pytest.approx(one["residual_rms"], rel=0.02)
    assert json.loads((tmp_path / "2" / "b.png.json").read_text())["ids"] == ["b"]
    code, rows = run_json(
        "restore", folder / "a.png", "--task", "denoise", "--out", tmp_path / "2", "--seed", 3, "--resume"
    )
    assert rows == []  # how many were restored together is no setting of a result


def test_a_batch_that_is_too_large_for_the_memory_is_halved(run_json, folder, tmp_path, monkeypatch, caplog):
    real, rows_seen = LatentPrior.epsilon, []

    def small_device(self, z, t, condition=None):
        rows_seen.append(z.shape[0])
        if z.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, z, t, condition)

    monkeypatch.setattr(LatentPrior, "epsilon", small_device)
    photos = [folder / f"{name}.png" for name in "abc"]
    code, rows = run_json("restore", *photos, "--task", "denoise", "--batch", 3, "--out", tmp_path / "r")
    assert code == 0
    assert len(rows) == 3
    assert rows_seen[:2] == [3, 1]
    assert max(rows_seen[2:]) == 2


def test_masks_of_a_batch_stay_with_their_photos(run_json, folder, tmp_path):
    mask = np.zeros((128, 128), np.uint8)
    mask[50:70, 40:70] = 255
    Pillow.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ("--mask", tmp_path / "mask.png", "--noise", 0, "--batch", 2, "--out", tmp_path / "r")
    code, _ = run_json("restore", folder / "a.png", folder / "b.png", *arguments)
    assert code == 0
    for name in "ab":
        before, after = pixels(folder / f"{name}.png"), pixels(tmp_path / "r" / f"{name}.png")
        assert (before[mask == 0] == after[mask == 0]).all()
        assert (before[mask > 0] != after[mask > 0]).any()


def test_a_kernel_is_read_once_for_a_folder(run_json, folder, tmp_path, monkeypatch):
    kernel = np.zeros((9, 9), np.uint8)
    kernel[4] = 255
    Pillow.fromarray(kernel).save(tmp_path / "kernel.png")
    read, real = [], reading.read_kernel

    def counted(path):
        read.append(path)
        return real(path)

    monkeypatch.setattr(images, "read_kernel", counted)
    photos = [folder / f"{name}.png" for name in "abc"]
    code, rows = run_json("restore", *photos, "--kernel", tmp_path / "kernel.png", "--out", tmp_path / "r")
    assert code == 0
    assert len(rows) == 3
    assert len(read) == 1


def test_resume_looks_into_the_users_own_code(run_json, photo, tmp_path):
    text = (
        "from dataclasses import dataclass\nfrom stsl import Sampler, State, knob\n\n\n@dataclass(frozen=True)\n"
        "class Mine(Sampler):\n    source = 'mine'\n    steps: int = knob(2, 'steps')\n\n"
        "    def step(self, problem, state, t, t_next, rng):\n        return State(FACTOR * state.z, clean=state.z)\n"
    )
    operator = (
        "from stsl import tasks\n\n\ndef operator(shape):\n    return tasks.make('denoise', shape, noise=NOISE)\n"
    )
    method, own = tmp_path / "method.py", tmp_path / "own.py"
    method.write_text(text.replace("FACTOR", "0.5"))
    own.write_text(operator.replace("NOISE", "0.01"))
    arguments = ("restore", photo, "--operator", f"{own}:operator", "--sampler", f"{method}:Mine")
    arguments += ("--out", tmp_path / "r", "--resume")
    assert len(run_json(*arguments)[1]) == 1
    assert run_json(*arguments)[1] == []
    method.write_text(text.replace("FACTOR", "0.9"))
    assert len(run_json(*arguments)[1]) == 1
    own.write_text(operator.replace("NOISE", "0.02"))
    assert len(run_json(*arguments)[1]) == 1
    assert run_json(*arguments)[1] == []


@pytest.mark.parametrize(
    ("task", "size", "restored"), [("denoise", (131, 150), (131, 150)), ("sr4", (33, 37), (132, 148))]
)
def test_a_large_photo_is_restored_at_its_own_size_in_tiles(task, size, restored, run_json, tmp_path):
    face = images.astronaut_face(160)
    images.write(tmp_path / "large.png", face[..., : size[0], : size[1]])
    code, rows = run_json("restore", tmp_path / "large.png", "--task", task, "--tiles", "--out", tmp_path / "r")
    assert code == 0, rows
    assert pixels(tmp_path / "r" / "large.png").shape == (*restored, 3)
    record = json.loads((tmp_path / "r" / "large.png.json").read_text())
    assert record["prior"]["tiles"] == 4
    assert record["prior"]["image_shape"] == [3, 132, 152 if task == "denoise" else 148]
    assert rows[0]["network_evaluations"] == 4 * 4  # two steps of one refinement and one outer evaluation, four tiles


def test_tiles_go_with_no_other_way_to_fit_a_photo(run, photo, tmp_path):
    for other in (["--resize"], ["--crop", "face"]):
        code, _, err = run("restore", photo, "--task", "denoise", "--tiles", *other, "--out", tmp_path / "r")
        assert code == 2
        assert "--tiles" in err
        assert other[0] in err


def test_memory_is_planned_before_the_first_step(run, photo, tmp_path, faces_prior, monkeypatch):
    told, asked, rows = iter([8 * GIB, 5 * GIB]), [], []  # as it is, and with activations recomputed

    def estimated(prior, sampler, batch):
        rows.append(batch)
        return estimate.Estimate(0, next(told))

    monkeypatch.setattr(estimate, "estimate_memory", estimated)
    monkeypatch.setattr(LatentPrior, "lighten", lambda self: asked.append(self) or "activations are recomputed")
    code, _, err = run("restore", photo, "--task", "denoise", "--memory", 6, "--batch", 8, "--out", tmp_path / "r")
    assert code == 0, err
    assert asked == [faces_prior]
    assert rows == [1, 1]  # there is one photo, whatever --batch allows
    assert "to save memory, activations are recomputed" in err
    assert "about 5.8 of 6.0 GiB on cpu" in err  # 5 GiB, 5 % and 0.5 GiB
    for wrong in ("much", "-1", "nan"):
        code, _, err = run("restore", photo, "--task", "denoise", "--memory", wrong, "--out", tmp_path / "r")
        assert code == 2
        assert f"--memory {wrong}: give auto, or a number" in err
