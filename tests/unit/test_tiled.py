"""Tiles: what covers a line, what fusing them keeps, and that they leave no seams."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stsl import PSLD, Restorer, tasks
from stsl.numerics import gradient
from stsl.priors.base import Condition, Prior
from stsl.priors.tiled import Cover, Tiled
from stsl.schedule import VariancePreserving


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Local(Prior):
    """A prior of 16 x 16 images on 8 x 8 latents, all of whose parts look at single places only.

    The whole of an image is then its tiles, whichever way they are cut.
    """

    def __init__(self):
        super().__init__()
        self.name, self.latent_shape, self.image_shape = "local", (3, 8, 8), (3, 16, 16)
        self.schedule = VariancePreserving.from_config(
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}
        )
        self.register_buffer("place", torch.zeros(()))
        self.given = []

    @property
    def dtype(self):
        return torch.float64

    def epsilon(self, z, t, condition=None):
        self.given.append((tuple(z.shape), t, condition))
        return torch.tanh(z) * self.schedule.at(t)[1]

    def encode(self, x):
        self.given.append((tuple(x.shape), None, None))
        return 2 * torch.nn.functional.avg_pool2d(x, 2) - 1

    def decode(self, z):
        self.given.append((tuple(z.shape), None, None))
        return (1 + torch.nn.functional.interpolate(torch.sin(z), scale_factor=2)) / 2


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_tiles_cover_a_line_with_weights_that_sum_to_one(data):
    side = data.draw(st.integers(1, 40))
    length = side + data.draw(st.integers(0, 100))
    overlap = data.draw(st.integers(0, side - 1))
    factor = data.draw(st.integers(1, 4))
    cover = Cover(length, side, overlap)
    starts, total = cover.starts, torch.zeros(length * factor)
    assert starts[0] == 0
    assert starts[-1] == length - side
    assert all(b - a <= side - overlap for a, b in pairwise(starts))
    for start, weight in zip(starts, cover.weights(factor), strict=True):
        assert weight.shape == (side * factor,)
        assert (weight > 0).all()
        total[start * factor : (start + side) * factor] += weight
    assert_close(total, torch.ones(length * factor), rtol=0, atol=1e-6)


def test_a_border_place_of_a_tile_counts_little_where_its_neighbour_sees_more():
    first, second = Cover(12, 8, 4).weights()
    assert first[:4].eq(1).all()  # nobody else sees these
    assert_close(first[4:], torch.tensor([7, 5, 3, 1]) / 8)
    assert_close(second[:4], torch.tensor([1, 3, 5, 7]) / 8)


def test_one_tile_is_the_prior_itself():
    prior = Local()
    tiled, z = Tiled(prior, prior.image_shape), normal(2, 3, 8, 8)
    assert tiled.tiles == 1
    assert torch.equal(tiled.epsilon(z, 501), prior.epsilon(z, 501))
    assert torch.equal(tiled.decode(z), prior.decode(z))
    assert torch.equal(tiled.encode(tiled.decode(z)), prior.encode(prior.decode(z)))


@pytest.mark.parametrize("shape", [(16, 30), (38, 16), (34, 46)])
def test_parts_that_look_at_single_places_are_tiled_without_a_trace(shape):
    prior = Local()
    tiled = Tiled(prior, (3, *shape))
    z = normal(2, *tiled.latent_shape)
    assert tiled.latent_shape == (3, shape[0] // 2, shape[1] // 2)
    for ours, theirs in (
        (tiled.epsilon(z, 501), prior.epsilon(z, 501)),
        (tiled.decode(z), prior.decode(z)),
        (tiled.encode(prior.decode(z)), prior.encode(prior.decode(z))),
    ):
        # Weights are float32 and sum to 1 up to its rounding.
        assert_close(ours, theirs, rtol=0, atol=1e-6)
    ours, theirs = (
        gradient(lambda z, p=p: p.encode(p.decode(p.epsilon(z, 501))).flatten(1).square().sum(1), z)[0]
        for p in (tiled, prior)
    )
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_every_call_of_the_network_is_one_tile_with_its_prompt():
    prior = Local()
    tiled = Tiled(prior, (3, 34, 46))
    prompt = Condition(normal(2, 1, 4), normal(2, 1, 4))
    tiled.epsilon(normal(2, 3, 17, 23), 501, prompt)
    assert len(prior.given) == tiled.tiles == 3 * 4
    assert all(shape == (2, 3, 8, 8) and t == 501 and c is prompt for shape, t, c in prior.given)


def test_a_prompts_gradient_passes_through_the_tiles():
    class Prompted(Local):
        def epsilon(self, z, t, condition=None):
            return z * condition.positive.mean((1, 2))[:, None, None, None]

    z, text = normal(1, 3, 12, 8), normal(1, 2, 4)

    def total(prior):
        return gradient(lambda text: prior.epsilon(z, 501, Condition(text, text)).flatten(1).sum(1), text)[0]

    assert_close(total(Tiled(Prompted(), (3, 24, 16))), total(Prompted()), rtol=0, atol=1e-6)


def test_images_that_cannot_be_tiled_are_refused():
    prior = Local()
    for shape in ((3, 17, 32), (3, 14, 32)):
        with pytest.raises(ValueError, match="multiples of 2, and at least 16 x 16"):
            Tiled(prior, shape)
    with pytest.raises(ValueError, match="overlap"):
        Tiled(prior, (3, 32, 32), overlap=1.0)


class Disagreeing(Local):
    """A prior whose every tile comes out brighter or darker than it should, as tiles of real decoders do."""

    def decode(self, z):
        x = super().decode(z)
        return x + 0.1 * torch.sin(40 * z.mean((1, 2, 3), keepdim=True))


def seams(x: torch.Tensor, starts: list[int], side: int, factor: int) -> float:
    """Gradient energy across the places where a tile begins or ends, over that of all other places."""
    steps = (x[..., 1:] - x[..., :-1]).square().mean((0, 1, 2))
    ends = {s * factor for s in starts[1:]} | {(s + side) * factor for s in starts[:-1]}
    borders = torch.zeros(len(steps), dtype=torch.bool)
    borders[[end - 1 for end in ends]] = True
    return float(steps[borders].mean() / steps[~borders].mean())


def test_the_borders_of_tiles_have_no_more_gradient_energy_than_other_places():
    prior, smooth = Disagreeing(), torch.linspace(-1, 1, 62, dtype=torch.float64)
    z = (smooth * torch.ones(1, 3, 8, 1, dtype=torch.float64)).contiguous()
    fused, hard = (Tiled(prior, (3, 16, 124), overlap=share) for share in (0.25, 0.0))
    assert seams(hard.decode(z), hard.columns.starts, 8, 2) > 10
    assert seams(fused.decode(z), fused.columns.starts, 8, 2) < 2


@pytest.mark.parametrize("task", ["sr4", "gaussian_blur", "denoise"])
def test_a_sampler_runs_on_a_large_image_as_on_a_small_one(task):
    """The operator sees the whole image; with parts that look at single places the tiles change nothing."""
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    y, physics = tasks.measure(task, x, noise=0.01, ids=("a",))

    class Whole(Local):
        def __init__(self):
            super().__init__()
            self.latent_shape, self.image_shape = (3, 16, 24), (3, 32, 48)

    ours = Restorer(Tiled(Local(), (3, 32, 48)), PSLD(steps=4)).solve(y, physics)
    theirs = Restorer(Whole(), PSLD(steps=4)).solve(y, physics)
    assert_close(ours.image, theirs.image, rtol=0, atol=1e-4)
    tiles = 3 * 4  # 16 by 24 places in tiles of 8 that share 2
    assert ours.cost.unet_samples == tiles * theirs.cost.unet_samples
    assert ours.settings["prior"]["tiles"] == tiles
