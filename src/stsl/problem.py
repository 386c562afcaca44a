"""What a step may see: the measurement, how it came about, and the prior."""

from dataclasses import dataclass
from typing import Any

import torch
from deepinv.physics import Inpainting
from torch import Tensor
from torch.nn.functional import max_pool2d

from stsl import operators
from stsl.operators import Adjoint
from stsl.priors.base import Condition, Prior
from stsl.schedule import Schedule
from stsl.shapes import Image, Latent, Measurement, PerImage


@dataclass(frozen=True, eq=False)
class Problem:
    """Find z with y = A(decode(z)) + noise.

    Residuals and `sigma_y` are on the papers' scale, where images span [-1, 1], so that every hyper-parameter
    holds its published number. Everything else is on [0, 1].

    Args:
        y: the measurement, first dimension the batch.
        physics: A, a deepinv physics.
        prior: where images come from.
        condition: the prompt of each image; None is the empty prompt.
        sigma_y: std of the measurement noise on the papers' scale, twice that on [0, 1]; None if unknown.
    """

    y: Measurement
    physics: Any
    prior: Prior
    condition: Condition | None = None
    sigma_y: float | None = None

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.y.shape[0]

    @property
    def schedule(self) -> Schedule:
        """Noise levels of the prior."""
        return self.prior.schedule

    def epsilon(self, z: Latent, t: int) -> Latent:
        """Predicted noise under this problem's prompt.

        Args:
            z: shape (n B, C, h, w): the batch, or n batches stacked, for which the network is called once.
            t: timestep.
        """
        condition = self.condition
        if condition is not None and z.shape[0] != self.batch:
            condition = condition.repeat(z.shape[0] // self.batch)
        return self.prior.epsilon(z, t, condition)

    def misfit(self, x: Image) -> Measurement:
        """2 (y − A(x)): how far an image is from the measurement, on the papers' scale. Differentiable in x."""
        return 2 * (self.y - self.physics.A(x))

    def residual(self, z0: Latent) -> Measurement:
        """2 (y − A(decode(z₀))): the misfit of a latent, on the papers' scale. Differentiable in z₀."""
        return self.misfit(self.prior.decode(z0))

    def lift(self, v: Measurement, adjoint: Adjoint = "paper") -> Image:
        """A linear map from measurements to images with the right brightness; see `stsl.operators.lift`."""
        return operators.lift(v, self.physics, self.prior.image_shape, adjoint)

    def glue(self, r: Measurement, adjoint: Adjoint = "paper") -> Image:
        """Aᵀ of a misfit, as a correction of images in [0, 1]; see `stsl.operators.glue`."""
        return operators.glue(r / 2, self.physics, self.prior.image_shape, adjoint)

    def seen(self) -> Tensor:
        """Pixels that the measurement depends on, bool, (B, 1, H, W)."""
        return operators.seen(self.physics, self.prior.image_shape, self.y)

    def start(self, adjoint: Adjoint = "paper") -> Image:
        """The measurement as an image: lift(y), and mid-grey where nothing was seen."""
        return torch.where(self.seen(), self.lift(self.y, adjoint), 0.5)

    def holes_wider_than(self, share: float) -> Tensor:
        """Whether an image has a square of unseen pixels wider than `share` of its side: bool, (B,)."""
        seen = self.seen().float()
        window = int(share * min(seen.shape[-2:])) + 1
        return (max_pool2d(seen, window, stride=1) == 0).flatten(1).any(1)

    def rms(self, misfit: Measurement) -> PerImage:
        """Root mean square of a misfit over what was measured, on [0, 1]: the noise level when x fits y."""
        squares = misfit.detach().flatten(1).square().sum(1)
        if isinstance(self.physics, Inpainting):  # a hole measures nothing
            known = self.physics.mask.expand_as(misfit).flatten(1).sum(1)
        else:
            known = torch.full_like(squares, misfit[0].numel())
        return (squares / known.clamp(min=1)).sqrt() / 2
