"""The papers' theory in numbers, where every term is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stsl.exact.posterior import Observation
from stsl.priors.mixture import GaussianMixturePrior, Mixture
from stsl.shapes import Latent, PerImage

Score = Callable[[Latent], Latent]


@dataclass(frozen=True, eq=False)
class Bound:
    """Theorem 4.4 at B points (y, z_t): what it bounds, and what it says.

    Args:
        truth: log p(y | z_t), shape (B,).
        corrected: log p(y | z̄₀) + log(1 − m Tr Cov[z₀ | z_t]), NaN where the logarithm's argument is not above 0.
        printed: with (1 − ᾱ) m Tr ∇² log p_t in place of ((1 − ᾱ)²/ᾱ) m Tr ∇² log p_t, as the paper prints it.
    """

    truth: PerImage
    corrected: PerImage
    printed: PerImage


def lower_bound(prior: GaussianMixturePrior, seen: Observation, z: Latent, t: int) -> Bound:
    """Theorem 4.4, as the proof gives it and as it is printed.

    log p(y | z_t) >= log p(y | z̄₀) + log(1 − m ((1 − ᾱ)/ᾱ)(d + (1 − ᾱ) Tr ∇² log p_t)) with z̄₀ = E[z₀ | z_t] and

        m = sup_z −λ_min(∇² p(y | z)) / (2 p(y | z̄₀)) = (‖H‖² / 2σ_y²) exp(‖y − H z̄₀‖² / 2σ_y²):

    ∇² p = p (Hᵀ r rᵀ H/σ_y⁴ − HᵀH/σ_y²) is most negative at r = 0, where p is largest too.

    Args:
        prior: of the latents.
        seen: one measurement for each row of z.
        z: shape (B, C, h, w).
        t: timestep.

    Source: Rout et al. 2024, arXiv:2312.00852, Theorem 4.4 and appendix A.3.
    """
    likelihood = prior.denoised(z, t)
    d = z[0].numel()
    scale, sigma = prior.schedule.at(t)
    truth = likelihood.through(seen.matrix, seen.sigma_y).log_prob(seen.seen)
    away = (seen.seen - likelihood.mean @ seen.matrix.T).square().sum(1)
    size = seen.matrix.shape[0] * math.log(2 * math.pi * seen.sigma_y**2)
    first_order = -0.5 * (away / seen.sigma_y**2 + size)
    norm = torch.linalg.matrix_norm(seen.matrix, 2)
    m = norm**2 / (2 * seen.sigma_y**2) * torch.exp(away / (2 * seen.sigma_y**2))
    trace = prior.hessian_trace(z, t)
    ratio = sigma**2 / scale**2
    corrected = 1 - m * ratio * (d + sigma**2 * trace)
    printed = 1 - m * ratio * d - m * sigma**2 * trace
    return Bound(truth, first_order + _log(corrected), first_order + _log(printed))


def joint_draws(
    prior: GaussianMixturePrior, seen: Observation, t: int, n: int, source: torch.Generator
) -> tuple[Latent, Observation]:
    """n pairs (z_t, y) from the model: z₀ from the prior, y from z₀ through the operator, z_t from z₀ at level t."""
    scale, sigma = prior.schedule.at(t)
    z0 = prior.latents.sample(n, source)
    noise = torch.randn(n, z0.shape[1], dtype=z0.dtype, generator=source)
    clean = z0 @ seen.matrix.T
    y = clean + seen.sigma_y * torch.randn(clean.shape, dtype=z0.dtype, generator=source)
    z = (scale * z0 + sigma * noise).reshape(n, *prior.latent_shape)
    return z, Observation(seen.matrix, y, seen.sigma_y)


@dataclass(frozen=True)
class JensenGap:
    """Theorem A.2 for one number: the gap of the first-order estimate, and the bound that is printed.

    Args:
        gap: |E[p(y | z₀) | z_t] − p(y | z̄₀)|, mean over (z_t, y).
        bound: (d / √(2π σ_y²)) exp(−1 / 2σ_y²) ‖∇A‖ m₁ with m₁ = E‖z₀ − z̄₀‖, mean.
        violated: share of points whose gap is above the bound.
        log_gap: |log p(y | z_t) − log p(y | z̄₀)|, mean: what a sampler's gradient sees.
    """

    gap: float
    bound: float
    violated: float
    log_gap: float


def jensen_gap(
    prior: GaussianMixturePrior, seen: Observation, t: int, n: int, source: torch.Generator, samples: int = 400
) -> JensenGap:
    """Theorem A.2 at n points drawn from the model; m₁ from `samples` draws at each.

    Source: Rout et al. 2024, arXiv:2312.00852, Theorem A.2, after Chung et al. 2023, arXiv:2209.14687, Theorem 1.
    """
    z, seen = joint_draws(prior, seen, t, n, source)
    given = prior.denoised(z, t)
    truth = given.through(seen.matrix, seen.sigma_y).log_prob(seen.seen)
    m, d = seen.matrix.shape
    away = (seen.seen - given.mean @ seen.matrix.T).square().sum(1)
    first = -0.5 * (away / seen.sigma_y**2 + m * math.log(2 * math.pi * seen.sigma_y**2))
    gap = (truth.exp() - first.exp()).abs()
    spread = torch.stack(
        [
            (Mixture(weights, means, given.covariances).sample(samples, source) - mean).norm(dim=1).mean()
            for weights, means, mean in zip(given.weights, given.means, given.mean, strict=True)
        ]
    )
    slope = d / math.sqrt(2 * math.pi * seen.sigma_y**2) * math.exp(-1 / (2 * seen.sigma_y**2))
    bound = slope * torch.linalg.matrix_norm(seen.matrix, 2) * spread
    return JensenGap(
        float(gap.mean()),
        float(bound.mean()),
        float((gap > bound).double().mean()),
        float((truth - first).abs().mean()),
    )


def centred(score: Score, z: Latent, probe: Latent, scale: float = 1.0) -> PerImage:
    """ε · (s(z + δ ε) − s(z)) / δ, the estimate of the STSL paper (δ = 1) and of `stsl.numerics.trace_estimate`."""
    return _dot(probe, score(z + scale * probe) - score(z)) / scale


def uncentred(score: Score, z: Latent, probe: Latent, scale: float = 1.0) -> PerImage:
    """ε · s(z + δ ε) / δ: the same mean, without the second call."""
    return _dot(probe, score(z + scale * probe)) / scale


def forward_mode(score: Score, z: Latent, probe: Latent) -> PerImage:
    """ε · (∂s/∂z) ε, Hutchinson's estimate by one forward-mode derivative: no probe leaves z, so there is no bias."""
    tangent: Latent = torch.func.jvp(score, (z.contiguous(),), (probe,))[1]
    return _dot(probe, tangent)


def full_trace(score: Score, z: Latent) -> PerImage:
    """Tr ∂s/∂z by d forward-mode derivatives, one per coordinate: what the estimates avoid."""
    total = z.new_zeros(z.shape[0])
    for index in range(z[0].numel()):
        unit = torch.zeros_like(z).flatten(1)
        unit[:, index] = 1
        total = total + forward_mode(score, z, unit.reshape(z.shape))
    return total


def divergence(p: Mixture, q: Mixture, n: int, source: torch.Generator) -> float:
    """KL(p ‖ q) = E_p[log p − log q] from n draws."""
    v = p.sample(n, source)
    return float((p.log_prob(v) - q.log_prob(v)).mean())


def _dot(a: Tensor, b: Tensor) -> PerImage:
    return (a * b).flatten(1).sum(1)


def _log(argument: Tensor) -> Tensor:
    """log, and NaN where the argument is not above 0."""
    return torch.where(argument > 0, argument.clamp(min=1e-300).log(), torch.nan)
