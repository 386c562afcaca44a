"""Null-text inversion."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from stsl.editors.base import Editor, Inversion, Trajectory, inverting, restoring
from stsl.editors.control import CrossAttentionControl
from stsl.editors.inversion import DDIMInversion
from stsl.editors.null_text import NullText
from stsl.loop import Frame, iterate
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, knob
from stsl.shapes import Image


@dataclass(frozen=True)
class NTI(Editor):
    """Invert, tune a negative embedding per step until guided sampling retraces the inversion, then edit with control.

    Without a `restorer` a corrupted photo is edited as it is, which is how the STSL paper compares; with one, it is
    restored first.

    Source: Mokady et al. 2023, arXiv:2211.09794, Algorithm 1, with the control of Hertz et al. 2022, arXiv:2208.01626.
    """

    source = "Mokady et al. 2023, arXiv:2211.09794"

    steps: int = knob(50, "T: steps up, and down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    null_steps: int = knob(10, "most steps on the negative embedding per level", low=0, high=1000)
    null_lr: float = knob(0.01, "step length of Adam on it at the first level", low=0.0, high=10.0)
    null_stop: float = knob(1e-5, "mean squared error that is near enough, at the first level", low=0.0, high=1.0)
    restorer: Sampler | None = None

    def stages(self) -> list[Sampler]:
        return [
            DDIMInversion(self.steps),
            NullText(self.steps, self.guidance, self.null_steps, self.null_lr, self.null_stop),
            CrossAttentionControl(self.steps, self.guidance),
        ]

    def inverting(self, problem: Problem, source: str, rng: Rng) -> Generator[Frame, None, Inversion]:
        image, _ = yield from restoring(problem, self.restorer, rng)
        trajectory = yield from inverting(problem, image, source, self.steps, rng)
        (null,) = (stage for stage in self.stages() if isinstance(stage, NullText))
        return (yield from retracing(problem, image, trajectory, source, null, rng))


def retracing(
    problem: Problem, image: Image, trajectory: Trajectory, source: str, null: NullText, rng: Rng
) -> Generator[Frame, None, Inversion]:
    """Tune the negative embeddings until guided sampling under `source` follows a trajectory."""
    with torch.inference_mode(False), torch.no_grad():
        prompted = replace(problem, condition=problem.prior.condition([source] * problem.batch))
        start = null.start(prompted, trajectory)
    nulls = start.memory.nulls
    for frame in iterate(prompted, null, rng, start=start, stage="null"):
        yield frame
        nulls = frame.state.memory.nulls
    return Inversion(image, start.z, torch.stack(nulls))
