"""Distances between sets of features against closed forms and plain loops."""

import pytest
import torch
from scipy.linalg import sqrtm

from stsl.distances import frechet, kid


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exactly(n: int, mean: torch.Tensor, covariance: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """n features whose sample mean and covariance are the given ones, to rounding."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def spd(d: int, seed: int) -> torch.Tensor:
    root = normal(d, d, seed=seed)
    return root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


# ---- Fréchet distance


def test_frechet_is_the_closed_form_of_normal_distributions():
    means, covariances = (normal(6, seed=1), normal(6, seed=2)), (spd(6, 3), spd(6, 4))
    a, b = (exactly(40 + 9 * k, means[k], covariances[k], seed=5 + k) for k in range(2))
    root = torch.from_numpy(sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    closed = (means[0] - means[1]).square().sum() + (covariances[0] + covariances[1] - 2 * root).trace()
    assert frechet(a, b) == pytest.approx(float(closed), rel=1e-10)


def test_frechet_of_commuting_covariances_is_a_sum_over_axes():
    std = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    mean = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    a, b = (exactly(20, (0 * mean, mean)[k], torch.diag(std[k] ** 2), seed=k) for k in range(2))
    assert frechet(a, b) == pytest.approx(float((mean**2).sum() + ((std[0] - std[1]) ** 2).sum()), rel=1e-10)


def test_frechet_of_a_set_and_itself_is_zero_also_where_there_are_fewer_pictures_than_features():
    # Eigenvalues of a product of covariances would be off by 1e-16, and their roots by 1e-8 each.
    a = 10 * normal(30, 64)
    assert abs(frechet(a, a)) < 1e-10
    assert abs(frechet(a, a.flip(0))) < 1e-10
    assert frechet(a, a + 3) == pytest.approx(64 * 9, rel=1e-10)


def test_frechet_is_symmetric_and_takes_any_type_of_number():
    a, b = normal(50, 8), 2 * normal(40, 8, seed=1)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert frechet(a.float(), b.float()) == pytest.approx(frechet(a, b), rel=1e-5)  # float32 rounding of the features


# ---- kernel distance


def by_loops(a: list[list[float]], b: list[list[float]]) -> float:
    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    own = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_kid_is_its_equation_written_out_as_loops():
    a, b = normal(7, 5), normal(9, 5, seed=1) + 0.3
    assert kid(a, b).value == pytest.approx(by_loops(a.tolist(), b.tolist()), rel=1e-12)


def test_the_error_of_kid_is_the_jackknife_written_out_as_loops():
    a, b = normal(7, 5).tolist(), (normal(9, 5, seed=1) + 0.3).tolist()
    variance = 0.0
    for without in (
        [by_loops(a[:i] + a[i + 1 :], b) for i in range(7)],
        [by_loops(a, b[:i] + b[i + 1 :]) for i in range(9)],
    ):
        mean = sum(without) / len(without)
        variance += (len(without) - 1) / len(without) * sum((x - mean) ** 2 for x in without)
    assert kid(torch.tensor(a), torch.tensor(b)).error == pytest.approx(variance**0.5, rel=1e-5)  # float32 features


def test_kid_is_unbiased_and_its_error_is_the_spread_of_its_values():
    def drawn(shift, seed):
        return kid(normal(40, 4, seed=seed) + shift, normal(60, 4, seed=10_000 + seed))

    same, apart = ([drawn(shift, seed) for seed in range(300)] for shift in (0.0, 0.5))
    values = torch.tensor([each.value for each in same])
    # Equal distributions: 0 on average. The mean of 300 draws misses it by more than four errors once in 16,000 times.
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert (values < 0).any()
    spread = torch.tensor([each.value for each in apart]).std()
    errors = torch.tensor([each.error for each in apart]).mean()
    assert 0.8 < errors / spread < 1.25  # the spread of 300 draws is known to 4 %, the jackknife errs upwards


@pytest.mark.parametrize("distance", [frechet, kid])
def test_features_that_cannot_be_compared_are_refused(distance):
    a = normal(5, 4)
    with pytest.raises(ValueError, match=r"\(n, d\) and \(m, d\).*got \(5, 4\) and \(5, 3\)"):
        distance(a, normal(5, 3))
    with pytest.raises(ValueError, match="at least"):
        distance(a, normal(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        distance(a, a / 0)
