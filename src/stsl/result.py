"""What a restoration leaves behind."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stsl.cost import Cost
from stsl.files import atomic
from stsl.loop import Frame
from stsl.shapes import Image, Measurement, PerImage, Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """Restored images, and everything needed to make them again.

    Args:
        samples: posterior samples, shape (K, B, 3, H, W) in [0, 1].
        y: the measurement.
        residual_rms: rms of y − A(x) of the first sample over what was measured, shape (B,), on [0, 1].
        expected_noise_rms: noise level on [0, 1]; None if unknown.
        cost: counts of the whole run.
        nfe_paper: network evaluations per image as the paper counts them.
        log: numbers of every step.
        frames: kept frames.
        settings: sampler, prior, operator, seed, ids.
    """

    samples: Tensor
    y: Measurement
    residual_rms: PerImage
    expected_noise_rms: float | None
    cost: Cost
    nfe_paper: int
    log: tuple[Mapping[str, Any], ...]
    frames: tuple[Frame, ...]
    settings: Mapping[str, Any]

    @property
    def image(self) -> Image:
        """The first sample, (B, 3, H, W) in [0, 1]."""
        return self.samples[0]

    @property
    def mean(self) -> Image:
        """Mean of the samples."""
        return self.samples.mean(0)

    @property
    def std(self) -> Image:
        """Standard deviation of the samples per pixel: where it is bright, detail is invented. Zero for one sample."""
        return self.samples.std(0, unbiased=False)

    def of(self, index: int) -> "Result":
        """The result of one image of the batch; its cost and seconds are its share of them."""
        images, one = self.y.shape[0], slice(index, index + 1)
        log = [
            {key: value[one] if isinstance(value, list) else value for key, value in entry.items()}
            for entry in self.log
        ]
        return replace(
            self,
            samples=self.samples[:, one],
            y=self.y[one],
            residual_rms=self.residual_rms[one],
            cost=self.cost.share(images),
            log=tuple(log),
            frames=(),
            settings={**self.settings, "ids": [self.settings["ids"][index]], "batch": images},
        )

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        images = self.y.shape[0] * self.samples.shape[0]
        return {
            **self.settings,
            "samples": self.samples.shape[0],
            "residual_rms": self.residual_rms.tolist(),
            "expected_noise_rms": self.expected_noise_rms,
            "nfe_paper": self.nfe_paper,
            "unet_samples": self.cost.unet_samples / images,
            "cost_per_image": self.cost.per_image(images),
            "seconds": self.cost.seconds,
            "versions": versions(),
            "log": [dict(entry) for entry in self.log],
        }

    def save(self, folder: str | Path) -> Path:
        """Write `run.json` and a PNG per image; with several samples also each of them, their mean, four times std.

        Every file appears whole or not at all. Returns the folder.

        Raises:
            ValueError: two images have one name.
            OSError: the folder cannot be written.
        """
        from stsl import images

        folder = Path(folder)
        names = [images.safe_stem(name) for name in self.settings["ids"]]
        if len(set(names)) < len(names):
            raise ValueError(f"ids {self.settings['ids']} become files {names}: give each image a name of its own")
        for b, name in enumerate(names):
            images.write(folder / f"{name}.png", self.image[b : b + 1])
            if len(self.samples) > 1:
                for k, sample in enumerate(self.samples):
                    images.write(folder / f"{name}_sample{k}.png", sample[b : b + 1])
                images.write(folder / f"{name}_mean.png", self.mean[b : b + 1])
                images.write(folder / f"{name}_std.png", (self.std[b : b + 1] * 4).clamp(0, 1))
        write_json(folder / "run.json", self.record())
        return folder


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON; the file appears whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    names = ("stsl", "torch", "deepinv", "diffusers", "transformers")
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in names}
        | {"threads": str(torch.get_num_threads())}
    )
