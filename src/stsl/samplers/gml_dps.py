"""Goodness modified latent diffusion posterior sampling."""

from dataclasses import dataclass

from torch import Tensor

from stsl.numerics import gradient, norm_per_image
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Latent


@dataclass(frozen=True)
class GMLDPS(Sampler):
    """LDPS that also looks for a fixed point of the autoencoder.

    z ← DDIM(z_t) − ∇_z [ω ‖y − A(D(ẑ₀))‖ + γ ‖ẑ₀ − E(D(ẑ₀))‖]

    Source: Rout et al. 2023, arXiv:2307.00619, section 3 (GML-DPS); the talk's slide "GML-DPS".
    Its weights are not confirmed by any source: ω and γ are PSLD's.
    """

    source = "Rout et al. 2023, arXiv:2307.00619, GML-DPS"
    presets = {"sd15": {}, "balanced": {"steps": 250}, "fast": {"steps": 60, "omega": 3.0, "gamma": 0.3}}

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    omega: float = knob(1.0, "measurement factor: weight of the residual", low=0.0, high=10.0)
    gamma: float = knob(0.1, "weight of the autoencoder's fixed point", low=0.0, high=10.0)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, prior = problem.schedule, problem.prior

        def loss(z: Latent) -> tuple[Tensor, ...]:
            eps = problem.epsilon(z, t)
            z0 = schedule.clean(z, eps, t)
            x0 = prior.decode(z0)
            r = problem.misfit(x0)
            fixed = norm_per_image(z0 - prior.encode(x0))
            return self.omega * norm_per_image(r) + self.gamma * fixed, z0, eps, r

        grad, z0, eps, r = gradient(loss, state.z)
        z = schedule.move(z0, eps, t, t_next) - grad
        return State(z, clean=z0, log={"residual": problem.rms(r)})
