"""The hand-made formulas that the exactness tests stand on, against numerical differentiation."""

import pytest
import torch
from dense import level
from torch.testing import assert_close

# Central differences of step h in float64 lose about h² + 1e-16/h: 1e-10 at h = 1e-5, times values of order 10.
H, TOLERANCE = 1e-5, 1e-8


def slope(function, z):
    """Central differences of a function (B, d) -> (B, ...) along every coordinate of z, (B, ..., d)."""
    steps = H * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.stack([(function(z + e) - function(z - e)) / (2 * H) for e in steps], -1)


@pytest.fixture
def hand(make):
    _, dense = make(components=2)
    z = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return dense, z


@pytest.mark.parametrize("t", [21, 481])
def test_the_score_is_the_slope_of_the_mixtures_log_density(hand, t):
    dense, z = hand
    scale, sigma = level(t)
    components = [
        torch.distributions.MultivariateNormal(scale * mean, scale**2 * covariance + sigma**2 * torch.eye(50).double())
        for mean, covariance in zip(dense.latents.means, dense.latents.covariances, strict=True)
    ]

    def log_density(z):
        parts = [w.log() + c.log_prob(z) for w, c in zip(dense.latents.weights, components, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0)

    # log densities are of order 100 here, so their differences carry 100 times the rounding error.
    assert_close(dense.latents.score(z, t), slope(log_density, z), rtol=0, atol=100 * TOLERANCE)


@pytest.mark.parametrize("t", [21, 481])
def test_hessian_and_gradients_are_slopes(hand, t):
    dense, z = hand
    probes = torch.randn(3, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert_close(dense.latents.hessian(z, t), slope(lambda z: dense.latents.score(z, t), z), rtol=0, atol=TOLERANCE)
    assert_close(dense.slope(z, t), slope(lambda z: dense.clean(z, t), z), rtol=0, atol=TOLERANCE)
    numeric = slope(lambda z: dense.trace(z, t, probes, 0.7), z)
    assert_close(dense.trace_gradient(z, t, probes, 0.7), numeric, rtol=0, atol=100 * TOLERANCE)
    numeric = slope(lambda z: dense.residual(dense.clean(z, t)).norm(dim=1), z)
    assert_close(dense.data_gradient(z, t), numeric, rtol=0, atol=10 * TOLERANCE)

    def gluing(z):
        z0 = dense.clean(z, t)
        glued = dense.decode(z0) + torch.einsum("pm,bm->bp", dense.glue, dense.residual(z0) / 2)
        return (z0 - dense.encode(glued)).norm(dim=1)

    assert_close(dense.gluing_gradient(z, t, dense.glue), slope(gluing, z), rtol=0, atol=10 * TOLERANCE)
