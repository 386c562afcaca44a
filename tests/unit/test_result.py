"""A result on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from stsl.restorer import Restorer
from stsl.samplers import LDPS, SAMPLERS, STSL


def picture(path):
    return torch.from_numpy(np.asarray(Picture.open(path).convert("RGB")).copy()).permute(2, 0, 1) / 255


def close(path, image):
    """Equal up to the rounding to 255 grey levels."""
    return (picture(path) - image).abs().max() <= 0.5 / 255 + 1e-6


def test_one_sample_leaves_one_png_per_image_and_a_record(world, tmp_path):
    result = Restorer(world.prior, STSL(steps=6)).solve(*world.measure(), ids=("a", "b"), seed=4)
    folder = result.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "run.json"]
    for name, image in zip("ab", result.image, strict=True):
        assert close(folder / f"{name}.png", image)


def test_several_samples_leave_each_of_them_their_mean_and_their_std(world, tmp_path):
    result = Restorer(world.prior, LDPS(steps=6)).solve(*world.measure(), ids=("a", "b"), samples=2)
    folder = result.save(tmp_path)
    names = [
        f"{name}{end}" for name in "ab" for end in (".png", "_mean.png", "_sample0.png", "_sample1.png", "_std.png")
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "run.json"])
    for b, name in enumerate("ab"):
        assert close(folder / f"{name}.png", result.samples[0, b])
        assert close(folder / f"{name}_sample1.png", result.samples[1, b])
        assert close(folder / f"{name}_mean.png", result.mean[b])
        assert close(folder / f"{name}_std.png", (4 * result.std[b]).clamp(0, 1))


def test_the_record_read_back_makes_the_images_again(world, tmp_path):
    y, physics = world.measure()
    sampler = STSL(steps=6, eta=0.5, reverse="ddpm")
    result = Restorer(world.prior, sampler).solve(y, physics, ids=("a", "b"), seed=4)
    result.save(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(result.record()))
    methods = {method.__name__: method for method in SAMPLERS.values()}
    again = methods[record["sampler"]](**record["sampler_settings"])
    image = Restorer(world.prior, again)(y, physics, seed=record["seed"], ids=record["ids"])
    assert torch.equal(image, result.image)


def test_the_record_holds_what_a_reader_needs(world):
    result = Restorer(world.prior, LDPS(steps=6)).solve(*world.measure(), samples=2)
    record = result.record()
    assert record["samples"] == 2
    assert record["nfe_paper"] == 6
    assert record["unet_samples"] == 6  # per image and sample
    assert len(record["residual_rms"]) == 2
    assert record["expected_noise_rms"] == pytest.approx(0.01, abs=1e-8)  # the noise model keeps its sigma in float32
    assert record["sigma_y_minus1_1"] == pytest.approx(0.02, abs=1e-8)
    assert record["prior"]["name"] == "gaussian"
    assert {"python", "stsl", "torch", "deepinv"} <= set(record["versions"])
    assert [entry["step"] for entry in record["log"]] == list(range(12))


def test_images_whose_names_would_meet_in_one_file_are_not_written(world, tmp_path):
    result = Restorer(world.prior, LDPS(steps=2)).solve(*world.measure(), ids=("a", "a"))
    with pytest.raises(ValueError, match="'a'"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
