"""What a run costs: network evaluations forward and backward, and seconds."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stsl.priors.base import Condition, Prior
from stsl.shapes import Image, Latent


@dataclass
class Cost:
    """Counts of a run.

    Attributes:
        unet_calls: calls of the network, whatever their batch.
        unet_samples, unet_backward_samples: rows that went through it, forward and backward.
        decoder_samples, decoder_backward_samples, encoder_samples, encoder_backward_samples: those of the
            autoencoder.
        seconds: from the first network call to the last.
    """

    unet_calls: int = 0
    unet_samples: int = 0
    unet_backward_samples: int = 0
    decoder_samples: int = 0
    decoder_backward_samples: int = 0
    encoder_samples: int = 0
    encoder_backward_samples: int = 0
    seconds: float = 0.0

    def per_image(self, images: int) -> dict[str, float]:
        """Every count but the calls divided by the number of images."""
        counts = dataclasses.asdict(self)
        return {key: value if key == "unet_calls" else value / images for key, value in counts.items()}


class Metered(Prior):
    """A prior that counts what is asked of it, and is otherwise the one it wraps.

    A backward pass is counted when the gradient reaches the network's output, not when it might.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.cost = prior, Cost()
        self.name, self.schedule, self.has_text, self.family = prior.name, prior.schedule, prior.has_text, prior.family
        self.latent_shape, self.image_shape = prior.latent_shape, prior.image_shape

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        rows = z.shape[0] * (2 if condition is not None and condition.is_guided else 1)
        self.cost.unet_calls += 1
        self.cost.unet_samples += rows
        return self._count(self.prior.epsilon(z, t, condition), "unet_backward_samples", rows)

    def encode(self, x: Image) -> Latent:
        self.cost.encoder_samples += x.shape[0]
        return self._count(self.prior.encode(x), "encoder_backward_samples", x.shape[0])

    def decode(self, z: Latent) -> Image:
        self.cost.decoder_samples += z.shape[0]
        return self._count(self.prior.decode(z), "decoder_backward_samples", z.shape[0])

    def _count(self, out: Tensor, what: str, rows: int) -> Tensor:
        if out.requires_grad:
            cost = self.cost

            def counted(_: Tensor) -> None:
                setattr(cost, what, getattr(cost, what) + rows)

            out.register_hook(counted)
        return out

    def clip(self, z0: Latent) -> Latent:
        return self.prior.clip(z0)

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        return self.prior.condition(prompt, negative=negative, scale=scale)

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()
