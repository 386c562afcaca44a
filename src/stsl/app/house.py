"""What the application has: models, limits, a folder, and one place to compute."""

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stsl.priors.base import Prior
from stsl.samplers import Sampler

# Every event that computes has this concurrency id, so that gradio's queue runs one of them at a time.
QUEUE = "job"


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Args:
        megapixels: of an upload, from its header.
        upload_mb: bytes of an upload, in millions.
        seconds: that one job may compute.
        samples: that one job may draw.
        keep_seconds: how long results stay on the disk.
    """

    megapixels: float = 24
    upload_mb: int = 32
    seconds: float = 900
    samples: int = 8
    keep_seconds: float = 3600


@dataclass(frozen=True, eq=False)
class House:
    """What all visitors share.

    Args:
        priors: loaded, by the names that visitors choose from; the first one is the default.
        folder: for results, one folder per job; it is the application's own.
        limits: what a visitor may ask for.
        estimates: what runs were found to take, by what they depend on.
    """

    priors: Mapping[str, Prior]
    folder: Path
    limits: Limits = field(default_factory=Limits)
    estimates: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    _place: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if not self.priors:
            raise ValueError("the application needs at least one prior")

    def prior(self, name: str) -> Prior:
        """A loaded prior by its name.

        Raises:
            ValueError: it is not loaded. Nobody but who starts the application decides what is loaded.
        """
        if name not in self.priors:
            raise ValueError(f"there is no model {name!r} here; there are {', '.join(self.priors)}")
        return self.priors[name]

    def prior_for(self, method: type[Sampler]) -> str:
        """The name of the first prior of a method's family.

        Raises:
            ValueError: none is of that family.
        """
        for name, prior in self.priors.items():
            if method.family in (prior.family, "any"):
                return name
        raise ValueError(
            f"{method.__name__} works on {method.family} models, and none is loaded here: choose another method"
        )

    @property
    def examples(self) -> Path:
        """Where the example pictures are, which stay."""
        return self.folder / "examples"

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Wait for the place to compute, and keep it.

        A job that was cancelled leaves it after its step under way, which gradio's queue does not wait for.
        """
        self._place.acquire()
        try:
            yield
        finally:
            self._place.release()

    @property
    def is_busy(self) -> bool:
        """Whether somebody computes."""
        return self._place.locked()

    def new_folder(self) -> Path:
        """An empty folder for a job, under a name nobody can guess; folders of old jobs are deleted."""
        self.sweep()
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def sweep(self) -> None:
        """Delete what was written longer ago than results are kept."""
        if not self.folder.is_dir():
            return
        left = [path for path in self.folder.rglob("*") if not path.is_relative_to(self.examples)]
        # All are looked at before any is deleted, which makes the folders around it new again.
        for path in sorted(filter(self._is_old, left), reverse=True):
            try:
                path.rmdir() if path.is_dir() else path.unlink()
            except OSError:  # a folder that is not empty, or what another job swept
                continue

    def _is_old(self, path: Path) -> bool:
        try:
            return time.time() - path.stat().st_mtime > self.limits.keep_seconds
        except FileNotFoundError:  # another job swept it
            return False
