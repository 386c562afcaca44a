"""The exact posterior is Bayes' rule, on grids and through the samplers' own residual."""

import pytest
import torch
from deepinv.physics import Denoising, LinearPhysics, Physics
from torch.testing import assert_close

from stsl import tasks
from stsl.exact import PROBLEMS, log_likelihood, make, observe, posterior
from stsl.exact.problems import SIGMAS, repeated
from stsl.priors.gaussian import GaussianPrior
from stsl.priors.mixture import GaussianMixturePrior
from stsl.problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def many_to_one(sigma_y=0.3):
    """Latents of 12 numbers, images of 9, of which 5 numbers are measured through a full matrix."""
    roots = normal(2, 12, 12, seed=1) / 12**0.5
    decoder = normal(9, 12, seed=2) / 4
    prior = GaussianMixturePrior(
        torch.tensor([0.3, 0.7]),
        normal(2, 3, 2, 2, seed=3),
        roots @ roots.mT + 0.1 * torch.eye(12),
        decoder=decoder,
        image_shape=(3, 3, 1),
    )
    matrix = normal(5, 9, seed=4)
    physics = LinearPhysics(A=lambda x: x.flatten(1) @ matrix.T, A_adjoint=lambda y: (y @ matrix).reshape(-1, 3, 3, 1))
    return Problem(normal(1, 5, seed=5), physics, prior, sigma_y=sigma_y)


def unnormalised(problem, z):
    """log p(z) + log p(y | z) from the residual that the samplers see, on the papers' scale."""
    prior = problem.prior
    r = repeated(problem, len(z)).residual(z.reshape(-1, *prior.latent_shape)).flatten(1)
    return prior.latents.log_prob(z) - 0.5 * r.square().sum(1) / problem.sigma_y**2


@pytest.mark.parametrize("sigma_y", SIGMAS)
@pytest.mark.parametrize("name", [*PROBLEMS, "many_to_one"])
def test_the_posterior_is_prior_times_likelihood(name, sigma_y):
    problem = many_to_one(sigma_y) if name == "many_to_one" else make(name, sigma_y)
    exact = posterior(problem)
    z = exact.sample(20, torch.Generator().manual_seed(0))
    ours, theirs = exact.log_prob(z), unnormalised(problem, z)
    # A constant apart. The operators keep their matrices in float32, and the residual is divided by σ_y².
    assert_close(ours - ours[0], theirs - theirs[0], rtol=0, atol=1e-4)
    assert_close(exact.weights.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma_y", SIGMAS)
def test_the_posterior_of_one_number_is_the_normalised_product_on_a_grid(sigma_y):
    problem = make("bimodal", sigma_y)
    exact = posterior(problem)
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)[:, None]
    weights = torch.softmax(unnormalised(problem, grid), 0)
    mean = weights @ grid[:, 0]
    variance = weights @ (grid[:, 0] - mean).square()
    # Trapezoids 1e-4 wide under a density of width 0.02 or more: far below 1e-6.
    assert_close(exact.mean[0], mean, rtol=0, atol=1e-6)
    assert_close(exact.covariance[0, 0], variance, rtol=0, atol=1e-6)
    assert_close(exact.spread, variance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("problem", [make("degenerate", 0.1), many_to_one()], ids=["degenerate", "many_to_one"])
def test_the_posterior_under_noise_has_the_score_of_prior_and_likelihood(problem):
    """∇ log p_t(z | y) = ∇ log p_t(z) + ∇ log p(y | z_t = z)."""
    prior = problem.prior
    z = normal(4, *prior.latent_shape, seed=6)
    for t in (1, 300, 981):
        scale, sigma = prior.schedule.at(t)
        eye = torch.eye(z[0].numel(), dtype=torch.float64)
        noised = posterior(problem).through(scale * eye, sigma)
        leaf = z.clone().requires_grad_(True)
        (guidance,) = torch.autograd.grad(log_likelihood(problem, leaf, t).sum(), leaf)
        assert_close(noised.score(z.flatten(1)), (prior.score(z, t) + guidance).flatten(1), rtol=1e-8, atol=1e-8)


def test_the_likelihood_at_the_clean_end_is_the_likelihood():
    problem = make("degenerate", 0.6)
    z = normal(5, 1, 1, 2, seed=7)
    seen = observe(problem)
    expected = torch.distributions.Normal(z.reshape(5, 2)[:, 0], 0.6).log_prob(torch.tensor(0.2))
    assert seen.matrix.shape == (1, 2)  # what is not measured is no equation
    assert_close(log_likelihood(problem, z, -1), expected, rtol=0, atol=1e-6)
    near = log_likelihood(problem, problem.schedule.at(0)[0] * z, 0)
    # Given z at level 0, z₀ is uncertain by 0.03 and moves by some 0.01; the log-likelihood has slopes of up to 5 here.
    assert_close(near, expected, rtol=0, atol=0.1)


def test_the_measurement_is_drawn_from_the_noise_it_claims():
    """Over many seeds, 2 (y − A(x)) of the true picture has variance σ_y²."""
    from stsl.rng import generator

    r = []
    for seed in range(30):
        problem = make("blur", 0.1, seed=seed)
        truth = problem.prior.latents.sample(1, generator("exact", "truth", seed)).reshape(1, 1, 8, 8)
        r.append(problem.residual(truth).flatten())
    variance = torch.cat(r).square().mean()
    # 1920 draws: the standard error of a variance is √(2/1920) = 3 %.
    assert_close(variance, torch.tensor(0.01, dtype=torch.float64), rtol=0.16, atol=0)


def quadratic(x):
    return x.square()


def refused_problems():
    good = make("bimodal", 0.1)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    gaussian = GaussianPrior(torch.zeros(1, 1, 1), torch.eye(1))

    def problem(**changes):
        fields = {"y": good.y, "physics": good.physics, "prior": good.prior, "sigma_y": 0.1}
        return Problem(**(fields | changes))

    return {
        "noise 0": (problem(sigma_y=0.0), ValueError, "above 0"),
        "negative noise": (problem(sigma_y=-0.1), ValueError, "above 0"),
        "unknown noise": (problem(sigma_y=None), ValueError, "standard deviation of the noise"),
        "nonlinear": (problem(physics=Physics(A=quadratic)), TypeError, "needs a linear operator"),
        "secretly nonlinear": (problem(physics=LinearPhysics(A=quadratic)), TypeError, "calls itself linear"),
        "shape": (problem(y=torch.zeros(1, 1, 2, 2)), ValueError, r"shape \(1, 1, 2, 2\)"),
        "operator's size": (
            problem(physics=tasks.make("sr4", (1, 8, 8)), y=torch.zeros(1, 1, 2, 2)),
            ValueError,
            "does not take images",
        ),
        "prior": (problem(prior=gaussian, physics=Denoising(), y=x), TypeError, "GaussianMixturePrior"),
        "several measurements": (problem(y=good.y.expand(2, 1, 1, 1)), ValueError, "one measurement"),
    }


@pytest.mark.parametrize("what", list(refused_problems()))
def test_bad_input_is_refused(what):
    problem, error, message = refused_problems()[what]
    with pytest.raises(error, match=message):
        posterior(problem)


def test_a_named_problem_needs_noise_and_a_known_name():
    for sigma_y in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            make("bimodal", sigma_y)
    with pytest.raises(ValueError, match="did you mean 'bimodal'"):
        make("bimodle", 0.1)
