"""Files of operators and measurements: what comes back, and what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch
from deepinv.physics import Blur, GaussianNoise, LinearPhysics
from safetensors.torch import save_file

from stsl import measurements, tasks
from stsl.measurements import (
    MeasurementInfo,
    OperatorInfo,
    load_measurement,
    load_operator,
    save_measurement,
    save_operator,
)

SHAPE = (3, 64, 64)


def photos(batch: int, *shape: int) -> torch.Tensor:
    return torch.rand(batch, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "spec", [*tasks.TASKS, "gaussian_blur:std=2", "random_inpaint:drop=0.7", "motion_blur:match=stsl512"]
)
def test_an_operator_survives_its_file_to_the_bit(spec, tmp_path):
    physics = tasks.make(spec, SHAPE, noise=0.013, ids=("photo",), seed=7)
    save_operator(tmp_path / "new" / "o.safetensors", spec, physics, SHAPE, 0.013)
    loaded, info = load_operator(tmp_path / "new" / "o.safetensors")
    x = photos(1)
    assert torch.equal(loaded.A(x), physics.A(x))
    assert type(loaded) is type(physics)
    assert type(loaded.noise_model) is type(physics.noise_model)
    assert torch.equal(loaded.noise_model.sigma, physics.noise_model.sigma)
    assert info == OperatorInfo(spec, SHAPE, 0.013)


def test_a_users_own_mask_and_kernel_survive_their_files(tmp_path):
    path = tmp_path / "o.safetensors"
    x = photos(1)
    for spec, physics in {
        "mask": tasks.from_mask(photos(1)[0, :1], SHAPE),
        "kernel": tasks.from_kernel(photos(1)[0, 0, :7, :9], SHAPE),
    }.items():
        save_operator(path, spec, physics, SHAPE, 0.0)
        assert torch.equal(load_operator(path)[0].A(x), physics.A(x))


def test_a_kernel_is_not_divided_by_its_sum_again_on_loading(tmp_path):
    kernel = torch.full((1, 1, 3, 3), 1 / 9) * (1 + 5e-5)
    save_file({"kernel": kernel}, tmp_path / "o.safetensors", metadata={"stsl": json.dumps(BLUR)})
    assert torch.equal(load_operator(tmp_path / "o.safetensors")[0].filter, kernel)


def test_an_operator_that_a_file_cannot_hold_is_not_saved(tmp_path):
    path = tmp_path / "o.safetensors"
    for spec, physics in {
        "random_inpaint": tasks.make("denoise", SHAPE),
        "sr4": tasks.from_mask(torch.ones(64, 64), SHAPE),
        "somebody's": LinearPhysics(noise_model=GaussianNoise(0.1)),
        "kernel": Blur(2 * torch.ones(1, 1, 3, 3)),
    }.items():
        with pytest.raises(ValueError):
            save_operator(path, spec, physics, SHAPE, 0.0)
    assert list(tmp_path.iterdir()) == []


GOOD = {"kind": "operator", "version": 1, "spec": "random_inpaint", "shape": [3, 64, 64], "noise": 0.01}
MASK = {"mask": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}
KERNEL = {"kernel": torch.full((1, 1, 3, 3), 1 / 9)}
BLUR = {**GOOD, "spec": "motion_blur"}


@pytest.mark.parametrize(
    ("content", "tensors", "message"),
    [
        ({**GOOD, "version": 2}, MASK, "operator format 2; this version of stsl reads 1"),
        ({**GOOD, "spec": "radom_inpaint"}, MASK, "did you mean 'random_inpaint'"),
        ({**GOOD, "spec": 3}, MASK, "spec is a text"),
        ({**GOOD, "shape": [3, 64]}, MASK, "shape is \\[channels, height, width\\]"),
        ({**GOOD, "shape": [3, 64, "64"]}, MASK, "shape is"),
        ({**GOOD, "shape": [3, 64, 0]}, MASK, "image's shape is"),
        ({**GOOD, "spec": "sr4", "shape": [3, 10**6, 10**6]}, {}, "larger than 8192 on a side"),
        ({**GOOD, "noise": -1}, MASK, "noise is a standard deviation"),
        ({**GOOD, "noise": float("nan")}, MASK, "noise is a standard deviation"),
        ({**GOOD, "noise": "0"}, MASK, "noise is a number"),
        ({**GOOD, "noise": True}, MASK, "noise is a number"),
        ({**GOOD, "noise": 10**400}, MASK, "int too large"),
        (
            {**GOOD, "kind": "measurement"},
            MASK,
            "this is a measurement file, not an operator file; `stsl degrade` writes",
        ),
        (
            {**GOOD, "kind": "else"},
            MASK,
            "not an operator file; `stsl degrade` writes one as STEM_operator.safetensors",
        ),
        ([], MASK, "not a JSON object"),
        (GOOD, {}, "random_inpaint needs mask, the file has no tensor"),
        (GOOD, KERNEL, "random_inpaint needs mask, the file has kernel"),
        ({**GOOD, "spec": "denoise"}, MASK, "denoise needs no tensor, the file has mask"),
        (GOOD, {"mask": torch.ones(1, 1, 32, 64, dtype=torch.uint8)}, "the mask has 32×64 pixels"),
        (GOOD, {"mask": torch.ones(64, 64, dtype=torch.uint8)}, "not \\(B, 1, height, width\\)"),
        (GOOD, {"mask": torch.zeros(1, 1, 64, 64, dtype=torch.uint8)}, "no known pixel"),
        (GOOD, {"mask": torch.full((1, 1, 64, 64), 7, dtype=torch.uint8)}, "0 and 1 as bytes"),
        (GOOD, {"mask": torch.ones(1, 1, 64, 64)}, "0 and 1 as bytes"),
        (BLUR, {"kernel": torch.full((1, 1, 3, 3), float("nan"))}, "finite values"),
        (BLUR, {"kernel": torch.full((1, 1, 3, 3), 1.0)}, "does not sum to 1"),
        (BLUR, {"kernel": torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)}, "a kernel is float32"),
    ],
)
def test_an_operator_file_that_contradicts_itself_is_refused_by_name(content, tensors, message, tmp_path):
    path = tmp_path / "o.safetensors"
    save_file(tensors, path, metadata={"stsl": json.dumps(content)})
    with pytest.raises(ValueError, match=f"o.safetensors: .*{message}"):
        load_operator(path)


def test_a_file_that_is_no_operator_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no operator file"):
        load_operator(tmp_path / "absent.safetensors")
    path = tmp_path / "o.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_operator(path)
    save_file(MASK, path)
    with pytest.raises(ValueError, match="not an operator file; `stsl degrade` writes one"):
        load_operator(path)
    save_file(MASK, path, metadata={"stsl": "[" * 100_000})
    with pytest.raises(ValueError, match="not JSON"):
        load_operator(path)
    os.truncate(path, 65 << 20)
    with pytest.raises(ValueError, match=r"o.safetensors: an operator file has at most 64 MiB, this one 65"):
        load_operator(path)


def test_a_measurement_survives_its_file_to_the_bit(tmp_path):
    path = tmp_path / "new" / "y.safetensors"
    y, _ = tasks.measure("sr4", photos(1), noise=0.013, ids=("Ada’s photo/1",), seed=2**70)
    save_measurement(path, y, spec="sr4", noise=0.013, id="Ada’s photo/1", seed=2**70)
    loaded, info = load_measurement(path)
    assert torch.equal(loaded, y)
    assert loaded.dtype == torch.float32
    assert info == MeasurementInfo("sr4", 0.013, "Ada’s photo/1", 2**70)


def test_one_image_of_a_batch_on_any_number_of_channels_is_saved(tmp_path):
    path = tmp_path / "y.safetensors"
    batch = photos(3, 1, 5, 7).requires_grad_().mT
    save_measurement(path, batch[1:2], spec="mask", noise=0, id="b", seed=0)
    assert torch.equal(load_measurement(path)[0], batch[1:2].detach())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(2, 3, 4, 4), "one image, \\(1, C, h, w\\) with no side above 8192, got \\(2, 3, 4, 4\\)"),
        (torch.zeros(3, 4, 4), "one image, .* got \\(3, 4, 4\\)"),
        (torch.zeros(1, 3, 0, 4), "one image, .* got \\(1, 3, 0, 4\\)"),
        (torch.zeros(1, 1, 1, 8193), "one image, .* got \\(1, 1, 1, 8193\\)"),
        (torch.zeros(1, 3, 4, 4).double(), "a measurement is float32, this one is torch.float64"),
        (torch.full((1, 3, 4, 4), float("nan")), "not finite"),
        (torch.full((1, 3, 4, 4), float("inf")), "not finite"),
    ],
)
def test_a_measurement_that_is_none_is_neither_saved_nor_loaded(y, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_measurement(tmp_path / "y.safetensors", y, spec="sr4", noise=0.01, id="a", seed=0)
    assert list(tmp_path.iterdir()) == []
    save_file({"y": y}, tmp_path / "y.safetensors", metadata={"stsl": json.dumps(MEASURED)})
    with pytest.raises(ValueError, match=f"y.safetensors: .*{message}"):
        load_measurement(tmp_path / "y.safetensors")


MEASURED = {"kind": "measurement", "version": 1, "spec": "sr4", "noise": 0.01, "id": "a", "seed": 0}
Y = {"y": torch.zeros(1, 3, 4, 4)}


@pytest.mark.parametrize(
    ("content", "tensors", "message"),
    [
        ({**MEASURED, "version": 2}, Y, "measurement format 2; this version of stsl reads 1"),
        (
            {**MEASURED, "kind": "operator"},
            Y,
            "this is an operator file, not a measurement file; `stsl degrade` writes",
        ),
        (
            {**MEASURED, "kind": ["measurement"]},
            Y,
            "not a measurement file; `stsl degrade` writes one as STEM.safetensors",
        ),
        ({**MEASURED, "spec": "sr44"}, Y, "did you mean 'sr4'"),
        ({**MEASURED, "spec": None}, Y, "spec is a text, got None"),
        ({**MEASURED, "noise": 2}, Y, "noise is a standard deviation"),
        ({**MEASURED, "id": 3}, Y, "id is a text, got 3"),
        ({**MEASURED, "seed": "0"}, Y, "seed is a whole number, got '0'"),
        ({**MEASURED, "seed": True}, Y, "seed is a whole number, got True"),
        ([], Y, "not a JSON object"),
        (MEASURED, {}, "a measurement file holds y, this one no tensor"),
        (MEASURED, {**Y, "x": torch.zeros(1)}, "a measurement file holds y, this one"),
    ],
)
def test_a_measurement_file_that_contradicts_itself_is_refused_by_name(content, tensors, message, tmp_path):
    path = tmp_path / "y.safetensors"
    save_file(tensors, path, metadata={"stsl": json.dumps(content)})
    with pytest.raises(ValueError, match=f"y.safetensors: .*{message}"):
        load_measurement(path)


def test_each_kind_of_file_refuses_the_other(tmp_path):
    y, physics = tasks.measure("sr4", photos(1), ids=("a",))
    save_measurement(tmp_path / "a.safetensors", y, spec="sr4", noise=0.005, id="a", seed=0)
    save_operator(tmp_path / "a_operator.safetensors", "sr4", physics, SHAPE, 0.005)
    with pytest.raises(ValueError, match=r"a.safetensors: this is a measurement file, not an operator file"):
        load_operator(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a_operator.safetensors: this is an operator file, not a measurement file"):
        load_measurement(tmp_path / "a_operator.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no measurement file .*absent"):
        load_measurement(tmp_path / "absent.safetensors")


def test_a_file_too_large_to_load_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "MEASUREMENT", replace(measurements.MEASUREMENT, limit=1 << 20))
    monkeypatch.setattr(measurements, "OPERATOR", replace(measurements.OPERATOR, limit=1 << 10))
    # A description of some bytes comes on top of 1 MiB of float32 and of 4 KiB of mask.
    with pytest.raises(ValueError, match=r"y.safetensors: a measurement file has at most 1 MiB, this one 1"):
        save_measurement(tmp_path / "y.safetensors", torch.zeros(1, 1, 512, 512), spec="sr4", noise=0, id="a", seed=0)
    with pytest.raises(ValueError, match=r"o.safetensors: an operator file has at most"):
        save_operator(tmp_path / "o.safetensors", "mask", tasks.from_mask(torch.ones(64, 64), SHAPE), SHAPE, 0.0)
    assert list(tmp_path.iterdir()) == []
