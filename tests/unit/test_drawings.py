"""Random kernels and masks: their laws, and what a smaller kernel keeps of a larger one."""

import numpy as np
import pytest
import torch

from stsl.drawings import brush_mask, motion_kernel, motion_path
from stsl.rng import generator


def draws(*key: object) -> np.random.Generator:
    return np.random.default_rng(generator("test", *key).initial_seed())


def test_a_small_motion_kernel_is_the_area_average_of_the_large_one():
    large, small = motion_kernel(draws(3), 61), motion_kernel(draws(3), 31)
    # Averaging over areas keeps the centre of mass; one small pixel is 61/31 large ones.
    at = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (61, 31)]
    centre = [(k.double().sum(0) * a).sum() for k, a in zip((large, small), at, strict=True)]
    assert centre[1] * 61 / 31 == pytest.approx(float(centre[0]), abs=1e-2)  # mass within a pixel moves to its middle
    assert small.max() > large.max()


# The papers' generator: percentiles 5, 25, 50, 75, 95 of 300 kernels at 61 pixels, intensity 0.5; and the precision.
BANDS = {
    "path length": ([20, 48, 76, 107, 140], 0.5),
    "steps": ([6, 15, 23, 33, 45], 0.5),
    "peak": ([0.011, 0.014, 0.020, 0.031, 0.075], 0.0005),
    "rms radius": ([2.8, 6.8, 10.7, 14.6, 18.2], 0.05),
    "centroid offset": ([0.1, 0.5, 1.2, 2.0, 4.2], 0.05),
    "pixels above 5 % of the peak": ([27, 66, 102, 141, 173], 0.5),
}


@pytest.fixture(scope="module")
def statistics() -> dict[str, np.ndarray]:
    rows = []
    grid = torch.arange(61, dtype=torch.float64) - 30
    for index in range(300):
        path = motion_path(draws("motion", index))
        kernel = motion_kernel(draws("motion", index)).double()
        x, y = float((kernel.sum(0) * grid).sum()), float((kernel.sum(1) * grid).sum())
        spread = (kernel * ((grid - x)[None] ** 2 + (grid - y)[:, None] ** 2)).sum()
        peak = float(kernel.max())
        above = int((kernel > 0.05 * peak).sum())
        rows.append([abs(np.diff(path)).sum(), len(path), peak, float(spread) ** 0.5, (x * x + y * y) ** 0.5, above])
    return dict(zip(BANDS, np.array(rows).T, strict=True))


@pytest.mark.parametrize("quantity", BANDS)
def test_motion_kernels_are_distributed_as_the_published_generators(quantity, statistics):
    values, (percentiles, precision) = statistics[quantity], BANDS[quantity]
    for share, value in zip((0.05, 0.25, 0.5, 0.75, 0.95), percentiles, strict=True):
        # The table and this sample are 300 draws each: the share of ours below a printed percentile has a standard
        # deviation of √(2 p (1 − p) / 300) around p. Four of them, and half a unit of the last printed digit.
        slack = 4 * (2 * share * (1 - share) / 300) ** 0.5
        assert (values < value - precision).mean() <= share + slack, (share, value)
        assert (values <= value + precision).mean() >= share - slack, (share, value)


def test_paths_are_as_long_as_their_limits_are_on_average():
    lengths = [abs(np.diff(motion_path(draws("length", index)))).sum() for index in range(2000)]
    # E L = 3/4 · 172.5 · (1/2 + 1/8) = 80.9. The sum of the steps passes L by about one step, and the polyline, which
    # starts at the end of the first step, is one step shorter. Four standard errors of 38.5/√2000, and 0.5 for "about".
    assert np.mean(lengths) == pytest.approx(80.9, abs=4 * 38.5 / 2000**0.5 + 0.5)


def test_a_crooked_path_is_shorter_than_its_limit_and_bends():
    straight, crooked = ([motion_path(draws(k), intensity=q) for k in range(50)] for q in (0.0, 1.0))

    def crow(paths: list[np.ndarray]) -> float:  # distance of the ends as a share of the way
        return float(np.mean([abs(p[-1] - p[0]) / abs(np.diff(p)).sum() for p in paths]))

    assert crow(straight) > 0.99  # directions within 0.1 radian: cos(0.1) = 0.995
    assert crow(crooked) < 0.9


class Recorder(np.random.Generator):
    """NumPy's generator, with the last uniform number kept: of a path, the angle by which it was turned in the end."""

    last = 0.0

    def uniform(self, *bounds: float) -> float:
        self.last = super().uniform(*bounds)
        return self.last


@pytest.fixture(scope="module")
def flips() -> np.ndarray:
    """Of 2000 paths: how often two successive steps differ in the sign of their direction, and how often they could."""
    rows = []
    for index in range(2000):
        recorder = Recorder(draws("flips", index).bit_generator)
        steps = np.diff(motion_path(recorder)) * np.exp(-1j * recorder.last)
        # At intensity 0.5 no direction is beyond π/2 + 0.1 from the turn, so its sign is the imaginary part's.
        signs = np.sign(steps.imag)
        rows.append([(signs[1:] != signs[:-1]).sum(), max(len(signs) - 1, 0)])
    return np.array(rows)


def test_a_path_flips_its_sign_twice_in_22_steps_on_average(flips):
    changes, chances = flips.T
    # A path of n chances has Beta(2, 20)-binomial flips: mean n p and variance n p (1 − p) (22 + n)/23, p = 2/22.
    p = 2 / 22
    deviation = (chances * p * (1 - p) * (22 + chances) / 23).sum() ** 0.5
    assert changes.sum() == pytest.approx(p * chances.sum(), abs=4 * deviation)


def test_the_chance_of_a_flip_is_drawn_once_per_path_from_beta_2_20(flips):
    changes, chances = flips.T
    # E (1 − J)^n = 20 · 21 / ((20 + n)(21 + n)) for J ~ Beta(2, 20), 0.25 at n = 21; one J for all paths, 2/22, would
    # leave 0.14 of them without a flip, and one J for each step the same.
    none = 20 * 21 / ((20 + chances) * (21 + chances))
    deviation = (none * (1 - none)).sum() ** 0.5
    assert (changes == 0).sum() == pytest.approx(none.sum(), abs=4 * deviation)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (256, 256)])
def test_brush_masks_lose_a_tenth_to_a_fifth_in_strokes(height, width):
    mask = torch.stack([brush_mask(draws("brush", index), height, width) for index in range(20)])[:, None]
    lost = 1 - mask.mean((1, 2, 3))
    assert ((lost >= 0.1 - 1e-6) & (lost <= 0.2 + 1e-6)).all()
    assert lost.std() > 0.01
    assert mask.unique().tolist() == [0, 1]
    # Strokes, not specks: half of the hole at least has only hole around it (a 9-pixel width keeps 7/9 of itself).
    eroded = torch.nn.functional.max_pool2d(mask, 3, stride=1, padding=1) == 0
    assert (eroded.sum((1, 2, 3)) > 0.3 * (mask == 0).sum((1, 2, 3))).all()


def test_a_share_that_no_strokes_cover_is_refused():
    with pytest.raises(ValueError, match=r"do not cover 0.9 to 0.95 of 16×16 pixels; widen that range"):
        brush_mask(draws("brush"), 16, 16, 0.9, 0.95)
