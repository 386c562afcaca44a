"""Methods that are no diffusion: deepinv's optimisers, set up and named, and any other deepinv Reconstructor.

They are asked and answer as samplers do, so that the command line, the benchmark and a `Restorer` take them in the
sampler's place: a step is one iteration of deepinv's optimiser, and the iterate is the image itself, whatever the
prior's latents are. A prior gives them the size of the image, and a denoiser to those that need one.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.optim import ADMM, L2, PnP, TVPrior

from stsl.priors.base import Condition, Prior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import BLURS, Sampler, State, knob
from stsl.schedule import Plan, Schedule
from stsl.shapes import Image, Latent, Measurement, Tensor
from stsl.solvers import Spectrum, backproject, has_spectrum, spectrum


class Pixels(Prior):
    """A prior's images without its latents: the iterate is the image on [−1, 1]. There is no network to ask."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.name, self.schedule = prior, prior.name, prior.schedule
        self.latent_shape = self.image_shape = prior.image_shape
        self.family = prior.family

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        raise TypeError(f"prior {self.name!r} has a network for latents only, none for images")

    def encode(self, x: Image) -> Latent:
        return 2 * x - 1

    def decode(self, z: Latent) -> Image:
        return (1 + z) / 2

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()


class PriorDenoiser(Denoiser):
    """The minimum mean square error denoiser that a diffusion prior on pixels holds.

    D(v; s) = (1 + ẑ₀)/2 for images v on [0, 1] with noise of std s: ẑ₀ from √ᾱ (2 v − 1) at the level whose
    σ/√ᾱ is nearest to 2 s.

    Args:
        prior: on pixels.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Image, sigma: float | Tensor, **unused: object) -> Image:
        """Denoise images of shape (B, 3, H, W); `sigma` is one number for all."""
        schedule, wanted = self.prior.schedule, 2 * float(torch.as_tensor(sigma).max())
        t = nearest_level(schedule, wanted)
        z = schedule.at(t)[0] * self.prior.encode(x)
        return self.prior.decode(self.prior.clip(schedule.clean(z, self.prior.epsilon(z, t), t)))


def nearest_level(schedule: Schedule, noise: float) -> int:
    """The level at which the noise of an image, σ/s, is nearest to `noise` on [−1, 1]."""

    def gap(t: int) -> float:
        scale, sigma = schedule.at(t)
        return abs(sigma / scale - noise)

    return min(range(schedule.levels), key=gap)


class Fidelity(L2):
    """½ ‖A x − y‖² with the proximal step of `stsl.solvers`: exact with singular values, and never across a batch."""

    def __init__(self, known: Spectrum | None) -> None:
        super().__init__()
        self.known = known

    def prox(
        self, x: Image, y: Measurement, physics: Any, *args: object, gamma: float | Tensor = 1.0, **unused: object
    ) -> Image:
        return x + backproject(y - physics.A(x), physics, 1 / float(gamma), 1.0, self.known)


class Reconstruction(Sampler):
    """A method that works on the image, without levels of noise."""

    def plan(self, schedule: Schedule) -> Plan:
        """As many steps as iterations, all at the clean end."""
        return [(-1, -1)] * self.steps

    def space(self, prior: Prior) -> Prior:
        return prior if prior.family == "pixel" else Pixels(prior)

    def begin(self, problem: Problem, rng: Rng) -> State:
        """The lifted measurement."""
        z = problem.prior.encode(problem.start())
        return State(z, clean=z)


class Optimised(Reconstruction):
    """A method that deepinv's ADMM runs: one iteration per step."""

    @abstractmethod
    def optimiser(self, problem: Problem, iterations: int) -> ADMM:
        """deepinv's optimiser with these settings; it returns the image and the dual variable."""

    def begin(self, problem: Problem, rng: Rng) -> State:
        state, x = super().begin(problem, rng), problem.start()
        return State(state.z, clean=state.z, memory=(self.optimiser(problem, 1), (x, torch.zeros_like(x))))

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        optimiser, variables = state.memory
        variables = optimiser(problem.y, problem.physics, init=variables)
        z = problem.prior.encode(variables[0])
        log = {"residual": problem.rms(problem.misfit(variables[0]))}
        return State(z, clean=z, memory=(optimiser, variables), log=log)


def _data(problem: Problem) -> Fidelity:
    known = has_spectrum(problem.physics)
    return Fidelity(spectrum(problem.physics, problem.prior.image_shape, problem.y) if known else None)


@dataclass(frozen=True)
class ADMMTV(Optimised):
    """Least squares with total variation, by the alternating direction method of multipliers. No network.

    min_x ½ ‖y − A x‖² + λ ‖D x‖₂,₁ on images in [0, 1], D the forward differences of each colour

    Iterates u = prox of the data term at x − w with step 1/ρ, x = prox of TV at u + w, w ← w + u − x, from the lifted
    measurement: deepinv's `ADMM` with its `TVPrior`.

    Source: Wahlberg et al. 2012, arXiv:1203.1828; deepinv's optimiser. "published" has the values of the diffusion
    papers' baseline as recalled, not confirmed by any source: λ 0.027, ρ 0.14 for deblurring, 0.01 elsewhere. That
    baseline splits on D x, ours on x: the minimiser is the same, its ρ means something else. The defaults are ours,
    chosen on validation faces for a noise of 0.005.
    """

    source = "Wahlberg et al. 2012, arXiv:1203.1828; deepinv's ADMM and TVPrior"
    requires = frozenset({"linear", "adjoint", "prox"})
    presets = {
        "published": {
            "": {"steps": 300, "lam": 0.027, "rho": 0.01},
            BLURS: {"rho": 0.14},
        },
        "balanced": {"": {"steps": 100}, BLURS: {"rho": 0.05}},
        "fast": {"": {"steps": 50}, BLURS: {"rho": 0.05}},
    }

    steps: int = knob(100, "iterations", low=1, high=10000)
    lam: float = knob(0.001, "weight of the total variation", low=0.0, high=10.0)
    rho: float = knob(0.01, "penalty; only the speed depends on it", low=1e-4, high=1e4)
    inner_steps: int = knob(20, "iterations of the total variation's proximal step", low=1, high=1000)

    @property
    def nfe(self) -> int:
        return 0

    def optimiser(self, problem: Problem, iterations: int) -> ADMM:
        # A new TVPrior for every run: it starts from where its last call ended. No stopping test (crit 0), which would
        # couple the images of a batch.
        prior = TVPrior(def_crit=0.0, n_it_max=self.inner_steps)
        return ADMM(
            _data(problem),
            prior,
            lambda_reg=self.lam,
            stepsize=1 / self.rho,
            max_iter=iterations,
            get_output=_all_variables,
        )


@dataclass(frozen=True)
class PnPADMM(Optimised):
    """ADMM with a denoiser in place of a proximal step: the prior on pixels as a denoiser of one noise level.

    u = argmin ½ ‖y − A u‖² + ρ/2 ‖u − (x − w)‖²;   x = D(u + w; s);   w ← w + u − x, on images in [0, 1]

    From the lifted measurement: deepinv's `ADMM` with its `PnP` prior.

    Source: Chan et al. 2016, arXiv:1605.01710, Algorithm 1 with a constant penalty. ρ 0.2 and 12 iterations are the
    settings of the diffusion papers' baseline as recalled, not confirmed by any source; s is ours.
    Departs from that baseline: the denoiser is the diffusion prior at noise s, where it is a DnCNN.
    """

    source = "Chan et al. 2016, arXiv:1605.01710, Algorithm 1; deepinv's ADMM and PnP"
    requires = frozenset({"linear", "adjoint", "prox"})
    family = "pixel"
    presets = {
        "published": {"steps": 12, "rho": 0.2},
        "balanced": {"": {"steps": 12}, BLURS: {"denoise": 0.02}},
        "fast": {"": {"steps": 12}, BLURS: {"denoise": 0.02}},
    }

    steps: int = knob(12, "iterations, each with one network evaluation", low=1, high=1000)
    rho: float = knob(0.2, "penalty: weight of the prior in the data step", low=1e-6, high=1e4)
    denoise: float = knob(0.05, "noise that the denoiser removes, std on [0, 1]", low=1e-3, high=10.0)

    def optimiser(self, problem: Problem, iterations: int) -> ADMM:
        return ADMM(
            _data(problem),
            PnP(PriorDenoiser(problem.prior)),
            stepsize=1 / self.rho,
            sigma_denoiser=self.denoise,
            max_iter=iterations,
            get_output=_all_variables,
        )


def _all_variables(iterate: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], iterate["est"])


RECONSTRUCTORS: dict[str, type[Reconstruction]] = {"admm_tv": ADMMTV, "pnp_admm": PnPADMM}


def given(model: Reconstructor, name: str) -> type[Reconstruction]:
    """The method that runs any deepinv Reconstructor as it is: x = model(y, A) on images in [0, 1].

    Args:
        model: takes (y, physics) and returns images of the prior's size.
        name: what results call it.
    """

    @dataclass(frozen=True)
    class Given(Reconstruction):
        """A deepinv Reconstructor that was given. Source: its own."""

        source = f"deepinv Reconstructor {name}"
        requires = frozenset[str]()

        steps: int = knob(1, "the model is called once", low=1, high=1)
        model_name: str = knob(name, "what results call it")

        def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
            z = problem.prior.encode(model.to(problem.y.device)(problem.y, problem.physics))
            return State(z, clean=z, log={"residual": problem.rms(problem.residual(z))})

    return Given
