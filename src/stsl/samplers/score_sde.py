"""Score-based generation with the measurement put back in after every step."""

from dataclasses import dataclass
from typing import cast

import torch
from deepinv.physics import Inpainting

from stsl.operators import Adjoint
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import BLURS, Sampler, State, knob
from stsl.shapes import Latent, Measurement


@dataclass(frozen=True)
class ScoreSDE(Sampler):
    """A DDPM step, then the noised measurement takes the place of what the iterate says of it. No gradient.

    z' ← DDPM(z_t, ẑ₀);   z ← z' − Aᵀ(A z') + Aᵀ(ỹ),   ỹ = s y + σ ξ at the level of z

    For a mask m this is (1 − m) z' + m ỹ.

    Source: Song et al. 2021, arXiv:2011.13456, section 5, in the DDPM form without corrector that MCG's
    released code (arXiv:2206.00941) runs as "Score-SDE".
    Departs from that code: ỹ is at the level that the step leads to (`level="current"` is the code's, one level
    noisier); the variance of the DDPM step is not learned.
    As in the sources nothing corrects ỹ for the measurement's own noise, and Aᵀ is a lift rather than a pseudo-inverse
    (`adjoint`): for blur z − A z is no projection. Not confirmed by any source: the presets with fewer steps.
    """

    source = "Song et al. 2021, arXiv:2011.13456, section 5; as run by MCG, arXiv:2206.00941"
    requires = frozenset({"linear", "adjoint"})
    family = "pixel"
    presets = {
        "ffhq-256": {"steps": 1000},
        "balanced": {"": {"steps": 250}, BLURS: {"adjoint": "exact"}},
        "fast": {"": {"steps": 60}, BLURS: {"adjoint": "exact"}},
    }

    steps: int = knob(1000, "denoising steps", low=1, high=1000)
    level: str = knob("next", "noise level of the measurement put in", choices=("next", "current"))
    adjoint: str = knob("paper", "A^T of the projection: the paper's, or exact", choices=("paper", "exact"))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, prior = problem.schedule, problem.prior
        z0 = prior.clip(schedule.clean(state.z, problem.epsilon(state.z, t), t))
        z = schedule.draw(state.z, z0, t, t_next, rng.normal(state.z))
        z = put_in(problem, z, t_next if self.level == "next" else t, rng.normal(problem.y, draw=1), self.adjoint)
        return State(z, clean=z0, log={"residual": problem.rms(problem.residual(z0))})


def put_in(problem: Problem, z: Latent, t: int, noise: Measurement, adjoint: str) -> Latent:
    """z − Aᵀ(A z) + Aᵀ(s y + σ noise) on [−1, 1] images, with s and σ those of level t.

    Args:
        problem: with a linear operator and a prior on pixels.
        z: image on [−1, 1].
        t: level of the noised measurement.
        noise: ξ, shape of the measurement.
        adjoint: which Aᵀ, see `stsl.operators.lift`.
    """
    scale, sigma = problem.schedule.at(t)
    if isinstance(problem.physics, Inpainting):
        noise = noise * problem.physics.mask  # a hole measures nothing, not even noise
    y = problem.residual(torch.zeros_like(z))  # the measurement of [−1, 1] images, for which mid-grey is 0
    return z + problem.lift(scale * y + sigma * noise - (y - problem.residual(z)), cast(Adjoint, adjoint))
