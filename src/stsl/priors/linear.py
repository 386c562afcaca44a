"""What closed-form priors have in common: float64, and images that are linear in the latent."""

import torch
from torch import Tensor

from stsl.priors.base import Prior
from stsl.schedule import Schedule, VariancePreserving
from stsl.shapes import Image, Latent


class LinearPrior(Prior):
    """A prior in float64 whose latents are seen through a linear decoder: x = (1 + W z) / 2.

    Args:
        latent_shape: (C, h, w), d numbers.
        decoder: W, shape (p, d); None is the identity.
        encoder: V in z = V (2 x − 1), shape (d, p); None is the pseudo-inverse of W.
        image_shape: (3, H, W) with p numbers; needed with a decoder.
        schedule: noise levels; None is Stable Diffusion's.

    Raises:
        ValueError: shapes that do not fit together.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        *,
        decoder: Tensor | None,
        encoder: Tensor | None = None,
        image_shape: tuple[int, int, int] | None,
        schedule: Schedule | None,
    ) -> None:
        super().__init__()
        d = torch.Size(latent_shape).numel()
        if decoder is not None and (image_shape is None or decoder.shape != (torch.Size(image_shape).numel(), d)):
            raise ValueError(f"decoder {tuple(decoder.shape)}: need ({image_shape} numbers, {d})")
        if decoder is None and image_shape not in (None, latent_shape):
            raise ValueError(f"images {image_shape} of latents {latent_shape} need a decoder")
        if encoder is not None and (decoder is None or encoder.shape != decoder.T.shape):
            raise ValueError(f"encoder {tuple(encoder.shape)}: needs a decoder, and its transposed shape")
        self.schedule = schedule or VariancePreserving.from_config(
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2, "steps_offset": 1}
        )
        self.latent_shape = latent_shape
        self.image_shape = image_shape or latent_shape
        self.family = "pixel" if decoder is None else "latent"
        if decoder is not None and encoder is None:
            encoder = torch.linalg.pinv(decoder.double())
        self.register_buffer("decoder", None if decoder is None else decoder.double())
        self.register_buffer("encoder", None if encoder is None else encoder.double())

    decoder: Tensor | None
    encoder: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """float64: such a prior is for exactness."""
        return torch.float64

    def encode(self, x: Image) -> Latent:
        v = 2 * x.double().flatten(1) - 1
        return (v if self.encoder is None else v @ self.encoder.T).reshape(-1, *self.latent_shape)

    def decode(self, z: Latent) -> Image:
        v = z.flatten(1)
        return ((1 + (v if self.decoder is None else v @ self.decoder.T)) / 2).reshape(-1, *self.image_shape)


def spectrum(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and axes of covariances: those of all at once where they have their axes in common.

    Args:
        covariances: shape (K, d, d).

    Returns:
        variances (G, J, d) and axes (G, d, d), the axes in columns, with G J = K: G = 1 for common axes, else J = 1.

    Raises:
        ValueError: a covariance is not symmetric and positive semi-definite.
    """
    largest = covariances.abs().max()
    if (covariances - covariances.mT).abs().max() > 1e-9 * largest:
        raise ValueError("a covariance is not symmetric")
    # Matrices with common axes have those of any combination that tells their axes apart.
    blend = 1 + torch.arange(len(covariances), dtype=covariances.dtype, device=covariances.device).sqrt()
    axes = torch.linalg.eigh(torch.einsum("k,kde->de", blend, covariances))[1]
    turned = axes.T @ covariances @ axes
    variances = torch.diagonal(turned, dim1=1, dim2=2)
    if (turned - torch.diag_embed(variances)).abs().max() <= 1e-11 * largest:
        variances, axes = variances[None], axes[None]
    else:
        variances, axes = torch.linalg.eigh(covariances)
        variances = variances[:, None]
    if variances.min() < -1e-9 * largest:
        raise ValueError("a covariance is not positive semi-definite")
    return variances.clamp(min=0.0), axes
