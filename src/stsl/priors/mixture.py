"""Gaussian mixtures: the distributions that stay in closed form under noise, linear measurements and conditioning."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stsl.priors.base import Condition
from stsl.priors.linear import LinearPrior, spectrum
from stsl.schedule import Schedule
from stsl.shapes import Latent, PerImage

LOG_TAU = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Σ_k w_k N(μ_k, C_k) on vectors of d numbers.

    Weights and means may differ from row to row of a batch; the covariances are the same for all. That is how it is
    when a mixture is conditioned on linear measurements.

    Args:
        weights: w, shape (K,) or (B, K), summing to 1.
        means: μ, shape (K, d) or (B, K, d).
        covariances: C, shape (K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """Σ_k w_k μ_k, shape (d,) or (B, d)."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """Σ_k w_k (C_k + (μ_k − μ)(μ_k − μ)ᵀ), shape (d, d) or (B, d, d)."""
        away = (self.means - self.mean[..., None, :]) * self.weights[..., None].sqrt()
        within = self.weights @ self.covariances.flatten(1)
        return within.reshape(*within.shape[:-1], *self.covariances.shape[1:]) + away.mT @ away

    @property
    def spread(self) -> Tensor:
        """Trace of the covariance, shape () or (B,)."""
        away = (self.means - self.mean[..., None, :]).square().sum(-1)
        return (self.weights * (torch.diagonal(self.covariances, dim1=1, dim2=2).sum(1) + away)).sum(-1)

    def log_parts(self, v: Tensor) -> Tensor:
        """log w_k N(v; μ_k, C_k) for rows v of shape (B, d): shape (B, K).

        Raises:
            torch.linalg.LinAlgError: a covariance is singular, so that there is no density.
        """
        root = torch.linalg.cholesky(self.covariances)
        away = (v[:, None] - self.means).transpose(0, 1)  # (K, B, d)
        white = torch.linalg.solve_triangular(root, away.mT, upper=False)  # (K, d, B)
        size = 2 * torch.diagonal(root, dim1=1, dim2=2).log().sum(1) + v.shape[1] * LOG_TAU
        return self.weights.log() - 0.5 * (white.square().sum(1).T + size)

    def log_prob(self, v: Tensor) -> PerImage:
        """log p(v) of rows v, shape (B, d) -> (B,)."""
        return torch.logsumexp(self.log_parts(v), 1)

    def responsibilities(self, v: Tensor) -> Tensor:
        """p(k | v): which component rows v of shape (B, d) came from, shape (B, K)."""
        return torch.softmax(self.log_parts(v), 1)

    def score(self, v: Tensor) -> Tensor:
        """∇ log p(v) = Σ_k r_k g_k with g_k = −C_k⁻¹ (v − μ_k), shape (B, d)."""
        return torch.einsum("bk,bkd->bd", self.responsibilities(v), self._pulls(v))

    def hessian(self, v: Tensor) -> Tensor:
        """∇² log p(v) = Σ_k r_k (g_k g_kᵀ − C_k⁻¹) − s sᵀ with s the score, shape (B, d, d)."""
        share, pulls = self.responsibilities(v), self._pulls(v)
        score = torch.einsum("bk,bkd->bd", share, pulls)
        precision = torch.linalg.inv(self.covariances)
        outer = torch.einsum("bk,bkd,bke->bde", share, pulls, pulls)
        return outer - torch.einsum("bk,kde->bde", share, precision) - score[:, :, None] * score[:, None, :]

    def hessian_trace(self, v: Tensor) -> PerImage:
        """Tr ∇² log p(v) = Σ_k r_k (‖g_k‖² − Tr C_k⁻¹) − ‖s‖², shape (B,)."""
        share, pulls = self.responsibilities(v), self._pulls(v)
        score = torch.einsum("bk,bkd->bd", share, pulls)
        trace = torch.diagonal(torch.linalg.inv(self.covariances), dim1=1, dim2=2).sum(1)
        return (share * (pulls.square().sum(2) - trace)).sum(1) - score.square().sum(1)

    def _pulls(self, v: Tensor) -> Tensor:
        """g_k, shape (B, K, d)."""
        away = v[:, None] - self.means
        return -torch.linalg.solve(self.covariances, away.permute(1, 2, 0)).permute(2, 0, 1)

    def through(self, matrix: Tensor, std: float = 0.0) -> "Mixture":
        """The distribution of H v + std · n, n ~ N(0, I), for v of this mixture.

        Args:
            matrix: H, shape (m, d).
            std: standard deviation of the noise.
        """
        covariances = matrix @ self.covariances @ matrix.T
        noise = std**2 * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return Mixture(self.weights, self.means @ matrix.T, covariances + noise)

    def given(self, matrix: Tensor, seen: Tensor, std: float) -> "Mixture":
        """The distribution of v given H v + std · n = seen: again a mixture.

        Component by component μ + G (seen − H μ) and C − G H C, with G = C Hᵀ (H C Hᵀ + std² I)⁻¹ and weights
        proportional to w_k N(seen; H μ_k, H C_k Hᵀ + std² I).

        Args:
            matrix: H, shape (m, d).
            seen: shape (m,), or (B, m) for a batch of measurements.
            std: standard deviation of the noise, above 0.
        """
        predicted = self.through(matrix, std)
        gain = torch.linalg.solve(predicted.covariances, matrix @ self.covariances).mT  # (K, d, m)
        surprise = seen[..., None, :] - predicted.means
        means = self.means + torch.einsum("kdm,...km->...kd", gain, surprise)
        # Joseph's form: symmetric and positive whatever is rounded.
        keep = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device) - gain @ matrix
        covariances = keep @ self.covariances @ keep.mT + std**2 * gain @ gain.mT
        weights = predicted.responsibilities(seen.reshape(-1, seen.shape[-1]))
        return Mixture(weights.reshape(means.shape[:-1]), means, covariances)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent draws, shape (n, d); only of a mixture without a batch.

        Args:
            n: how many.
            generator: where the randomness comes from, on the CPU.
        """
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[-1], dtype=self.means.dtype, generator=generator)
        variances, axes = torch.linalg.eigh(self.covariances)
        roots = axes * variances.clamp(min=0.0).sqrt()[:, None, :]
        return self.means[which] + torch.einsum("bde,be->bd", roots[which], noise)


class GaussianMixturePrior(LinearPrior):
    """Latents z₀ ~ Σ_k w_k N(μ_k, C_k) in float64, seen through a linear decoder: x = (1 + W z) / 2.

    p_t(z) = Σ_k w_k N(s μ_k, s² C_k + σ² I), hence ε(z, t) = σ Σ_k r_k(z) (s² C_k + σ² I)⁻¹ (z − s μ_k) for
    s = scale_t, σ = sigma_t and r_k the probability that z came from component k. Fastest where the covariances have
    their axes in common.

    Args:
        weights: w, shape (K,), positive; divided by their sum.
        means: μ, shape (K, C, h, w).
        covariances: C, shape (K, d, d) with d = C h w, symmetric and positive semi-definite.
        decoder: W, shape (p, d); None is the identity.
        encoder: V in z = V (2 x − 1), shape (d, p); None is the pseudo-inverse of W.
        image_shape: (3, H, W) with p numbers; needed with a decoder.
        schedule: noise levels; None is Stable Diffusion's.
        family: "latent", or "pixel" for methods that are meant for images themselves.

    Raises:
        ValueError: shapes that do not fit together, weights that are not positive.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        *,
        decoder: Tensor | None = None,
        encoder: Tensor | None = None,
        image_shape: tuple[int, int, int] | None = None,
        schedule: Schedule | None = None,
        family: Literal["latent", "pixel"] = "latent",
    ) -> None:
        k, d = means.shape[0], means[0].numel()
        if means.ndim != 4 or weights.shape != (k,) or covariances.shape != (k, d, d):
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, covariances {tuple(covariances.shape)}: "
                "need (K,), (K, C, h, w) and (K, d, d), d = C h w"
            )
        if not (weights > 0).all() or not weights.isfinite().all():
            raise ValueError(f"the weights of a mixture are positive, got {weights.tolist()}")
        _, c, height, width = means.shape
        super().__init__(
            (c, height, width), decoder=decoder, encoder=encoder, image_shape=image_shape, schedule=schedule
        )
        self.name, self.family = "mixture", family
        variances, axes = spectrum(covariances.double())
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double().flatten(1))
        self.register_buffer("covariances", covariances.double())
        self.register_buffer("variances", variances)  # (G, J, d)
        self.register_buffer("axes", axes)  # (G, d, d)
        self.register_buffer("centres", self.means.reshape(*variances.shape) @ axes)  # (G, J, d)

    weights: Tensor
    means: Tensor
    covariances: Tensor
    variances: Tensor
    axes: Tensor
    centres: Tensor

    @property
    def latents(self) -> Mixture:
        """The distribution of z₀, flat."""
        return Mixture(self.weights, self.means, self.covariances)

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        scale, sigma = self.schedule.at(t)
        groups, each, _ = self.variances.shape
        precision = 1 / (scale**2 * self.variances + sigma**2)  # (G, J, d)
        pull = scale * self.centres * precision
        along = z.flatten(1) @ self.axes  # (G, B, d): the coordinates of z along the axes of each group
        # (a − c)² p summed over the axes, multiplied out: nothing of the size B K d is ever made.
        size = along.square() @ precision.mT - 2 * along @ pull.mT + (scale * self.centres * pull).sum(2)[:, None]
        logits = 0.5 * (precision.log().sum(2)[:, None] - size) + self.weights.log().reshape(groups, 1, each)
        share = torch.softmax(logits.transpose(1, 2).reshape(groups * each, -1), 0)
        share = share.reshape(groups, each, -1).transpose(1, 2)  # (G, B, J)
        steep = along * (share @ precision) - share @ pull
        return sigma * (steep @ self.axes.mT).sum(0).reshape(z.shape)

    def at(self, t: int) -> Mixture:
        """p_t, the distribution of z_t, flat."""
        scale, sigma = self.schedule.at(t)
        return self.latents.through(scale * self._eye(), sigma)

    def log_density(self, z: Latent, t: int) -> PerImage:
        """log p_t(z), shape (B,)."""
        return self.at(t).log_prob(z.flatten(1))

    def score(self, z: Latent, t: int) -> Latent:
        """∇ log p_t(z) = −ε(z, t) / σ_t."""
        return self.schedule.score(self.epsilon(z, t), t)

    def hessian(self, z: Latent, t: int) -> Tensor:
        """∇² log p_t(z), shape (B, d, d)."""
        return self.at(t).hessian(z.flatten(1))

    def hessian_trace(self, z: Latent, t: int) -> PerImage:
        """Tr ∇² log p_t(z), shape (B,)."""
        return self.at(t).hessian_trace(z.flatten(1))

    def denoised(self, z: Latent, t: int) -> Mixture:
        """p(z₀ | z_t = z): its `mean` is Tweedie's first moment, its `covariance` the second; one row per image."""
        scale, sigma = self.schedule.at(t)
        return self.latents.given(scale * self._eye(), z.flatten(1), sigma)

    def _eye(self) -> Tensor:
        return torch.eye(self.means.shape[1], dtype=torch.float64, device=self.means.device)
