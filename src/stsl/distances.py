"""How far two sets of pictures are apart, by the features of each: Fréchet distance and kernel distance."""

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A number, and the standard error of it."""

    value: float
    error: float


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets of features.

    ‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^{1/2}),  Σ with Bessel's correction

    Biased upwards, the more so the smaller the sets are: compare only values at the same numbers of pictures.

    Source: Heusel et al. 2017, arXiv:1706.08500, Equation 6.

    Args:
        a, b: features, shapes (n, d) and (m, d), at least two pictures each.

    Raises:
        ValueError: other shapes, or a number that is not finite.
    """
    a, b = _checked(a, b)
    mean = (a.mean(0) - b.mean(0)).square().sum()
    # Σ = RᵀR with R from a QR decomposition of the centred features. The trace of (Σ_a Σ_b)^{1/2} is then the sum of
    # the singular values of R_a R_bᵀ: no square root is taken of a matrix, whose smallest eigenvalues would be noise.
    roots = [torch.linalg.qr(x - x.mean(0), mode="r").R / (len(x) - 1) ** 0.5 for x in (a, b)]
    spread = sum(root.square().sum() for root in roots)
    return float(mean + spread - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())


def kid(a: Tensor, b: Tensor) -> Estimate:
    """Kernel distance of two sets of features: the squared maximum mean discrepancy, without bias.

    mean_{i≠j} k(aᵢ, aⱼ) + mean_{i≠j} k(bᵢ, bⱼ) − 2 mean_{i,j} k(aᵢ, bⱼ),  k(x, y) = (x·y/d + 1)³

    It may be negative where the sets come from one distribution. The standard error is the jackknife's, with one
    picture of either set left out at a time; it wants no subsets drawn, so equal features give equal numbers.

    Source: Bińkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012, Equation 3.

    Args:
        a, b: features, shapes (n, d) and (m, d), at least three pictures each. Memory grows with n m.

    Raises:
        ValueError: other shapes, or a number that is not finite.
    """
    a, b = _checked(a, b, least=3)
    within = [_kernel(x, x).fill_diagonal_(0) for x in (a, b)]
    across = _kernel(a, b)
    value = sum(_off_diagonal_mean(k.sum(), len(k)) for k in within) - 2 * across.mean()
    variance = torch.zeros((), dtype=torch.float64)
    for own, other, cross in ((within[0], within[1], across), (within[1], within[0], across.T)):
        n = len(own)
        # The distance without picture i of this set, for all i at once.
        left = _off_diagonal_mean(own.sum() - 2 * own.sum(1), n - 1) + _off_diagonal_mean(other.sum(), len(other))
        left = left - 2 * (cross.sum() - cross.sum(1)) / ((n - 1) * cross.shape[1])
        variance += (n - 1) / n * (left - left.mean()).square().sum()
    return Estimate(float(value), float(variance.sqrt()))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _off_diagonal_mean(total: Tensor, n: int) -> Tensor:
    return total / (n * (n - 1))


def _checked(a: Tensor, b: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(
            f"compare features of shapes (n, d) and (m, d) with n and m at least {least}, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("the features have values that are not finite")
    return a.double(), b.double()
