"""diffusers' inpainting pipeline: a Stable Diffusion whose UNet was trained to be told the mask."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Inpainting

from stsl.bench.identity import PriorChoice, prior_folder
from stsl.priors.folder import Folder
from stsl.priors.precision import autocast, pick_device, pick_precision
from stsl.rng import generator
from stsl.shapes import Image, Measurement

# Of the UNet: noisy latent, mask, and the latent of what is known.
CHANNELS = 9
KNOWN = "stable-diffusion-v1-5/stable-diffusion-inpainting"


@dataclass(frozen=True, eq=False)
class Inpainter:
    """A loaded pipeline."""

    pipeline: Any
    name: str
    precision: str
    device: torch.device


@dataclass(frozen=True)
class InpaintPipeline:
    """`StableDiffusionInpaintPipeline` with its defaults, DDIM steps, and no safety checker: nothing is censored.

    It is given the photo with its hole and the mask, and fills by itself: the noise of the measurement is unknown to
    it, and what is known comes back as its decoder has it. An image has its own noise, whatever its batch.

    Source: Rombach et al. 2022, arXiv:2112.10752, section 4.5 (inpainting), as diffusers has it.

    Args:
        steps: of DDIM.
        guidance: scale of the prompt; without a prompt there is none to guide by.
        prompt: what the photo shows.
    """

    steps: int = 50
    guidance: float = 7.5
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance < 0 or not isinstance(self.prompt, str):
            raise ValueError(f"{self}: give at least 1 step, a guidance from 0, and a text")

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, fit for JSON."""
        return dataclasses.asdict(self)

    @torch.no_grad()
    def solve(
        self, loaded: Inpainter, y: Measurement, physics: Any, *, seed: int, ids: Sequence[str]
    ) -> tuple[Image, dict[str, float]]:
        """Filled pictures (B, 3, H, W) in [0, 1], and their costs by name, per picture.

        Raises:
            TypeError: the operator is no inpainting.
        """
        if not isinstance(physics, Inpainting):
            raise TypeError(f"an inpainting pipeline fills holes, and {type(physics).__name__} makes none")
        counted = {"unet_samples": 0}

        def count(network: Any, given: tuple[Any, ...]) -> None:
            counted["unet_samples"] += given[0].shape[0]

        hook = loaded.pipeline.unet.register_forward_pre_hook(count)
        began = time.perf_counter()
        try:
            with autocast(loaded.device, loaded.precision):  # type: ignore[arg-type]
                filled = loaded.pipeline(
                    prompt=[self.prompt] * len(ids),
                    image=y.clamp(0, 1),
                    mask_image=(physics.mask[:, :1] == 0).float().expand(len(ids), -1, -1, -1),
                    height=y.shape[2],
                    width=y.shape[3],
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance if self.prompt else 1.0,
                    generator=[generator(seed, "inpaint", name) for name in ids],
                    output_type="pt",
                ).images
        finally:
            hook.remove()
        costs = {"seconds": time.perf_counter() - began, **counted, "decoder_samples": len(ids)}
        return filled.float().cpu().clamp(0, 1), {name: value / len(ids) for name, value in costs.items()}


def check_inpainter(folder: Path) -> None:
    """Refuse a folder that holds no inpainting model, by its configs alone.

    Raises:
        FileNotFoundError, ValueError: a config is missing or unsafe, or the UNet has not 9 input channels.
    """
    channels = Folder(folder).config("unet").get("in_channels")
    if channels != CHANNELS:
        raise ValueError(
            f"{folder}: its UNet has {channels} input channels, and an inpainting one {CHANNELS} (noise, mask, what is "
            f"known): give a folder or hub id such as {KNOWN}"
        )


def load_inpainter(choice: PriorChoice) -> Inpainter:
    """The pipeline of a folder or hub id, made of the parts that `stsl.priors.folder` reads.

    Raises:
        FileNotFoundError, ValueError, PermissionError, ConnectionError: as `load_prior`, and `check_inpainter`.
    """
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    path = prior_folder(choice)
    check_inpainter(path)
    device = pick_device(choice.device)
    precision = pick_precision(choice.precision, device)  # type: ignore[arg-type]
    folder = Folder(path)
    folder.check_index()
    parts = {part: folder.config(part) for part in ("unet", "vae", "text_encoder")}
    networks = {part: folder.network(part, config, device).eval() for part, config in parts.items()}
    tokenizer = folder.tokenizer(parts["text_encoder"])
    tokenizer.model_max_length = networks["text_encoder"].config.max_position_embeddings
    levels = {key: value for key, value in folder.config("scheduler").items() if not key.startswith("_")}
    pipeline = StableDiffusionInpaintPipeline(
        **networks,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler.from_config(levels | {"clip_sample": False}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return Inpainter(pipeline, choice.name, precision, device)
