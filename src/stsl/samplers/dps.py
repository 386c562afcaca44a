"""Diffusion posterior sampling."""

from dataclasses import dataclass

from torch import Tensor

from stsl.numerics import gradient, norm_per_image
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import INPAINTING, Sampler, State, knob
from stsl.shapes import Latent


@dataclass(frozen=True)
class DPS(Sampler):
    """A DDPM step, then a step against the gradient of the residual, taken through the network.

    z ← DDPM(z_t, ẑ₀) − ζ ∇_z ‖y − A(ẑ₀(z_t))‖,   ẑ₀ clipped to [−1, 1] inside the gradient

    Source: Chung et al. 2023, arXiv:2209.14687, Algorithm 1; the released code for ζ and for the norm that is not
    squared: ζ 0.5 for inpainting, 0.3 for super-resolution and blur, 1000 steps.
    Departs from the code: the variance is that of q(z_next | z_t, ẑ₀) where a network would have learned one; one norm
    per image.
    Not confirmed by any source: `balanced` and `fast`, which keep ζ · steps.
    """

    source = "Chung et al. 2023, arXiv:2209.14687, Algorithm 1"
    family = "pixel"
    presets = {
        "ffhq-256": {"": {"steps": 1000, "zeta": 0.3}, INPAINTING: {"zeta": 0.5}},
        "balanced": {"": {"steps": 250, "zeta": 1.2}, INPAINTING: {"zeta": 2.0}},
        "fast": {"": {"steps": 60, "zeta": 5.0}, INPAINTING: {"zeta": 8.0}},
    }

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    zeta: float = knob(0.3, "length of the step against the residual", low=0.0, high=100.0)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, prior = problem.schedule, problem.prior

        def loss(z: Latent) -> tuple[Tensor, ...]:
            z0 = prior.clip(schedule.clean(z, problem.epsilon(z, t), t))
            r = problem.residual(z0)
            return norm_per_image(r), z0, r

        grad, z0, r = gradient(loss, state.z)
        z = schedule.draw(state.z, z0, t, t_next, rng.normal(state.z)) - self.zeta * grad
        return State(z, clean=z0, log={"residual": problem.rms(r)})
