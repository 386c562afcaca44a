"""A folder of photos on an engine: each worker restores its share as `stsl restore` would, and writes the results."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stsl.bench.engine import Engine
from stsl.photos import Corruption, Job, Prepared
from stsl.priors.load import load_prior
from stsl.restorer import Restorer
from stsl.samplers import Sampler

Pair = tuple[Path, Path]
Row = dict[str, Any]


@dataclass(frozen=True)
class Restoration:
    """How to restore photos, as plain values that can go to another process; calling it loads the prior.

    Args:
        prior: what `load_prior` takes, by name.
        sampler, corruption: as for `Job`.
        job: the rest of what `Job` takes, by name.
        resume: pass over what is done with these settings.
        threads: of PyTorch in each worker; None leaves them.
    """

    prior: Mapping[str, Any]
    sampler: Sampler
    corruption: Corruption
    job: Mapping[str, Any]
    resume: bool = False
    threads: int | None = None

    def __call__(self) -> "FolderWorker":
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        restorer = Restorer(load_prior(**self.prior), self.sampler)
        return FolderWorker(Job(restorer, self.corruption, **self.job), self.resume)


class FolderWorker:
    """Restores photos together where they are of one kind; one that fails is recorded, and the others go on."""

    def __init__(self, job: Job, resume: bool) -> None:
        self.job, self.resume = job, resume

    def __call__(self, pairs: Sequence[Pair]) -> list[Row]:
        """A row per photo: its result, its error, or that it was done already."""
        rows: list[Row] = []
        kinds: dict[tuple[object, ...], list[tuple[Prepared, Path]]] = {}
        for source, target in pairs:
            try:
                if self.resume and self.job.is_done(source, target):
                    rows.append({"input": str(source), "output": str(target), "done_already": True})
                    continue
                photo = self.job.prepare(source)
            except Exception as error:
                rows.append(_failed(source, error))
                continue
            kinds.setdefault(photo.kind, []).append((photo, target))
        for group in kinds.values():
            rows += self._restore(group)
        return rows

    def _restore(self, group: list[tuple[Prepared, Path]]) -> list[Row]:
        try:
            result = self.job.start([photo for photo, _ in group]).result()
        except Exception as error:
            if len(group) == 1:
                return [_failed(group[0][0].source, error)]
        else:
            return [
                self._finish(photo, target, result.of(place) if len(group) > 1 else result)
                for place, (photo, target) in enumerate(group)
            ]
        half = len(group) // 2
        return self._restore(group[:half]) + self._restore(group[half:])

    def _finish(self, photo: Prepared, target: Path, result: Any) -> Row:
        try:
            return photo.finish(result, target)
        except Exception as error:
            return _failed(photo.source, error)


def restore_folder(engine: Engine, restoration: Restoration, pairs: Sequence[Pair], batch: int) -> Iterator[Row]:
    """A row per photo as they are finished. Files must be where every worker sees them under the same path.

    Args:
        engine: where.
        restoration: how.
        pairs: each photo and where its result goes.
        batch: photos restored together.

    Raises:
        TypeError: the method or the operator is code of the user's own, which another process does not have.
    """
    sampler, function = type(restoration.sampler), restoration.corruption.function
    if function is not None or importlib.util.find_spec(sampler.__module__.partition(".")[0]) is None:
        raise TypeError("a method or operator from a file of your own runs with --engine local only")
    parts = [tuple(pairs[first : first + batch]) for first in range(0, len(pairs), batch)]
    for part, done in engine.run(restoration, parts):
        if isinstance(done, Exception):
            yield from (_failed(source, done) for source, _ in part)
        else:
            yield from done


def _failed(source: Path, error: Exception) -> Row:
    return {"input": str(source), "output": None, "error": str(error)}
