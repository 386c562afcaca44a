"""Tasks: names and options, what is random about them, measurements, a user's own masks and kernels."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import Inpainting
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stsl import tasks
from stsl.operators import GaussianImpulseNoise

SHAPE = (3, 64, 64)
EVERY = list(tasks.TASKS)
RANDOM = ["motion_blur", "random_inpaint", "box_inpaint", "freeform_inpaint"]


def photos(batch: int, *shape: int) -> torch.Tensor:
    return torch.rand(batch, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))


def test_a_specification_is_read_and_written():
    task = tasks.parse("random_inpaint:drop=0.5,spread=0.2")
    assert (task.name, task.options) == ("random_inpaint", {"drop": 0.5, "spread": 0.2})
    assert tasks.parse(str(task)) == task
    assert tasks.parse("gaussian_blur: match = stsl512").options == {"match": "stsl512"}
    assert str(tasks.parse("sr4")) == "sr4"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gausian_blur", "unknown task 'gausian_blur', did you mean 'gaussian_blur'"),
        ("xyz", "unknown task 'xyz'; there are sr4, sr8"),
        ("random_inpaint:dorp=0.2", "no option 'dorp', did you mean 'drop'\\?; it has drop, spread"),
        ("sr4:factor=2", "task sr4 has no option 'factor'; it has none"),
        ("random_inpaint:drop", "option drop needs a value, as in random_inpaint:drop=0.4"),
        ("random_inpaint:drop=0.2,drop=0.3", "option drop is given twice"),
        ("random_inpaint:drop=half", "random_inpaint: drop is a number from 0 to 0.99, got 'half'"),
        ("random_inpaint:drop=1.5", "drop is a number from 0 to 0.99, got 1.5"),
        ("random_inpaint:drop=nan", "drop is a number from 0 to 0.99, got nan"),
        ("salt_pepper:share=-0.1", "share is a number from 0 to 1, got -0.1"),
        ("gaussian_blur:match=dps512", "match is dps256 or stsl512, got 'dps512'"),
    ],
)
def test_a_wrong_specification_is_refused_with_what_would_work(spec, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(spec, SHAPE)


@pytest.mark.parametrize(
    ("spec", "side", "message"),
    [
        ("random_inpaint:drop=0.1,spread=0.2", 16, "loses from -0.1 to 0.3"),
        ("box_inpaint:side=0.85", 16, "a box of 14 pixels and margins of 1 leave no room in 16×16"),
        ("freeform_inpaint:low=0.9,high=0.95", 16, "do not cover 0.9 to 0.95 of 16×16"),
        ("sr8", 20, "20×20 pixels cannot be divided by 8; crop the image to 16×16"),
        ("gaussian_blur:std=4", 16, "33 taps needs an image of at least 17 pixels"),
    ],
)
def test_options_that_do_not_fit_the_image_are_refused(spec, side, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(spec, (3, side, side))


@pytest.mark.parametrize(
    ("noise", "message"),
    [(-0.1, "got -0.1"), (float("nan"), "got nan"), (float("inf"), "got inf"), (12.75, "divide grey levels by 255")],
)
def test_noise_that_is_no_standard_deviation_is_refused(noise, message):
    for build in (
        lambda: tasks.make("denoise", SHAPE, noise=noise),
        lambda: tasks.measure("denoise", photos(1), noise=noise, ids=("a",)),
        lambda: tasks.from_mask(torch.ones(64, 64), SHAPE, noise=noise),
        lambda: tasks.from_kernel(torch.ones(3, 3), SHAPE, noise=noise),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_ids_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one name per image"):
        tasks.make("denoise", SHAPE, ids="photo")
    with pytest.raises(ValueError, match="one name per image"):
        tasks.make("denoise", SHAPE, ids=())
    with pytest.raises(ValueError, match="channels, height, width"):
        tasks.make("denoise", (64, 64))
    with pytest.raises(ValueError, match="1 ids for images of shape"):
        tasks.measure("denoise", photos(2), ids=("a",))
    with pytest.raises(ValueError, match="not finite"):
        tasks.measure("denoise", photos(1) * float("nan"), ids=("a",))


def test_every_task_describes_itself_and_its_options():
    rows = {row["name"]: row for row in tasks.describe()}
    assert list(rows) == EVERY
    assert all(row["description"].endswith(".") for row in rows.values())
    assert rows["sr4"]["parameters"] == {}
    assert rows["gaussian_blur"]["knobs"][0]["allowed"] == "dps256 or stsl512"
    assert rows["random_inpaint"]["parameters"] == {"drop": 0.4, "spread": 0.0}
    assert rows["random_inpaint"]["knobs"][0]["allowed"] == "a number from 0 to 0.99"
    json.dumps(list(rows.values()))
    for name, row in rows.items():  # a default that its own range refuses would be a trap
        for key, value in row["parameters"].items():
            tasks.parse(f"{name}:{key}={value}")


def test_the_documentation_lists_the_tasks_and_their_defaults():
    table = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8").partition("\n## ")[0]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    listed = {name.strip("`"): ",".join(re.findall(r"`(\w+=[^`]+)`", options)) for name, _, options, _ in rows}
    assert list(listed) == EVERY
    for row in tasks.describe():
        assert tasks.parse(f"{row['name']}:{listed[row['name']]}").options == row["parameters"]


@pytest.mark.parametrize("task", EVERY)
def test_factor_and_randomness_are_what_the_operator_does(task):
    physics = tasks.make(task, SHAPE, ids=("a", "b"))
    y = physics.A(photos(2))
    assert y.shape[-1] * tasks.factor(task) == 64
    drawn = any(buffer.dim() == 4 and buffer.shape[0] == 2 for buffer in physics.buffers())
    assert tasks.is_random(task) == drawn == (task in RANDOM)


@pytest.mark.parametrize("task", EVERY)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_tasks_adjoint_passes_the_dot_product_test(task, channels):
    # Odd sizes for all but super-resolution; two images with their own masks and kernels.
    shape = (channels, 64, 72) if task.startswith("sr") else (channels, 63, 71)
    physics = tasks.make(task, shape, ids=("a", "b"))
    x = photos(2, *shape).double()
    y = physics.A(x)
    u = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gap = (y * u).sum() - (x * physics.A_adjoint(u)).sum()
    assert abs(float(gap)) < 1e-10 * float(y.norm() * u.norm())


def test_gaussian_blur_follows_the_rules_for_other_sizes():
    def taps(spec: str, side: int) -> int:
        return int(tasks.make(spec, (3, side, side)).vertical[side // 2].count_nonzero())

    # 25 taps at the paper's size; at 128 std 1.5 has 13 and std 0.75 has 7.
    assert taps("gaussian_blur", 256) == 25
    assert taps("gaussian_blur", 128) == 13
    assert taps("gaussian_blur:match=stsl512", 512) == 25
    assert taps("gaussian_blur:match=stsl512", 128) == 7
    assert taps("gaussian_blur:std=2", 128) == 17
    same = tasks.make("gaussian_blur:std=1.5", (3, 128, 128)), tasks.make("gaussian_blur", (3, 128, 128))
    assert torch.equal(same[0].vertical, same[1].vertical)


@pytest.mark.parametrize(
    ("spec", "side", "size"), [("", 256, 61), ("", 128, 31), ("", 512, 121), (":match=stsl512", 512, 61)]
)
def test_motion_kernels_scale_with_the_image_and_sum_to_one(spec, side, size):
    kernel = tasks.make(f"motion_blur{spec}", (3, side, side), ids=("a", "b")).filter
    assert kernel.shape == (2, 1, size, size)
    assert_close(kernel.sum((1, 2, 3)), torch.ones(2), rtol=0, atol=1e-6)
    assert (kernel >= 0).all()
    assert not torch.equal(kernel[0], kernel[1])


@pytest.mark.parametrize("side", [64, 128])
def test_random_inpaint_loses_exactly_the_floor_of_its_share(side):
    mask = tasks.make("random_inpaint", (3, side, side + 3), ids=tuple("abc")).mask
    assert mask.shape == (3, 1, side, side + 3)
    assert (mask == 0).sum((1, 2, 3)).tolist() == [int(0.4 * side * (side + 3))] * 3
    assert not torch.equal(mask[0], mask[1])


def test_random_inpaint_can_draw_the_share_for_each_image_as_dps_and_psld_do():
    mask = tasks.make("random_inpaint:drop=0.5,spread=0.2", (3, 32, 32), ids=tuple(map(str, range(100)))).mask
    lost = 1 - mask.mean((1, 2, 3))
    assert lost.min() >= 0.3 - 1 / 1024
    assert lost.max() <= 0.7
    # 100 draws: the chance that none falls in the outer quarter on one side is 0.75^100 = 3e-13.
    assert lost.min() < 0.4
    assert lost.max() > 0.6


@settings(max_examples=20, deadline=None)
@given(height=st.integers(32, 96), width=st.integers(32, 96), seed=st.integers(0, 10**9))
def test_the_box_is_half_the_side_and_keeps_its_margin(height, width, seed):
    mask = tasks.make("box_inpaint", (3, height, width), seed=seed).mask[0, 0]
    rows, columns = (mask == 0).any(1).nonzero().flatten(), (mask == 0).any(0).nonzero().flatten()
    side, margin = round(min(height, width) / 2), 16 * min(height, width) // 256
    assert len(rows) == len(columns) == side
    assert (mask == 0).sum() == side**2
    assert rows[0] >= margin
    assert columns[0] >= margin
    assert rows[-1] < height - margin
    assert columns[-1] < width - margin


def test_freeform_inpaint_loses_between_its_low_and_its_high_share():
    for spec, low, high in (("freeform_inpaint", 0.1, 0.2), ("freeform_inpaint:low=0.2,high=0.3", 0.2, 0.3)):
        lost = 1 - tasks.make(spec, SHAPE, ids=tuple("abcdefgh")).mask.mean((1, 2, 3))
        assert ((lost >= low - 1e-6) & (lost <= high + 1e-6)).all()  # the mean of 4096 bits in float32


@pytest.mark.parametrize("task", EVERY)
def test_a_measurement_depends_on_its_own_id_and_not_on_its_batch(task):
    x = photos(3)
    y, physics = tasks.measure(task, x, ids=("a", "b", "c"), seed=4)
    alone, single = tasks.measure(task, x[1:2], ids=("b",), seed=4)
    turned, _ = tasks.measure(task, x.flip(0), ids=("c", "b", "a"), seed=4)
    assert y.dtype == torch.float32
    assert torch.equal(y[1:2], alone)
    assert torch.equal(y, turned.flip(0))
    assert_close(physics.A(x)[1:2], single.A(x[1:2]), rtol=0, atol=1e-6)  # a batched FFT rounds in another order
    assert float(physics.noise_model.sigma) == pytest.approx(0.005)
    for seed, name in ((5, "b"), (4, "d")):
        other, _ = tasks.measure(task, x[1:2], ids=(name,), seed=seed)
        assert not torch.equal(other, alone)


@pytest.mark.parametrize("task", RANDOM)
def test_masks_and_kernels_depend_on_seed_and_id(task):
    def drawn(seed: int, name: str) -> torch.Tensor:
        physics = tasks.make(task, SHAPE, ids=("first", name), seed=seed)
        return (physics.filter if task == "motion_blur" else physics.mask)[1]

    assert torch.equal(drawn(0, "a"), drawn(0, "a"))
    assert not torch.equal(drawn(0, "a"), drawn(1, "a"))
    assert not torch.equal(drawn(0, "a"), drawn(0, "b"))


def test_measuring_leaves_the_global_generators_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for task in EVERY:
        tasks.measure(task, photos(1), ids=("a",))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("task", [t for t in EVERY if t != "salt_pepper"])
def test_a_measurement_is_the_operators_image_plus_noise_of_the_given_size(task):
    x = photos(4)
    y, physics = tasks.measure(task, x, noise=0.1, ids=tuple("abcd"))
    clean, same = tasks.measure(task, x, noise=0.0, ids=tuple("abcd"))
    assert_close(clean, same.A(x), rtol=0, atol=1e-6)
    noise = (y - clean)[physics.A(torch.ones_like(x)).abs() > 0.5]
    # 768 values at least (sr8): four standard deviations of a sample's standard deviation are 4 / √(2 n) of it.
    assert noise.std() == pytest.approx(0.1, rel=4 / (2 * noise.numel()) ** 0.5)


@pytest.mark.parametrize("task", ["random_inpaint", "box_inpaint", "freeform_inpaint"])
def test_holes_are_exactly_zero_and_what_is_known_is_noisy(task):
    x = photos(2)
    y, physics = tasks.measure(task, x, noise=0.05, ids=("a", "b"))
    known = physics.mask.bool().expand_as(x)
    assert (y[~known] == 0).all()
    assert (y[known] != x[known]).float().mean() > 0.99


def test_salt_and_pepper_hits_two_percent_of_the_pixels_on_top_of_the_gaussian():
    x = torch.full((4, 3, 100, 100), 0.5)
    y, physics = tasks.measure("salt_pepper", x, noise=0.025, ids=tuple("abcd"))
    hit = ((y == 0) | (y == 1)).all(1)
    assert hit.float().mean() == pytest.approx(0.02, abs=0.003)  # 40,000 pixels: four standard deviations
    assert isinstance(physics.noise_model, GaussianImpulseNoise)
    assert y.movedim(1, -1)[~hit].std() == pytest.approx(0.025, rel=0.02)


def test_one_channel_is_measured():
    for task in EVERY:
        y, physics = tasks.measure(task, photos(2, 1, 64, 64), ids=("a", "b"))
        assert y.shape[:2] == (2, 1)
        assert physics.A_adjoint(y).shape == (2, 1, 64, 64)


def test_a_users_mask_is_known_above_one_half():
    mask = torch.linspace(0, 1, 64 * 64).reshape(64, 64)
    physics = tasks.from_mask(mask, SHAPE, noise=0.01)
    assert isinstance(physics, Inpainting)
    assert torch.equal(physics.mask[0, 0], (mask > 0.5).float())
    assert float(physics.noise_model.sigma) == pytest.approx(0.01)
    assert tasks.from_mask(mask[None].bool(), SHAPE).mask.shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(64, 64), "no known pixel"),
        (torch.stack([torch.ones(1, 64, 64), torch.zeros(1, 64, 64)]), "no known pixel"),
        (torch.ones(32, 48), "the mask has 32×48 pixels \\(height×width\\), the image 64×64"),
        (torch.ones(3, 64, 64), "a mask has shape"),
        (torch.full((64, 64), float("nan")), "not finite"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        tasks.from_mask(mask, SHAPE)


def test_a_users_kernel_is_divided_by_its_sum_and_blurs_a_point_to_itself():
    kernel = torch.arange(1.0, 16.0).reshape(3, 5)
    physics = tasks.from_kernel(kernel, SHAPE)
    point = torch.zeros(1, 3, 64, 64)
    point[..., 20, 30] = 1
    seen = physics.A(point)[0, 0, 19:22, 28:33]
    assert_close(seen, kernel / 120, rtol=0, atol=1e-6)
    assert_close(physics.A(torch.ones(1, 3, 64, 64)), torch.ones(1, 3, 64, 64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.ones(4, 5), "odd sides, so that it has a centre; got 4×5"),
        (torch.zeros(3, 3), "0 everywhere"),
        (-torch.ones(3, 3), "0 or more"),
        (torch.full((3, 3), float("inf")), "finite"),
        (torch.ones(129, 129), "129 taps needs an image of at least 65 pixels"),
        (torch.ones(3, 3, 3), "a kernel has shape"),
        (torch.ones(0, 3), "a kernel has shape"),
    ],
)
def test_a_kernel_that_is_none_is_refused(kernel, message):
    with pytest.raises(ValueError, match=message):
        tasks.from_kernel(kernel, SHAPE)
