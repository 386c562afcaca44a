"""Intervals and pairs, against what is known in closed form."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, norm

from stsl.bench.stats import MANY, intervals, paired


def test_an_interval_of_normal_numbers_is_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(1500, 1))
    low, high = intervals(values)[:, 0]
    half = norm.ppf(0.975) * values.std(ddof=1) / 1500**0.5
    # 2000 resamples: an end has a standard error of 0.06 of the mean's, which is half / 1.96.
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_many_rows_give_the_interval_that_fewer_approach():
    draws = np.random.default_rng(1).normal(size=(MANY + 1, 1))
    exact, resampled = intervals(draws)[:, 0], intervals(draws[:MANY])[:, 0]
    width = exact[1] - exact[0]
    assert np.abs(exact - resampled).max() < 0.1 * width


def test_one_picture_has_no_interval_and_equal_ones_none_either():
    assert intervals(np.array([[2.0, 5.0]])).tolist() == [[2.0, 5.0], [2.0, 5.0]]
    assert intervals(np.full((5, 1), 2.0)).tolist() == [[2.0], [2.0]]


def test_a_sign_test_counts_wins_and_leaves_ties_out():
    first, second = np.array([1.0, 1, 1, 1, 1, 1, 5]), np.array([2.0, 2, 2, 2, 2, 1, 4])
    result = paired(first, second, lower_is_better=True)
    assert (result.n, result.wins, result.losses) == (7, 5, 1)
    assert result.win_rate == pytest.approx(5.5 / 7)
    assert result.p == pytest.approx(2 * binom.cdf(1, 6, 0.5))
    other = paired(first, second, lower_is_better=False)
    assert (other.wins, other.losses, other.p) == (1, 5, result.p)
    assert result.difference == pytest.approx((first - second).mean())


def test_more_wins_are_less_likely_by_chance():
    ps = [paired(np.zeros(n), np.ones(n), lower_is_better=True).p for n in (2, 4, 8, 16)]
    assert all(a > b for a, b in pairwise(ps))
    assert ps[0] == pytest.approx(0.5)
    assert paired(np.zeros(0), np.zeros(0), lower_is_better=True) is None
