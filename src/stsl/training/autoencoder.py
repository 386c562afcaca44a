"""An autoencoder whose latents a diffusion prior can live on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from stsl.perceptual import LPIPS
from stsl.shapes import Image
from stsl.training.data import Pictures
from stsl.training.export import SHARD, fresh, stored_as
from stsl.training.pixel import tiled
from stsl.training.task import Inputs, Task

SHOWN, MEASURED = 16, 512
KL_WEIGHT = 1e-6  # as in latent diffusion's autoencoders


class Autoencoder(Task):
    """Reconstruction: L1 + w LPIPS, for a KL autoencoder + 1e-6 KL, and on demand what a patch critic objects to.

    Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G; the critic's hinge loss from Esser et
    al. 2021, arXiv:2012.09841.

    Args:
        size: side of the images.
        kind: "tiny" (AutoencoderTiny) or "kl" (AutoencoderKL).
        channels: of the stages; each but the last halves the side.
        latent: latent channels.
        lpips: weight of LPIPS (AlexNet); 0 needs no weights of it.
        critic: weight of the patch critic; 0 for none.

    Raises:
        ValueError: stages that the size cannot be halved into.
        FileNotFoundError: LPIPS's weights were not fetched.
    """

    def __init__(
        self,
        size: int,
        *,
        kind: str = "tiny",
        channels: Sequence[int] = (48, 48, 48),
        latent: int = 4,
        lpips: float = 0.5,
        critic: float = 0.0,
    ) -> None:
        super().__init__()
        n = len(channels)
        if size % (1 << (n - 1)):
            raise ValueError(f"size {size} cannot be halved {n - 1} times: use fewer channels")
        self.vae: AutoencoderTiny | AutoencoderKL
        if kind == "tiny":
            if len(set(channels)) > 1:
                raise ValueError(f"a tiny autoencoder has equal channels in all stages, got {list(channels)}")
            self.vae = AutoencoderTiny(
                encoder_block_out_channels=tuple(channels),
                decoder_block_out_channels=tuple(channels),
                num_encoder_blocks=(1, *(1,) * (n - 2), 3) if n > 1 else (3,),
                num_decoder_blocks=(3, *(2,) * (n - 2), 1) if n > 1 else (3,),
                latent_channels=latent,
                force_upcast=False,
            )
        elif kind == "kl":
            self.vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * n,
                up_block_types=("UpDecoderBlock2D",) * n,
                block_out_channels=tuple(channels),
                latent_channels=latent,
                norm_num_groups=16,
                sample_size=size,
            )
        else:
            raise ValueError(f"kind {kind!r} is not known: tiny or kl")
        self.lpips = LPIPS("alex") if lpips else None
        self.critic = _critic() if critic else None
        self.weights = {"lpips": lpips, "critic": critic}
        self.turns = ("main", "critic") if critic else ("main",)

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        network = self.vae if turn == "main" else self.critic
        assert network is not None
        return {"vae" if turn == "main" else "critic": network}

    def draw(self, data: Pictures, rows: Tensor, source: torch.Generator) -> Inputs:
        x = data.at(rows)
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=source) < 0.5, x.flip(-1), x)
        if isinstance(self.vae, AutoencoderTiny):
            return {"x": x}
        side = x.shape[-1] >> (len(self.vae.config.block_out_channels) - 1)
        shape = (len(x), self.vae.config.latent_channels, side, side)
        return {"x": x, "noise": torch.randn(shape, generator=source)}

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        x = 2 * inputs["x"] - 1
        drawn, divergence = self._through(x, inputs.get("noise"))
        if turn == "critic":
            assert self.critic is not None
            real, made = self.critic(x), self.critic(drawn.detach())
            return {"loss": (1 - real).relu().mean() + (1 + made).relu().mean()}
        losses = {"l1": (drawn - x).abs().mean(), "kl": divergence}
        loss = losses["l1"] + KL_WEIGHT * divergence
        if self.lpips is not None:
            losses["lpips"] = self.lpips((1 + drawn) / 2, inputs["x"]).mean()
            loss = loss + self.weights["lpips"] * losses["lpips"]
        if self.critic is not None:
            losses["objection"] = -self.critic(drawn).float().mean()
            loss = loss + self.weights["critic"] * losses["objection"]
        return {"loss": loss} | losses

    def _through(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images out of the autoencoder, and the divergence of its latents from the standard normal."""
        if isinstance(self.vae, AutoencoderTiny):
            z = self.vae.encode(x, return_dict=False)[0]
            return self.vae.decode(z, return_dict=False)[0].float(), z.new_zeros(())
        posterior = self.vae.encode(x, return_dict=False)[0]
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.vae.decode(z, return_dict=False)[0].float(), posterior.kl().mean()

    def sheet(self, data: Any) -> Image:
        x = data.at(torch.arange(min(SHOWN, len(data)))).to(next(self.parameters()).device)
        drawn, _ = self._through(2 * x - 1, None)
        rows = [torch.cat(pair) for pair in zip(x.split(8), ((1 + drawn) / 2).clamp(0, 1).split(8), strict=True)]
        return tiled(torch.cat(rows).cpu(), min(8, len(x)))

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        """Write `vae/`; its `scaling_factor` brings the latents of the data to unit variance."""
        device, z = next(self.parameters()).device, []
        with torch.no_grad():
            for rows in torch.arange(min(MEASURED, len(data))).split(32):
                out = self.vae.encode(2 * data.at(rows).to(device) - 1, return_dict=False)[0]
                z.append((out if isinstance(out, Tensor) else out.mean).float().cpu())
        self.vae.register_to_config(scaling_factor=1 / float(torch.cat(z).std()))
        with fresh(folder / "vae") as place, stored_as({"vae": self.vae}, dtype):
            self.vae.save_pretrained(place, max_shard_size=SHARD)


def _critic(width: int = 48) -> nn.Sequential:
    """Judges every patch of an image: three strided convolutions (Isola et al. 2017, arXiv:1611.07004)."""

    def stage(n: int, m: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 4, 2, 1, bias=False), nn.GroupNorm(8, m), nn.LeakyReLU(0.2)]

    first = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(
        *first, *stage(width, 2 * width), *stage(2 * width, 4 * width), nn.Conv2d(4 * width, 1, 4, 1, 1)
    )
