"""Denoising diffusion models for plug-and-play image restoration."""

from dataclasses import dataclass
from typing import cast

import torch
from deepinv.physics import Inpainting

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import INPAINTING, SUPERRESOLUTION, Sampler, State, knob
from stsl.schedule import Plan, Schedule, Spacing
from stsl.solvers import backproject, has_spectrum, spectrum

# Least noise of the measurement on [0, 1] that the data step reckons with.
FLOOR = 0.001


@dataclass(frozen=True)
class DiffPIR(Sampler):
    """Denoise, bring the estimate to the measurement by a proximal step, and diffuse it to the next level.

    x ← argmin_x ‖y − A x‖² + ρ ‖x − ẑ₀‖²,   ρ = λ σ_y² / σ²,   σ² = (1 − ᾱ)/ᾱ
    e ← (z_t − √ᾱ x)/√(1 − ᾱ);   z ← √ᾱ' x + √(1 − ᾱ') (√(1 − ζ) e + √ζ ξ)

    The last step has no proximal step. It begins with the enlarged measurement, noised to the first level.

    Source: Zhu et al. 2023, arXiv:2305.08995, Algorithm 1; the released code for the settings (λ 7 and ζ 0.3 for
    deblurring, ζ 0.25 for super-resolution, λ 1 and ζ 1 for inpainting), the quadratic spacing, a σ_y of 0.001 or more,
    and known pixels pasted into the result of inpainting. As there σ_y in ρ is on [0, 1] while σ is on [−1, 1].
    Departs from the code: blur and decimation have the operator's own border and kernel, solved with its singular
    values or conjugate gradients, where the code has circular ones.
    Not confirmed by any source: λ for super-resolution, which the code sweeps from 2 to 12; we take 6.
    """

    source = "Zhu et al. 2023, arXiv:2305.08995, Algorithm 1"
    requires = frozenset({"linear", "adjoint", "prox", "sigma_y"})
    family = "pixel"
    presets = {
        "ffhq-256": {
            "": {"steps": 100, "lam": 7.0, "zeta": 0.3},
            SUPERRESOLUTION: {"lam": 6.0, "zeta": 0.25},
            INPAINTING: {"lam": 1.0, "zeta": 1.0},
        },
        "balanced": {
            "": {"steps": 100, "lam": 7.0, "zeta": 0.3},
            SUPERRESOLUTION: {"lam": 6.0, "zeta": 0.25},
            INPAINTING: {"lam": 1.0, "zeta": 1.0},
        },
        "fast": {
            "": {"steps": 20, "lam": 7.0, "zeta": 0.3},
            SUPERRESOLUTION: {"lam": 6.0, "zeta": 0.25},
            INPAINTING: {"lam": 1.0, "zeta": 1.0},
        },
    }

    steps: int = knob(100, "denoising steps", low=1, high=1000)
    lam: float = knob(7.0, "weight of the prior in the proximal step", low=0.0, high=1000.0)
    zeta: float = knob(0.3, "share of fresh noise per step; 0 is deterministic", low=0.0, high=1.0)
    spacing: str = knob("quad", "levels: quadratic as in the paper, or even", choices=("quad", "leading"))
    paste: bool = knob(True, "inpainting: measured pixels, with their noise, replace the result's")

    def plan(self, schedule: Schedule) -> Plan:
        return schedule.descend(self.steps, cast(Spacing, self.spacing))

    def begin(self, problem: Problem, rng: Rng) -> State:
        noise = super().begin(problem, rng).z
        t, _ = self.plan(problem.schedule)[0]
        z = problem.schedule.diffuse(problem.prior.encode(problem.start()), noise, t)
        known = None
        if has_spectrum(problem.physics):
            known = spectrum(problem.physics, problem.prior.image_shape, noise)
        return State(z, clean=z, memory=known)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        assert problem.sigma_y is not None
        schedule, prior = problem.schedule, problem.prior
        scale, sigma = schedule.at(t)
        z0 = prior.clip(schedule.clean(state.z, problem.epsilon(state.z, t), t))
        r = problem.residual(z0)
        log = {"residual": problem.rms(r)}
        if t_next == -1:
            return State(self._pasted(problem, z0), clean=z0, memory=state.memory, log=log)
        rho = self.lam * max(problem.sigma_y / 2, FLOOR) ** 2 / (sigma / scale) ** 2
        x = z0 + backproject(r, problem.physics, rho, 1.0, state.memory)
        eps = (1 - self.zeta) ** 0.5 * schedule.noise(state.z, x, t) + self.zeta**0.5 * rng.normal(state.z)
        return State(schedule.diffuse(x, eps, t_next), clean=x, memory=state.memory, log=log)

    def _pasted(self, problem: Problem, z0: torch.Tensor) -> torch.Tensor:
        physics = problem.physics
        if not (self.paste and isinstance(physics, Inpainting)):
            return z0
        return z0 + physics.mask * problem.residual(z0)
