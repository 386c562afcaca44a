"""A cheap autoencoder for the gradients of most steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from stsl.priors.base import Prior, Wrapped
from stsl.priors.latent import LatentPrior
from stsl.priors.precision import autocast, store
from stsl.shapes import Image, Latent

# A tenth of the balanced preset's steps; the gradients of the last ones decide about fine detail.
LAST_STEPS = 3


class TinyDecoder(Wrapped):
    """A latent prior whose steps decode and encode with a tiny autoencoder, until the last few.

    Where a run begins, in its last steps and for its result the full autoencoder works, so residuals of results are
    those of the full one.

    Args:
        prior: the prior, with its full autoencoder.
        tiny: an `AutoencoderTiny` of the same latents, such as TAESD for Stable Diffusion 1.x and 2.x.
        name: what the tiny one is called in results.
        last: steps at the end that use the full autoencoder.

    Raises:
        ValueError: the two autoencoders have latents of different shapes.
    """

    def __init__(self, prior: LatentPrior, tiny: AutoencoderTiny, *, name: str, last: int = LAST_STEPS) -> None:
        super().__init__(prior)
        config = tiny.config
        factor = 2 ** (len(config.decoder_block_out_channels) - 1)
        given = (config.latent_channels, *(side // factor for side in self.image_shape[1:]))
        if given != self.latent_shape:
            raise ValueError(
                f"decoder {name!r} has latents of {given} where prior {prior.name!r} has {self.latent_shape}: give the "
                "tiny autoencoder that was made for this prior, or leave --decoder out"
            )
        if isinstance(prior.vae, AutoencoderTiny):
            raise ValueError(f"the autoencoder of prior {prior.name!r} is a tiny one already: leave --decoder out")
        self.called, self.last = name, last
        self.quick = _Quick(prior, tiny.requires_grad_(False).eval())

    def for_step(self, left: int) -> Prior:
        return self if left <= self.last else self.quick

    def lighten(self) -> str | None:
        change = self.prior.lighten()
        self.quick.follow()
        return change

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        with self.quick.in_fp32():
            yield

    def describe(self) -> dict[str, Any]:
        return self.prior.describe() | {"decoder": self.called, "full_decoder_steps": self.last}


class _Quick(Wrapped):
    """The prior as most steps see it."""

    def __init__(self, prior: LatentPrior, tiny: AutoencoderTiny) -> None:
        super().__init__(prior)
        self.full, self.tiny = prior, tiny
        self.follow()

    def follow(self) -> None:
        """Compute in the precision of the prior."""
        with torch.inference_mode(False), torch.no_grad():
            store(self.tiny, self.full.precision)

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        with self.full.in_fp32():
            self.follow()
            yield
        self.follow()

    def encode(self, x: Image) -> Latent:
        with autocast(x.device, self.full.precision):
            v: Tensor = self.tiny.encode(2 * x - 1, return_dict=False)[0]
        return v.float() * self.tiny.config.scaling_factor

    def decode(self, z: Latent) -> Image:
        with autocast(z.device, self.full.precision):
            x = self.tiny.decode(z / self.tiny.config.scaling_factor, return_dict=False)[0]
        return (1 + x.float()) / 2
