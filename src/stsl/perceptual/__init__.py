"""Losses and measures on what an image looks like, rather than on its pixels."""

from stsl.perceptual.lpips import LPIPS

__all__ = ["LPIPS"]
