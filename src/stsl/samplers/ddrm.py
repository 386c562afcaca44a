"""Denoising diffusion restoration models."""

from dataclasses import dataclass

import torch

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Tensor
from stsl.solvers import Spectrum, spectrum


@dataclass(frozen=True)
class DDRM(Sampler):
    """Diffusion in the operator's singular directions: each is denoised, or measured, by whichever is less noisy.

    With A = U S Vᵀ, x = z/√ᾱ, σ = √((1 − ᾱ)/ᾱ), σ' that of the next level, and for the coefficients along V of the
    clean estimate ẑ₀, the noise ε, fresh noise ξ and the residual r = Uᵀ(y − A ẑ₀):

        s = 0:            x' = ẑ₀ + √(1 − η²) σ' ε + η σ' ξ
        0 < s σ' < σ_y:   x' = ẑ₀ + √(1 − η²) σ' r/σ_y + η σ' ξ
        s σ' >= σ_y:      x' = ẑ₀ + η_b r/s + √(σ'² − η_b² σ_y²/s²) ξ

    It begins at y/s + √(σ² − σ_y²/s²) ξ where s σ > σ_y, at σ ξ elsewhere.

    Source: Kawar et al. 2022, arXiv:2201.11793, section 3.2; the released code for 20 steps, η = 0.85, η_b = 1, nothing
    clipped, and singular values below 0.03 counted as 0 for blur and super-resolution.
    Departs from the code: σ_y is on [−1, 1] as everywhere here (the code doubles one on [0, 1]); noise is drawn as an
    image, so that Fourier coefficients keep their symmetry; the first iterate is scaled by √ᾱ, where the code divides
    by σ (a difference of 10⁻⁴ or less on a DDPM's schedule).
    """

    source = "Kawar et al. 2022, arXiv:2201.11793, section 3.2"
    requires = frozenset({"linear", "adjoint", "svd", "sigma_y"})
    family = "pixel"
    presets = {
        "ffhq-256": {"steps": 20, "eta": 0.85, "eta_b": 1.0},
        "fast": {"steps": 20, "eta": 0.85, "eta_b": 1.0},
    }

    steps: int = knob(20, "denoising steps", low=1, high=1000)
    eta: float = knob(0.85, "share of fresh noise where the prior decides", low=0.0, high=1.0)
    eta_b: float = knob(1.0, "weight of the measurement where it decides", low=0.0, high=1.0)
    cutoff: float = knob(0.03, "singular values below it count as 0", low=0.0, high=1.0)

    def begin(self, problem: Problem, rng: Rng) -> State:
        assert problem.sigma_y is not None
        noise = super().begin(problem, rng).z
        known = spectrum(problem.physics, problem.prior.image_shape, noise, self.cutoff)
        t, _ = self.plan(problem.schedule)[0]
        scale, sigma = problem.schedule.at(t)
        sigma /= scale
        s, xi = known.values, known.from_image(noise)
        y = known.from_measurement(problem.residual(torch.zeros_like(noise)))  # of [−1, 1] images
        spread = (sigma**2 - (problem.sigma_y / _above_zero(s)) ** 2).clamp(min=0).sqrt()
        measured = torch.where(s * sigma > problem.sigma_y, y / _above_zero(s) + spread * xi, sigma * xi)
        z = scale * (sigma * noise + known.to_image(measured - sigma * xi))
        return State(z, clean=z, memory=known)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        assert problem.sigma_y is not None
        known: Spectrum = state.memory
        scale, sigma = problem.schedule.at(t_next)
        sigma /= scale
        eps = problem.epsilon(state.z, t)
        z0 = problem.schedule.clean(state.z, eps, t)
        r = problem.residual(z0)
        noise = rng.normal(state.z)
        keep = (1 - self.eta**2) ** 0.5
        unseen = z0 + sigma * (keep * eps + self.eta * noise)

        s, clean, xi, gap = known.values, known.from_image(z0), known.from_image(noise), known.from_measurement(r)
        by_prior = clean + sigma * (self.eta * xi + (keep / problem.sigma_y * gap if problem.sigma_y else 0.0))
        spread = (sigma**2 - (self.eta_b * problem.sigma_y / _above_zero(s)) ** 2).clamp(min=0).sqrt()
        by_measurement = clean + self.eta_b * gap / _above_zero(s) + spread * xi
        seen = torch.where(s * sigma < problem.sigma_y, by_prior, by_measurement)
        change = torch.where(s > 0, seen - known.from_image(unseen), 0.0)
        z = scale * (unseen + known.to_image(change))
        return State(z, clean=z0, memory=known, log={"residual": problem.rms(r)})


def _above_zero(s: Tensor) -> Tensor:
    """s, and 1 where it is 0: the quotient is not used there."""
    return torch.where(s > 0, s, 1.0)
