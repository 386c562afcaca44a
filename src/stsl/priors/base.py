"""What a sampler may ask of a prior."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stsl.schedule import Schedule
from stsl.shapes import Image, Latent

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Condition:
    """A prompt as the network takes it.

    Args:
        positive: embedding of the prompt, shape (B, L, D).
        negative: embedding of the negative prompt, same shape.
        scale: guidance, ε = ε_neg + scale (ε_pos − ε_neg); 1 is the prompt alone.
    """

    positive: Tensor
    negative: Tensor
    scale: float = 1.0

    @property
    def is_guided(self) -> bool:
        """Whether the negative half changes the prediction, so that the network must see it."""
        return self.scale != 1.0 and not torch.equal(self.positive, self.negative)

    def repeat(self, n: int) -> "Condition":
        """The condition of a batch repeated `n` times: [all images, all images, ...]."""
        return Condition(self.positive.repeat(n, 1, 1), self.negative.repeat(n, 1, 1), self.scale)


class Prior(nn.Module, ABC):
    """A frozen diffusion model of images, seen through an encoder and a decoder.

    Images are in [0, 1]; what range the network works in, and how latents are scaled, nobody outside needs to know.

    Attributes:
        name: what `load_prior` was given.
        schedule: noise levels.
        latent_shape: (C, h, w) of a latent.
        image_shape: (3, H, W) of an image.
        has_text: whether prompts change the prediction.
        family: "latent" or "pixel". Results of the two are never ranked together.
        tiles: rows of the network that one row of latents costs; above 1 where an image is larger than the network.
    """

    name: str
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    has_text: bool = False
    family: Literal["latent", "pixel"] = "latent"
    tiles: int = 1

    @abstractmethod
    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        """Predicted noise of unit variance at level `t`, whatever the network was trained to predict.

        Args:
            z: noisy latents, shape (B, C, h, w).
            t: timestep in [0, levels).
            condition: prompt for each of the B rows; None is the empty prompt.
        """

    @abstractmethod
    def encode(self, x: Image) -> Latent:
        """Latents of images, (B, 3, H, W) in [0, 1] -> (B, C, h, w), without sampling."""

    @abstractmethod
    def decode(self, z: Latent) -> Image:
        """Images of latents, never clamped: a clamp would stop the gradient of a saturated pixel."""

    def clip(self, z0: Latent) -> Latent:
        """Bring an estimate into the range of the training data: the identity unless latents are pixels."""
        return z0

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        """Embed one prompt per image.

        Raises:
            TypeError: this prior has no text encoder.
        """
        raise TypeError(f"prior {self.name!r} has no text encoder, so it cannot take the prompt {prompt!r}")

    def for_step(self, left: int) -> "Prior":
        """The prior that a step uses when `left` steps are left, itself among them.

        This one, unless it has a cheaper autoencoder for the steps before the last ones.
        """
        return self

    def lighten(self) -> str | None:
        """Change, for good, to the next setting that takes less memory; say what changed, or None at the end."""
        return None

    @property
    def is_narrow(self) -> bool:
        """Whether networks compute in half precision."""
        return False

    def in_fp32(self) -> AbstractContextManager[None]:
        """Compute in float32 inside the block: for a step that came out not finite in half precision."""
        return nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of states and results; float32 or wider."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of this prior."""
        return {
            "name": self.name,
            "family": self.family,
            "image_shape": list(self.image_shape),
            "latent_shape": list(self.latent_shape),
            "has_text": self.has_text,
            "device": str(self.device),
        }


class Wrapped(Prior):
    """A prior around another one, which answers whatever a wrapper does not answer itself."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        self.name, self.schedule, self.has_text, self.family = prior.name, prior.schedule, prior.has_text, prior.family
        self.latent_shape, self.image_shape, self.tiles = prior.latent_shape, prior.image_shape, prior.tiles

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        return self.prior.epsilon(z, t, condition)

    def encode(self, x: Image) -> Latent:
        return self.prior.encode(x)

    def decode(self, z: Latent) -> Image:
        return self.prior.decode(z)

    def clip(self, z0: Latent) -> Latent:
        return self.prior.clip(z0)

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        return self.prior.condition(prompt, negative=negative, scale=scale)

    def lighten(self) -> str | None:
        return self.prior.lighten()

    @property
    def is_narrow(self) -> bool:
        return self.prior.is_narrow

    def in_fp32(self) -> AbstractContextManager[None]:
        return self.prior.in_fp32()

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    @property
    def device(self) -> torch.device:
        return self.prior.device

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()


def noise_of(prediction: Tensor, z: Tensor, scale: float, sigma: float, kind: str) -> Tensor:
    """Noise of unit variance from what a network predicts, at z = scale z₀ + sigma ε.

    "epsilon": ε itself;  "v_prediction": v = scale ε − sigma z₀, so ε = scale v + sigma z;
    "sample": z₀, so ε = (z − scale z₀) / sigma.

    Source for v: Salimans and Ho 2022, arXiv:2202.00512, appendix D.

    Raises:
        ValueError: another kind of prediction.
    """
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return scale * prediction + sigma * z
    if kind == "sample":
        return (z - scale * prediction) / sigma
    raise ValueError(f"prediction type {kind!r} is not known: epsilon, v_prediction and sample are")
