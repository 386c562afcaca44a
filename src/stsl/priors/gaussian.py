"""A prior whose every quantity is known in closed form."""

import torch
from torch import Tensor

from stsl.priors.base import Condition, Prior
from stsl.schedule import Schedule, VariancePreserving
from stsl.shapes import Image, Latent


class GaussianPrior(Prior):
    """Latents z₀ ~ N(mean, covariance) in float64, seen through a linear decoder: x = (1 + W z) / 2.

    p_t(z) = N(s mean, s² C + σ² I), hence ε(z, t) = σ (s² C + σ² I)⁻¹ (z − s mean) for s = scale_t, σ = sigma_t.

    Args:
        mean: μ, shape (C, h, w).
        covariance: shape (d, d) with d = C h w, symmetric and positive semi-definite.
        decoder: W, shape (p, d); None is the identity. The encoder is its pseudo-inverse.
        image_shape: (3, H, W) with p numbers; needed with a decoder.
        schedule: noise levels; None is Stable Diffusion's.

    Raises:
        ValueError: shapes that do not fit together.
    """

    def __init__(
        self,
        mean: Tensor,
        covariance: Tensor,
        *,
        decoder: Tensor | None = None,
        image_shape: tuple[int, int, int] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        d = mean.numel()
        if mean.ndim != 3 or covariance.shape != (d, d):
            raise ValueError(
                f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}: need (C, h, w) and (d, d), "
                "d = C h w"
            )
        if decoder is not None and (image_shape is None or decoder.shape != (torch.Size(image_shape).numel(), d)):
            raise ValueError(f"decoder {tuple(decoder.shape)}: need ({image_shape} numbers, {d})")
        self.name = "gaussian"
        self.schedule = schedule or VariancePreserving.from_config(
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2, "steps_offset": 1}
        )
        c, h, w = mean.shape
        self.latent_shape = (c, h, w)
        self.image_shape = image_shape or self.latent_shape
        variances, axes = torch.linalg.eigh(covariance.double())
        if variances.min() < -1e-9 * variances.abs().max():
            raise ValueError("the covariance is not positive semi-definite")
        self.register_buffer("mean", mean.double().flatten())
        self.register_buffer("variances", variances.clamp(min=0.0))
        self.register_buffer("axes", axes)
        self.register_buffer("decoder", None if decoder is None else decoder.double())
        self.register_buffer("encoder", None if decoder is None else torch.linalg.pinv(decoder.double()))

    mean: Tensor
    variances: Tensor
    axes: Tensor
    decoder: Tensor | None
    encoder: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """float64: this prior is for exactness."""
        return torch.float64

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        scale, sigma = self.schedule.at(t)
        away = (z.flatten(1) - scale * self.mean) @ self.axes
        return (sigma * away / (scale**2 * self.variances + sigma**2) @ self.axes.T).reshape(z.shape)

    def encode(self, x: Image) -> Latent:
        v = 2 * x.double().flatten(1) - 1
        return (v if self.encoder is None else v @ self.encoder.T).reshape(-1, *self.latent_shape)

    def decode(self, z: Latent) -> Image:
        v = z.flatten(1)
        return ((1 + (v if self.decoder is None else v @ self.decoder.T)) / 2).reshape(-1, *self.image_shape)
