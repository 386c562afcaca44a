"""Diffusion model based posterior sampling."""

from dataclasses import dataclass

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.solvers import backproject, has_spectrum, spectrum


@dataclass(frozen=True)
class DMPS(Sampler):
    """A DDPM step, then a step along the likelihood's score for a flat prior on the clean image. No gradient.

    x' ← DDPM(z_t, ẑ₀);   z ← x' + λ (1 − α)/√α G(x'),   α = ᾱ_t / ᾱ_next
    G(x) = (1/√ᾱ) Aᵀ (σ_y² I + ((1 − ᾱ)/ᾱ) A Aᵀ)⁻¹ (y − A x/√ᾱ),   ᾱ that of t

    The inverse has a closed form where the singular values are known; elsewhere conjugate gradients do it.

    Source: Meng and Kabashima 2022, arXiv:2211.12343, Algorithm 1; the released code for λ = 1.75 with every task, 1000
    steps, G at the new iterate x' (`at="current"` takes it at z_t, the literal reading), and singular values below
    0.03 counted as 0 for blur and super-resolution.
    Departs from the code: the variance of the DDPM step is not learned; conjugate gradients for motion blur.
    Not confirmed by any source: `balanced` and `fast`, which keep λ.
    """

    source = "Meng and Kabashima 2022, arXiv:2211.12343, Algorithm 1"
    requires = frozenset({"linear", "adjoint", "sigma_y"})
    family = "pixel"
    presets = {
        "ffhq-256": {"steps": 1000, "lam": 1.75},
        "balanced": {"steps": 250, "lam": 1.75},
        "fast": {"steps": 60, "lam": 1.75},
    }

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    lam: float = knob(1.75, "weight of the likelihood's score", low=0.0, high=100.0)
    at: str = knob("new", "where that score is taken: the new iterate or the current one", choices=("new", "current"))
    cutoff: float = knob(0.03, "singular values below it count as 0", low=0.0, high=1.0)

    def begin(self, problem: Problem, rng: Rng) -> State:
        state = super().begin(problem, rng)
        if not has_spectrum(problem.physics):
            return state
        known = spectrum(problem.physics, problem.prior.image_shape, state.z, self.cutoff)
        return State(state.z, clean=state.z, memory=known)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        assert problem.sigma_y is not None
        schedule, prior = problem.schedule, problem.prior
        (scale, sigma), (scale_next, _) = schedule.at(t), schedule.at(t_next)
        z0 = prior.clip(schedule.clean(state.z, problem.epsilon(state.z, t), t))
        z = schedule.draw(state.z, z0, t, t_next, rng.normal(state.z))
        r = problem.residual((z if self.at == "new" else state.z) / scale)
        score = backproject(r, problem.physics, problem.sigma_y**2, (sigma / scale) ** 2, state.memory) / scale
        alpha = (scale / scale_next) ** 2
        z = z + self.lam * (1 - alpha) / alpha**0.5 * score
        return State(z, clean=z0, memory=state.memory, log={"residual": problem.rms(problem.residual(z0))})
