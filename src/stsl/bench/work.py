"""What an engine's worker does: a batch of measurements with one method, and hands back PNGs and costs."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Blur, Inpainting, LinearPhysics

from stsl import images, measurements, tasks
from stsl.bench.identity import PriorChoice
from stsl.bench.ways import Way
from stsl.measurements import OperatorInfo


@dataclass(frozen=True)
class Item:
    """A measurement to restore: its unit's key, the picture's name, and the contents of its two files."""

    key: str
    id: str
    y: bytes
    operator: bytes


@dataclass(frozen=True)
class Batch:
    """Units of equal settings, worked on together."""

    prior: PriorChoice
    way: Way
    seed: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: a PNG and what it cost, or why there is none."""

    key: str
    png: bytes | None
    error: str | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Restoring:
    """Makes the worker that does batches.

    Args:
        threads: of PyTorch in the worker; None leaves them.
    """

    threads: int | None = None

    def __call__(self) -> "Worker":
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Worker()


class Worker:
    """Does batches; the networks of the last one stay loaded."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[PriorChoice, Callable[..., Any]], Any] | None = None

    def __call__(self, batch: Batch) -> list[Outcome]:
        """An outcome per item, in order. A batch that fails is tried in halves, so that one item fails alone."""
        try:
            return self._do(batch)
        except Exception as error:  # a method may raise anything
            said = f"{type(error).__name__}: {error}"
        if len(batch.items) == 1:
            return [Outcome(batch.items[0].key, None, said, {})]
        half = len(batch.items) // 2
        return [
            done for items in (batch.items[:half], batch.items[half:]) for done in self(replace(batch, items=items))
        ]

    def networks(self, way: Way, choice: PriorChoice) -> Any:
        """What a way needs, loaded at most once in a row."""
        key = (choice, type(way).load)  # ways that load in the same way share what is loaded
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the old one goes before the new one comes
            self._loaded = (key, way.load(choice))
        return self._loaded[1]

    def _do(self, batch: Batch) -> list[Outcome]:
        loaded = self.networks(batch.way, batch.prior)
        y, physics = load_batch(batch.items)
        solved = batch.way.solve(loaded, y, physics, seed=batch.seed, ids=tuple(item.id for item in batch.items))
        facts = solved.facts | {"batch": len(batch.items)}
        return [
            Outcome(
                item.key,
                images.encode_png(solved.image[place : place + 1]),
                None,
                facts | {"residual": float(solved.residual[place])},
            )
            for place, item in enumerate(batch.items)
        ]


def load_batch(items: Sequence[Item]) -> tuple[torch.Tensor, LinearPhysics]:
    """Measurements of one task and side as a batch, with the operator of all of them.

    Raises:
        ValueError: a file is damaged, or two do not belong together.
    """
    ys, operators = [], []
    with tempfile.TemporaryDirectory() as folder:
        for place, item in enumerate(items):
            # A file each: what is loaded is a view of its file until `cat` copies it.
            y, operator = (Path(folder) / f"{place}-{kind}.safetensors" for kind in ("y", "operator"))
            y.write_bytes(item.y)
            operator.write_bytes(item.operator)
            ys.append(measurements.load_measurement(y)[0])
            operators.append(measurements.load_operator(operator))
        return torch.cat(ys), _together(operators)


def _together(operators: Sequence[tuple[LinearPhysics, OperatorInfo]]) -> LinearPhysics:
    """One operator for a batch: masks and kernels stacked, to the bit."""
    first, info = operators[0]
    if any((other.spec, other.shape, other.noise) != (info.spec, info.shape, info.noise) for _, other in operators):
        raise ValueError("operators of one batch are of one task, size and noise")
    if isinstance(first, Inpainting):
        masks = torch.cat([physics.mask for physics, _ in operators])
        return tasks.from_mask(masks, info.shape, noise=info.noise)
    if isinstance(first, Blur):
        kernels = torch.cat([physics.filter for physics, _ in operators])
        blur = tasks.from_kernel(kernels, info.shape, noise=info.noise)
        blur.update_parameters(filter=kernels)  # from_kernel divides by the sum, which could change a bit of it
        return blur
    return first
