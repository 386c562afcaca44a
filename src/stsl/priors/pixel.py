"""Diffusion models on pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel

from stsl.priors.base import Condition, Precision, noise_of
from stsl.priors.network import NetworkPrior, attend
from stsl.priors.precision import autocast
from stsl.shapes import Image, Latent


class PixelPrior(NetworkPrior):
    """A UNet on images themselves: latents are images on [-1, 1], the autoencoder is the change of range.

    A network with six output channels (learned variance) is read for its first three.

    Args:
        unet: the network, loaded.
        scheduler: the scheduler's config: betas, offset, prediction type.
        name: what the prior is called in results.
        precision: what the network computes with; states stay float32.
        commit: the hub's commit the network came from, for the record.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        compiled: run the network through `torch.compile`, at fixed shapes: the first call of each takes minutes.

    Raises:
        ValueError: a network that is not one of RGB images.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Mapping[str, Any],
        *,
        name: str,
        precision: Precision = "fp32",
        commit: str | None = None,
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        channels, out = unet.config.in_channels, unet.config.out_channels
        if channels != 3 or out not in (3, 6):
            raise ValueError(
                f"prior {name!r}: a pixel prior has 3 channels in and 3 or 6 out, this one {channels} and {out}"
            )
        if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
            raise ValueError(f"prior {name!r}: its UNet wants the class of each image, which stsl has no way to give")
        size = unet.config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        self.unet, self.family = unet, "pixel"
        self.latent_shape = self.image_shape = (3, h, w)
        attend(unet, next(unet.parameters()).device)
        self._adopt(scheduler, [unet], name, precision, commit, checkpointing, compiled)

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        with autocast(z.device, self.precision):
            out = self.unet(z, torch.tensor(t, device=z.device), return_dict=False)[0]
        return noise_of(out[:, :3].float(), z, *self.schedule.at(t), self.prediction)

    def encode(self, x: Image) -> Latent:
        return 2 * x - 1

    def decode(self, z: Latent) -> Image:
        return (1 + z) / 2

    def clip(self, z0: Latent) -> Latent:
        return z0.clamp(-1, 1)

    def networks(self) -> list[Any]:
        """The UNet."""
        return [self.unet]
