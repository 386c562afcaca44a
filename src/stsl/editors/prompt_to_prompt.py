"""Prompt-to-prompt editing of photos."""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from stsl.editors.base import Editor, Inversion, inverting, restoring
from stsl.editors.control import CrossAttentionControl
from stsl.editors.inversion import DDIMInversion
from stsl.loop import Frame
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, knob


@dataclass(frozen=True)
class PromptToPrompt(Editor):
    """Invert under the source prompt, then draw it again beside the target prompt with cross-attention control.

    Quick and rough: guided sampling does not come back to the photo that DDIM inversion started from, see `NTI`.

    Source: Hertz et al. 2022, arXiv:2208.01626, section 4 (real images).
    """

    source = "Hertz et al. 2022, arXiv:2208.01626"

    steps: int = knob(50, "T: steps up, and down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    restorer: Sampler | None = None

    def stages(self) -> list[Sampler]:
        return [DDIMInversion(self.steps), CrossAttentionControl(self.steps, self.guidance)]

    def inverting(self, problem: Problem, source: str, rng: Rng) -> Generator[Frame, None, Inversion]:
        image, _ = yield from restoring(problem, self.restorer, rng)
        trajectory = yield from inverting(problem, image, source, self.steps, rng)
        with torch.inference_mode(False), torch.no_grad():
            empty = problem.prior.condition([""] * problem.batch).positive
        return Inversion(image, trajectory[max(trajectory)], empty.expand(self.steps, *empty.shape))
