"""Posterior sampling with latent diffusion."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from stsl.numerics import gradient, norm_per_image
from stsl.operators import Adjoint
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Latent


@dataclass(frozen=True)
class PSLD(Sampler):
    """LDPS that also glues the measurement onto the decoded estimate, and asks the encoder to agree.

    z ← DDIM(z_t) − ∇_z [ω ‖y − A(D(ẑ₀))‖ + γ ‖ẑ₀ − E(D(ẑ₀) + Aᵀ(y − A D(ẑ₀)))‖]

    With `kernel` > 0 the glued correction is weighted by the Gaussian-blurred map of seen pixels, which softens the
    border of a hole; an operator that sees every pixel is not affected.

    Source: Rout et al. 2023, arXiv:2307.00619, Algorithm 2, and its released code for the weights; five controls from
    the talk's web application, whose gluing kernel is named there but not explained: ours is an interpretation.
    Departs from the code: one norm per image, encoder's mean instead of a sample, no fresh noise on the predicted
    measurement, and known pixels are never replaced by the ground truth.
    """

    source = "Rout et al. 2023, arXiv:2307.00619, Algorithm 2"
    requires = frozenset({"differentiable", "linear", "adjoint"})
    presets = {
        "sd15": {"steps": 1000, "omega": 1.0, "gamma": 0.1},
        "sd15-box": {"steps": 1000, "omega": 0.1, "gamma": 0.01},
        "ldm-ffhq": {
            "": {"steps": 1000, "omega": 0.1, "gamma": 0.1},
            "sr4": {"steps": 1000, "omega": 0.9, "gamma": 0.1},
        },
        "web-demo": {"steps": 200, "omega": 1.0, "gamma": 0.1, "kernel": 15, "kernel_sigma": 7.0},
        "balanced": {"steps": 250},
        "fast": {"steps": 60, "omega": 3.0, "gamma": 0.3},
    }

    steps: int = knob(1000, "number of diffusion steps", low=1, high=1000)
    omega: float = knob(1.0, "measurement factor: weight of the residual", low=0.0, high=10.0)
    gamma: float = knob(0.1, "gluing factor: weight of the gluing term", low=0.0, high=10.0)
    kernel: int = knob(0, "gluing kernel size in pixels, odd; 0 is off", low=0, high=101)
    kernel_sigma: float = knob(7.0, "gluing kernel sigma in pixels", low=0.1, high=25.0)
    adjoint: str = knob("paper", "A^T of the gluing term: the paper's, or exact", choices=("paper", "exact"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"PSLD: kernel = {self.kernel}: a gluing kernel has an odd size, or 0 for none")

    def begin(self, problem: Problem, rng: Rng) -> State:
        state = super().begin(problem, rng)
        # The weights of the glued correction do not change from step to step.
        return State(state.z, clean=state.z, memory=self._weights(problem))

    def _weights(self, problem: Problem) -> Tensor | None:
        if not self.kernel:
            return None
        seen = problem.seen().to(problem.y.dtype)
        pad = self.kernel // 2
        if pad >= min(seen.shape[-2:]):
            raise ValueError(f"PSLD: kernel = {self.kernel} does not fit an image of {tuple(seen.shape[-2:])} pixels")
        return gaussian_blur(seen, [self.kernel, self.kernel], [self.kernel_sigma, self.kernel_sigma])

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, prior = problem.schedule, problem.prior

        def loss(z: Latent) -> tuple[Tensor, ...]:
            eps = problem.epsilon(z, t)
            z0 = schedule.clean(z, eps, t)
            x0 = prior.decode(z0)
            r = problem.misfit(x0)
            glued = problem.glue(r, cast(Adjoint, self.adjoint))
            if state.memory is not None:
                glued = state.memory * glued
            gluing = norm_per_image(z0 - prior.encode(x0 + glued))
            return self.omega * norm_per_image(r) + self.gamma * gluing, z0, eps, r

        grad, z0, eps, r = gradient(loss, state.z)
        z = schedule.move(z0, eps, t, t_next) - grad
        return State(z, clean=z0, memory=state.memory, log={"residual": problem.rms(r)})
