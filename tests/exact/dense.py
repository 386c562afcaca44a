"""Every quantity of the samplers with dense matrices: explicit formulas, no autograd, nothing of the library's algebra.

Rows are images: z is (B, d), x and the lifted measurements are (B, p), y is (B, m). Images are on [0, 1].
A one-component mixture is the Gaussian prior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stsl.priors.base import Condition, Prior
from stsl.schedule import VariancePreserving

# Stable Diffusion's schedule: the square roots of the betas are linear from √8.5e-4 to √1.2e-2.
ALPHA_BAR = torch.cumprod(1 - torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=torch.float64) ** 2, 0).tolist()


def level(t: int) -> tuple[float, float]:
    """√ᾱ and √(1 − ᾱ); −1 is the clean end."""
    a = 1.0 if t < 0 else ALPHA_BAR[t]
    return a**0.5, (1 - a) ** 0.5


def apply(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix @ row for every row, with one matrix for all or one each."""
    return torch.einsum("...pd,bd->bp" if matrix.ndim == 2 else "bpd,bd->bp", matrix, rows)


@dataclass(frozen=True)
class Mixture:
    """Latents from Σ_k w_k N(μ_k, C_k); at level t each component is N(s μ_k, s² C_k + σ² I)."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d, d)

    def _at(self, z: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities (B, K), −P_k (z − s μ_k) (B, K, d), precisions P_k (K, d, d)."""
        scale, sigma = level(t)
        eye = torch.eye(z.shape[1], dtype=z.dtype)
        total = scale**2 * self.covariances + sigma**2 * eye
        precision = torch.linalg.inv(total)
        away = z[:, None] - scale * self.means
        pull = -torch.einsum("kde,bke->bkd", precision, away)
        likelihood = self.weights.log() + 0.5 * (away * pull).sum(2) - 0.5 * torch.linalg.slogdet(total)[1]
        return torch.softmax(likelihood, 1), pull, precision

    def score(self, z: Tensor, t: int) -> Tensor:
        share, pull, _ = self._at(z, t)
        return torch.einsum("bk,bkd->bd", share, pull)

    def hessian(self, z: Tensor, t: int) -> Tensor:
        """∇² log p_t = Σ_k r_k (g_k g_kᵀ − P_k) − s sᵀ with g_k = −P_k (z − s μ_k)."""
        share, pull, precision = self._at(z, t)
        score = torch.einsum("bk,bkd->bd", share, pull)
        second = torch.einsum("bk,bkd,bke->bde", share, pull, pull) - torch.einsum("bk,kde->bde", share, precision)
        return second - score[:, :, None] * score[:, None, :]


@dataclass(frozen=True)
class Dense:
    """A problem as matrices: x = (1 + W z)/2, z = V (2x − 1), y = A x + noise, `lift` and `glue` for the two Aᵀ."""

    latents: Mixture
    decoder: Tensor  # W (p, d)
    encoder: Tensor  # V (d, p)
    operator: Tensor  # A (m, p) or (B, m, p)
    lift: Tensor  # (p, m) or (B, p, m)
    glue: Tensor  # (p, m) or (B, p, m)
    seen: Tensor  # (B, p) bool
    y: Tensor  # (B, m)

    def encode(self, x: Tensor) -> Tensor:
        return apply(self.encoder, 2 * x - 1)

    def decode(self, z: Tensor) -> Tensor:
        return (1 + apply(self.decoder, z)) / 2

    def start(self) -> Tensor:
        """E(lift(y)), mid-grey where nothing was seen."""
        return self.encode(torch.where(self.seen, apply(self.lift, self.y), 0.5))

    def eps(self, z: Tensor, t: int) -> Tensor:
        return -level(t)[1] * self.latents.score(z, t)

    def clean(self, z: Tensor, t: int) -> Tensor:
        """Tweedie's formula, (z + (1 − ᾱ) s)/√ᾱ."""
        scale, sigma = level(t)
        return (z + sigma**2 * self.latents.score(z, t)) / scale

    def slope(self, z: Tensor, t: int) -> Tensor:
        """dẑ₀/dz = (I + (1 − ᾱ) ∇² log p)/√ᾱ, (B, d, d)."""
        scale, sigma = level(t)
        return (torch.eye(z.shape[1], dtype=z.dtype) + sigma**2 * self.latents.hessian(z, t)) / scale

    def residual(self, z0: Tensor) -> Tensor:
        """2 (y − A D(z₀)): images on [−1, 1]."""
        return 2 * (self.y - apply(self.operator, self.decode(z0)))

    def data_gradient(self, z: Tensor, t: int, kind: str = "norm") -> Tensor:
        """∇_z of ‖r‖, ‖r‖² or the mean of r², r = 2 (y − A D(ẑ₀(z))), so dr/dz = −A W dẑ₀/dz."""
        r = self.residual(self.clean(z, t))
        back = -(self.operator @ self.decoder @ self.slope(z, t)).transpose(1, 2)
        g = apply(back, r)
        # The library keeps the root away from 0 by 1e-12.
        return {
            "norm": g / (r.square().sum(1, keepdim=True) + 1e-12).sqrt(),
            "sqnorm": 2 * g,
            "mse": 2 * g / r.shape[1],
        }[kind]

    def trace(self, z: Tensor, t: int, probes: Tensor, delta: float = 1.0) -> Tensor:
        """(1/N) Σ_n ε_n · (s(z + δ ε_n) − s(z)) / δ, (B,)."""
        moved = torch.stack([self.latents.score(z + delta * e, t) for e in probes])
        return (probes * (moved - self.latents.score(z, t))).sum(2).mean(0) / delta

    def trace_gradient(self, z: Tensor, t: int, probes: Tensor, delta: float = 1.0) -> Tensor:
        """(1/N) Σ_n (H(z + δ ε_n) − H(z)) ε_n / δ: the Jacobian of a score is symmetric."""
        here = self.latents.hessian(z, t)
        return sum(apply(self.latents.hessian(z + delta * e, t) - here, e) for e in probes) / (len(probes) * delta)

    def gluing_gradient(self, z: Tensor, t: int, correction: Tensor | None = None) -> Tensor:
        """∇_z ‖ẑ₀ − E(D(ẑ₀) + Aᵀ(y − A D(ẑ₀)))‖ with the rows of Aᵀ given; None is the fixed point ‖ẑ₀ − E(D(ẑ₀))‖."""
        z0, slope = self.clean(z, t), self.slope(z, t)
        eye = torch.eye(z.shape[1], dtype=z.dtype)
        if correction is None:
            target, change = self.encode(self.decode(z0)), self.encoder @ self.decoder
        else:
            misfit = self.y - apply(self.operator, self.decode(z0))
            target = self.encode(self.decode(z0) + apply(correction, misfit))
            change = self.encoder @ (self.decoder - correction @ self.operator @ self.decoder)
        gap = z0 - target
        g = apply(((eye - change) @ slope).transpose(1, 2), gap)
        return g / (gap.square().sum(1, keepdim=True) + 1e-12).sqrt()

    def ddim(self, z: Tensor, t: int, t_next: int, query: int | None = None) -> Tensor:
        """√(ᾱ'/ᾱ) z + (√(1 − ᾱ') − √(ᾱ'/ᾱ) √(1 − ᾱ)) ε, up or down; ε is asked at `query`."""
        (scale, sigma), (scale_next, sigma_next) = level(t), level(t_next)
        ratio = scale_next / scale
        return ratio * z + (sigma_next - ratio * sigma) * self.eps(z, t if query is None else query)


def ddpm(z: Tensor, z0: Tensor, t: int, t_next: int) -> tuple[Tensor, float]:
    """Mean and standard deviation of q(z_next | z, z₀) (Ho et al. 2020, equation 7)."""
    a, a_next = level(t)[0] ** 2, level(t_next)[0] ** 2
    alpha = a / a_next
    mean = (alpha**0.5 * (1 - a_next) * z + a_next**0.5 * (1 - alpha) * z0) / (1 - a)
    return mean, ((1 - a_next) / (1 - a) * (1 - alpha)) ** 0.5


@dataclass
class HandAdam:
    """Adam of Kingma and Ba, Algorithm 1."""

    m: Any = 0.0
    v: Any = 0.0
    count: int = 0

    def step(self, g: Tensor) -> Tensor:
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        return (self.m / (1 - 0.9**self.count)) / ((self.v / (1 - 0.999**self.count)) ** 0.5 + 1e-8)


@dataclass(frozen=True)
class HandSTSL:
    """STSL with the settings that its equations contain: the algorithm of arXiv:2312.00852 written out once more."""

    steps: int = 50
    inner_steps: int = 5
    probes: int = 2
    lam: float = 1.0
    eta: float = 0.02
    kappa: float = 0.0
    lr: float = 0.01
    lr_decay: float = 0.998
    init: str = "gaussian"
    reverse: str = "ddim"
    meas_loss: str = "norm"
    probe_scale: str = "unit"
    adam_state: str = "per_level"
    reuse_last: bool = False

    def run(self, dense: Dense, plan: Sequence[tuple[int, int]], draws: Iterator[Tensor]) -> list[Tensor]:
        """The iterate after every step of a plan, upward steps first where `init` has them."""
        start = dense.start()
        if self.init in ("ddim", "printed"):
            z = start
        else:
            noise = next(draws)
            scale, sigma = level(plan[0][0])
            z = noise if self.init == "noise" else scale * start + sigma * noise
        forward, iterates, adam, depth = {}, [], HandAdam(), 0
        for t, t_next in plan:
            if t_next > t:
                z = forward[t_next] = self.up(dense, z, t, t_next)
            else:
                if self.adam_state == "per_level":
                    adam = HandAdam()
                z = self.down(dense, z, t, t_next, draws, forward.get(t), adam, self.lr * self.lr_decay**depth)
                depth += 1
            iterates.append(z)
        return iterates

    def up(self, dense: Dense, z: Tensor, t: int, t_next: int) -> Tensor:
        if self.init == "ddim":
            return dense.ddim(z, t, t_next, query=t_next)
        alpha = (level(t_next)[0] / level(t)[0]) ** 2
        return alpha**0.5 * z + (1 - alpha) ** 0.5 * dense.eps(z, t_next if t < 0 else t)

    def terms(
        self, dense: Dense, z: Tensor, t: int, probes: Tensor | None, forward: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the data term, the trace term and the pull to the forward latent."""
        delta = min(1.0, level(t)[1]) if self.probe_scale == "sigma" else 1.0
        data = self.lam * dense.data_gradient(z, t, self.meas_loss)
        none = torch.zeros_like(z)
        trace = none if probes is None else self.eta / z.shape[1] * dense.trace_gradient(z, t, probes, delta)
        return data, trace, none if forward is None else 2 * self.kappa * (z - forward)

    def down(
        self,
        dense: Dense,
        z: Tensor,
        t: int,
        t_next: int,
        draws: Iterator[Tensor],
        forward: Tensor | None,
        adam: HandAdam,
        lr: float,
    ) -> Tensor:
        eps = None
        for _ in range(self.inner_steps):
            probes = torch.stack([next(draws) for _ in range(self.probes)]) if self.eta and self.probes else None
            g = sum(self.terms(dense, z, t, probes, forward))
            eps = dense.eps(z, t)
            z = z - lr * (g if self.adam_state == "none" else adam.step(g))
        if eps is None or not self.reuse_last:
            eps = dense.eps(z, t)
        scale, sigma = level(t)
        scale_next, sigma_next = level(t_next)
        z0 = (z - sigma * eps) / scale
        if self.reverse == "ddim":
            return scale_next * z0 + sigma_next * eps
        mean, std = ddpm(z, z0, t, t_next)
        return mean + std * next(draws) if self.reverse == "ddpm" else mean


class Tape:
    """Stands in for the library's Rng: gives noise of its own, remembers it in order, and sees no draw used twice."""

    def __init__(self, seed: int = 0) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.drawn: list[Tensor] = []
        self.where: tuple[str, int] = ("", 0)
        self.asked: set[tuple[str, int, int]] = set()

    def at(self, stage: str, step: int) -> "Tape":
        self.where = (stage, step)
        return self

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        assert (*self.where, draw) not in self.asked, f"draw {draw} of {self.where} is used twice"
        self.asked.add((*self.where, draw))
        self.drawn.append(torch.randn(like.shape, dtype=like.dtype, generator=self.source))
        return self.drawn[-1]

    def replay(self) -> Iterator[Tensor]:
        """What was drawn, flattened, in order."""
        return (noise.flatten(1) for noise in self.drawn)


class MixturePrior(Prior):
    """A `Mixture` as a prior of the library: ε from the exact score, differentiable; W and V as in `Dense`."""

    def __init__(
        self,
        mixture: Mixture,
        decoder: Tensor,
        encoder: Tensor,
        latent_shape: tuple[int, int, int],
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.name, self.latent_shape, self.image_shape = "mixture", latent_shape, image_shape
        self.schedule = VariancePreserving(tuple(ALPHA_BAR), offset=1)
        self.mixture = mixture
        self.register_buffer("decoder", decoder)
        self.register_buffer("encoder", encoder)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def epsilon(self, z: Tensor, t: int, condition: Condition | None = None) -> Tensor:
        return (-level(t)[1] * self.mixture.score(z.flatten(1), t)).reshape(z.shape)

    def encode(self, x: Tensor) -> Tensor:
        return ((2 * x.flatten(1) - 1) @ self.encoder.T).reshape(-1, *self.latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        return ((1 + z.flatten(1) @ self.decoder.T) / 2).reshape(-1, *self.image_shape)
