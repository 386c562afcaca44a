"""What an edit kept: the photo outside the edited region, and what a ViT sees place by place."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stsl.metrics import psnr
from stsl.perceptual.contrastive import ContrastiveLoss
from stsl.perceptual.lpips import LPIPS
from stsl.shapes import Image, PerImage


@dataclass(frozen=True)
class Region:
    """The part of a picture that an edit may change, as shares of its sides.

    Args:
        top, left, height, width: of a box, in [0, 1].

    Raises:
        ValueError: a box that is empty, leaves the picture, or is all of it.
    """

    top: float
    left: float
    height: float
    width: float

    def __post_init__(self) -> None:
        inside = min(self.top, self.left) >= 0 and min(self.height, self.width) > 0
        if not inside or self.top + self.height > 1 or self.left + self.width > 1:
            raise ValueError(f"{self} is no box in a picture: top + height and left + width are at most 1")
        if self.height == self.width == 1:
            raise ValueError(f"{self} is the whole picture, and nothing is left outside")

    def outside(self, x: Image) -> Tensor:
        """Where the rest of the picture is, (1, 1, H, W)."""
        h, w = x.shape[-2:]
        mask = torch.ones(1, 1, h, w, dtype=torch.bool, device=x.device)
        top, left = round(self.top * h), round(self.left * w)
        mask[..., top : top + round(self.height * h), left : left + round(self.width * w)] = False
        return mask

    def kept(self, x: Image, truth: Image) -> Image:
        """The picture with the truth in this region: what differs now lies outside."""
        return torch.where(self.outside(x), x, truth)


def psnr_outside(x: Image, truth: Image, region: Region) -> PerImage:
    """PSNR of the pixels outside a region in dB, shape (B,); infinite where they are equal.

    −10 log₁₀ mean (x − truth)², the mean over those pixels and all channels
    """
    share = float(region.outside(x).float().mean())
    # The mean over the whole picture, which is 0 inside, is the share times the mean that is wanted.
    return psnr(region.kept(x, truth), truth) + 10 * math.log10(share)


@torch.no_grad()
def lpips_outside(lpips: LPIPS, x: Image, truth: Image, region: Region) -> PerImage:
    """LPIPS between the truth and the picture that has the truth inside the region, shape (B,)."""
    return lpips(region.kept(x, truth), truth)


@torch.no_grad()
def key_distance(vit: ContrastiveLoss, x: Image, truth: Image) -> PerImage:
    """One minus the mean cosine of a ViT's keys of both pictures, place by place, shape (B,); 0 for equal pictures.

    Small where each patch looks like the same patch of the truth to the network of the contrastive loss: its keys
    follow what is where, rather than colours. Source: Tumanyan et al. 2022, arXiv:2201.00424 (keys of a ViT).
    """
    return 1 - cosine_similarity(vit.keys(x), vit.keys(truth), dim=-1).mean(1)
