"""A diffusion prior on pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from stsl.priors.network import attend
from stsl.priors.precision import pick_device
from stsl.rng import generator
from stsl.shapes import Image
from stsl.training.data import Pictures
from stsl.training.diffusion import noised_loss
from stsl.training.export import SHARD, fresh, stored_as
from stsl.training.task import Inputs, Task

SHEET, SHEET_STEPS = 32, 40


class Pixel(Task):
    """A UNet that predicts the noise on images in [-1, 1]; DDPM's linear schedule of 1000 levels.

    Source: Ho et al. 2020, arXiv:2006.11239, Equation 14, with the weights of Hang et al. 2023, arXiv:2303.09556.

    Args:
        size: side of the images.
        channels: of the UNet's stages; each but the first halves the side.
        layers: residual blocks per stage.
        attention: sides at which the UNet attends.
        unet: go on from this network; `channels`, `layers` and `attention` are then its own.
        flip: mirror half of the pictures.
        gamma: limit of the signal-to-noise ratio as a weight.
    """

    def __init__(
        self,
        size: int,
        channels: Sequence[int] = (32, 64, 128, 160),
        *,
        layers: int = 1,
        attention: Sequence[int] = (16, 8),
        unet: UNet2DModel | None = None,
        flip: bool = True,
        gamma: float = 5.0,
    ) -> None:
        super().__init__()
        self.unet = make_unet(size, channels, layers, attention) if unet is None else unet.requires_grad_(True)
        attend(self.unet, pick_device())
        self.scheduler = DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", clip_sample=True)
        self.alpha_bar: Tensor
        self.register_buffer("alpha_bar", self.scheduler.alphas_cumprod.float(), persistent=False)
        self.flip, self.gamma = flip, gamma

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        return {"unet": self.unet}

    def draw(self, data: Pictures, rows: Tensor, source: torch.Generator) -> Inputs:
        x = 2 * data.at(rows) - 1
        if self.flip:
            turned = torch.rand(len(x), 1, 1, 1, generator=source) < 0.5
            x = torch.where(turned, x.flip(-1), x)
        t = torch.randint(len(self.alpha_bar), (len(x),), generator=source)
        return {"x": x, "t": t, "noise": torch.randn(x.shape, generator=source)}

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        def predict(z: Tensor, t: Tensor) -> Tensor:
            return self.unet(z, t, return_dict=False)[0]

        return noised_loss(predict, inputs["x"], inputs["noise"], inputs["t"], self.alpha_bar, "epsilon", self.gamma)

    def sheet(self, data: Any) -> Image:
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        pipeline = DDIMPipeline(self.unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(SHEET, generator("sheet"), num_inference_steps=SHEET_STEPS, output_type="np").images
        return tiled(torch.from_numpy(drawn).permute(0, 3, 1, 2))

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        with fresh(folder) as place, stored_as({"unet": self.unet}, dtype):
            DDPMPipeline(self.unet, self.scheduler).save_pretrained(place, max_shard_size=SHARD)


def tiled(x: Image, columns: int = 8) -> Image:
    """Images side by side in rows, shape (1, 3, H, W)."""
    rows = [torch.cat(list(row), dim=2) for row in x.split(columns) if len(row) == columns] or [torch.cat(list(x), 2)]
    return torch.cat(rows, dim=1)[None]


def make_unet(size: int, channels: Sequence[int], layers: int, attention: Sequence[int]) -> UNet2DModel:
    """A UNet on images, without weights.

    Raises:
        ValueError: a size that cannot be halved that often.
    """
    stages = [size >> index for index in range(len(channels))]
    if size % (1 << (len(channels) - 1)):
        raise ValueError(f"size {size} cannot be halved {len(channels) - 1} times: use fewer channels")
    attends = [side in attention for side in stages]
    return UNet2DModel(
        sample_size=size,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=32,
        norm_num_groups=16,
    )
