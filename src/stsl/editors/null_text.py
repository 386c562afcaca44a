"""Null-text optimisation: a negative embedding per step, with which guided sampling follows a given trajectory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stsl.numerics import Adam, gradient
from stsl.priors.base import Condition
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Latent, PerImage

# The constants of the paper's code are for this many steps; for others they are stretched.
STEPS = 50


@dataclass(frozen=True, eq=False)
class Path:
    """What null-text optimisation carries from step to step.

    Args:
        pivots: level -> the latents to pass through.
        null: negative embedding of the latest step, (B, L, D) in float32 or wider.
        nulls: those of all steps so far.
    """

    pivots: Mapping[int, Latent]
    null: Tensor
    nulls: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class NullText(Sampler):
    """At every level, tune the negative embedding φ until a guided DDIM step ends at the trajectory's next latent.

    φ ← φ − lr_j Adam(∇_φ mean (z*_next − DDIM(z, ε(z, φ) + w (ε(z, c) − ε(z, φ))))²),  lr_j = lr (1 − j/2T)

    for at most `inner_steps` steps, until the mean is below stop (1 + 2 j · 50/T); j counts the levels from the noisy
    end. φ begins as the last level's. The step is then taken with it. Only φ is optimised, in float32, whatever the
    networks compute with; an image that has arrived rests while others of its batch go on.

    A run starts from `NullText.start`.

    Source: Mokady et al. 2023, arXiv:2211.09794, Algorithm 1, with the constants of its code.
    """

    source = "Mokady et al. 2023, arXiv:2211.09794, Algorithm 1"
    requires = frozenset()

    steps: int = knob(50, "T: steps down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    inner_steps: int = knob(10, "most steps of Adam on the negative embedding per level", low=0, high=1000)
    lr: float = knob(0.01, "step length of Adam at the first level", low=0.0, high=10.0)
    stop: float = knob(1e-5, "mean squared error that is near enough, at the first level", low=0.0, high=1.0)

    @staticmethod
    def start(problem: Problem, pivots: Mapping[int, Latent]) -> State:
        """Where a run begins: at the noisiest of the latents, with the embedding of the empty prompt.

        Args:
            problem: its condition holds the source prompts, and the negative embedding to begin with.
            pivots: level -> latents, with level -1.
        """
        assert problem.condition is not None
        z = pivots[max(pivots)]
        return State(z, clean=pivots[-1], memory=Path(pivots, problem.condition.negative))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, z, memory, condition = problem.schedule, state.z, state.memory, problem.condition
        assert condition is not None
        wanted, null, level = memory.pivots[t_next], memory.null, len(memory.nulls)
        lr = self.lr * (1 - level / (2 * self.steps))
        near = self.stop * (1 + 2 * level * STEPS / self.steps)
        positive = self._epsilon(problem, z, t, condition.positive)

        def taken(null: Tensor) -> tuple[Latent, Latent]:
            negative = self._epsilon(problem, z, t, null)
            eps = negative + self.guidance * (positive - negative)
            clean = schedule.clean(z, eps, t)
            return schedule.move(clean, eps, t, t_next), clean

        def squares(null: Tensor) -> tuple[PerImage, PerImage]:
            loss = (taken(null)[0] - wanted).flatten(1).square().sum(1)
            return loss, loss

        adam, size = Adam(), z[0].numel()
        away = torch.ones(problem.batch, dtype=torch.bool, device=z.device)
        for _ in range(self.inner_steps):
            # The sum, divided after the backward pass: gradients of the mean are too small for half precision.
            grad, loss = gradient(squares, null)
            adam, direction = adam.update(grad / size)
            null = torch.where(away[:, None, None], null - lr * direction, null)
            away = away & (loss / size >= near)
            if not away.any():
                break
        z_next, clean = taken(null)
        error = (z_next - wanted).flatten(1).square().mean(1)
        memory = replace(memory, null=null, nulls=(*memory.nulls, null))
        return State(z_next, clean, memory=memory, log={"null_error": error})

    def _epsilon(self, problem: Problem, z: Latent, t: int, text: Tensor) -> Latent:
        return problem.prior.epsilon(z, t, Condition(text, text))
