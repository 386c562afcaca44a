"""The loop over timesteps. There is no other one."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State

log = logging.getLogger("stsl")

T = TypeVar("T")


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

    Progress bars, previews, recording, cancelling and early stops all belong to the consumer of the frames. A step that
    comes out not finite in half precision is taken once more in float32, from the same state with the same noise.

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
        before, prior = state, problem.prior.for_step(len(plan) - index)
        here = problem if prior is problem.prior else replace(problem, prior=prior)
        with torch.inference_mode(False), torch.no_grad():
            step = partial(sampler.step, here, before, t, t_next, rng.at(stage, index))
            state = finite(prior, step, lambda state: state.z, f"step {index + 1} of {len(plan)}")
        if not state.z.isfinite().all():
            raise Diverged(
                f"{type(sampler).__name__} diverged at step {index + 1} of {len(plan)} (t = {t}): the latent is not "
                "finite any more. Smaller weights, a smaller lr or --precision fp32 may help"
            )
        yield Frame(index, len(plan), t, state, stage)


def finite(prior: Prior, compute: Callable[[], T], values: Callable[[T], Tensor], what: str) -> T:
    """What `compute` gives; in half precision computed once more in float32 if its values are not finite.

    Args:
        prior: whose precision it is.
        compute: gives the same whenever it is called, but for rounding.
        values: the tensor of a result that has to be finite.
        what: names the result in the log.
    """
    result = compute()
    if prior.is_narrow and not values(result).isfinite().all():
        log.warning("%s is not finite: once more in fp32, with the same noise", what)
        with prior.in_fp32():
            return compute()
    return result
