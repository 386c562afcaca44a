"""Models as people have them: folders in the formats of the hub, read by us as their own libraries read them."""

import json
import logging
import shutil
import socket
from pathlib import Path

import deepinv
import numpy as np
import pytest
import torch
from deepinv.physics import Downsampling, GaussianNoise
from diffusers import StableDiffusionPipeline
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from models import pixel_folder, sd15_folder, write_json
from stsl import PSLD, STSL, Restorer, load_prior, tasks
from stsl.cli import main
from stsl.priors import network
from stsl.priors.latent import LatentPrior
from stsl.priors.load import builtin_folder
from stsl.priors.pixel import PixelPrior
from stsl.priors.precision import store
from stsl.samplers import LDPS

PROMPT = "a photo of a face"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return sd15_folder(tmp_path_factory.mktemp("hub") / "sd15")


@pytest.fixture(scope="module")
def prior(folder) -> LatentPrior:
    return load_prior(folder, device="cpu", precision="fp32")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder again, for a test to change."""
    return Path(shutil.copytree(folder, tmp_path / "sd15"))


def change(file: Path, **entries: object) -> None:
    write_json(file, json.loads(file.read_text()) | entries)


def rows_of(network: nn.Module) -> list[Tensor]:
    """What a network is called with from now on."""
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    return seen


def assert_same_networks(ours: LatentPrior, theirs: LatentPrior) -> None:
    mine, wanted = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(mine[name], tensor), name


# ---- the layouts


@pytest.mark.parametrize("names", ["today", "2022"])
def test_a_folder_of_stable_diffusion_gives_what_diffusers_makes_of_it(names, tmp_path):
    folder = sd15_folder(tmp_path / "m", names=names)
    ours = load_prior(folder, device="cpu", precision="fp32")
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    network.attend(theirs.unet, theirs.device)
    z = normal(2, 4, 8, 8)
    with torch.no_grad():
        text = theirs.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False)[0]
        # The same networks in the same arithmetic. Only the order of the channels in memory differs, so float32 sums
        # of a few hundred terms do in the last bits.
        assert_close(ours.condition(PROMPT).positive, text, rtol=0, atol=0)
        eps = theirs.unet(z, 321, encoder_hidden_states=text.expand(2, -1, -1)).sample
        assert_close(ours.epsilon(z, 321, ours.condition([PROMPT] * 2)), eps, rtol=0, atol=1e-5)
        x = theirs.vae.decode(z / 0.18215).sample / 2 + 0.5
        assert_close(ours.decode(z), x, rtol=0, atol=1e-5)
    assert (ours.latent_shape, ours.image_shape, ours.name) == ((4, 8, 8), (3, 64, 64), "m")
    assert ours.schedule.offset == 1
    assert ours.schedule.at(999)[0] ** 2 == pytest.approx(theirs.scheduler.alphas_cumprod[999].item(), rel=1e-5)


def test_a_model_that_predicts_v_gives_noise(tmp_path):
    prior = load_prior(sd15_folder(tmp_path / "m", prediction="v_prediction"), device="cpu", precision="fp32")
    z, t = normal(1, 4, 8, 8), 700
    a, s = prior.schedule.at(t)
    with torch.no_grad():
        v = prior.unet(z, t, encoder_hidden_states=prior.empty.positive).sample
        assert torch.equal(prior.epsilon(z, t), a * v + s * z)
    assert prior.describe()["prediction"] == "v_prediction"


def test_a_tiny_autoencoder_takes_the_place_of_the_large_one(tmp_path):
    prior = load_prior(sd15_folder(tmp_path / "m", vae="tiny"), device="cpu", precision="fp32")
    x = normal(2, 3, 64, 64).sigmoid()
    z = prior.encode(x)
    assert z.shape == (2, 4, 8, 8)
    assert_close(z, prior.vae.encode(2 * x - 1).latents, rtol=0, atol=0)  # its scaling factor is 1
    assert prior.decode(z).shape == (2, 3, 64, 64)


def test_half_precision_files_become_the_same_numbers_in_float32(prior, tmp_path):
    half = load_prior(sd15_folder(tmp_path / "m", dtype=torch.float16), device="cpu", precision="fp32")
    whole = prior.state_dict()
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole[name].half().float()), name


@pytest.mark.parametrize("layout", [{"sharded": True}, {"variant": "fp16"}, {"sharded": True, "variant": "fp16"}])
def test_shards_and_variants_are_the_model_in_one_file(layout, prior, tmp_path):
    folder = sd15_folder(tmp_path / "m", **layout)
    assert (len([*(folder / "unet").glob("*.safetensors")]) > 1) == ("sharded" in layout)
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert_same_networks(load_prior(folder, device="cpu", precision="fp32"), prior)


def test_plain_files_go_before_their_variant(prior, copy):
    sd15_folder(copy, variant="fp16", dtype=torch.float16, seed=1)
    assert_same_networks(load_prior(copy, device="cpu", precision="fp32"), prior)


def test_a_tokenizer_in_one_file_is_the_one_in_two(prior, copy):
    prior.tokenizer.save_pretrained(copy / "tokenizer")  # adds tokenizer.json, as today's repositories have it
    (copy / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    (copy / "tokenizer" / "merges.txt").unlink(missing_ok=True)
    (copy / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    again = load_prior(copy, device="cpu", precision="fp32")
    for text in ("", PROMPT, "Ünïcödé & more, 42!"):
        assert torch.equal(again.condition(text).positive, prior.condition(text).positive)


def test_words_that_a_fine_tune_added_are_tokens(copy):
    numbers = json.loads((copy / "tokenizer" / "vocab.json").read_text())
    write_json(copy / "tokenizer" / "added_tokens.json", {"<mine>": len(numbers)})
    with pytest.raises(ValueError, match=f"more tokens than the {len(numbers)} of its text encoder"):
        load_prior(copy)
    change(copy / "text_encoder" / "config.json", vocab_size=len(numbers) + 1)
    file, row = copy / "text_encoder" / "model.safetensors", "embeddings.token_embedding.weight"
    tensors = load_file(file)
    save_file(tensors | {row: torch.cat([tensors[row], torch.ones(1, 32)])}, file, {"format": "pt"})
    tokens = load_prior(copy).tokenizer("of <mine>").input_ids
    assert tokens == [numbers[t] for t in ("<|startoftext|>", "of</w>")] + [len(numbers), numbers["<|endoftext|>"]]


@pytest.mark.parametrize("flat", [False, True], ids=["parts in folders", "all in one folder"])
def test_a_folder_of_a_pixel_model_loads(flat, tmp_path):
    prior = load_prior(pixel_folder(tmp_path / "ddpm", flat=flat), device="cpu", precision="fp32")
    assert isinstance(prior, PixelPrior)
    assert prior.latent_shape == prior.image_shape == (3, 32, 32)
    assert (prior.family, prior.has_text, prior.schedule.offset) == ("pixel", False, 0)
    x = normal(2, 3, 32, 32).sigmoid()
    assert_close(prior.decode(prior.encode(x)), x, rtol=0, atol=1e-6)  # two roundings of numbers up to 2
    assert prior.clip(5 * prior.encode(x)).abs().max() == 1
    with torch.no_grad():
        z = normal(2, 3, 32, 32)
        assert torch.equal(prior.epsilon(z, 50), prior.unet(z, 50).sample)
    with pytest.raises(TypeError, match="no text encoder"):
        prior.condition("a face")


# ---- what a latent prior does with its parts


def test_latents_are_the_posterior_mean_shifted_and_scaled(copy):
    change(copy / "vae" / "config.json", scaling_factor=0.5, shift_factor=0.25)
    prior = load_prior(copy, device="cpu", precision="fp32")
    x = normal(2, 3, 64, 64).sigmoid()
    with torch.no_grad():
        posterior = prior.vae.encode(2 * x - 1).latent_dist
        assert posterior.std.min() > 0  # else a sample would pass for the mean
        assert torch.equal(prior.encode(x), (posterior.mean - 0.25) * 0.5)
        z = normal(2, 4, 8, 8)
        assert torch.equal(prior.decode(z), (1 + prior.vae.decode(z / 0.5 + 0.25).sample) / 2)


def test_the_network_sees_negative_then_positive_and_only_when_they_differ(prior):
    z = normal(2, 4, 8, 8)
    positive, negative = prior.condition([PROMPT, "a"]).positive, prior.condition(["of", "of"]).positive
    text = torch.cat([negative, positive])
    with torch.no_grad():
        first, second = prior.unet(torch.cat([z, z]), 400, encoder_hidden_states=text).sample.chunk(2)
        seen = rows_of(prior.unet)
        guided = prior.epsilon(z, 400, prior.condition([PROMPT, "a"], negative="of", scale=3.0))
        assert torch.equal(guided, first + 3.0 * (second - first))
        prior.epsilon(z, 400, prior.condition([PROMPT, "a"], negative="of"))
        prior.epsilon(z, 400, prior.condition([PROMPT] * 2, negative=PROMPT, scale=3.0))
        prior.epsilon(z, 400)
    assert [len(rows) for rows in seen] == [4, 2, 2, 2]


def test_a_text_is_embedded_once_and_apart_from_its_neighbours(prior):
    asked: list[str] = []
    prior.text_encoder.register_forward_pre_hook(lambda _, tokens: asked.append(prior.tokenizer.decode(tokens[0][0])))
    batch = prior.condition([PROMPT, "of", PROMPT], negative="of")
    assert len(asked) == 2
    assert batch.positive.shape == batch.negative.shape == (3, 77, 32)
    assert torch.equal(batch.positive[2], prior.condition(PROMPT).positive[0])
    assert torch.equal(batch.positive[1], batch.negative[0])
    _ = prior.empty
    asked.clear()
    prior.epsilon(normal(1, 4, 8, 8), 10)
    assert not asked  # the empty prompt is kept


def test_a_long_prompt_is_cut_where_the_network_ends_and_says_so(prior, caplog):
    words = "face " * 90
    cut = prior.condition(words).positive
    assert "only 77 of the 92 tokens" in caplog.text
    caplog.clear()
    assert torch.equal(cut, prior.condition("face " * 75).positive)  # 75 words, the start and the end
    assert not caplog.text


def test_a_condition_repeats_as_the_batch_does(prior):
    both = prior.condition([PROMPT, "of"], negative="a", scale=2.0)
    thrice = both.repeat(3)
    assert torch.equal(thrice.positive, torch.cat([both.positive] * 3))
    assert torch.equal(thrice.negative, torch.cat([both.negative] * 3))
    assert thrice.scale == 2.0


def test_networks_in_bf16_keep_states_in_float32(folder, prior, monkeypatch):
    half = load_prior(folder, device="cpu", precision="bf16")
    monkeypatch.setattr(network, "store", lambda part, _: store(part, "fp32"))
    recast = load_prior(folder, device="cpu", precision="bf16")  # its weights are cast on every call
    x, z = normal(2, 3, 64, 64).sigmoid(), normal(2, 4, 8, 8)
    z.requires_grad_()
    for call in (lambda p: p.epsilon(z, 300), lambda p: p.decode(z), lambda p: p.encode(x)):
        ours, exact = call(half), call(prior)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, call(recast))
        # Each of some 50 layers in a row rounds input, weights and output by up to 2^-8; such errors add up as their
        # root mean square, to 5 %. Twice that, as the roundings of neighbours are not quite independent.
        assert (ours - exact).norm() <= 2 * 150**0.5 * 2**-8 * exact.norm()
    (grad,) = torch.autograd.grad(half.epsilon(z, 300).square().sum(), z)
    assert grad.dtype == torch.float32
    assert grad.isfinite().all()


def test_loading_leaves_the_global_random_state_alone(folder):
    before = torch.random.get_rng_state()
    load_prior(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loading_says_where_the_networks_run(folder, caplog):
    caplog.set_level(logging.INFO, "stsl")
    load_prior(folder, device="cpu", precision="fp32")
    assert "prior sd15 on cpu in fp32" in caplog.text


# ---- and with the rest of the house


@pytest.mark.parametrize(
    "sampler", [STSL(steps=2, inner_steps=1, eta=0.0, probes=0), PSLD(steps=3)], ids=["STSL", "PSLD"]
)
def test_an_sd_layout_model_restores_a_photo(sampler, prior):
    y, physics = tasks.measure("sr4", normal(2, 3, 64, 64).sigmoid(), ids=("a", "b"))
    result = Restorer(prior, sampler).solve(y, physics, prompt=PROMPT)
    assert result.image.shape == (2, 3, 64, 64)
    assert 0 <= result.image.min() < result.image.max() <= 1
    assert result.settings["prior"]["name"] == "sd15"


def test_a_pixel_model_restores_a_photo(tmp_path):
    prior = load_prior(pixel_folder(tmp_path / "ddpm"), device="cpu", precision="fp32")
    y, physics = tasks.measure("sr4", normal(1, 3, 32, 32).sigmoid(), ids=("a",))
    image = Restorer(prior, LDPS(steps=3))(y, physics)
    assert image.shape == (1, 3, 32, 32)
    assert image.isfinite().all()


def test_deepinv_tests_a_restorer_as_one_of_its_own(prior, tmp_path):
    photos = DataLoader([normal(3, 64, 64, seed=i).sigmoid() for i in range(2)], batch_size=1)
    physics = Downsampling(img_size=(3, 64, 64), factor=2, filter="bicubic", noise_model=GaussianNoise(0.01))
    figures = deepinv.test(
        Restorer(prior, PSLD(steps=5)),
        photos,
        physics,
        online_measurements=True,
        metrics=deepinv.metric.PSNR(),
        verbose=False,
        show_progress_bar=False,
    )
    assert np.isfinite(figures["PSNR"])


def test_the_command_line_restores_with_a_folder(folder, tmp_path, capsys):
    small = tmp_path / "small.png"
    Pillow.fromarray((255 * normal(16, 16, 3).sigmoid().numpy()).astype("uint8")).save(small)
    order = f"restore {small} --task sr4 --prior {folder} --sampler psld --set steps=2 --out {tmp_path / 'out'} --json"
    assert main(order.split()) == 0
    (row,) = json.loads(capsys.readouterr().out)
    with Pillow.open(row["output"]) as image:
        assert image.size == (64, 64)


def test_diffusers_draws_with_the_prior_that_ships():
    pipe = StableDiffusionPipeline.from_pretrained(
        builtin_folder() / "faces-128", safety_checker=None, local_files_only=True, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    image = pipe(PROMPT, num_inference_steps=2, guidance_scale=3.0, output_type="np").images
    assert image.shape == (1, 128, 128, 3)
    assert np.isfinite(image).all()
