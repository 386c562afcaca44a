"""A text-conditional diffusion prior on latents."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from stsl.priors.network import attend
from stsl.priors.precision import pick_device
from stsl.rng import generator
from stsl.shapes import Image
from stsl.training.captions import Captions, token_ids
from stsl.training.diffusion import noised_loss
from stsl.training.export import SHARD, fresh, stored_as
from stsl.training.latents import Latents
from stsl.training.pixel import tiled
from stsl.training.task import Inputs, Task

SHEET, SHEET_STEPS, GUIDANCE = 16, 30, 3.0


class LatentDiffusion(Task):
    """A UNet and its text encoder that predict the noise on latents; the schedule of Stable Diffusion.

    Source: Rombach et al. 2022, arXiv:2112.10752, Equation 3; weights of Hang et al. 2023, arXiv:2303.09556; captions
    left out for guidance as in Ho & Salimans 2022, arXiv:2207.12598.

    Args:
        vae: the autoencoder, for the sheets and the folder; it is not trained.
        unet, text_encoder: what is trained.
        tokenizer: of the text encoder.
        captions: what a picture is called.
        prediction: epsilon or v_prediction.
        empty: share of captions that are left out.
        flip: mirror half of the pictures.
        gamma: limit of the signal-to-noise ratio as a weight.
    """

    def __init__(
        self,
        vae: Any,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        captions: Captions,
        *,
        prediction: str = "epsilon",
        empty: float = 0.12,
        flip: bool = True,
        gamma: float = 5.0,
    ) -> None:
        super().__init__()
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction {prediction!r} is not known: epsilon or v_prediction")
        self.unet, self.text_encoder, self.tokenizer = (
            unet.requires_grad_(True),
            text_encoder.requires_grad_(True),
            tokenizer,
        )
        self.vae = vae.requires_grad_(False)
        self.captions, self.prediction, self.empty, self.flip, self.gamma = captions, prediction, empty, flip, gamma
        self.length = tokenizer.model_max_length = text_encoder.config.max_position_embeddings
        attend(self.unet, pick_device())
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        )
        self.alpha_bar: Tensor
        self.register_buffer("alpha_bar", self.scheduler.alphas_cumprod.float(), persistent=False)

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def draw(self, data: Latents, rows: Tensor, source: torch.Generator) -> Inputs:
        mirrored = torch.rand(len(rows), generator=source) < (0.5 if self.flip else 0.0)
        z = data.at(rows, mirrored)
        left_out = torch.rand(len(rows), generator=source) < self.empty
        texts = [
            "" if out else self.captions.draw(data.row(int(row)), source)
            for row, out in zip(rows, left_out.tolist(), strict=True)
        ]
        t = torch.randint(len(self.alpha_bar), (len(rows),), generator=source)
        ids = token_ids(self.tokenizer, texts, self.length)
        return {"z": z, "t": t, "noise": torch.randn(z.shape, generator=source), "ids": ids}

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        text = self.text_encoder(inputs["ids"], return_dict=False)[0]

        def predict(z: Tensor, t: Tensor) -> Tensor:
            return self.unet(z, t, encoder_hidden_states=text, return_dict=False)[0]

        z, noise, t = inputs["z"], inputs["noise"], inputs["t"]
        return noised_loss(predict, z, noise, t, self.alpha_bar, self.prediction, self.gamma)

    def sheet(self, data: Any) -> Image:
        """Half of the pictures without a caption, half with captions of the data, guided."""
        pipeline = self._pipeline()
        pipeline.set_progress_bar_config(disable=True)
        source, half = generator("sheet"), SHEET // 2
        texts = [self.captions.draw(data.row(index % len(data)), source) for index in range(half)]
        rows = []
        for prompts, scale in (([""] * half, 1.0), (texts, GUIDANCE)):
            drawn = pipeline(
                prompts, num_inference_steps=SHEET_STEPS, guidance_scale=scale, generator=source, output_type="np"
            ).images
            rows.append(torch.from_numpy(drawn).permute(0, 3, 1, 2))
        return tiled(torch.cat(rows), half)

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        networks = {"vae": self.vae, "unet": self.unet, "text_encoder": self.text_encoder}
        with fresh(folder) as place, stored_as(networks, dtype):
            self._pipeline().save_pretrained(place, max_shard_size=SHARD)
            # vocab.json and merges.txt, which transformers before 5 reads in place of tokenizer.json
            self.tokenizer.backend_tokenizer.model.save(str(place / "tokenizer"))

    def _pipeline(self) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def make_unet(
    size: int, latent: int, text_width: int, channels: Sequence[int] = (64, 128, 192, 192), layers: int = 1
) -> UNet2DConditionModel:
    """A small UNet of Stable Diffusion's layout, without attention at its finest stage.

    Raises:
        ValueError: latents that cannot be halved that often.
    """
    n = len(channels)
    if size % (1 << (n - 1)):
        raise ValueError(f"latents of side {size} cannot be halved {n - 1} times: use fewer channels")
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent,
        out_channels=latent,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (n - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (n - 1), "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
