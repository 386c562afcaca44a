"""A small vision transformer that learns without labels: what the self-supervised tasks share."""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from stsl.priors.precision import pick_device
from stsl.shapes import Image
from stsl.training.export import SHARD, fresh, stored_as

# ImageNet's, as DINO has them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def backbone(size: int, patch: int = 8, width: int = 192, depth: int = 6, heads: int = 3) -> ViTModel:
    """A ViT without weights.

    Raises:
        ValueError: patches do not tile the image, or heads not the width.
    """
    if size % patch or width % heads:
        raise ValueError(f"patches of {patch} must tile {size} pixels, and {heads} heads a width of {width}")
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    vit = ViTModel(config, add_pooling_layer=False)
    if pick_device().type == "cpu":
        vit.set_attn_implementation("eager")  # written out: a fifth less time per step of masked reconstruction
    lay_out(vit.embeddings.position_embeddings[0, 1:])
    return vit


def normalised(x: Image) -> Tensor:
    """Images in [0, 1] with ImageNet's mean and standard deviation taken away."""
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def crops(x: Image, scale: tuple[float, float], side: int, source: torch.Generator) -> Image:
    """A random square of each image, of `scale` of its area, mirrored or not, resampled to `side` pixels."""
    n = len(x)
    low, high = scale
    share = (low + (high - low) * torch.rand(n, generator=source)).sqrt()
    centre = (2 * torch.rand(n, 2, generator=source) - 1) * (1 - share)[:, None]
    sign = torch.where(torch.rand(n, generator=source) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = share * sign, share, centre
    grid = F.affine_grid(theta, [n, x.shape[1], side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def coloured(x: Image, strength: float, source: torch.Generator) -> Image:
    """Brightness, contrast and saturation of each image changed by a random factor in 1 ± strength."""
    draws = 1 + strength * (2 * torch.rand(3, len(x), 1, 1, 1, generator=source) - 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * draws[0] + mean * draws[1]
    grey = x.mean(1, keepdim=True)
    return ((x - grey) * draws[2] + grey).clamp(0, 1)


def save_vit(vit: ViTModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a ViT with the preprocessing it was trained for, in the layout of transformers."""
    side = vit.config.image_size
    steps = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    with fresh(folder) as place, stored_as({"vit": vit}, dtype):
        vit.save_pretrained(place, max_shard_size=SHARD)
        (place / "preprocessor_config.json").write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")


def head(width: int, hidden: int, out: int) -> nn.Sequential:
    """DINO's projection: three layers to a narrow vector of unit length, compared with prototypes outside."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
    )


def patches(x: Image, side: int) -> Tensor:
    """Images cut into squares, shape (B, N, 3 side²)."""
    return F.unfold(x, side, stride=side).transpose(1, 2)


def momentum(step: int, steps: int, low: float) -> float:
    """From `low` to 1 along a cosine."""
    return 1 - (1 - low) * (math.cos(math.pi * min(1.0, step / steps)) + 1) / 2


def lay_out(positions: Tensor) -> None:
    """Let a transformer's positions begin as sines and cosines of row and column, in place.

    Positions that begin small and random cost a transformer of this size thousands of steps in which all patches look
    alike to it; these tell neighbours from strangers at once.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, for rows and columns as in He et al. 2022,
    arXiv:2111.06377, appendix A; of amplitude 1/2, to be as large as what a patch itself gives.

    Args:
        positions: of side × side patches, shape (side², width).

    Raises:
        ValueError: a width that is no multiple of 4.
    """
    n, width = positions.shape
    if width % 4:
        raise ValueError(f"a width of {width} is no multiple of 4: sines and cosines of rows and columns need that")
    side = math.isqrt(n)
    rates = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    with torch.no_grad():
        positions.copy_(torch.cat([rows, columns], -1).flatten(0, 1) / 2)
