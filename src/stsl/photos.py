"""Photos from file to file: read, fit to the prior, restore, put back, and say how."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Inpainting

from stsl import images, measurements, tasks
from stsl.files import sha256
from stsl.images import Box, Fit, Photo
from stsl.priors.base import Prior
from stsl.priors.tiled import Tiled
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

    @cached_property
    def fingerprints(self) -> list[str]:
        """SHA-256 of the files it comes from."""
        return [sha256(path) for path in (self.mask, self.kernel, self.operator) if path is not None]

    @cached_property
    def _kernel(self) -> Tensor:
        assert self.kernel is not None
        return images.read_kernel(self.kernel)

    @cached_property
    def _operator(self) -> tuple[Any, measurements.OperatorInfo]:
        assert self.operator is not None
        return measurements.load_operator(self.operator)

    def shape(self, otherwise: Shape) -> Shape:
        """The shape of the images that an operator file is for; of any other corruption `otherwise`."""
        return otherwise if self.operator is None else self._operator[1].shape

    def physics(self, shape: Shape, known: Tensor | None = None) -> Any:
        """The operator for images of `shape`. `known` are their masks, fitted to the prior, (B, 1, H, W)."""
        noise = DEFAULT_NOISE if self.noise is None else self.noise
        if self.task is not None:
            return tasks.make(self.task, shape, noise=noise)
        if self.mask is not None:
            assert known is not None
            return tasks.from_mask(known, shape, noise=noise)
        if self.kernel is not None:
            return tasks.from_kernel(self._kernel, shape, noise=noise)
        if self.operator is not None:
            physics, info = self._operator
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
    """How to restore photos, whichever they are.

    Args:
        restorer, corruption, prompt, samples, seed: as for `Restorer.frames`.
        crop, resize, box: as for `images.fit`.
        tiles: restore the whole photo at its own size, in overlapping tiles.
        batch: samples of one photo that are drawn together.
        code: files of the user's own code that the result depends on.
        max_megapixels: limit on the pixels of a photo or mask.
    """

    restorer: Restorer
    corruption: Corruption
    prompt: str | None = None
    samples: int = 1
    seed: int = 0
    crop: str | None = None
    resize: bool = False
    tiles: bool = False
    batch: int = 1
    code: tuple[Path, ...] = ()
    box: Box | None = None
    max_megapixels: float = 64

    def __post_init__(self) -> None:
        if self.tiles and (self.crop is not None or self.resize or self.box is not None):
            other = "--resize" if self.resize else f"--crop {self.crop or 'a box'}"
            raise ValueError(f"--tiles restores the whole photo at its own size, and {other} does not: choose one")
        assert self._prior  # told now, before anything is changed

    def key(self, source: Path) -> str:
        """What a result depends on, in one number: an equal key means an equal result."""
        corruption = self.corruption
        facts = {
            "files": [sha256(source), *corruption.fingerprints, *self._code],
            "corruption": [corruption.task, corruption.function and corruption.function[1], corruption.noise],
            "sampler": [type(self.restorer.sampler).__name__, self.restorer.sampler.settings()],
            "prior": self._prior,
            "run": [self.prompt, self.samples, self.seed, self.crop, self.resize, self.tiles],
        }
        if self.box is not None:
            facts["box"] = vars(self.box)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _code(self) -> list[str]:
        return [sha256(path) for path in self.code]

    @cached_property
    def _prior(self) -> dict[str, Any]:
        """The prior as it was asked for; what is changed when memory runs out is not part of the key."""
        return self.restorer.prior.describe()

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
        if self.tiles:
            shape = self.corruption.shape(shape)
        if source.suffix == ".safetensors":
            y, _ = measurements.load_measurement(source)
            known = None if self.corruption.mask is None else images.read_mask(self.corruption.mask, shape[1:])
            return Prepared(self, source, None, None, y, known, shape)
        limit, mask = self.max_megapixels, self.corruption.mask
        photo = images.read(source, max_megapixels=limit)
        known = None if mask is None else images.read_mask(mask, photo.size, max_megapixels=limit)
        size = shape[1:] if known is not None else _measured_size(self.corruption.physics(shape), shape)
        if self.tiles:
            size, shape = self._whole(photo.size, size, shape)
            fit = images.cover(photo, size, known=known)
        else:
            fit = images.fit(photo, size, crop=self.crop, resize=self.resize, box=self.box, known=known)
        return Prepared(self, source, photo, fit, fit.x, fit.known, shape)

    def _whole(self, photo: tuple[int, int], measured: tuple[int, int], shape: Shape) -> tuple[tuple[int, int], Shape]:
        """The least size that holds a whole photo, as it was measured and as it will be restored.

        Args:
            photo: (height, width) of the photo.
            measured: (height, width) that the operator makes of images of `shape`.
        """
        prior, sides = self.restorer.prior, shape[1:]
        reduction = sides[0] // measured[0]
        if tuple(reduction * side for side in measured) != sides:
            raise ValueError(f"the operator makes {measured} of {sides}, no whole fraction: --tiles cannot enlarge it")
        # Both the latents' grid and the operator's must fit.
        unit, tile = math.lcm(prior.image_shape[1] // prior.latent_shape[1], reduction), prior.image_shape[1:]
        height, width = (
            max(-(-reduction * side // unit) * unit, least) for side, least in zip(photo, tile, strict=True)
        )
        shape = self.corruption.shape((3, height, width))
        return (shape[1] // reduction, shape[2] // reduction), shape

    def start(self, photos: "Sequence[Prepared]") -> Run:
        """Restore photos together: those of one `kind`, each as it would be alone."""
        first, prior = photos[0], self.restorer.prior
        known = None if first.known is None else torch.cat([photo.known for photo in photos if photo.known is not None])
        physics, y = self.corruption.physics(first.shape, known), torch.cat([photo.y for photo in photos])
        if isinstance(physics, Inpainting) and first.photo is not None:
            y = y * physics.mask.to(y)  # what lies in a hole of the photo is no measurement
        whole: Prior = prior if first.shape == prior.image_shape else Tiled(prior, first.shape)
        return Restorer(whole, self.restorer.sampler).frames(
            y,
            physics.to(prior.device),
            prompt=self.prompt,
            seed=self.seed,
            ids=tuple(photo.source.stem for photo in photos),
            samples=self.samples,
            batch=self.batch,
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo or a measurement, ready to be restored.

    Args:
        job: how.
        source: the file.
        photo, fit: the photo and how it went to the prior's size; None for a measurement file.
        y: the measurement, (1, C, h, w).
        known: the mask that goes with it, if any.
        shape: (3, H, W) of the image to find.
    """

    job: Job
    source: Path
    photo: Photo | None
    fit: Fit | None
    y: Tensor
    known: Tensor | None
    shape: Shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What photos must have in common to be restored together."""
        return tuple(self.y.shape), self.shape, self.known is None, self.photo is None

    def finish(self, result: Result, target: Path) -> dict[str, Any]:
        """Put the restored square back, write the pictures and the JSON file beside them; return its short form.

        Args:
            result: of this photo alone; see `Result.of`.
            target: where the restored photo goes.

        Raises:
            OSError: a file cannot be written; what is there stays whole.
        """
        pictures = {target: result.image}
        if self.job.samples > 1:
            pictures |= {_beside(target, f"sample{k}"): x for k, x in enumerate(result.samples)}
            pictures[_beside(target, "mean")] = result.mean
        for path, x in pictures.items():
            images.write(path, self.whole(x, keep_known=result.expected_noise_rms == 0), like=self.photo)
        if self.job.samples > 1:
            # Four times the standard deviation of the restored square: a quarter of the range is white.
            images.write(_beside(target, "std"), 4 * result.std)
        row = self._row(result, target)
        record = row | {"key": self.job.key(self.source), "corruption": str(self.job.corruption)} | result.record()
        write_json(sidecar(target), record)
        return row

    def whole(self, x: Image, *, keep_known: bool = False) -> Image:
        """The photo with a restored or edited square in its place.

        Args:
            x: the square.
            keep_known: as for `Fit.paste`.
        """
        x = x.cpu().float()
        if self.fit is None or (self.fit.is_exact and self.fit.known is None):
            return x
        factor = x.shape[-1] // self.fit.x.shape[-1]
        return self.fit.paste(x, factor=factor, keep_known=keep_known)

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
