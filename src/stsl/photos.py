"""One photo from file to file: read, fit to the prior, restore, put back, and say how."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Inpainting

from stsl import images, measurements, tasks
from stsl.files import sha256
from stsl.images import Fit, Photo
from stsl.restorer import Restorer, Run
from stsl.result import Result, write_json
from stsl.shapes import Image, Tensor

DEFAULT_NOISE = 0.005
# A residual this many times the expected noise means a wrong operator, a wrong noise level, or too few steps. Below
# half a grey level of 255 the photo's own rounding counts as noise.
FAR_OFF = 3.0
ROUNDING = 0.5 / 255

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Corruption:
    """How photos came about: exactly one of task, mask, kernel, operator file and function.

    Args:
        task: specification of a task without random parts.
        mask: picture of what is missing, as large as the photo.
        kernel: picture of a blur kernel.
        operator: file written by `stsl degrade`.
        function: (3, H, W) -> deepinv physics, and what to call it.
        noise: std of the noise on [0, 1]; None is what an operator file says, else 0.005.

    Raises:
        ValueError: none or several of them; a task whose mask or kernel is random; a negative noise.
    """

    task: str | None = None
    mask: Path | None = None
    kernel: Path | None = None
    operator: Path | None = None
    function: tuple[Callable[[Shape], Any], str] | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("task", "mask", "kernel", "operator", "function") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"say in one way how the photo was corrupted, not in {len(given)}: --task NAME, --mask FILE, "
                "--kernel FILE or --operator FILE; `stsl list tasks` has the names"
            )
        if self.noise is not None:
            tasks.check_noise(self.noise)
        if self.task is not None and tasks.is_random(self.task):
            raise ValueError(
                f"{tasks.parse(self.task).name} draws its mask or kernel at random, and yours is another one: give it "
                "by --mask FILE or --kernel FILE, or by the --operator FILE that `stsl degrade` wrote"
            )

    def __str__(self) -> str:
        named = self.task or self.mask or self.kernel or self.operator or (self.function and self.function[1])
        return str(named)

    def physics(self, shape: Shape, known: Tensor | None = None) -> Any:
        """The operator for one image of `shape`. `known` is the mask, fitted to the prior."""
        noise = DEFAULT_NOISE if self.noise is None else self.noise
        if self.task is not None:
            return tasks.make(self.task, shape, noise=noise)
        if self.mask is not None:
            assert known is not None
            return tasks.from_mask(known, shape, noise=noise)
        if self.kernel is not None:
            return tasks.from_kernel(images.read_kernel(self.kernel), shape, noise=noise)
        if self.operator is not None:
            physics, info = measurements.load_operator(self.operator)
            if info.shape != shape:
                raise ValueError(f"{self.operator} is for images of {info.shape}, the prior makes {shape}")
            physics.noise_model.update_parameters(sigma=info.noise if self.noise is None else self.noise)
            return physics
        assert self.function is not None
        make, name = self.function
        physics = make(shape)
        if not callable(getattr(physics, "A", None)):
            raise TypeError(
                f"{name} gave {type(physics).__name__}; it must take (3, H, W) and return a deepinv physics"
            )
        return physics


@dataclass(frozen=True)
class Job:
    """How to restore a photo, whichever it is."""

    restorer: Restorer
    corruption: Corruption
    prompt: str | None = None
    samples: int = 1
    seed: int = 0
    crop: str | None = None
    resize: bool = False

    def key(self, source: Path) -> str:
        """What a result depends on, in one number: an equal key means an equal result."""
        prior, corruption = self.restorer.prior, self.corruption
        files = [path for path in (corruption.mask, corruption.kernel, corruption.operator) if path is not None]
        facts = {
            "files": [sha256(path) for path in (source, *files)],
            "corruption": [corruption.task, corruption.function and corruption.function[1], corruption.noise],
            "sampler": [type(self.restorer.sampler).__name__, self.restorer.sampler.settings()],
            "prior": prior.describe(),
            "run": [self.prompt, self.samples, self.seed, self.crop, self.resize],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def is_done(self, source: Path, target: Path) -> bool:
        """Whether `target` is already the result of this job on `source`."""
        try:
            record = json.loads(sidecar(target).read_text(encoding="utf-8"))
            return target.is_file() and record["key"] == self.key(source)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def prepare(self, source: Path) -> "Prepared":
        """Read a photo or a measurement file and fit it to the prior; no network is called yet.

        Raises:
            ValueError, TypeError, OSError: whatever makes this photo impossible to restore, with the ways out.
        """
        shape = self.restorer.prior.image_shape
        photo, fit = None, None
        if source.suffix == ".safetensors":
            y, _ = measurements.load_measurement(source)
            known = None if self.corruption.mask is None else images.read_mask(self.corruption.mask, shape[1:])
            physics = self.corruption.physics(shape, known)
        else:
            photo = images.read(source)
            if self.corruption.mask is not None:
                whole = images.read_mask(self.corruption.mask, photo.size)
                fit = images.fit(photo, shape[1:], crop=self.crop, resize=self.resize, known=whole)
                physics = self.corruption.physics(shape, fit.known)
            else:
                physics = self.corruption.physics(shape)
                fit = images.fit(photo, _measured_size(physics, shape), crop=self.crop, resize=self.resize)
            y = fit.x
        if isinstance(physics, Inpainting) and photo is not None:
            y = y * physics.mask  # what lies in a hole of the photo is no measurement
        device = self.restorer.prior.device
        run = self.restorer.frames(
            y, physics.to(device), prompt=self.prompt, seed=self.seed, ids=(source.stem,), samples=self.samples
        )
        return Prepared(self, source, photo, fit, run)


@dataclass(frozen=True)
class Prepared:
    """A photo ready to be restored: iterate over `run`, then `finish`."""

    job: Job
    source: Path
    photo: Photo | None
    fit: Fit | None
    run: Run

    def finish(self, target: Path) -> dict[str, Any]:
        """Put the restored square back, write the pictures and the JSON file beside them; return its short form.

        Raises:
            Diverged: the image is not finite; nothing is written.
            OSError: a file cannot be written; what is there stays whole.
        """
        result = self.run.result()
        pictures = {target: result.image}
        if self.job.samples > 1:
            pictures |= {_beside(target, f"sample{k}"): x for k, x in enumerate(result.samples)}
            pictures[_beside(target, "mean")] = result.mean
        for path, x in pictures.items():
            images.write(path, self._whole(x), like=self.photo)
        if self.job.samples > 1:
            # Four times the standard deviation of the restored square: a quarter of the range is white.
            images.write(_beside(target, "std"), 4 * result.std)
        row = self._row(result, target)
        record = row | {"key": self.job.key(self.source), "corruption": str(self.job.corruption)} | result.record()
        write_json(sidecar(target), record)
        return row

    def _whole(self, x: Image) -> Image:
        """The photo with the restored square in its place."""
        x = x.cpu().float()
        if self.fit is None or (self.fit.is_exact and self.fit.known is None):
            return x
        factor = x.shape[-1] // self.fit.x.shape[-1]
        return self.fit.paste(x, factor=factor, keep_known=self.run.problem.sigma_y == 0)

    def _row(self, result: Result, target: Path) -> dict[str, Any]:
        residual, expected = float(result.residual_rms), result.expected_noise_rms
        return {
            "input": str(self.source),
            "output": str(target),
            "sampler": type(self.job.restorer.sampler).__name__,
            "task": str(self.job.corruption),
            "seed": self.job.seed,
            "seconds": round(result.cost.seconds, 2),
            "network_evaluations": result.cost.unet_samples / self.job.samples,
            "residual_rms": residual,
            "expected_noise_rms": expected,
            "residual_is_far_off": expected is not None and residual > FAR_OFF * max(expected, ROUNDING),
        }


def sidecar(target: Path) -> Path:
    """The JSON file beside a result: photo.jpg.json."""
    return target.with_name(target.name + ".json")


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f"{target.stem}_{what}{target.suffix}")


def _measured_size(physics: Any, shape: Shape) -> tuple[int, int]:
    """(height, width) of what an operator makes of images of `shape`.

    Raises:
        ValueError: it makes no picture, so that no photo can be its measurement.
    """
    y = physics.A(torch.full((1, *shape), 0.5))
    if y.ndim != 4 or y.shape[1] != shape[0]:
        raise ValueError(
            f"{type(physics).__name__} makes {tuple(y.shape)} of an image, no colour picture: give its measurement as "
            "a .safetensors file as `stsl degrade` writes it"
        )
    return y.shape[-2], y.shape[-1]
