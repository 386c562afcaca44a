"""Noise levels, and the moves between them that need no network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stsl.shapes import Latent

Spacing = Literal["leading", "trailing", "linspace", "quad"]
Plan = list[tuple[int, int]]


class Schedule(ABC):
    """Noise levels z_t = scale_t z_0 + sigma_t noise, for t in [0, levels), with t = -1 the clean end.

    Everything is float64 on the CPU; a scalar times a tensor keeps the tensor's precision.
    """

    levels: int

    @abstractmethod
    def at(self, t: int) -> tuple[float, float]:
        """(scale, sigma) of a level.

        Raises:
            IndexError: t is outside [-1, levels).
        """

    @abstractmethod
    def timesteps(self, steps: int, spacing: Spacing = "leading") -> list[int]:
        """`steps` increasing levels, the last one noisy."""

    def descend(self, steps: int, spacing: Spacing = "leading") -> Plan:
        """Pairs (t, t_next) from the noisiest level down to the clean end, [(t, ·), ..., (·, -1)].

        Raises:
            ValueError: `steps` is not in [1, levels].
        """
        times = [-1, *self.timesteps(steps, spacing)]
        return [(times[i], times[i - 1]) for i in range(steps, 0, -1)]

    def ascend(self, steps: int, spacing: Spacing = "leading") -> Plan:
        """The way back up: [(-1, ·), ..., (·, t)], the pairs of `descend` turned round."""
        return [(t_next, t) for t, t_next in reversed(self.descend(steps, spacing))]

    def clean(self, z: Latent, eps: Latent, t: int) -> Latent:
        """Mean of the clean latent given the noisy one (Tweedie's formula).

        ẑ₀ = (z_t − σ_t ε) / s_t, for a variance-preserving schedule (z_t − √(1 − ᾱ_t) ε) / √ᾱ_t

        Args:
            z: noisy latent at `t`, shape (B, C, h, w).
            eps: predicted noise of unit variance, same shape.
            t: timestep in [0, levels), or -1 for the clean end, where this is z itself.

        Raises:
            IndexError: t is outside the schedule.
        """
        scale, sigma = self.at(t)
        return (z - sigma * eps) / scale

    def noise(self, z: Latent, z0: Latent, t: int) -> Latent:
        """The noise that would make `z` of `z0`: ε = (z_t − s_t z₀) / σ_t. The inverse of `clean`."""
        scale, sigma = self.at(t)
        return (z - scale * z0) / sigma

    def score(self, eps: Latent, t: int) -> Latent:
        """∇ log p_t(z) = −ε / σ_t."""
        return -eps / self.at(t)[1]

    def diffuse(self, z0: Latent, noise: Latent, t: int) -> Latent:
        """The Gaussian transition kernel: z_t = s_t z₀ + σ_t noise."""
        scale, sigma = self.at(t)
        return scale * z0 + sigma * noise

    def move(
        self, z0: Latent, eps: Latent, t: int, t_next: int, *, eta: float = 0.0, noise: Latent | None = None
    ) -> Latent:
        """DDIM: from the estimates at `t` to level `t_next`, up or down.

        z' = s' ẑ₀ + √(σ'² − τ²) ε + τ ξ,   τ = η (σ'/σ) √(1 − (s/s')²) (variance preserving)

        Args:
            z0: estimate of the clean latent.
            eps: predicted noise.
            t, t_next: levels, -1 for the clean end. Only descending moves take fresh noise.
            eta: share of fresh noise; 0 is DDIM, 1 is DDPM.
            noise: ξ, unit variance; needed when eta > 0.

        Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.
        """
        scale_next, sigma_next = self.at(t_next)
        tau = eta * self._fresh(t, t_next) if eta and t_next < t else 0.0
        z = scale_next * z0 + max(sigma_next**2 - tau**2, 0.0) ** 0.5 * eps
        if tau:
            if noise is None:
                raise ValueError(f"move with eta = {eta} needs noise")
            z = z + tau * noise
        return z

    def mean(self, z: Latent, z0: Latent, t: int, t_next: int) -> Latent:
        """Mean of q(z_next | z_t, z₀), the DDPM step without its noise.

        [√α (1 − ᾱ') z + √ᾱ' (1 − α) ẑ₀] / (1 − ᾱ), α = ᾱ/ᾱ', for a variance-preserving schedule.

        Source: Ho et al. 2020, arXiv:2006.11239, equation 7.
        """
        (scale, sigma), (scale_next, sigma_next) = self.at(t), self.at(t_next)
        ratio = scale / scale_next
        keep = ratio * sigma_next**2 / sigma**2
        return keep * z + (scale_next - keep * scale) * z0

    def draw(self, z: Latent, z0: Latent, t: int, t_next: int, noise: Latent) -> Latent:
        """A draw from q(z_next | z_t, z₀): the DDPM step.

        `mean` + (σ'/σ) √(σ² − (s/s')² σ'²) ξ; no noise is left at the clean end. The same as `move` with eta = 1 and
        the noise that z₀ implies.

        Source: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7.
        """
        return self.mean(z, z0, t, t_next) + self._fresh(t, t_next) * noise

    def _fresh(self, t: int, t_next: int) -> float:
        """Standard deviation of q(z_next | z_t, z₀)."""
        (scale, sigma), (scale_next, sigma_next) = self.at(t), self.at(t_next)
        ratio = scale / scale_next
        return sigma_next / sigma * max(sigma**2 - ratio**2 * sigma_next**2, 0.0) ** 0.5


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) noise.

    Args:
        alpha_bar: ᾱ at each of the training levels, falling.
        offset: first level of the leading spacing (Stable Diffusion: 1, pixel DDPM: 0).
        final: ᾱ at t = -1. "one" ends at the clean latent; "first" ends at the first training level, as the null-text
            inversion code does, so that the way up and the way down share their last step.
    """

    alpha_bar: tuple[float, ...]
    offset: int = 0
    final: Literal["one", "first"] = "one"

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of training levels."""
        return len(self.alpha_bar)

    def at(self, t: int) -> tuple[float, float]:
        if not -1 <= t < self.levels:
            raise IndexError(f"timestep {t} is outside [-1, {self.levels})")
        if t == -1 and self.final == "one":
            return 1.0, 0.0
        a = self.alpha_bar[max(t, 0)]
        return a**0.5, (1.0 - a) ** 0.5

    def timesteps(self, steps: int, spacing: Spacing = "leading") -> list[int]:
        n = self.levels
        if not 1 <= steps <= n:
            raise ValueError(f"{steps} steps asked of a schedule of {n} levels: give 1 to {n}")
        if spacing == "leading" and steps >= 10:
            # Below ten steps the leading spacing would begin at a level that still shows the image (steps=1: t=1).
            times = [i * n // steps for i in range(steps)]
            shift = min(self.offset, n - 1 - times[-1])
            return [t + shift for t in times]
        if spacing in ("leading", "trailing"):
            return [(i + 1) * n // steps - 1 for i in range(steps)]
        if spacing == "linspace":
            return [round(float(t)) for t in np.linspace(0 if steps > 1 else n - 1, n - 1, steps)]
        if spacing == "quad":
            # Counted from the noisy end, n √(j/(steps-1)): large steps at high noise, small ones at low (DiffPIR).
            times = sorted({max(n - 1 - int(n * (j / max(steps - 1, 1)) ** 0.5), 0) for j in range(steps)})
            if len(times) < steps:
                raise ValueError(f"quad spacing has no {steps} distinct levels out of {n}: use fewer steps or leading")
            return times
        raise ValueError(f"unknown spacing {spacing!r}: leading, trailing, linspace or quad")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VariancePreserving":
        """Read a diffusers scheduler config: betas, offset. `final` stays "one", whatever the config says.

        Raises:
            ValueError: a schedule that is not variance preserving or not known here.
        """
        n = int(config.get("num_train_timesteps", 1000))
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 2e-2))
        kind = config.get("beta_schedule", "linear")
        if config.get("rescale_betas_zero_snr"):
            raise ValueError(
                "this model was trained with zero terminal SNR (rescale_betas_zero_snr), which stsl cannot run"
            )
        if (trained := config.get("trained_betas")) is not None:
            beta = np.asarray(trained, dtype=np.float64)
        elif kind == "linear":
            beta = np.linspace(start, end, n)
        elif kind == "scaled_linear":
            beta = np.linspace(start**0.5, end**0.5, n) ** 2
        elif kind == "squaredcos_cap_v2":
            bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        else:
            raise ValueError(f"beta schedule {kind!r} is not known: linear, scaled_linear and squaredcos_cap_v2 are")
        alpha_bar = np.cumprod(1 - beta)
        return cls(tuple(alpha_bar.tolist()), offset=int(config.get("steps_offset", 0)))
