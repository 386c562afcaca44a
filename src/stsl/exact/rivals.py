"""Samplers that know more than a network could tell: what the others are compared with."""

from dataclasses import dataclass
from typing import cast

import torch

from stsl.exact.posterior import mixture_prior, observe
from stsl.numerics import gradient
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.schedule import Plan, Schedule, Spacing
from stsl.shapes import Latent, PerImage


@dataclass(frozen=True)
class Unguided(Sampler):
    """The reverse process alone, z ← DDPM(z_t), which looks at no measurement.

    With the posterior itself as the prior it is the best that a sampler can do at this number of steps: its score is
    exact, and what is left is the error of the discretisation.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.
    """

    source = "Song et al. 2021, arXiv:2010.02502, equations 12 and 16"

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    noise: float = knob(1.0, "fresh noise per step; 0 is DDIM, 1 is DDPM", low=0.0, high=1.0)
    spacing: str = knob("leading", "how the levels are chosen", choices=("leading", "trailing"))

    def plan(self, schedule: Schedule) -> Plan:
        return schedule.descend(self.steps, cast(Spacing, self.spacing))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        eps = problem.epsilon(state.z, t)
        z0 = problem.schedule.clean(state.z, eps, t)
        noise = rng.normal(state.z) if self.noise else None
        return State(problem.schedule.move(z0, eps, t, t_next, eta=self.noise, noise=noise), clean=z0)


@dataclass(frozen=True)
class TMPD(Sampler):
    """Guide the reverse process by the Gaussian that has the exact two first moments of z₀ given z_t.

    p(y | z_t) ≈ N(y; H ẑ₀, H Cov[z₀ | z_t] Hᵀ + σ_y² I), its covariance held fixed in the gradient; then DDPM with the
    noise ε − σ_t ∇ log p(y | z_t).

    Only for problems with an exact posterior: a network would have to be differentiated d times for the covariance,
    which here is closed form.

    Source: Boys et al. 2023, arXiv:2310.06721, without its diagonal approximation of the covariance.
    """

    source = "Boys et al. 2023, arXiv:2310.06721"
    requires = frozenset({"differentiable", "linear"})

    steps: int = knob(200, "denoising steps", low=1, high=1000)

    def begin(self, problem: Problem, rng: Rng) -> State:
        state = super().begin(problem, rng)
        return State(state.z, clean=state.z, memory=observe(problem))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, seen = problem.schedule, state.memory
        moments = mixture_prior(problem).denoised(state.z, t).through(seen.matrix, seen.sigma_y)
        root = torch.linalg.cholesky(moments.covariance)

        def log_likelihood(z: Latent) -> tuple[PerImage, Latent]:
            eps = problem.epsilon(z, t)
            r = seen.seen - schedule.clean(z, eps, t).flatten(1) @ seen.matrix.T
            white = torch.linalg.solve_triangular(root, r[..., None], upper=False)
            return -0.5 * white.square().sum((1, 2)), eps

        grad, eps = gradient(log_likelihood, state.z)
        eps = eps - schedule.at(t)[1] * grad
        z0 = schedule.clean(state.z, eps, t)
        z = schedule.move(z0, eps, t, t_next, eta=1.0, noise=rng.normal(state.z))
        return State(z, clean=z0, memory=seen)
