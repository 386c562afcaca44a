"""A small world in float64 where everything is known, for the tests of all folders."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from deepinv.physics import Physics
from torch import Tensor

from stsl import tasks
from stsl.priors.base import Condition, Prior
from stsl.priors.gaussian import GaussianPrior


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64 that no global state changes."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class World:
    """A prior, true images drawn near it, and the measurements of any task."""

    prior: Prior
    x: Tensor
    ids: tuple[str, ...] = ("a", "b")

    def measure(self, spec: str = "random_inpaint", ids: tuple[str, ...] | None = None) -> tuple[Tensor, Physics]:
        """(y, physics) of the images called `ids`; what is random about an image depends on its name only."""
        names = self.ids if ids is None else ids
        rows = [self.ids.index(name) for name in names]
        y, physics = tasks.measure(spec, self.x[rows], noise=0.01, ids=names)
        return y.double(), physics


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices of some hundred rows take longer on two threads than on one, many times longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world(one_thread: None) -> World:
    """Latents (4, 8, 8), images (3, 8, 8): the decoder is linear and takes many latents to one image."""
    d, p = 4 * 8 * 8, 3 * 8 * 8
    root = normal(d, d, seed=1) / d**0.5
    prior = GaussianPrior(
        0.3 * normal(4, 8, 8, seed=2),
        root @ root.T + 0.1 * torch.eye(d, dtype=torch.float64),
        decoder=normal(p, d, seed=3) / (2 * d**0.5),
        image_shape=(3, 8, 8),
    )
    return World(prior, prior.decode(normal(2, 4, 8, 8, seed=4)).clamp(0, 1))


class Unasked(Prior):
    """A prior whose network fails the test that calls it."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        self.name, self.schedule = "unasked", prior.schedule
        self.latent_shape, self.image_shape = prior.latent_shape, prior.image_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def epsilon(self, z: Tensor, t: int, condition: Condition | None = None) -> Tensor:
        raise AssertionError("the network was called")

    encode = decode = epsilon


@pytest.fixture
def unasked(world: World) -> Prior:
    """The world's prior, but its network, encoder and decoder must not be called."""
    return Unasked(world.prior)
