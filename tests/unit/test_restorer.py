"""Restorer: what it refuses before the network is called, what it passes on, and what a run gives back."""

import dataclasses

import pytest
import torch
from deepinv.models import Reconstructor
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics, Physics

from stsl import tasks
from stsl.priors.base import Condition, Prior
from stsl.restorer import Restorer
from stsl.samplers import LDPS, PSLD, SAMPLERS, STSL


class Reader(Prior):
    """A prior with a text encoder that remembers what it read and what the network was given."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.read, self.given = prior, [], []
        self.name, self.schedule, self.has_text = "reader", prior.schedule, True
        self.latent_shape, self.image_shape = prior.latent_shape, prior.image_shape

    @property
    def dtype(self):
        return self.prior.dtype

    def epsilon(self, z, t, condition=None):
        self.given.append(condition)
        return self.prior.epsilon(z, t)

    def encode(self, x):
        return self.prior.encode(x)

    def decode(self, z):
        return self.prior.decode(z)

    def condition(self, prompt, *, negative="", scale=1.0):
        self.read.append(prompt)
        text = torch.zeros(len(prompt), 1, 1)
        return Condition(text, text, scale)


def test_a_restorer_is_a_deepinv_reconstructor(world):
    restore = Restorer(world.prior, LDPS(steps=3))
    y, physics = world.measure()
    assert isinstance(restore, Reconstructor)
    assert torch.equal(restore(y, physics), restore.solve(y, physics).image)


# --- refusals, before the network, the encoder or the decoder is called


@pytest.mark.parametrize("method", SAMPLERS.values(), ids=SAMPLERS)
def test_what_makes_no_sense_is_refused_before_the_network_is_called(method, world, unasked):
    if method.family == "pixel":
        unasked.family = "pixel"
    restorer = Restorer(unasked, method(steps=5))
    y, physics = world.measure()
    spoilt = y.clone()
    spoilt[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        restorer.solve(spoilt, physics)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*Inpainting makes \(2, 3, 8, 8\)"):
        restorer.solve(y[:, :, :4, :4], physics)
    with pytest.raises(ValueError, match=r"does not take 2 images of \(3, 8, 8\), the size of prior 'unasked'"):
        restorer.solve(y, tasks.make("random_inpaint", (3, 16, 16), ids=("a", "b")))
    with pytest.raises(ValueError, match="one name for each of the 2 images"):
        restorer.solve(y, physics, ids=["a"])
    with pytest.raises(ValueError, match="one name for each"):
        restorer.solve(y, physics, ids="ab")
    with pytest.raises(ValueError, match="samples = 0"):
        restorer.solve(y, physics, samples=0)
    with pytest.raises(ValueError, match="keep_every = -1"):
        restorer.solve(y, physics, keep_every=-1)
    with pytest.raises(TypeError, match="'unasked' has no text encoder"):
        restorer.solve(y, physics, prompt="a face")


@pytest.mark.parametrize("sampler", [STSL(nu=2.0, vit="no/folder/here"), STSL(nu=2.0, vit="vit-faces")])
def test_nu_is_refused_before_the_network_is_called_with_the_way_out(sampler, world, unasked):
    with pytest.raises(ValueError, match=r"nu = 2.0 needs a ViT.*set nu to 0.*balanced.*fast"):
        Restorer(unasked, sampler).frames(*world.measure())
    assert STSL.preset("balanced").nu == STSL.preset("fast").nu == 0


def test_kappa_without_forward_latents_is_refused_when_it_is_set():
    for init in ("auto", "gaussian", "noise", "argmin"):
        with pytest.raises(ValueError, match=rf'kappa = 0.1.*init="{init}".*use init="ddim" or init="printed"'):
            STSL(kappa=0.1, init=init)
    assert STSL(kappa=0.1, init="ddim").kappa == 0.1


def test_a_gluing_kernel_that_does_not_fit_is_refused(world, unasked):
    for kernel in (2, 16):
        with pytest.raises(ValueError, match="odd size"):
            PSLD(kernel=kernel)
    run = Restorer(unasked, PSLD(steps=5, kernel=17)).frames(*world.measure())
    with pytest.raises(ValueError, match=r"kernel = 17 does not fit an image of \(8, 8\)"):
        next(run)


def test_psld_needs_linearity_and_names_what_does_not(world, unasked):
    with pytest.raises(
        TypeError, match=r"PSLD needs .*\(linear\), which Physics .* does not offer.* both: .*LDPS"
    ) as error:
        Restorer(unasked, PSLD()).frames(world.x, Physics(A=torch.tanh))
    assert "STSL" not in str(error.value)  # which needs linearity, too


# --- what is passed on


def test_the_empty_prompt_is_read_where_there_is_a_text_encoder(world):
    for prompt, read in ((None, ["", ""]), ("a face", ["a face", "a face"])):
        prior = Reader(world.prior)
        result = Restorer(prior, LDPS(steps=2)).solve(*world.measure(), prompt=prompt)
        assert prior.read == [read]
        assert all(condition is not None for condition in prior.given)
        assert result.settings["prompt"] == prompt


def test_a_prior_without_text_gets_no_prompt(world):
    assert Restorer(world.prior, LDPS(steps=2)).frames(*world.measure()).problem.condition is None


@pytest.mark.parametrize(
    ("physics", "sigma_y"),
    [
        (Inpainting((3, 8, 8), mask=torch.ones(1, 1, 8, 8), noise_model=GaussianNoise(0.1)), 0.2),
        (Inpainting((3, 8, 8), mask=torch.ones(1, 1, 8, 8), noise_model=GaussianNoise(torch.tensor([0.1, 0.05]))), 0.2),
        (Inpainting((3, 8, 8), mask=torch.ones(1, 1, 8, 8)), None),
        (LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y), None),
    ],
)
def test_the_noise_level_is_read_from_the_operator(physics, sigma_y, world):
    result = Restorer(world.prior, LDPS(steps=2)).solve(world.x, physics)
    expected = None if sigma_y is None else pytest.approx(sigma_y, abs=1e-7)  # kept in float32
    assert result.settings["sigma_y_minus1_1"] == expected
    assert result.expected_noise_rms == (None if sigma_y is None else pytest.approx(sigma_y / 2, abs=1e-7))


def test_a_float32_measurement_is_taken_in_the_priors_precision(world):
    y, physics = world.measure()
    result = Restorer(world.prior, LDPS(steps=2)).solve(y.float(), physics)
    assert result.y.dtype == result.image.dtype == torch.float64


# --- what a run gives back


def test_frames_of_several_samples_are_counted_through(world):
    run = Restorer(world.prior, LDPS(steps=4)).frames(*world.measure(), samples=3)
    assert [(frame.index, frame.total) for frame in run] == [(i, 12) for i in range(12)]
    assert run.result().samples.shape == (3, 2, 3, 8, 8)


def test_sample_k_is_the_same_however_many_are_drawn(world):
    y, physics = world.measure()
    restorer = Restorer(world.prior, LDPS(steps=4))
    three, two = restorer.solve(y, physics, samples=3).samples, restorer.solve(y, physics, samples=2).samples
    assert torch.equal(three[:2], two)
    assert not torch.allclose(three[0], three[1])


def test_a_result_finishes_what_was_begun(world):
    y, physics = world.measure()
    restorer = Restorer(world.prior, LDPS(steps=4))
    run = restorer.frames(y, physics)
    next(run)
    assert torch.equal(run.result().image, restorer(y, physics))


@pytest.mark.parametrize(("every", "kept"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4])])
def test_frames_are_kept_as_asked(every, kept, world):
    result = Restorer(world.prior, LDPS(steps=5)).solve(*world.measure(), keep_every=every)
    assert [frame.index for frame in result.frames] == kept


def test_mean_and_std_are_those_of_the_samples(world):
    result = Restorer(world.prior, LDPS(steps=4)).solve(*world.measure(), samples=3)
    a, b, c = result.samples
    mean = (a + b + c) / 3
    # Sums of three float64 numbers below 1.
    torch.testing.assert_close(result.mean, mean, rtol=0, atol=1e-14)
    std = (((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 3).sqrt()
    torch.testing.assert_close(result.std, std, rtol=0, atol=1e-12)
    assert (Restorer(world.prior, LDPS(steps=4)).solve(*world.measure()).std == 0).all()


def test_the_residual_is_that_of_the_image_given_back(world):
    y, physics = world.measure("sr4")
    result = Restorer(world.prior, LDPS(steps=4)).solve(y, physics)
    expected = (y - physics.A(result.image)).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(result.residual_rms, expected, rtol=0, atol=1e-12)


def test_settings_make_the_sampler_again(world):
    sampler = STSL(steps=3, eta=0.5, init="noise")
    settings = Restorer(world.prior, sampler).solve(*world.measure(), seed=9, ids=("p", "q")).settings
    assert STSL(**settings["sampler_settings"]) == sampler
    assert settings["sampler"] == "STSL"
    assert (settings["seed"], settings["ids"]) == (9, ["p", "q"])
    assert "2312.00852" in settings["source"]


def test_several_runs_of_one_restorer_share_nothing(world):
    y, physics = world.measure()
    restorer = Restorer(world.prior, LDPS(steps=4))
    alone = restorer.solve(y, physics)
    first, second = restorer.frames(y, physics), restorer.frames(y, physics, seed=1)
    for _ in zip(first, second, strict=False):
        pass
    assert torch.equal(first.result().image, alone.image)
    cost = [dataclasses.replace(run.cost, seconds=0.0) for run in (alone, first.result())]
    assert cost[0].unet_calls == cost[1].unet_calls == 4
