"""How far a set of samples is from a distribution that is known."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from stsl.priors.mixture import Mixture
from stsl.rng import generator

DIRECTIONS = 128
# Sets of exact samples that tell what chance alone does, and how many of their standard deviations chance is given.
REPEATS, CHANCE = 30, 5.0


@dataclass(frozen=True)
class Scores:
    """Distances of n samples from the exact posterior p(z₀ | y); exact samples have them too, by chance.

    Args:
        mean_error: √(δᵀ Σ⁻¹ δ / d), δ the error of the mean and Σ the exact covariance: in posterior standard
            deviations, averaged over the principal axes. Exact samples: about 1/√n.
        spread: trace of the samples' covariance over that of Σ. Exact samples: about 1; one point: 0.
        sliced_w2: Wasserstein-2 distance to exact samples along random directions, root mean square, divided by the
            posterior's standard deviation √(Tr Σ / d). Exact samples: about √(2/n) and more for far modes.
        weight_error: ½ Σ_k |ŵ_k − w_k|, the share of samples in the wrong mode; ŵ are the mean responsibilities.
    """

    mean_error: float
    spread: float
    sliced_w2: float
    weight_error: float


class Yardstick:
    """Measures samples against one exact posterior, and knows what chance does to exact ones.

    Args:
        exact: the posterior.
        n: number of samples that will be measured.
        seed: of the exact samples and the directions.
    """

    def __init__(self, exact: Mixture, n: int, seed: int) -> None:
        self.exact, self.n, self.seed = exact, n, seed
        d = exact.means.shape[-1]
        self._root = torch.linalg.cholesky(exact.covariance)
        self._scale = math.sqrt(float(exact.spread) / d)
        directions = torch.randn(
            d, DIRECTIONS if d > 1 else 1, dtype=torch.float64, generator=generator("directions", seed)
        )
        self._directions = directions / directions.norm(dim=0)
        self._reference = (self.draw("reference") @ self._directions).sort(0)[0]

    def draw(self, name: object) -> Tensor:
        """n exact samples, others for every name: shape (n, d)."""
        return self.exact.sample(self.n, generator("exact", self.seed, name))

    def measure(self, samples: Tensor) -> Scores:
        """The distances of samples of shape (n, d).

        Raises:
            ValueError: their number or size is another one.
        """
        if samples.shape != (self.n, self.exact.means.shape[-1]):
            raise ValueError(f"{tuple(samples.shape)} samples: need ({self.n}, {self.exact.means.shape[-1]})")
        mean, d = samples.mean(0), samples.shape[1]
        white = torch.linalg.solve_triangular(self._root, (mean - self.exact.mean)[:, None], upper=False)
        spread = (samples - mean).square().sum() / max(self.n - 1, 1) / self.exact.spread
        sorted_ = (samples @ self._directions).sort(0)[0]
        sliced = (sorted_ - self._reference).square().mean().sqrt() / self._scale
        weights = self.exact.responsibilities(samples).mean(0)
        return Scores(
            mean_error=float(white.square().sum().div(d).sqrt()),
            spread=float(spread),
            sliced_w2=float(sliced),
            weight_error=float((weights - self.exact.weights).abs().sum() / 2),
        )

    @cached_property
    def chance(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of every distance over sets of n exact samples."""
        sets = [asdict(self.measure(self.draw(repeat))) for repeat in range(REPEATS)]
        values = {key: torch.tensor([each[key] for each in sets], dtype=torch.float64) for key in sets[0]}
        return {key: (float(value.mean()), float(value.std())) for key, value in values.items()}

    def beyond_chance(self, scores: Scores) -> list[str]:
        """The distances that are further from those of exact samples than five standard deviations of chance."""
        found = []
        for key, value in asdict(scores).items():
            mean, std = self.chance[key]
            # 1e-6: a mode of next to no weight has next to no chance.
            far = abs(value - mean) if key == "spread" else value - mean
            if not far <= CHANCE * std + 1e-6:
                found.append(key)
        return found
