"""Everything that the Gaussian mixture prior claims about itself, against formulas, autograd and Monte Carlo."""

import pytest
import torch
from dense import Mixture as Oracle
from dense import level
from torch.testing import assert_close

from stsl.priors.gaussian import GaussianPrior
from stsl.priors.mixture import GaussianMixturePrior, Mixture

SHAPE, D, K = (2, 2, 2), 8, 3
LEVELS = (0, 1, 200, 500, 981)
# float64, 8 numbers, precisions up to 1/σ_0² = 1200: rounding stays below 1e-9 of values that reach 1e3.
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariances(common):
    axes = torch.linalg.qr(normal(D, D, seed=1))[0]
    values = 0.1 + normal(K, D, seed=2).square()
    roots = normal(K, D, D, seed=3) / D**0.5
    made = axes @ torch.diag_embed(values) @ axes.T if common else roots @ roots.mT + 0.1 * torch.eye(D)
    return (made + made.mT) / 2


@pytest.fixture(params=[True, False], ids=["common axes", "axes of their own"])
def prior(request, one_thread):
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return GaussianMixturePrior(weights, normal(K, *SHAPE, seed=4), covariances(request.param))


def test_common_axes_are_found_and_used_once(prior):
    groups, each, _ = prior.variances.shape
    assert (groups, each) in {(1, K), (K, 1)}
    assert groups * each == K


def test_the_noise_is_that_of_the_dense_formula(prior):
    oracle = Oracle(prior.weights, prior.means, prior.covariances)
    z = normal(5, *SHAPE, seed=5)
    for t in LEVELS:
        assert_close(prior.epsilon(z, t).flatten(1), -level(t)[1] * oracle.score(z.flatten(1), t), **EXACT)


def test_score_and_hessian_are_derivatives_of_the_density(prior):
    z = normal(3, *SHAPE, seed=6)
    for t in LEVELS:
        leaf = z.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(prior.log_density(leaf, t).sum(), leaf)
        assert_close(prior.score(z, t), score, **EXACT)
        for row in range(3):
            by_autograd = torch.autograd.functional.hessian(lambda v, t=t: prior.log_density(v[None], t)[0], z[row])
            by_autograd = by_autograd.reshape(D, D)
            # Second derivatives reach 1/σ_0² = 1200 and come from differences of such numbers.
            assert_close(prior.hessian(z, t)[row], by_autograd, rtol=1e-8, atol=1e-7)
            assert_close(prior.hessian_trace(z, t)[row], by_autograd.trace(), rtol=1e-8, atol=1e-6)


def test_the_gradient_through_the_noise_is_the_hessian(prior):
    z = normal(2, *SHAPE, seed=7)
    probe = normal(2, *SHAPE, seed=8)
    for t in LEVELS:
        leaf = z.clone().requires_grad_(True)
        (ours,) = torch.autograd.grad((prior.epsilon(leaf, t) * probe).sum(), leaf)
        expected = -prior.schedule.at(t)[1] * torch.einsum("bde,be->bd", prior.hessian(z, t), probe.flatten(1))
        assert_close(ours.flatten(1), expected, rtol=1e-7, atol=1e-7)


def test_proposition_4_1_by_autograd(prior):
    """E[z₀ | z_t] = (z + (1 − ᾱ) s)/√ᾱ, Cov[z₀ | z_t] = ((1 − ᾱ)/ᾱ)(I + (1 − ᾱ) ∇² log p_t)."""
    z = normal(3, *SHAPE, seed=9)
    for t in LEVELS:
        scale, sigma = level(t)
        given = prior.denoised(z, t)
        jacobian = torch.stack(
            [
                torch.autograd.functional.jacobian(lambda v, t=t: prior.score(v[None], t)[0], row).reshape(D, D)
                for row in z
            ]
        )
        assert_close(given.mean, (z + sigma**2 * prior.score(z, t)).flatten(1) / scale, **EXACT)
        second = sigma**2 / scale**2 * (torch.eye(D) + sigma**2 * jacobian)
        assert_close(given.covariance, second, rtol=1e-7, atol=1e-8)
        assert_close(given.spread, second.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-7, atol=1e-8)


def test_proposition_4_1_by_monte_carlo(prior):
    """Draws of z₀ weighed by N(z_t; s z₀, σ² I): no formula of the prior but its sampling."""
    t, n = 700, 200_000
    scale, sigma = level(t)
    z0 = prior.latents.sample(n, torch.Generator().manual_seed(10))
    z = scale * z0[0] + sigma * normal(D, seed=11)
    weights = torch.softmax(-(z - scale * z0).square().sum(1) / (2 * sigma**2), 0)
    mean = weights @ z0
    away = z0 - mean
    given = prior.denoised(z.reshape(1, *SHAPE), t)
    # Five standard errors of a self-normalised mean of weighed draws.
    error = (weights.square() @ away.square()).sqrt()
    assert ((mean - given.mean[0]).abs() < 5 * error).all()
    products = away[:, :, None] * away[:, None, :]
    second = torch.einsum("n,nde->de", weights, products)
    error = torch.einsum("n,nde->de", weights.square(), (products - second).square()).sqrt()
    assert ((second - given.covariance[0]).abs() < 5 * error).all()


def test_one_component_is_the_gaussian_prior(one_thread):
    covariance, mean = covariances(False)[0], normal(*SHAPE, seed=12)
    decoder = normal(6, D, seed=13)
    options = {"decoder": decoder, "image_shape": (3, 1, 2)}
    one = GaussianMixturePrior(torch.ones(1), mean[None], covariance[None], **options)
    gaussian = GaussianPrior(mean, covariance, **options)
    z = normal(4, *SHAPE, seed=14)
    for t in LEVELS:
        assert_close(one.epsilon(z, t), gaussian.epsilon(z, t), **EXACT)
    assert_close(one.decode(z), gaussian.decode(z), rtol=0, atol=0)
    assert_close(one.encode(one.decode(z)), gaussian.encode(gaussian.decode(z)), rtol=0, atol=0)


def test_samples_have_the_moments_of_the_mixture(prior):
    n, latents = 100_000, prior.latents
    drawn = latents.sample(n, torch.Generator().manual_seed(15))
    away = drawn - latents.mean
    error = away.square().mean(0).sqrt() / n**0.5
    assert (away.mean(0).abs() < 5 * error).all()
    products = away[:, :, None] * away[:, None, :]
    error = products.var(0).sqrt() / n**0.5
    assert ((products.mean(0) - latents.covariance).abs() < 5 * error).all()
    assert_close(latents.spread, latents.covariance.trace(), rtol=1e-12, atol=0)


def test_conditioning_is_bayes_rule(prior):
    """log p(v | w) = log p(v) + log p(w | v) − log p(w) at any v."""
    matrix, std, v = normal(3, D, seed=16), 0.4, normal(5, D, seed=17)
    seen = normal(3, seed=18)
    latents = prior.latents
    given = latents.given(matrix, seen, std)
    likelihood = Mixture(torch.ones(1).double(), torch.zeros(1, 3).double(), std**2 * torch.eye(3).double()[None])
    evidence = latents.through(matrix, std).log_prob(seen[None])
    expected = latents.log_prob(v) + likelihood.log_prob(seen - v @ matrix.T) - evidence
    assert_close(given.log_prob(v), expected, rtol=1e-9, atol=1e-8)


def test_what_fits_together_badly_is_refused(one_thread):
    means, good = normal(2, *SHAPE), covariances(False)[:2]
    pair = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"need \(K,\), \(K, C, h, w\) and \(K, d, d\)"):
        GaussianMixturePrior(torch.ones(3), means, good)
    with pytest.raises(ValueError, match="weights of a mixture are positive"):
        GaussianMixturePrior(torch.tensor([1.0, 0.0]), means, good)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        GaussianMixturePrior(pair, means, torch.stack([good[0], -good[1]]))
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianMixturePrior(pair, means, good + torch.triu(torch.ones(D, D), 1))
    with pytest.raises(ValueError, match="decoder"):
        GaussianMixturePrior(pair, means, good, decoder=torch.ones(5, D), image_shape=(3, 2, 2))
    with pytest.raises(ValueError, match="need a decoder"):
        GaussianMixturePrior(pair, means, good, image_shape=(3, 2, 2))
    with pytest.raises(ValueError, match="encoder"):
        GaussianMixturePrior(pair, means, good, encoder=torch.ones(D, D))
