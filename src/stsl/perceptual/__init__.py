"""Losses and measures on what an image looks like, rather than on its pixels."""

from stsl.perceptual.contrastive import ContrastiveLoss, load_contrastive
from stsl.perceptual.features import PooledVGG
from stsl.perceptual.lpips import LPIPS

__all__ = ["LPIPS", "ContrastiveLoss", "PooledVGG", "load_contrastive"]
