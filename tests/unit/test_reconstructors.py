"""ADMM-TV, PnP-ADMM and any deepinv Reconstructor, in a sampler's place."""

import json

import pytest
import torch
from deepinv.models import Reconstructor
from deepinv.optim import ADMM, L2, TVPrior
from deepinv.physics import Denoising, GaussianNoise, Physics
from torch.testing import assert_close

from stsl import GaussianPrior, Prior, Restorer, VariancePreserving, metrics, operators, tasks
from stsl.reconstructors import ADMMTV, RECONSTRUCTORS, Pixels, PnPADMM, PriorDenoiser, given, nearest_level


def prior_of(shape, variance=0.2):
    """Independent pixels on [−1, 1]; its size is all that ADMM-TV asks of it."""
    d = torch.Size(shape).numel()
    return GaussianPrior(torch.zeros(shape), variance * torch.eye(d, dtype=torch.float64))


class Canvas(Prior):
    """A size and nothing else: images of it cannot be asked for noise."""

    def __init__(self, side):
        super().__init__()
        self.name, self.family, self.schedule = "canvas", "pixel", VariancePreserving.from_config({})
        self.latent_shape = self.image_shape = (3, side, side)
        self.register_buffer("place", torch.zeros(1, dtype=torch.float64))

    @property
    def dtype(self):
        return torch.float64

    def epsilon(self, z, t, condition=None):
        raise AssertionError("the network was called")

    def encode(self, x):
        return 2 * x - 1

    def decode(self, z):
        return (1 + z) / 2


def cartoon(side=24):
    """Flat areas with sharp edges: the images that total variation is for."""
    x = torch.full((1, 3, side, side), 0.3, dtype=torch.float64)
    x[:, :, side // 4 : 3 * side // 4, side // 3 : -side // 6] = 0.8
    x[:, 0, : side // 2, : side // 2] += 0.15
    return x


def test_admm_tv_moves_the_two_sides_of_an_edge_together():
    """min ½ ‖x − y‖² + λ TV for a row of w pixels a and w pixels b > a is a + λ/w and b − λ/w."""
    y = torch.full((1, 3, 4, 8), 0.2, dtype=torch.float64)
    y[..., 4:] = 0.7
    found = Restorer(prior_of((3, 4, 8)), ADMMTV(lam=0.1, steps=100, rho=1.0))(y, Denoising())
    expected = torch.where(y < 0.5, y + 0.1 / 4, y - 0.1 / 4)
    assert_close(found, expected, rtol=0, atol=1e-6)


def test_admm_tv_is_deepinvs_own_optimiser_run_step_by_step():
    x = cartoon(12)
    y, physics = tasks.measure("sr4", x, noise=0.01, ids=("a",))
    y = y.double()
    ours = Restorer(prior_of((3, 12, 12)), ADMMTV(lam=0.01, rho=0.1, steps=30, inner_steps=15))(y, physics)
    model = ADMM(
        L2(),
        TVPrior(def_crit=0.0, n_it_max=15),
        lambda_reg=0.01,
        stepsize=10.0,
        max_iter=30,
    )
    start = operators.lift(y, physics, (3, 12, 12))
    theirs = model(y, physics, init=(start, torch.zeros_like(start)))
    # deepinv solves its proximal step by conjugate gradients to 1e-4.
    assert_close(ours, theirs.clamp(0, 1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("task", ["sr4", "gaussian_blur:std=1.2", "random_inpaint"])
def test_admm_tv_restores_a_cartoon_better_than_it_was(task):
    x = cartoon()
    y, physics = tasks.measure(task, x, noise=0.005, ids=("a",))
    before = metrics.psnr(operators.as_picture(y.double(), physics, (3, 24, 24)), x)
    after = metrics.psnr(Restorer(Canvas(24), ADMMTV.preset("fast", task))(y, physics), x)
    assert after > before + 2


def test_admm_tv_asks_no_network_and_does_not_depend_on_the_prior(world, unasked):
    y, physics = world.measure("gaussian_blur")
    result = Restorer(unasked, ADMMTV(steps=5)).solve(y, physics)
    assert torch.equal(result.image, Restorer(prior_of((3, 8, 8)), ADMMTV(steps=5))(y, physics))
    assert (result.nfe_paper, result.cost.unet_samples) == (0, 0)
    assert result.settings["prior"]["name"] == "unasked"
    with pytest.raises(TypeError, match="none for images"):
        Pixels(world.prior).epsilon(y, 1)


def test_the_denoiser_of_a_gaussian_prior_is_wieners():
    """E[z | v] = C (C + (2 s)² I)⁻¹ v for z ~ N(0, C) on [−1, 1], seen with noise 2 s."""
    draws = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=draws, dtype=torch.float64)
    covariance = root @ root.T / 12
    prior = GaussianPrior(torch.zeros(3, 2, 2), covariance)
    scale, sigma = prior.schedule.at(400)
    noise = sigma / scale / 2
    x = torch.rand(5, 3, 2, 2, generator=draws, dtype=torch.float64)
    wiener = covariance @ torch.linalg.inv(covariance + 4 * noise**2 * torch.eye(12, dtype=torch.float64))
    expected = (1 + ((2 * x - 1).flatten(1) @ wiener.T).reshape(x.shape)) / 2
    assert nearest_level(prior.schedule, 2 * noise) == 400
    assert_close(PriorDenoiser(prior)(x, noise), expected, rtol=0, atol=1e-12)
    assert_close(PriorDenoiser(prior)(x, torch.tensor([noise])), expected, rtol=0, atol=1e-6)


def test_pnp_admm_wants_a_prior_on_pixels_and_says_so_before_the_network_is_asked(world, unasked):
    with pytest.raises(TypeError, match=r"PnPADMM needs a prior on pixels.*LDPS") as refusal:
        Restorer(unasked, PnPADMM())(*world.measure())
    assert "DPS," not in str(refusal.value).replace("LDPS,", "").replace("GMLDPS,", "").replace("GML", "")
    with pytest.raises(TypeError, match="linear"):
        Restorer(prior_of((3, 8, 8)), PnPADMM())(world.x, Physics(A=torch.square))


def test_a_pixel_method_on_latents_says_what_would_work(world, unasked):
    from stsl import DPS

    with pytest.raises(TypeError, match=r"DPS needs a prior on pixels \(pixels\).*UNet2DModel"):
        Restorer(unasked, DPS())(*world.measure())


class Halfway(Reconstructor):
    """Somebody's model."""

    def forward(self, y, physics):
        return (physics.A_adjoint(y) + 0.5) / 2


def test_any_reconstructor_stands_in_a_samplers_place(world, unasked):
    y, physics = world.measure("denoise")
    method = given(Halfway(), "mine.py:Halfway")
    result = Restorer(unasked, method()).solve(y, physics)
    assert torch.equal(result.image, (y + 0.5) / 2)
    assert method().settings() == {"steps": 1, "model_name": "mine.py:Halfway"}
    assert json.loads(json.dumps(result.record()))["source"] == "deepinv Reconstructor mine.py:Halfway"


def test_the_reconstructors_are_known_by_name():
    assert list(RECONSTRUCTORS.items()) == [("admm_tv", ADMMTV), ("pnp_admm", PnPADMM)]


def test_a_method_that_wants_the_noise_level_says_so_where_nothing_tells_it():
    from stsl import DDRM

    physics = Denoising(GaussianNoise(0.1))
    del physics.noise_model.sigma
    with pytest.raises(TypeError, match=r"noise level.*sigma_y"):
        Restorer(prior_of((3, 4, 4)), DDRM())(torch.zeros(1, 3, 4, 4), physics)
