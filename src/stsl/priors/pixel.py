"""Diffusion models on pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel

from stsl.priors.base import Condition, Precision, Prior, noise_of
from stsl.priors.precision import autocast, store
from stsl.schedule import VariancePreserving
from stsl.shapes import Image, Latent


class PixelPrior(Prior):
    """A UNet on images themselves: latents are images on [-1, 1], the autoencoder is the change of range.

    A network with six output channels (learned variance) is read for its first three.

    Args:
        unet: the network, loaded.
        scheduler: the scheduler's config: betas, offset, prediction type.
        name: what the prior is called in results.
        precision: what the network computes with; states stay float32.
        commit: the hub's commit the network came from, for the record.

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
        self.unet, self.name, self.precision, self.commit, self.family = unet, name, precision, commit, "pixel"
        self.schedule = VariancePreserving.from_config(scheduler)
        self.prediction = str(scheduler.get("prediction_type", "epsilon"))
        noise_of(torch.zeros(1), torch.zeros(1), 1.0, 1.0, self.prediction)  # refuse it now, not in the first step
        self.latent_shape = self.image_shape = (3, h, w)
        store(unet, precision)
        self.requires_grad_(False).eval()

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

    def describe(self) -> dict[str, Any]:
        more = {"precision": self.precision, "prediction": self.prediction, "commit": self.commit}
        return super().describe() | more
