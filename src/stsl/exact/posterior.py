"""What a measurement says exactly, where the prior is a Gaussian mixture and the operator linear."""

from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from stsl.priors.base import Wrapped
from stsl.priors.mixture import GaussianMixturePrior, Mixture
from stsl.problem import Problem
from stsl.shapes import Latent, PerImage

# Directions that the operator keeps less than this share of its strongest one carry nothing.
BLIND = 1e-9


@dataclass(frozen=True, eq=False)
class Observation:
    """A measurement as an equation in the latent, on the papers' scale: seen = H z₀ + σ_y n, n ~ N(0, I).

    From y = A(x) + n σ_y/2 and x = (1 + W z)/2: 2 y − A(1) = A W z + σ_y n. Both sides are turned along the singular
    vectors of A W, and the directions that the operator is blind to are left out, which changes p(y | z) by a factor
    that does not depend on z.

    Args:
        matrix: H, shape (m, d) with m the rank.
        seen: shape (B, m).
        sigma_y: standard deviation of the noise.
    """

    matrix: Tensor
    seen: Tensor
    sigma_y: float


def mixture_prior(problem: Problem) -> GaussianMixturePrior:
    """The problem's prior, without what is wrapped around it.

    Raises:
        TypeError: it is not a Gaussian mixture.
    """
    prior = problem.prior
    while isinstance(prior, Wrapped):
        prior = prior.prior
    if not isinstance(prior, GaussianMixturePrior):
        raise TypeError(
            f"an exact posterior needs a GaussianMixturePrior, got {type(prior).__name__}; a Gaussian is a mixture of "
            "one component"
        )
    return prior


def observe(problem: Problem) -> Observation:
    """A problem's measurement as an equation in the latent.

    Raises:
        TypeError: the prior is not a Gaussian mixture, or the operator not linear.
        ValueError: no noise level above 0, or a measurement of another shape than the operator gives.
    """
    prior, physics, y = mixture_prior(problem), problem.physics, problem.y
    name = type(physics).__name__
    sigma_y = problem.sigma_y
    if sigma_y is None or not 0 < sigma_y < float("inf"):
        raise ValueError(f"an exact posterior needs the standard deviation of the noise, above 0; sigma_y = {sigma_y}")
    if not isinstance(physics, LinearPhysics):
        raise TypeError(f"an exact posterior needs a linear operator (deepinv's LinearPhysics), got {name}")
    d = prior.latents.means.shape[1]
    latents = torch.cat([torch.zeros(1, d), torch.eye(d), torch.linspace(-1, 1, d)[None]]).to(y.device, torch.float64)
    with torch.no_grad():
        try:
            out = physics.A(prior.decode(latents.reshape(-1, *prior.latent_shape)))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name} does not take images {prior.image_shape}, one operator for all: {error}"
            ) from error
    if out.shape[1:] != y.shape[1:]:
        raise ValueError(f"the measurement has shape {tuple(y.shape)}, but {name} makes (B, {tuple(out.shape[1:])})")
    black, *units, mixed = 2 * out.flatten(1).double()  # 2 A(1/2) = A(1)
    matrix = torch.stack([unit - black for unit in units], 1)
    # Operators that keep their kernels in float32 and work by Fourier transforms are linear to about 1e-6.
    if not torch.allclose(mixed - black, matrix @ latents[-1], rtol=1e-4, atol=1e-5 * float(matrix.abs().max())):
        raise TypeError(f"{name} calls itself linear, but A(a + b) is not A(a) + A(b)")
    left, strength, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((strength > BLIND * strength.max()).sum())
    seen = (2 * y.double().flatten(1) - black) @ left[:, :rank]
    return Observation(strength[:rank, None] * right[:rank], seen, sigma_y)


def posterior(problem: Problem) -> Mixture:
    """p(z₀ | y), a Gaussian mixture again, of a problem with one measurement.

    Raises: as `observe`; ValueError for several measurements.
    """
    if problem.batch != 1:
        raise ValueError(f"one posterior belongs to one measurement, this problem has {problem.batch}")
    seen = observe(problem)
    return mixture_prior(problem).latents.given(seen.matrix, seen.seen[0], seen.sigma_y)


def log_likelihood(problem: Problem, z: Latent, t: int) -> PerImage:
    """log p(y | z_t = z) up to a constant that depends on y only, shape (B,).

    p(y | z_t) = ∫ N(y; H z₀, σ_y² I) p(z₀ | z_t) dz₀

    Args:
        problem: with one measurement, or one for each row of z.
        z: noisy latents at t, shape (B, C, h, w).
        t: timestep; −1 is the clean end, where this is the likelihood itself.

    Raises: as `observe`.
    """
    seen = observe(problem)
    if t == -1:
        away = seen.seen - z.flatten(1) @ seen.matrix.T
        size = seen.matrix.shape[0] * torch.log(torch.tensor(2 * torch.pi * seen.sigma_y**2, dtype=torch.float64))
        return -0.5 * (away.square().sum(1) / seen.sigma_y**2 + size)
    return mixture_prior(problem).denoised(z, t).through(seen.matrix, seen.sigma_y).log_prob(seen.seen)
