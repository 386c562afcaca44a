"""Tensors by what they hold. The annotations tell a reader the shape; the tests check it at run time."""

from typing import Annotated, TypeAlias

from torch import Tensor

Image: TypeAlias = Annotated[Tensor, "(B, C, H, W), float in [0, 1]"]
Latent: TypeAlias = Annotated[Tensor, "(B, C, h, w), unit variance over the training set"]
Measurement: TypeAlias = Annotated[Tensor, "whatever shape the operator gives, on the scale of [0, 1] images"]
PerImage: TypeAlias = Annotated[Tensor, "(B,)"]

__all__ = ["Image", "Latent", "Measurement", "PerImage", "Tensor"]
