"""DDIM inversion: from an image up to the noise that would make it."""

from dataclasses import dataclass

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.schedule import Plan, Schedule
from stsl.shapes import Latent


@dataclass(frozen=True)
class DDIMInversion(Sampler):
    """Run the deterministic reverse process upwards, from the encoded image, under the prompt of the problem alone.

    z_next = s_next ẑ₀ + σ_next ε(z, next),  ẑ₀ = (z − σ ε)/s

    The noise is predicted at the level that the step goes to, as the null-text inversion code has it: at the clean end
    there is no network level to ask.

    Source: Song et al. 2021, arXiv:2010.02502, section 4.3; Mokady et al. 2023, arXiv:2211.09794, section 3.2.
    """

    source = "Song et al. 2021, arXiv:2010.02502; Mokady et al. 2023, arXiv:2211.09794"
    requires = frozenset({"linear", "adjoint"})

    steps: int = knob(50, "steps up, and down again when editing", low=1, high=1000)

    def plan(self, schedule: Schedule) -> Plan:
        return schedule.ascend(self.steps)

    def begin(self, problem: Problem, rng: Rng) -> State:
        z = problem.prior.encode(problem.start())
        return State(z, clean=z)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, z = problem.schedule, state.z
        eps: Latent = problem.epsilon(z, t_next)
        clean = schedule.clean(z, eps, t)
        return State(schedule.move(clean, eps, t, t_next), clean)
