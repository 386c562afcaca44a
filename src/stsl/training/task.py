"""What can be trained: networks, a loss, and a folder to write them to."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stsl.rng import generator
from stsl.shapes import Image

Inputs = Mapping[str, Tensor]


class Task(nn.Module, ABC):
    """Networks and the loss that trains them.

    The loop calls `draw` for the inputs of a step, `forward` for its losses and `moved` after the optimiser; the
    numbers that `draw` takes at random all come from the generator it is given, so a step is a function of the weights
    and of its index.
    """

    turns: tuple[str, ...] = ("main",)
    """Optimisers that take turns in every step; each has parameters of its own."""

    @abstractmethod
    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        """The networks that a turn trains."""

    @abstractmethod
    def draw(self, data: Any, rows: Tensor, source: torch.Generator) -> Inputs:
        """Inputs of a step, on the CPU: pictures `rows` of the data, and whatever is random."""

    @abstractmethod
    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        """`loss`, a scalar to descend, and other scalars worth logging."""

    def moved(self, step: int) -> None:
        """After the optimisers of a step: for networks that follow others."""

    @abstractmethod
    def sheet(self, data: Any) -> Image | None:
        """Pictures that show how far the training is, shape (1, 3, H, W), or nothing."""

    @abstractmethod
    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        """Write the networks in the layout of diffusers or transformers."""

    def trained(self, turn: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of a turn by name."""
        for part, network in self.parts(turn).items():
            for name, parameter in network.named_parameters():
                if parameter.requires_grad:
                    yield f"{part}.{name}", parameter

    def kept(self) -> dict[str, Tensor]:
        """Buffers that change while training, and networks that only follow: what a checkpoint needs besides."""
        return {}


@contextmanager
def weights_from(seed: int) -> Iterator[None]:
    """Networks made in the block get weights that depend on the seed alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(generator(seed, "weights").get_state())
        yield
