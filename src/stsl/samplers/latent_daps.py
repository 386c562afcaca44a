"""Decoupled annealing posterior sampling in latent space."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from stsl.numerics import gradient
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import SUPERRESOLUTION, Sampler, State, knob
from stsl.schedule import Plan, Schedule
from stsl.shapes import Latent, Measurement

# Levels are spaced evenly in the 7th root of the noise level (Karras et al. 2022, arXiv:2206.00364, equation 5).
POWER = 7
# Where the short ODE of a level ends; nearer to the clean end than any level of a discrete schedule.
ODE_END = 1e-3

# The tasks that lose whole regions, as the key of a preset.
HOLES = "box_inpaint freeform_inpaint"
# The released code's settings for LDM-FFHQ-256. It has none for sr8 and freeform_inpaint, which take their neighbours'.
LDM_FFHQ: dict[str, dict[str, float]] = {
    "": {"mcmc_steps": 35, "lr": 2.7e-6, "momentum": 0.95, "lr_min_ratio": 0.95},
    SUPERRESOLUTION: {"mcmc_steps": 24, "lr": 1.35e-4, "momentum": 0.86, "lr_min_ratio": 0.023},
    "motion_blur": {"mcmc_steps": 49, "lr": 2.4e-5, "momentum": 0.45, "lr_min_ratio": 0.041},
    "random_inpaint": {"mcmc_steps": 38, "lr": 8.4e-6, "momentum": 0.92, "lr_min_ratio": 0.013},
    HOLES: {"mcmc_steps": 15, "lr": 9.02e-6, "momentum": 0.74, "lr_min_ratio": 0.13},
}


@dataclass(frozen=True)
class LatentDAPS(Sampler):
    """Estimate the clean latent, sample around it under the measurement, and start afresh from there one level lower.

    The noise level of z_t is σ = sigma_t/scale_t. At each of `steps` levels from σ = `sigma_max` to `sigma_min`:

    1. ẑ₀ ← the probability flow ODE from z_t to the clean end, `ode_steps` Euler steps (DDIM);
    2. `mcmc_steps` steps of damped Hamiltonian Monte Carlo from z₀ = ẑ₀, u ~ N(0, I), with m = `momentum`:

           s ← −∇ ‖y − A(D(z₀))‖²/τ² − (z₀ − ẑ₀)/σ²
           u ← m u + √lr s + √(2 (1 − m)) ξ,  z₀ ← z₀ + √lr u

    3. z_next ← scale' z₀ + sigma' ξ: fresh noise, whatever z_t was.

    With `momentum` 0 the second step is Langevin dynamics. lr falls linearly over the levels, towards `lr_min_ratio` of
    itself. Needs no gradient through the network.

    Source: Zhang et al. 2025, arXiv:2407.01521, Algorithm 1 with the latent variant, and the released code for the
    weights; the squared norm has no ½ there, so τ is √2 times the noise level it stands for. Departs from the code:
    levels are the nearest ones of the prior's schedule, the ODE ends at the clean end instead of σ = 0.001, the first
    latent is N(0, I), and the prompt is the user's (the code's: "a natural looking image", guidance 7.5).
    Not confirmed by any source: tasks that the code has no setting for, and `fast`.
    """

    source = "Zhang et al. 2025, arXiv:2407.01521, Algorithm 1"
    family = "latent"
    presets = {
        "sd15": {
            "": {},
            SUPERRESOLUTION: {"mcmc_steps": 30, "lr": 1e-4, "momentum": 0.45},
            "motion_blur": {"mcmc_steps": 30, "lr": 2e-5, "momentum": 0.85},
            "random_inpaint": {"mcmc_steps": 15, "lr": 3e-5, "momentum": 0.6},
            HOLES: {"mcmc_steps": 58, "lr": 1.11e-6, "momentum": 0.92, "lr_min_ratio": 0.43},
        },
        "ldm-ffhq": LDM_FFHQ,
        "fast": {tasks: fields | {"steps": 25, "mcmc_steps": 10} for tasks, fields in LDM_FFHQ.items()},
    }

    steps: int = knob(50, "noise levels", low=1, high=1000)
    sigma_max: float = knob(10.0, "first noise level, over the latent's scale", low=0.01, high=1000.0)
    sigma_min: float = knob(0.1, "noise level that the last but one leads to", low=0.001, high=1000.0)
    ode_steps: int = knob(2, "Euler steps of the ODE, a network evaluation each", low=1, high=100)
    mcmc_steps: int = knob(
        40, "Monte Carlo steps per level, a decoder pass forward and backward each", low=1, high=10000
    )
    lr: float = knob(1e-5, "square of the length of a Monte Carlo step", low=0.0, high=1.0)
    lr_min_ratio: float = knob(1.0, "what is left of lr at the clean end", low=0.0, high=1.0)
    momentum: float = knob(0.9, "m: 0 is Langevin dynamics", low=0.0, high=1.0)
    tau: float = knob(0.01, "noise level of the measurement, as the sampler takes it", low=1e-6, high=10.0)

    def plan(self, schedule: Schedule) -> Plan:
        wanted = _spaced(self.sigma_max, self.sigma_min, self.steps)[:-1]
        times = _levels(schedule, wanted)
        if len(set(times)) < self.steps:
            raise ValueError(
                f"LatentDAPS: this prior's schedule has {len(set(times))} levels near the {self.steps} asked for "
                f"between sigma_max = {self.sigma_max:g} and sigma_min = {self.sigma_min:g}: take fewer steps"
            )
        return list(pairwise([*times, -1]))

    @property
    def nfe(self) -> int:
        """T times the Euler steps of a level."""
        return self.steps * self.ode_steps

    def begin(self, problem: Problem, rng: Rng) -> State:
        state = super().begin(problem, rng)
        return State(state.z, clean=state.z, memory=0)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, level = problem.schedule, state.memory
        z0 = self._denoise(problem, state.z, t)
        scale, sigma = schedule.at(t)
        lr = self.lr * (1 + level / self.steps * (self.lr_min_ratio - 1))
        z0, r = self._explore(problem, z0, sigma / scale, lr, rng)
        z = schedule.diffuse(z0, rng.normal(z0), t_next)
        return State(z, clean=z0, memory=level + 1, log={"residual": problem.rms(r)})

    def _denoise(self, problem: Problem, z: Latent, t: int) -> Latent:
        """The end of the probability flow ODE. A DDIM step is Euler's in z/scale against σ."""
        schedule = problem.schedule
        scale, sigma = schedule.at(t)
        between = _levels(schedule, _spaced(sigma / scale, ODE_END, self.ode_steps)[1:-1])
        levels = sorted({t, -1, *(each for each in between if each < t)}, reverse=True)
        for here, there in pairwise(levels):
            eps = problem.epsilon(z, here)
            z = schedule.move(schedule.clean(z, eps, here), eps, here, there)
        return z

    def _explore(self, problem: Problem, mean: Latent, sigma: float, lr: float, rng: Rng) -> tuple[Latent, Measurement]:
        """Damped Hamiltonian Monte Carlo on exp(−‖y − A(D(z))‖²/τ²) N(z; mean, σ²), and its last but one misfit."""

        def loss(z: Latent) -> tuple[Tensor, Tensor]:
            r = problem.residual(z)
            return r.flatten(1).square().sum(1), r

        # Draw 0 of a step is the noise of the next level.
        z, velocity = mean, rng.normal(mean, draw=1)
        for k in range(self.mcmc_steps):
            grad, r = gradient(loss, z)
            score = -grad / self.tau**2 - (z - mean) / sigma**2
            fresh = (2 * (1 - self.momentum)) ** 0.5 * rng.normal(z, draw=2 + k)
            velocity = self.momentum * velocity + lr**0.5 * score + fresh
            z = z + lr**0.5 * velocity
        return z, r


def _spaced(top: float, bottom: float, steps: int) -> list[float]:
    """`steps` + 1 noise levels from top to bottom, evenly spaced in their 7th root."""
    roots = np.linspace(top ** (1 / POWER), bottom ** (1 / POWER), steps + 1)
    return [float(root) ** POWER for root in roots]


def _levels(schedule: Schedule, sigmas: list[float]) -> list[int]:
    """The level of the schedule whose sigma/scale is nearest to each."""
    there = np.array([sigma / scale for scale, sigma in map(schedule.at, range(schedule.levels))])
    return [int(np.abs(there - sigma).argmin()) for sigma in sigmas]
