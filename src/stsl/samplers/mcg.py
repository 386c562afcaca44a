"""Manifold constrained gradient."""

from dataclasses import dataclass, replace

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import BLURS, Sampler, State, knob
from stsl.samplers.dps import DPS
from stsl.samplers.score_sde import put_in


@dataclass(frozen=True)
class MCG(Sampler):
    """A step of DPS, then the noised measurement takes the place of what the iterate says of it.

    z' ← DDPM(z_t, ẑ₀) − α ∇_z ‖y − A(ẑ₀(z_t))‖;   z ← z' − Aᵀ(A z') + Aᵀ(ỹ),   ỹ = s y + σ ξ at the level of z

    For a mask m the second part is (1 − m) z' + m ỹ.

    Source: Chung et al. 2022, arXiv:2206.00941, Algorithm 1; the general linear form and α = 1 from the released code
    of DPS, arXiv:2209.14687.
    Departs from the code: ỹ is at the level that the step leads to (`level="current"` is the code's); for masks the
    formula above, where the code of DPS returns minus the masked image; one norm per image; the variance of the DDPM
    step is not learned. The last projection puts the measurement's noise into the image, as the method has it.
    Not confirmed by any source: `balanced` and `fast`, which keep α · steps.
    """

    source = "Chung et al. 2022, arXiv:2206.00941, Algorithm 1"
    requires = frozenset({"differentiable", "linear", "adjoint"})
    family = "pixel"
    presets = {
        "ffhq-256": {"steps": 1000, "alpha": 1.0},
        "balanced": {"": {"steps": 250, "alpha": 4.0}, BLURS: {"adjoint": "exact"}},
        "fast": {"": {"steps": 60, "alpha": 16.0}, BLURS: {"adjoint": "exact"}},
    }

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    alpha: float = knob(1.0, "length of the step against the residual", low=0.0, high=100.0)
    level: str = knob("next", "noise level of the measurement put in", choices=("next", "current"))
    adjoint: str = knob("paper", "A^T of the projection: the paper's, or exact", choices=("paper", "exact"))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        guided = DPS(self.steps, self.alpha).step(problem, state, t, t_next, rng)
        t_measured, noise = t_next if self.level == "next" else t, rng.normal(problem.y, draw=1)
        return replace(guided, z=put_in(problem, guided.z, t_measured, noise, self.adjoint))
