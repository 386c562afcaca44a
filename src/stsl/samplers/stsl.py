"""The second-order Tweedie sampler from a surrogate loss."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from stsl.numerics import Adam, gradient, norm_per_image, trace_estimate
from stsl.operators import Adjoint
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.samplers.contrast import Contrast, contrast, load_vit
from stsl.samplers.prompt import Prompt
from stsl.schedule import Plan, Schedule
from stsl.shapes import Latent, PerImage

log = logging.getLogger("stsl")

# The two terms' gradients are compared at every fifth level only: telling them apart costs a second backward pass.
COMPARE_EVERY = 5
# A hole wider than this share of the side stays grey when the run begins from the measurement (the paper's Figure 8).
WIDE_HOLE = 1 / 8
# Adam steps and their length for the initialisation of the paper's footnote 2.
FIT_STEPS, FIT_LR = 100, 0.05
# Enough for the norm of a blur to some per cent; it only has to be of the right size.
POWER_STEPS = 20


@dataclass(frozen=True, eq=False)
class Memory:
    """What STSL carries from step to step."""

    adam: Adam = field(default_factory=Adam)
    level: int = 0
    forward: Mapping[int, Latent] = field(default_factory=dict)
    contrast: Contrast | None = None
    prompt: Prompt | None = None
    gain: PerImage | None = None


@dataclass(frozen=True)
class STSL(Sampler):
    """Refine the latent at every level against a surrogate of log p(y | z_t), then move one level down.

    At level t, `inner_steps` steps of Adam on

        L(z) = λ ‖y − A(D(ẑ₀(z)))‖ + (η/d) (1/N) Σₙ εₙ·(s(z + εₙ) − s(z)) + (ν/d) L_ViT(y, A D(ẑ₀)) + κ ‖z − z_fwd‖²

    with s = ∇ log p_t, d the number of latent coordinates and εₙ ~ N(0, I); then one step of the reverse process. The
    second term estimates the trace of the Hessian of log p_t, which is, up to constants, the spread of z₀ given z_t.
    The third is `stsl.perceptual.ContrastiveLoss`; with ν = 0 no ViT is needed.

    Source: Rout et al. 2024, arXiv:2312.00852, Algorithm 1, section 3.2 and appendix B.1.

    Where the paper contradicts itself or is silent, every reading is an option. Defaults that differ from the printed
    listing, each measured in docs/methods.md:

    - `init="auto"`: the Gaussian transition kernel of the paper's text from the lifted measurement, and noise for an
      image with a hole wider than 1/8 of its side. The printed recursion ("printed") multiplies its noise up.
    - `reverse="ddim"`: the printed DDPM mean without noise ("ddpm_mean") contracts towards the prior's mean.
    - Adam restarts at every level, because the loss of the next level is another one.

    The preset "calibrated" samples where the paper optimises, which keeps the spread of the posterior
    (docs/exactness.md): with `refine="langevin"` a refinement is z ← z + (δ/2)(s(z) − ∇L(z)) + √δ ξ, δ = lr σ_t², and
    the outer step takes ε + σ_t ∇L(z) for the noise; with `meas_loss="gaussian"` the first term of L is
    λ ‖y − A(D(ẑ₀))‖² / 2(σ_y² + g σ_t²), the likelihood's own weight, with σ_t² the variance of z₀ given z_t under a
    prior of unit variance (Song et al. 2023, "Pseudoinverse-guided diffusion models") and g = ‖A‖². Our addition: the
    paper has none of it.

    `prompt_steps` > 0 tunes the prompt at every level before the latent is refined, as P2L does: the paper names it as
    future work (section 6) and gives no numbers; where in the level, and the step length, are our decisions.
    """

    source = "Rout et al. 2024, arXiv:2312.00852, Algorithm 1"
    requires = frozenset({"differentiable", "linear", "adjoint"})
    family = "latent"
    presets = {
        "paper": {"nu": 2.0},
        "printed": {
            "init": "printed",
            "reverse": "ddpm_mean",
            "probes": 1,
            "adam_state": "none",
            "lr": 1.0,
            "lr_decay": 1.0,
        },
        "biased": {"eta": 0.0, "inner_steps": 1},
        "I": {"init": "gaussian"},
        "II": {"init": "noise"},
        "III": {"init": "gaussian", "steps": 200},
        "IV": {"init": "noise", "steps": 200},
        "V": {"init": "noise", "steps": 1000, "inner_steps": 2},
        "balanced": {"steps": 30, "eta": 0.0, "probes": 0, "lr": 0.03, "reuse_last": True},
        "fast": {"steps": 20, "inner_steps": 3, "eta": 0.0, "probes": 0, "lr": 0.03, "reuse_last": True},
        "calibrated": {
            "steps": 100,
            "inner_steps": 1,
            "probes": 0,
            "eta": 0.0,
            "lr": 0.3,
            "lr_decay": 1.0,
            "init": "noise",
            "reverse": "ddpm",
            "meas_loss": "gaussian",
            "refine": "langevin",
        },
    }

    steps: int = knob(50, "T: diffusion steps", low=1, high=1000)
    inner_steps: int = knob(5, "K: refinements of the latent per level", low=0, high=100)
    probes: int = knob(2, "N: random probes of the trace per refinement", low=0, high=64)
    lam: float = knob(1.0, "weight of the measurement", low=0.0, high=1e6)
    eta: float = knob(0.02, "weight of the trace, divided by the latent size", low=0.0, high=1e6)
    nu: float = knob(0.0, "weight of the contrastive ViT loss, divided by the latent size", low=0.0, high=1e6)
    kappa: float = knob(0.0, "weight of the distance to the forward latent", low=0.0, high=1e6)
    lr: float = knob(0.01, "step length of Adam at the first level", low=0.0, high=10.0)
    lr_decay: float = knob(0.998, "factor of lr from level to level", low=0.1, high=1.0)
    init: str = knob(
        "auto",
        "where to begin: auto, gaussian (kernel), ddim (inversion), printed (the listing), noise, argmin (footnote 2)",
        choices=("auto", "gaussian", "ddim", "printed", "noise", "argmin"),
    )
    reverse: str = knob(
        "ddim",
        "outer step: ddim, ddpm_mean (the listing), ddpm (mean plus noise)",
        choices=("ddim", "ddpm_mean", "ddpm"),
    )
    meas_loss: str = knob(
        "norm",
        "measurement term: norm, its square, its mean square, or gaussian (the square with the likelihood's weight)",
        choices=("norm", "sqnorm", "mse", "gaussian"),
    )
    refine: str = knob(
        "descend",
        "a refinement: descend the loss, or langevin (sample it together with the prior; lr in units of the noise)",
        choices=("descend", "langevin"),
    )
    probe_scale: str = knob(
        "unit", "probe size: unit (the paper) or sigma (min(1, noise level))", choices=("unit", "sigma")
    )
    adam_state: str = knob(
        "per_level",
        "Adam's moments: per_level, persistent, or none (plain gradient steps of length lr)",
        choices=("per_level", "persistent", "none"),
    )
    adjoint: str = knob("paper", "A^T of the initialisation: the paper's, or exact", choices=("paper", "exact"))
    reuse_last: bool = knob(False, "take the outer step with the last refinement's prediction, one step stale")
    prompt_steps: int = knob(
        0, "steps of Adam on the prompt per level, before the refinements; 0 leaves it", low=0, high=100
    )
    prompt_lr: float = knob(1e-4, "step length of Adam on the prompt", low=0.0, high=1.0)
    vit: str = knob("", "ViT of the contrastive loss: a name, a folder or a hub id; empty is faces-vit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa and self.init not in ("ddim", "printed"):
            raise ValueError(
                f'STSL: kappa = {self.kappa} pulls towards the forward latents, which init="{self.init}" does not '
                'make: use init="ddim" or init="printed"'
            )

    @property
    def nfe(self) -> int:
        """T · K: the paper counts the refinements, not the outer steps, the inversion or the probes; the steps on the
        prompt, as P2L counts them, come on top."""
        return self.steps * (max(self.inner_steps, 1) + self.prompt_steps)

    def plan(self, schedule: Schedule) -> Plan:
        down = schedule.descend(self.steps)
        return schedule.ascend(self.steps) + down if self.init in ("ddim", "printed") else down

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.prompt_steps and not problem.prior.has_text:
            raise TypeError(
                f"STSL: prompt_steps = {self.prompt_steps} tunes a prompt, and prior {problem.prior.name!r} has no "
                "text: set prompt_steps to 0"
            )
        if self.meas_loss == "gaussian" and problem.sigma_y is None:
            raise TypeError(
                'STSL: meas_loss="gaussian" weighs the measurement by its noise and needs a known noise level (the '
                '`sigma` of the operator\'s noise model); meas_loss="norm" does not'
            )
        if self.nu:
            try:
                load_vit(problem, self.vit, f"STSL: nu = {self.nu}")
            except ValueError as error:
                raise ValueError(f'{error}, or use the presets "balanced" or "fast"') from error

    def _contrast(self, problem: Problem) -> Contrast | None:
        return contrast(problem, self.vit, f"STSL: nu = {self.nu}") if self.nu else None

    def begin(self, problem: Problem, rng: Rng) -> State:
        z0 = problem.prior.encode(problem.start(cast(Adjoint, self.adjoint)))
        gain = _gain(problem, rng) if self.meas_loss == "gaussian" else None
        if self.init in ("ddim", "printed"):
            return State(z0, clean=z0, memory=Memory(contrast=self._contrast(problem), gain=gain))
        if self.init == "argmin":
            z0 = _fit(problem, z0)
        top = self.plan(problem.schedule)[0][0]
        noise = rng.normal(z0)
        z = noise if self.init == "noise" else problem.schedule.diffuse(z0, noise, top)
        if self.init == "auto" and (wide := problem.holes_wider_than(WIDE_HOLE)).any():
            log.info(
                "a hole is wider than 1/8 of the image: starting from noise, since the measurement would keep it grey"
            )
            z = torch.where(wide[:, None, None, None], noise, z)
        return State(z, clean=z0, memory=Memory(contrast=self._contrast(problem), gain=gain))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        if t_next > t:
            return self._ascend(problem, state, t, t_next)
        schedule, memory = problem.schedule, state.memory
        lr = self.lr * self.lr_decay**memory.level
        adam = memory.adam if self.adam_state == "persistent" else Adam()
        z, numbers = state.z, dict[str, PerImage]()
        if self.prompt_steps:
            prompt = memory.prompt or Prompt.of(problem)
            prompt = prompt.tune(problem, z, t, self.prompt_steps, self.prompt_lr)
            problem, memory = prompt.applied(problem), replace(memory, prompt=prompt)
            numbers["prompt"] = prompt.moved()
        for k in range(self.inner_steps):
            ratios = self._ratios(memory) if k == 0 and memory.level % COMPARE_EVERY == 0 else ()
            probes = self._draw(z, rng, k)
            surrogate = partial(self._surrogate, problem, t, probes, memory, bool(ratios))
            grad, eps, r = gradient(surrogate, z)
            if ratios:
                data, *others = grad
                for name, other in zip(ratios, others, strict=False):  # no ratio is taken of kappa's term, the last
                    numbers[name] = other.flatten(1).norm(dim=1) / norm_per_image(data)
                grad = grad.sum(0)
            numbers["residual"] = problem.rms(r)
            if self.refine == "langevin":
                length = lr * schedule.at(t)[1] ** 2
                noise = rng.normal(z, draw=1 + (self.inner_steps + 1) * self.probes + k)
                z = z + length / 2 * (schedule.score(eps, t) - grad) + length**0.5 * noise
                continue
            if self.adam_state == "none":
                direction = grad
            else:
                adam, direction = adam.update(grad)
            z = z - lr * direction
        if self.refine == "langevin":  # the reverse process of p(z_t | y), whose score is −ε/σ_t − ∇L
            probes = self._draw(z, rng, self.inner_steps)
            grad, eps, r = gradient(partial(self._surrogate, problem, t, probes, memory, False), z)
            eps = eps + schedule.at(t)[1] * grad
            numbers["residual"] = problem.rms(r)
        elif not (self.reuse_last and self.inner_steps):
            eps = problem.epsilon(z, t)
        clean = schedule.clean(z, eps, t)
        if self.reverse == "ddpm_mean":
            z = schedule.mean(z, clean, t, t_next)
        else:
            noisy = self.reverse == "ddpm"
            z = schedule.move(clean, eps, t, t_next, eta=float(noisy), noise=rng.normal(z) if noisy else None)
        return State(z, clean, memory=replace(memory, adam=adam, level=memory.level + 1), log=numbers)

    def _surrogate(
        self,
        problem: Problem,
        t: int,
        probes: Tensor | None,
        memory: Memory,
        compare: bool,
        z: Latent,
    ) -> tuple[PerImage | list[PerImage], Latent, Tensor]:
        """L(z) per image, the predicted noise and the misfit; with `compare` the list of its terms instead of L."""
        schedule = problem.schedule
        delta = min(1.0, schedule.at(t)[1]) if self.probe_scale == "sigma" else 1.0
        # One network call for the iterate and its probes.
        stack = z if probes is None else torch.cat([z, (z + delta * probes).flatten(0, 1)])
        eps, *moved = problem.epsilon(stack, t).split(z.shape[0])
        r = problem.residual(schedule.clean(z, eps, t))
        if memory.gain is not None:
            assert problem.sigma_y is not None
            unsure = problem.sigma_y**2 + memory.gain * schedule.at(t)[1] ** 2
            terms = [self.lam * r.flatten(1).square().sum(1) / (2 * unsure)]
        else:
            terms = [self.lam * _measurement_loss(r, self.meas_loss)]
        if probes is not None:
            scores = torch.stack([schedule.score(other, t) for other in moved])
            trace = trace_estimate(probes, scores, schedule.score(eps, t), delta)
            terms.append(self.eta / z[0].numel() * trace)
        if memory.contrast is not None:
            measured = problem.y - r / 2  # A(D(ẑ₀)), since r = 2 (y − A(D(ẑ₀)))
            terms.append(self.nu / z[0].numel() * memory.contrast(measured))
        if (forward := memory.forward.get(t)) is not None:
            terms.append(self.kappa * (z - forward).flatten(1).square().sum(1))
        return terms if compare else sum(terms[1:], terms[0]), eps, r

    @property
    def has_trace(self) -> bool:
        """Whether the second-order term is computed at all."""
        return self.eta > 0 and self.probes > 0

    def _ratios(self, memory: Memory) -> tuple[str, ...]:
        """Names of the terms whose gradients are compared with the measurement's, in the order of the terms."""
        return ("r2",) * self.has_trace + ("rV",) * (memory.contrast is not None)

    def _draw(self, z: Latent, rng: Rng, k: int) -> Tensor | None:
        """The probes of one refinement, shape (N, B, C, h, w). Draw 0 of a step is the outer step's noise."""
        if not self.has_trace:
            return None
        return torch.stack([rng.normal(z, draw=1 + k * self.probes + n) for n in range(self.probes)])

    def _ascend(self, problem: Problem, state: State, t: int, t_next: int) -> State:
        schedule, memory = problem.schedule, state.memory
        if self.init == "ddim":
            eps = problem.epsilon(state.z, t_next)  # queried at the target level: there is no network level at t = -1
            clean = schedule.clean(state.z, eps, t)
            z = schedule.move(clean, eps, t, t_next)
        else:
            eps = problem.epsilon(state.z, t_next if t == -1 else t)
            clean = state.clean
            ratio = schedule.at(t_next)[0] / schedule.at(t)[0]
            z = ratio * state.z + (1 - ratio**2) ** 0.5 * eps
        if t_next == self.plan(schedule)[-self.steps][0] and ((std := z.flatten(1).std(1)) - 1.25).abs().max() > 0.75:
            log.warning(
                'init="%s": the forward latents have standard deviation %s, not about 1; init="gaussian" keeps it',
                self.init,
                ", ".join(f"{value:.3g}" for value in std.tolist()),
            )
        if self.kappa:  # nothing else needs them, and all levels of a large batch take much memory
            memory = replace(memory, forward={**memory.forward, t_next: z})
        return State(z, clean, memory=memory)


def _measurement_loss(r: Tensor, kind: str) -> PerImage:
    if kind == "norm":
        return norm_per_image(r)
    squares = r.flatten(1).square()
    return squares.sum(1) if kind == "sqnorm" else squares.mean(1)


def _gain(problem: Problem, rng: Rng) -> PerImage:
    """‖A‖², the largest eigenvalue of AᵀA, by the power method; from below, and exact for a mask."""
    u = rng.normal(problem.y.new_empty(problem.batch, *problem.prior.image_shape), draw=1)
    for _ in range(POWER_STEPS):
        u = problem.physics.A_adjoint(problem.physics.A(u))
        size = u.flatten(1).norm(dim=1)
        u = u / size.clamp(min=1e-12).reshape(-1, *[1] * (u.ndim - 1))
    return size


def _fit(problem: Problem, z: Latent) -> Latent:
    """argmin_z ‖y − A(D(z))‖ by Adam from the encoded measurement: the alternative of the paper's footnote 2."""
    adam = Adam()
    for _ in range(FIT_STEPS):
        (grad,) = gradient(lambda z: norm_per_image(problem.residual(z)), z)
        adam, direction = adam.update(grad)
        z = z - FIT_LR * direction
    return z
