"""Savings that leave results as they are, retries in float32, and what happens when memory runs out."""

from pathlib import Path

import pytest
import torch
from deepinv.physics import LinearPhysics
from diffusers import AutoencoderTiny
from torch.testing import assert_close

from models import pixel_folder, sd15_folder
from stsl import LDPS, PSLD, STSL, Diverged, Restorer, load_prior, tasks
from stsl.memory import OutOfMemory
from stsl.numerics import gradient
from stsl.priors.base import Wrapped
from stsl.priors.tiny import TinyDecoder


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    """A thousandth of Stable Diffusion."""
    return sd15_folder(tmp_path_factory.mktemp("sd15"))


def load(folder, **options):
    return load_prior(folder, device="cpu", **{"precision": "fp32"} | options)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Failing(Wrapped):
    """A prior whose network fails as told: {number of the call: what happens to its output}."""

    def __init__(self, prior, failures, narrow=False):
        super().__init__(prior)
        self.failures, self.narrow, self.calls, self.rows, self.wide = failures, narrow, 0, [], False
        self.savings = ["half the colours"]

    @property
    def is_narrow(self):
        return self.narrow

    def in_fp32(self):
        return self

    def __enter__(self):
        self.wide = True

    def __exit__(self, *_):
        self.wide = False

    def lighten(self):
        return self.savings.pop() if self.savings else None

    def epsilon(self, z, t, condition=None):
        self.calls += 1
        self.rows.append(z.shape[0])
        out = self.prior.epsilon(z, t, condition)
        return self.failures.get(self.calls, lambda out: out)(out)

    def encode(self, x):
        return self.prior.encode(x)

    def decode(self, z):
        return self.prior.decode(z)


def to_nan(out):
    return out * float("nan")


def no_memory(out):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


# --- the same results for less


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["kl", "tiny", "pixel"])
def test_recomputed_activations_give_the_same_bits(precision, kind, tmp_path):
    folder = pixel_folder(tmp_path / "p") if kind == "pixel" else sd15_folder(tmp_path / "p", vae=kind)
    kept, again = (load(folder, precision=precision, checkpointing=on) for on in (False, True))
    assert again.checkpointing
    z, x = normal(2, *kept.latent_shape), torch.rand(1, *kept.image_shape, generator=torch.Generator().manual_seed(1))

    def everything(prior):
        noise = gradient(lambda z: prior.epsilon(z, 501).flatten(1).square().sum(1), z)
        image = gradient(lambda z: prior.decode(z).flatten(1).square().sum(1), z[:1])
        latent = gradient(lambda x: prior.encode(x).flatten(1).square().sum(1), x)
        return [*noise, *image, *latent, prior.encode(x)]

    for ours, theirs in zip(everything(again), everything(kept), strict=True):
        assert torch.equal(ours, theirs)


def test_a_prior_saves_activations_first_and_precision_last(sd):
    prior = load(sd)
    before = prior.decode(normal(1, 4, 8, 8))
    assert "recomputed" in prior.lighten()
    assert torch.equal(prior.decode(normal(1, 4, 8, 8)), before)
    assert "bf16" in prior.lighten()
    assert prior.describe()["precision"] == "bf16"
    assert prior.lighten() is None


def test_float32_for_a_while_leaves_half_precision_as_it_was(sd):
    prior = load(sd, precision="bf16")
    z = normal(1, 4, 8, 8)
    before, weights = prior.epsilon(z, 501), {name: p.clone() for name, p in prior.named_parameters()}
    with prior.in_fp32():
        assert not prior.is_narrow
        wide = prior.epsilon(z, 501)
    assert prior.is_narrow
    assert all(torch.equal(p, weights[name]) for name, p in prior.named_parameters())
    assert torch.equal(prior.epsilon(z, 501), before)
    assert not torch.equal(wide, before)
    # bf16 has 8 bits, 0.4 %: through some fifty layers that makes a few per cent.
    assert (wide - before).norm() < 0.1 * wide.norm()


def test_a_prior_loaded_under_inference_mode_can_be_differentiated(sd):
    with torch.inference_mode():
        prior = load(sd)
    assert not any(p.is_inference() for p in prior.parameters())
    grad, _ = gradient(lambda z: (prior.decode(z).flatten(1).sum(1), z), normal(1, 4, 8, 8))
    assert grad.isfinite().all()


def test_a_compiled_prior_asks_for_compiled_networks_and_an_ordinary_one_does_not(sd):
    """Compiling takes minutes; here only that the right parts are marked."""
    prior, plain = load(sd, compiled=True), load(sd)
    for one, marked in ((prior, True), (plain, False)):
        for part in (one.unet, one.vae.encoder, one.vae.decoder):
            assert (part._compiled_call_impl is not None) == marked


# --- a tiny decoder


def test_the_tiny_decoder_serves_all_steps_but_the_last(sd):
    prior = load(sd)
    tiny = TinyDecoder(prior, AutoencoderTiny(), name="t", last=3)
    z = normal(1, 4, 8, 8)
    for left in (1, 2, 3):
        assert tiny.for_step(left) is tiny
    quick = tiny.for_step(4)
    assert torch.equal(tiny.decode(z), prior.decode(z))
    assert torch.equal(quick.epsilon(z, 501), prior.epsilon(z, 501))
    assert torch.equal(quick.decode(z), (1 + quick.tiny.decode(z).sample) / 2)
    assert torch.equal(quick.encode(torch.zeros(1, 3, 64, 64)), quick.tiny.encode(-torch.ones(1, 3, 64, 64)).latents)
    assert tiny.describe()["decoder"] == "t"


def test_results_and_residuals_are_those_of_the_full_decoder(sd, tmp_path):
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / "taesd")
    prior = load(sd, decoder=str(tmp_path / "taesd"), precision="bf16")
    calls = []
    prior.quick.tiny.decoder.register_forward_hook(lambda *_: calls.append("tiny"))
    prior.prior.vae.decoder.register_forward_hook(lambda *_: calls.append("full"))
    y, physics = tasks.measure("denoise", torch.full((1, 3, 64, 64), 0.5), noise=0.01, ids=("a",))
    run = Restorer(prior, LDPS(steps=5)).frames(y, physics)
    frames = list(run)
    assert calls == ["tiny"] * 2 + ["full"] * 3
    result = run.result()
    assert calls[5:] == ["full"]
    assert torch.equal(result.image, prior.prior.decode(frames[-1].state.z).clamp(0, 1))
    calls.clear()
    run.preview(frames[0])
    assert calls == ["tiny"]
    assert result.settings["prior"]["decoder"] == str(tmp_path / "taesd")


def test_the_tiny_decoder_follows_its_prior_to_another_precision(sd):
    tiny = TinyDecoder(load(sd), AutoencoderTiny(), name="t")
    quick, z = tiny.for_step(100), normal(1, 4, 8, 8)
    tiny.lighten()
    before = quick.decode(z)
    tiny.lighten()
    narrow = quick.decode(z)
    assert not torch.equal(narrow, before)
    with quick.in_fp32():
        assert not torch.equal(quick.decode(z), narrow)
    assert torch.equal(quick.decode(z), narrow)


def test_decoders_that_do_not_fit_are_refused(sd, tmp_path):
    channels = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    other = AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    with pytest.raises(ValueError, match=r"latents of \(4, 32, 32\) where prior .* has \(4, 8, 8\)"):
        TinyDecoder(load(sd), other, name="t")
    with pytest.raises(FileNotFoundError, match="give full, tiny"):
        load(sd, decoder="nothing here")
    with pytest.raises(ValueError, match="AutoencoderKL"):
        load(sd, decoder=str(sd / "vae"))
    with pytest.raises(ValueError, match="a tiny one already"):
        load(sd15_folder(tmp_path / "t", vae="tiny"), decoder=str(tmp_path / "t" / "vae"))
    with pytest.raises(ValueError, match="one of pixels"):
        load(pixel_folder(tmp_path / "p"), decoder=str(sd / "vae"))


# --- once more in float32


def test_a_step_that_is_not_finite_is_taken_again_with_the_same_noise(world, caplog):
    y, physics = world.measure(ids=("a",))
    sampler = STSL(steps=4, inner_steps=1, init="noise", reverse="ddpm")
    alone = Restorer(world.prior, sampler).solve(y, physics, ids=("a",))
    prior = Failing(world.prior, {3: to_nan}, narrow=True)
    again = Restorer(prior, sampler).solve(y, physics, ids=("a",))
    assert torch.equal(again.image, alone.image)
    assert "step 2 of 4 is not finite: once more in fp32" in caplog.text
    assert again.cost.unet_calls == alone.cost.unet_calls + 2  # the step has two calls


def test_a_step_that_is_not_finite_twice_has_diverged(world):
    y, physics = world.measure(ids=("a",))
    for narrow, calls in ((True, 4), (False, 3)):
        prior = Failing(world.prior, dict.fromkeys((3, 4, 5), to_nan), narrow=narrow)
        with pytest.raises(Diverged, match="step 3 of 5"):
            Restorer(prior, LDPS(steps=5)).solve(y, physics)
        assert prior.calls == calls


def test_a_decoded_image_that_is_not_finite_is_decoded_again(world):
    class Overflowing(Failing):
        def decode(self, z):
            out = self.prior.decode(z)
            return out if self.wide or torch.is_grad_enabled() else to_nan(out)

    y, physics = world.measure(ids=("a",))
    prior = Overflowing(world.prior, {}, narrow=True)
    alone = Restorer(world.prior, LDPS(steps=3)).solve(y, physics)
    assert torch.equal(Restorer(prior, LDPS(steps=3)).solve(y, physics).image, alone.image)
    prior.narrow = False
    with pytest.raises(Diverged, match="decoded image"):
        Restorer(prior, LDPS(steps=3)).solve(y, physics)


# --- samples together


@pytest.mark.parametrize("sampler", [STSL(steps=3), PSLD(steps=3), LDPS(steps=3)], ids=["stsl", "psld", "ldps"])
def test_samples_drawn_together_are_those_drawn_alone(sampler, world):
    y, physics = world.measure("random_inpaint", ids=("a",))
    restorer = Restorer(world.prior, sampler)
    alone = restorer.solve(y, physics, ids=("a",), samples=5)
    together = restorer.solve(y, physics, ids=("a",), samples=5, batch=3)
    # Matrix products of more rows sum in another order.
    assert_close(together.samples, alone.samples, rtol=0, atol=1e-9)
    assert not torch.allclose(alone.samples[0], alone.samples[1])
    assert together.cost.unet_samples == alone.cost.unet_samples
    assert together.cost.unet_calls == alone.cost.unet_calls * 2 // 5  # 3 and 2 rows instead of 1, 1, 1, 1, 1


def test_an_operator_of_exactly_one_image_gets_its_samples_one_by_one(world):
    weights = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)

    def A(x):
        assert x.shape[0] == 1
        return x * weights

    def refuse(x):
        if x.shape[0] != 1:
            raise ValueError("one image, please")
        return A(x)

    physics = LinearPhysics(A=refuse, A_adjoint=refuse)
    result = Restorer(world.prior, LDPS(steps=2)).solve(world.x[:1], physics, samples=3, batch=3)
    assert result.samples.shape[0] == 3


def test_the_result_of_one_image_of_a_batch_is_its_own(world):
    y, physics = world.measure()
    restorer = Restorer(world.prior, PSLD(steps=3))
    both = restorer.solve(y, physics, ids=("a", "b"))
    alone = restorer.solve(*world.measure(ids=("b",)), ids=("b",))
    second = both.of(1)
    assert_close(second.samples, alone.samples, rtol=0, atol=1e-9)
    assert_close(second.residual_rms, alone.residual_rms, rtol=0, atol=1e-9)
    ours, theirs = second.record(), alone.record()
    assert ours["ids"] == ["b"]
    assert ours["cost_per_image"] | {"seconds": 0} == theirs["cost_per_image"] | {"seconds": 0}
    assert [entry["residual"] for entry in ours["log"]] == [
        pytest.approx(entry["residual"], abs=1e-9) for entry in theirs["log"]
    ]


# --- out of memory


def test_when_memory_runs_out_savings_are_announced_and_the_image_starts_again(world, caplog):
    y, physics = world.measure(ids=("a",))
    alone = Restorer(world.prior, LDPS(steps=4)).solve(y, physics, ids=("a",), samples=4)
    prior = Failing(world.prior, {3: no_memory, 8: no_memory, 10: no_memory})
    run = Restorer(prior, LDPS(steps=4)).frames(y, physics, ids=("a",), samples=4, batch=4, keep_every=1)
    indices = [frame.index for frame in run]
    # Four together fail in the third step, two together in the first step of the second pair, one in the second step.
    assert prior.rows[:3] == [4, 4, 4]
    assert prior.rows[3:8] == [2, 2, 2, 2, 2]
    assert prior.rows[8:10] == [1, 1]
    assert indices == [0, 1, 0, 1, 2, 3, 0, *range(16)]
    said = [record.getMessage() for record in caplog.records]
    assert ["2 samples" in said[0], "1 samples" in said[1], "half the colours" in said[2]] == [True] * 3
    assert all("starts again with the same seed" in line for line in said)
    result = run.result()
    assert_close(result.samples, alone.samples, rtol=0, atol=1e-9)
    assert [frame.index for frame in result.frames] == [*range(16)]
    assert len(result.log) == 16


def test_when_memory_runs_out_at_the_very_end_only_the_result_is_decoded_again(world, caplog):
    y, physics = world.measure(ids=("a",))
    alone = Restorer(world.prior, LDPS(steps=4)).solve(y, physics, ids=("a",), samples=2)
    prior = Failing(world.prior, {})
    run = Restorer(prior, LDPS(steps=4)).frames(y, physics, ids=("a",), samples=2, batch=2)
    list(run)
    prior.decode = lambda z: no_memory(z) if prior.savings else world.prior.decode(z)
    assert_close(run.result().samples, alone.samples, rtol=0, atol=1e-9)
    assert prior.calls == 4
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: half the colours, and the result is decoded again"
    ]
    prior.decode = no_memory
    with pytest.raises(OutOfMemory, match="every saving made"):
        run.result()


def test_at_the_end_of_the_ladder_stands_an_error_with_the_ways_out(world):
    y, physics = world.measure(ids=("a",))
    prior = Failing(world.prior, dict.fromkeys(range(1, 9), no_memory))
    run = Restorer(prior, LDPS(steps=4)).frames(y, physics)
    with pytest.raises(OutOfMemory, match=r"8 x 8.*--decoder tiny.*--crop.*stsl estimate.*CUDA out of memory"):
        list(run)
    assert prior.calls == 2  # as it was, and with half the colours
    with pytest.raises(RuntimeError, match="stopped by an error"):
        run.result()
    prior = Failing(world.prior, {1: no_memory})
    with pytest.raises(OutOfMemory, match=r"2 images at once.*give fewer"):
        Restorer(prior, LDPS(steps=4)).solve(*world.measure())


def test_another_error_is_no_lack_of_memory(world):
    def broken(out):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Restorer(Failing(world.prior, {2: broken}), LDPS(steps=4)).solve(*world.measure())


def test_nothing_of_a_failed_attempt_stays_in_memory(world):
    import weakref

    held = []

    def remember(out):
        held.append(weakref.ref(out))
        no_memory(out)

    free = []

    class Watching(Failing):
        def lighten(self):
            free.append(held[0]() is None)
            return super().lighten()

    prior = Watching(world.prior, {2: remember})
    Restorer(prior, LDPS(steps=3)).solve(*world.measure(ids=("a",)))
    assert free == [True]
