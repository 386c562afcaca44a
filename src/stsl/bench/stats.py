"""How sure a table is: intervals of means, and paired comparisons."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES = 2000
# With more pictures the bootstrap of a mean is its normal limit to within a hundredth of the interval's width.
MANY = 2000


def intervals(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """95 % intervals of the means of columns, by the percentile bootstrap over rows; normal above 2000 rows.

    Args:
        values: shape (n, m), n pictures and m measures.
        seed: of the resampling.

    Returns:
        shape (2, m): lower and upper ends; the value itself for one picture.
    """
    n = len(values)
    if n == 1:
        return np.repeat(values, 2, axis=0)
    if n > MANY:
        half = norm.ppf(0.975) * values.std(0, ddof=1) / n**0.5
        return np.stack([values.mean(0) - half, values.mean(0) + half])
    draws = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, values.shape[1]))
    for first in range(0, RESAMPLES, 200):
        counts = draws.multinomial(n, np.full(n, 1 / n), size=min(200, RESAMPLES - first))
        means[first : first + len(counts)] = counts @ values / n
    return np.percentile(means, [2.5, 97.5], axis=0)


@dataclass(frozen=True)
class Pairing:
    """One method against another on the same pictures.

    Args:
        n: pictures that both have.
        wins, losses: how often the first is better, and worse; the rest are ties.
        difference: mean of first minus second, with its 95 % interval.
        p: of the two-sided sign test, ties left out: how likely so lopsided a result is if neither is better.
    """

    n: int
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def win_rate(self) -> float:
        """Share of the pictures on which the first is better, a tie being half a win."""
        return (self.wins + (self.n - self.wins - self.losses) / 2) / self.n


def paired(first: np.ndarray, second: np.ndarray, *, lower_is_better: bool) -> Pairing | None:
    """Compare two columns, picture by picture; None where there is none."""
    if not len(first):
        return None
    difference = first - second
    gain = -difference if lower_is_better else difference
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    low, high = intervals(difference[:, None])[:, 0]
    return Pairing(len(first), wins, losses, float(difference.mean()), float(low), float(high), p)
