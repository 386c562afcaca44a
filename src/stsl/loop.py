"""The loop over timesteps. There is no other one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State


class Diverged(RuntimeError):
    """A value stopped being finite; nothing was written."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One finished step, for whoever watches.

    Args:
        index, total: which step of how many.
        t: the level the step started from.
        state: what it led to.
        stage: name of the stage.
    """

    index: int
    total: int
    t: int
    state: State
    stage: str


def iterate(
    problem: Problem, sampler: Sampler, rng: Rng, *, start: State | None = None, stage: str = "restore"
) -> Iterator[Frame]:
    """Run a sampler's plan, yielding a frame after every step.

    Progress bars, previews, recording, cancelling and early stops all belong to the consumer of the frames.

    Args:
        problem, sampler: what to solve, and how.
        rng: where the noise comes from.
        start: where to begin; None asks the sampler.
        stage: names the noise and the frames of this run; stages of one run need different names.

    Raises:
        Diverged: an iterate has a value that is not finite.
    """
    plan = sampler.plan(problem.schedule)
    # Never around the yield, where they would leak into the caller. Inference tensors cannot be differentiated through.
    with torch.inference_mode(False), torch.no_grad():
        state = start or sampler.begin(problem, rng.at(f"{stage}/begin", 0))
    for index, (t, t_next) in enumerate(plan):
        with torch.inference_mode(False), torch.no_grad():
            state = sampler.step(problem, state, t, t_next, rng.at(stage, index))
        if not state.z.isfinite().all():
            raise Diverged(
                f"{type(sampler).__name__} diverged at step {index + 1} of {len(plan)} (t = {t}): the latent is not "
                "finite any more. Smaller weights, a smaller lr or --precision fp32 may help"
            )
        yield Frame(index, len(plan), t, state, stage)
