"""Cross-attention tuning: control of attention, then a step towards the measurement."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from stsl.editors.control import CrossAttentionControl
from stsl.numerics import gradient, norm_per_image, trace_estimate
from stsl.priors.base import Condition
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.samplers.contrast import Contrast, contrast, load_vit
from stsl.shapes import Latent, Measurement, PerImage


@dataclass(frozen=True)
class CrossAttentionTuning(Sampler):
    """A step of `CrossAttentionControl`, whose result is moved down the gradient, at the step's beginning, of

        λ ‖y − A(D(ẑ₀))‖ + (η/d) (1/N) Σₙ εₙ·(s(z + εₙ) − s(z))    in the first `measured` of the steps
        ν L_ViT(y, A(D(ẑ₀)))                                        in the others

    by z_target, with ẑ₀ predicted under the target prompt without guidance. The ViT's loss is not divided by d, as in
    the paper's appendix; with ν = 0 no ViT is needed.

    Source: Rout et al. 2024, arXiv:2312.00852, section 3.3, Algorithm 2 (lines 20 to 23) and appendix B.1. That the
    ViT's loss takes the place of the other two is our reading of "then".
    """

    source = "Rout et al. 2024, arXiv:2312.00852, Algorithm 2"
    requires = frozenset({"text", "differentiable"})

    steps: int = knob(50, "T: steps down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    lam: float = knob(1.0, "weight of the measurement", low=0.0, high=1e6)
    eta: float = knob(0.02, "weight of the trace, divided by the latent size", low=0.0, high=1e6)
    probes: int = knob(1, "N: random probes of the trace", low=0, high=64)
    measured: float = knob(0.6, "share of the steps that follow the measurement", low=0.0, high=1.0)
    nu: float = knob(0.0, "weight of the contrastive ViT loss in the others", low=0.0, high=1e6)
    vit: str = knob("", "ViT of the contrastive loss: a name, a folder or a hub id; empty is faces-vit")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.nu:
            load_vit(problem, self.vit, f"nu = {self.nu}")

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        index = state.memory.index
        moved = CrossAttentionControl(self.steps, self.guidance).step(problem, state, t, t_next, rng)
        prompted = replace(problem, condition=Condition(state.memory.target, state.memory.target))
        if index < round(self.measured * self.steps):
            probes = None
            if self.eta and self.probes:
                probes = torch.stack([rng.normal(state.z, draw=n) for n in range(self.probes)])
            loss = partial(self._surrogate, prompted, t, probes)
        elif self.nu:
            loss = partial(self._contrast, prompted, t, contrast(problem, self.vit, f"nu = {self.nu}"))
        else:
            return moved
        grad, r = gradient(loss, state.z)
        return replace(moved, z=moved.z - grad, log={**moved.log, "residual": problem.rms(r)})

    def _surrogate(self, problem: Problem, t: int, probes: Tensor | None, z: Latent) -> tuple[PerImage, Measurement]:
        schedule = problem.schedule
        stack = z if probes is None else torch.cat([z, (z + probes).flatten(0, 1)])
        eps, *others = problem.epsilon(stack, t).split(z.shape[0])
        r = problem.residual(schedule.clean(z, eps, t))
        loss = self.lam * norm_per_image(r)
        if probes is not None:
            scores = torch.stack([schedule.score(other, t) for other in others])
            loss = loss + self.eta / z[0].numel() * trace_estimate(probes, scores, schedule.score(eps, t))
        return loss, r

    def _contrast(self, problem: Problem, t: int, loss: Contrast, z: Latent) -> tuple[PerImage, Measurement]:
        r = problem.residual(problem.schedule.clean(z, problem.epsilon(z, t), t))
        return self.nu * loss(problem.y - r / 2), r  # A(D(ẑ₀)), since r = 2 (y − A(D(ẑ₀)))
