"""Hard data consistency with resampling."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stsl.numerics import Adam, gradient, norm_per_image
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import INPAINTING, Sampler, State, knob
from stsl.schedule import Plan, Schedule
from stsl.shapes import Image, Latent

# Where the noise level is not known, the released code's tolerance, on the papers' scale.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Memory:
    """What ReSample carries from step to step.

    Args:
        level: how many of the `steps` levels are done.
        anchor: the latent that time travel will return to; None on an ordinary level.
        t: the level that the anchor was reached from.
    """

    level: int = 0
    anchor: Latent | None = None
    t: int = -1


@dataclass(frozen=True)
class ReSample(Sampler):
    """LDPS that now and then solves for a clean estimate which fits the measurement, and draws the latent anew near it.

    At every level z' ← DDIM(z_t) − ζ ᾱ_t ∇_z ‖y − A(D(ẑ₀))‖. In the last two thirds, at every `every`-th level:

    1. time travel: `travel` plain DDIM steps further down give a better estimate ẑ₀;
    2. hard consistency: in the middle third z₀ʸ = E(argmin_x ‖y − A x‖²) from x = D(ẑ₀), later
       z₀ʸ = argmin_z ‖y − A D(z)‖² from ẑ₀, both by Adam, until the misfit is down to the noise (σ_y² in the mean);
    3. resampling at the level of z': with v = γ (1 − ᾱ')/(1 − ᾱ_t) (1 − ᾱ_t/ᾱ'),

           z' ← [v √ᾱ' z₀ʸ + (1 − ᾱ') z'] / (v + 1 − ᾱ') + [1/v + 1/(1 − ᾱ')]^(−½) ξ.

    At the clean end the latent problem is solved once more. The plan shows the travel: down, and back up in the step
    that solves and resamples.

    Source: Song et al. 2024, arXiv:2307.08123, Algorithm 1 and its released code for the weights. Departs from the
    code: Tweedie's formula has √(1 − ᾱ) where its "pseudo x0" has 1 − ᾱ, time travel asks the network at the level it
    is at, each image stops by itself and at its noise level instead of 1e-3, Adam has no weight decay (AdamW's default
    there), and there is no second stop on a plateau. Not confirmed by any source: `fast`.
    """

    source = "Song et al. 2024, arXiv:2307.08123, Algorithm 1"
    family = "latent"
    presets = {
        "ldm-ffhq": {"": {}, INPAINTING: {"latent_steps": 200}},
        "fast": {"steps": 45, "zeta": 10.0, "latent_steps": 50, "latent_lr": 0.02},
    }

    steps: int = knob(500, "denoising steps, those of time travel not counted", low=1, high=1000)
    zeta: float = knob(0.5, "length of the step against the residual, times the level's ᾱ", low=0.0, high=100.0)
    every: int = knob(10, "levels from one solution to the next", low=1, high=1000)
    travel: int = knob(5, "DDIM steps ahead before a solution", low=1, high=1000)
    gamma: float = knob(40.0, "how close to the solution the latent is drawn", low=0.0, high=1e6)
    pixel_steps: int = knob(2000, "most steps of Adam on an image", low=0, high=100000)
    pixel_lr: float = knob(0.01, "their length, for images on [-1, 1]", low=0.0, high=10.0)
    latent_steps: int = knob(500, "most steps of Adam on a latent", low=0, high=100000)
    latent_lr: float = knob(0.005, "their length", low=0.0, high=10.0)

    def plan(self, schedule: Schedule) -> Plan:
        down = schedule.descend(self.steps)
        plan: Plan = []
        for level, (t, t_next) in enumerate(down):
            plan.append((t, t_next))
            if self._solves_after(level):
                ahead = down[level + 1 : level + 1 + self.travel]
                plan += [*ahead, (ahead[-1][1], t_next)]
        return plan

    def _solves_after(self, level: int) -> bool:
        left = self.steps - 1 - level  # counted from the clean end, as in the code
        return 0 < left <= self.steps - self.steps // 3 and left % self.every == 0

    @property
    def nfe(self) -> int:
        """Every level, and those visited ahead of a solution."""
        solved = [level for level in range(self.steps) if self._solves_after(level)]
        return self.steps + sum(min(self.travel, self.steps - 1 - level) for level in solved)

    def begin(self, problem: Problem, rng: Rng) -> State:
        state = super().begin(problem, rng)
        return State(state.z, clean=state.z, memory=Memory())

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        if t_next > t:
            return self._resample(problem, state, t_next, rng)
        schedule, memory = problem.schedule, state.memory
        if memory.anchor is not None:  # on the way ahead
            eps = problem.epsilon(state.z, t)
            z0 = schedule.clean(state.z, eps, t)
            return State(schedule.move(z0, eps, t, t_next), clean=z0, memory=memory)

        def loss(z: Latent) -> tuple[Tensor, ...]:
            eps = problem.epsilon(z, t)
            z0 = schedule.clean(z, eps, t)
            r = problem.residual(z0)
            return norm_per_image(r), z0, eps, r

        grad, z0, eps, r = gradient(loss, state.z)
        z = schedule.move(z0, eps, t, t_next) - self.zeta * schedule.at(t)[0] ** 2 * grad
        if t_next == -1:
            z = self._solve_latent(problem, z)
        anchor = z if self._solves_after(memory.level) else None
        return State(z, clean=z0, memory=Memory(memory.level + 1, anchor, t), log={"residual": problem.rms(r)})

    def _resample(self, problem: Problem, state: State, t_next: int, rng: Rng) -> State:
        """Solve from the estimate that time travel reached, and draw the latent between it and the anchor."""
        memory, prior = state.memory, problem.prior
        if self.steps - memory.level >= self.steps // 3:
            solved = prior.encode(self._solve_pixels(problem, prior.decode(state.clean)))
        else:
            solved = self._solve_latent(problem, state.clean)
        a, a_next = (problem.schedule.at(level)[0] ** 2 for level in (memory.t, t_next))
        v = self.gamma * (1 - a_next) / (1 - a) * (1 - a / a_next)
        z = (v * a_next**0.5 * solved + (1 - a_next) * memory.anchor) / (v + 1 - a_next)
        if v:
            z = z + (1 / v + 1 / (1 - a_next)) ** -0.5 * rng.normal(z)
        log = {"residual": problem.rms(problem.residual(solved))}
        return State(z, clean=solved, memory=Memory(memory.level), log=log)

    def _solve_pixels(self, problem: Problem, x: Image) -> Image:
        return _fit(problem, x, lambda x: x, self.pixel_lr / 2, self.pixel_steps)  # images here are on [0, 1]

    def _solve_latent(self, problem: Problem, z: Latent) -> Latent:
        return _fit(problem, z, problem.prior.decode, self.latent_lr, self.latent_steps)


def _fit(problem: Problem, v: Tensor, image: Callable[[Tensor], Image], lr: float, steps: int) -> Tensor:
    """Adam on the mean square of y − A(image(v)). An image whose misfit is down to the noise moves no more."""
    tolerance = max(problem.sigma_y or 0.0, TOLERANCE)

    def loss(v: Tensor) -> tuple[Tensor, Tensor]:
        r = problem.misfit(image(v))
        return r.flatten(1).square().mean(1), r

    adam = Adam()
    for _ in range(steps):
        grad, r = gradient(loss, v)
        unmet = 2 * problem.rms(r) > tolerance
        if not unmet.any():
            break
        adam, direction = adam.update(grad)
        v = torch.where(unmet[:, None, None, None], v - lr * direction, v)
    return v
