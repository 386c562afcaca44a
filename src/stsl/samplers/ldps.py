"""Latent diffusion posterior sampling."""

from dataclasses import dataclass

from torch import Tensor

from stsl.numerics import gradient, norm_per_image
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Latent


@dataclass(frozen=True)
class LDPS(Sampler):
    """Denoise, then step against the gradient of the residual, taken through network and decoder.

    z ← DDIM(z_t) − ω ∇_z ‖y − A(D(ẑ₀(z_t)))‖

    Source: Rout et al. 2023, arXiv:2307.00619, the baseline of section 3; the talk's slide "Latent-DPS".
    Departs from it: one norm per image, where the released code takes one over the batch (it runs one image).
    """

    source = "Rout et al. 2023, arXiv:2307.00619, Latent-DPS"
    presets = {"sd15": {}, "balanced": {"steps": 250}, "fast": {"steps": 60, "omega": 3.0}}

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    omega: float = knob(1.0, "measurement factor: length of the step against the residual", low=0.0, high=10.0)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule = problem.schedule

        def loss(z: Latent) -> tuple[Tensor, ...]:
            eps = problem.epsilon(z, t)
            z0 = schedule.clean(z, eps, t)
            r = problem.residual(z0)
            return self.omega * norm_per_image(r), z0, eps, r

        grad, z0, eps, r = gradient(loss, state.z)
        z = schedule.move(z0, eps, t, t_next) - grad
        return State(z, clean=z0, log={"residual": problem.rms(r)})
