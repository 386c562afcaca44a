"""Small problems whose posterior is known exactly.

Latents have about unit variance and the decoder is the identity, x = (1 + z)/2, so that methods for latents and methods
for pixels can both be asked.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from stsl import tasks
from stsl.options import nearest
from stsl.priors.mixture import GaussianMixturePrior
from stsl.problem import Problem
from stsl.rng import generator

Family = Literal["latent", "pixel"]
SIGMAS = (0.02, 0.1, 0.6)
SIDE = 8


def bimodal(sigma_y: float, seed: int, family: Family) -> Problem:
    """One number, two modes: 0.4 N(−0.8, 0.35²) + 0.6 N(0.8, 0.35²), measured as −0.1."""
    weights, means = _tensor([0.4, 0.6]), _tensor([-0.8, 0.8]).reshape(2, 1, 1, 1)
    prior = GaussianMixturePrior(weights, means, _tensor([0.35**2, 0.35**2]).reshape(2, 1, 1), family=family)
    return _problem(prior, tasks.make("denoise", (1, 1, 1), noise=sigma_y / 2), _tensor([-0.1]), sigma_y)


def degenerate(sigma_y: float, seed: int, family: Family) -> Problem:
    """Two numbers, of which the first is measured as 0.2: three modes at three heights of the unmeasured one."""
    means = _tensor([[-0.6, 1.1], [0.5, 0.2], [0.4, -1.2]]).reshape(3, 1, 1, 2)
    tilted = _tensor([[0.12, 0.06], [0.06, 0.08]])
    covariances = torch.stack([tilted, _tensor([[0.2, -0.05], [-0.05, 0.05]]), 0.8 * tilted])
    prior = GaussianMixturePrior(_tensor([0.3, 0.4, 0.3]), means, covariances, family=family)
    physics = tasks.from_mask(torch.tensor([[1.0, 0.0]]), (1, 1, 2), noise=sigma_y / 2)
    return _problem(prior, physics, _tensor([0.2, -1.0]), sigma_y)  # y = 0 at what is not measured, as in a photo


def inpainting(sigma_y: float, seed: int, family: Family) -> Problem:
    """8×8 pixels, of which 60 % at random are measured."""
    return _picture("random_inpaint:drop=0.4", sigma_y, seed, family)


def blur(sigma_y: float, seed: int, family: Family) -> Problem:
    """8×8 pixels, blurred by a Gaussian of one pixel."""
    return _picture("gaussian_blur:std=1", sigma_y, seed, family)


def sr4(sigma_y: float, seed: int, family: Family) -> Problem:
    """8×8 pixels, of which 2×2 remain: antialiased bicubic downsampling."""
    return _picture("sr4", sigma_y, seed, family)


PROBLEMS: dict[str, Callable[[float, int, Family], Problem]] = {
    "bimodal": bimodal,
    "degenerate": degenerate,
    "inpainting": inpainting,
    "blur": blur,
    "sr4": sr4,
}


def make(name: str, sigma_y: float, *, seed: int = 0, family: Family = "latent") -> Problem:
    """A named problem with one measurement.

    Args:
        name: of `PROBLEMS`.
        sigma_y: standard deviation of the measurement's noise on the papers' scale.
        seed: of the true picture, the mask and the noise, where the problem has them.
        family: what the prior says it is.

    Raises:
        ValueError: unknown name; a noise level that is not above 0.
    """
    if name not in PROBLEMS:
        raise ValueError(f"unknown problem {name!r}{nearest(name, PROBLEMS)}; there are {', '.join(PROBLEMS)}")
    check_sigma(sigma_y)
    return PROBLEMS[name](sigma_y, seed, family)


def check_sigma(sigma_y: float) -> None:
    """Refuse a noise level that leaves no posterior.

    Raises:
        ValueError: it is not a number above 0.
    """
    if not 0 < sigma_y < math.inf:
        raise ValueError(f"sigma_y = {sigma_y}: an exact posterior needs noise, a standard deviation above 0")


def repeated(problem: Problem, n: int) -> Problem:
    """The same measurement n times: one row for each posterior sample."""
    return replace(problem, y=problem.y.expand(n, *problem.y.shape[1:]))


def picture_prior(family: Family = "latent") -> GaussianMixturePrior:
    """Pictures of 8×8 pixels: three smooth means, and around them variances that fall with the frequency.

    z₀ ~ Σ_k w_k N(μ_k, Q diag(v_k) Qᵀ), Q the two-dimensional discrete cosine transform and v_k(f) ∝ (1 + ‖f‖²)^−p_k.
    """
    cosines = _cosines(SIDE)
    frequency = torch.arange(SIDE, dtype=torch.float64)
    power = 1 + frequency[:, None].square() + frequency[None].square()
    axes = torch.kron(cosines, cosines)
    covariances, means = [], []
    # Strength and fall of the variances, then the low frequencies (row, column) of the mean with their amplitudes.
    for strength, fall, waves in (
        (6.0, 1.2, {(0, 1): 4.0, (1, 0): 2.0}),
        (4.0, 1.0, {(1, 1): -4.0, (0, 0): 2.0}),
        (3.0, 0.8, {(0, 1): -3.0, (2, 0): 3.0, (0, 0): -2.0}),
    ):
        variances = strength * power**-fall
        covariances.append(axes.T @ torch.diag(variances.flatten()) @ axes)
        coefficients = torch.zeros(SIDE, SIDE, dtype=torch.float64)
        for (row, column), amplitude in waves.items():
            coefficients[row, column] = amplitude
        means.append(cosines.T @ coefficients @ cosines)
    return GaussianMixturePrior(
        _tensor([0.3, 0.4, 0.3]), torch.stack(means)[:, None], torch.stack(covariances), family=family
    )


def _picture(task: str, sigma_y: float, seed: int, family: Family) -> Problem:
    prior = picture_prior(family)
    truth = prior.latents.sample(1, generator("exact", "truth", seed))
    x = prior.decode(truth.reshape(1, *prior.latent_shape))
    y, physics = tasks.measure(task, x, noise=sigma_y / 2, ids=("exact",), seed=seed)
    return Problem(y.double(), physics, prior, sigma_y=sigma_y)


def _problem(prior: GaussianMixturePrior, physics: LinearPhysics, seen: Tensor, sigma_y: float) -> Problem:
    """A problem with a given measurement, on the papers' scale."""
    return Problem((1 + seen.reshape(1, *prior.image_shape)) / 2, physics, prior, sigma_y=sigma_y)


def _cosines(side: int) -> Tensor:
    """The orthonormal discrete cosine transform, one frequency a row."""
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    rows = torch.cos(torch.arange(side, dtype=torch.float64)[:, None] * at) * (2 / side) ** 0.5
    rows[0] /= 2**0.5
    return rows


def _tensor(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
