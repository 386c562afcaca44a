"""Latent diffusion models in the layout of Stable Diffusion."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from stsl.priors.base import Condition, Precision, noise_of
from stsl.priors.network import NetworkPrior, attend
from stsl.priors.precision import autocast
from stsl.shapes import Image, Latent

log = logging.getLogger("stsl")

# What a UNet may ask for beside a text, and an autoencoder beside its scaling factor; none of them can stsl give.
UNET_EXTRAS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type", "encoder_hid_dim")
VAE_EXTRAS = ("latents_mean", "latents_std")


class LatentPrior(NetworkPrior):
    """An autoencoder, a text-conditional UNet on its latents, and a CLIP text encoder.

    Stable Diffusion 1.x and 2.x (noise and v prediction), their fine-tunes, and small models of that layout.

    Latents are scaled to unit variance: z = scaling_factor (v − shift), v the autoencoder's own latent, and its
    posterior mean where the encoder gives a distribution.

    Args:
        unet, vae, text_encoder, tokenizer: the parts, loaded.
        scheduler: the scheduler's config: betas, offset, prediction type.
        name: what the prior is called in results.
        precision: what the networks compute with; states stay float32.
        commit: the hub's commit the networks came from, for the record.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        compiled: run networks through `torch.compile`, at fixed shapes: the first call of each shape takes minutes.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Mapping[str, Any],
        *,
        name: str,
        precision: Precision = "fp32",
        commit: str | None = None,
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        channels, size = vae.config.latent_channels, unet.config.sample_size
        if (unet.config.in_channels, unet.config.out_channels) != (channels, channels):
            raise ValueError(
                f"prior {name!r}: its UNet takes {unet.config.in_channels} channels and gives "
                f"{unet.config.out_channels}, its autoencoder has {channels} latent ones; inpainting and depth "
                "variants are not priors of plain images"
            )
        extras = [(unet, key) for key in UNET_EXTRAS] + [(vae, key) for key in VAE_EXTRAS]
        if asked := [key for network, key in extras if network.config.get(key) is not None]:
            raise ValueError(f"prior {name!r} asks for {', '.join(asked)}: not a model in the layout of SD 1.x or 2.x")
        if vae.config.in_channels != 3 or vae.config.out_channels != 3:
            raise ValueError(f"prior {name!r}: its autoencoder is not one of RGB images")
        self.scaling, self.shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)
        if not (math.isfinite(self.shift) and math.isfinite(self.scaling) and self.scaling > 0):
            raise ValueError(f"prior {name!r}: scaling factor {self.scaling} and shift {self.shift} make no latents")
        if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
            raise ValueError(
                f"prior {name!r}: its UNet attends to {unet.config.cross_attention_dim} numbers per token, its text "
                f"encoder gives {text_encoder.config.hidden_size}"
            )
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.has_text = True
        h, w = (size, size) if isinstance(size, int) else size
        factor = 2 ** (len(_blocks(vae)) - 1)
        self.latent_shape = (channels, h, w)
        self.image_shape = (3, factor * h, factor * w)
        attend(unet, next(unet.parameters()).device)
        parts = [unet, vae.encoder, vae.decoder]
        self._adopt(scheduler, parts, name, precision, commit, checkpointing, compiled)
        self._empty: Condition | None = None

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        if condition is None:
            condition = self.empty.repeat(z.shape[0])
        if condition.is_guided:
            negative, positive = self._predict(
                torch.cat([z, z]), t, torch.cat([condition.negative, condition.positive])
            ).chunk(2)
            prediction = negative + condition.scale * (positive - negative)
        else:
            prediction = self._predict(z, t, condition.positive)
        return noise_of(prediction, z, *self.schedule.at(t), self.prediction)

    def _predict(self, z: Tensor, t: int, text: Tensor) -> Tensor:
        with autocast(z.device, self.precision):
            out = self.unet(z, torch.tensor(t, device=z.device), encoder_hidden_states=text, return_dict=False)[0]
        return out.float()

    def encode(self, x: Image) -> Latent:
        with autocast(x.device, self.precision):
            out = self.vae.encode(2 * x - 1, return_dict=False)[0]
            v = out if isinstance(out, Tensor) else out.mode()
        return (v.float() - self.shift) * self.scaling

    def decode(self, z: Latent) -> Image:
        with autocast(z.device, self.precision):
            x = self.vae.decode(z / self.scaling + self.shift, return_dict=False)[0]
        return (1 + x.float()) / 2

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        # One text at a time, each once: an embedding depends on its text alone, never on the batch.
        known = {text: self._embed(text) for text in dict.fromkeys([*prompts, negative])}
        positive = torch.cat([known[text] for text in prompts])
        return Condition(positive, known[negative].repeat(len(prompts), 1, 1), scale)

    @property
    def empty(self) -> Condition:
        """The empty prompt, embedded once."""
        if self._empty is None or self._empty.positive.device != self.device:
            self._empty = self.condition("")
        return self._empty

    def _embed(self, text: str) -> Tensor:
        # Not tokenizer.model_max_length: some hub folders leave it at 1e30.
        length = self.text_encoder.config.max_position_embeddings
        padded = self.tokenizer(text, padding="max_length", max_length=length, verbose=False, return_tensors="pt")
        tokens = padded.input_ids
        if tokens.shape[1] > length:
            log.warning("only %d of the %d tokens of the prompt are used: %r", length, tokens.shape[1], text)
            tokens = torch.cat([tokens[:, : length - 1], tokens[:, -1:]], 1)  # the last one says that the text ends
        with torch.inference_mode(False), torch.no_grad():
            return self.text_encoder(tokens.to(self.device), return_dict=False)[0].float()

    def networks(self) -> list[Any]:
        """UNet and autoencoder; the text encoder runs once and stays as it is."""
        return [self.unet, self.vae]


def _blocks(vae: AutoencoderKL | AutoencoderTiny) -> list[int]:
    """Channels of the autoencoder's stages; each but the last halves the side."""
    config = vae.config
    stages: list[int] = (
        config.encoder_block_out_channels if isinstance(vae, AutoencoderTiny) else config.block_out_channels
    )
    return stages
