"""A prior whose every quantity is known in closed form."""

from torch import Tensor

from stsl.priors.base import Condition
from stsl.priors.linear import LinearPrior, spectrum
from stsl.schedule import Schedule
from stsl.shapes import Latent


class GaussianPrior(LinearPrior):
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
        d = mean.numel()
        if mean.ndim != 3 or covariance.shape != (d, d):
            raise ValueError(
                f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}: need (C, h, w) and (d, d), "
                "d = C h w"
            )
        c, h, w = mean.shape
        super().__init__((c, h, w), decoder=decoder, image_shape=image_shape, schedule=schedule)
        self.name = "gaussian"
        variances, axes = spectrum(covariance.double()[None])
        self.register_buffer("mean", mean.double().flatten())
        self.register_buffer("variances", variances[0, 0])
        self.register_buffer("axes", axes[0])

    mean: Tensor
    variances: Tensor
    axes: Tensor

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        scale, sigma = self.schedule.at(t)
        away = (z.flatten(1) - scale * self.mean) @ self.axes
        return (sigma * away / (scale**2 * self.variances + sigma**2) @ self.axes.T).reshape(z.shape)
