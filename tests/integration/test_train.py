"""`stsl train` on a folder of small pictures: what it writes, that it resumes exactly, what it refuses."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, ViTModel

from stsl import STSL, Restorer, load_prior
from stsl.cli import main
from stsl.training.pixel import Pixel
from stsl.training.run import Settings, train
from stsl.training.task import weights_from

TINY = ["--size", 32, "--batch", 4, "--precision", "fp32", "--set", "log_every=1"]
COMMANDS = {
    "autoencoder": ["autoencoder", "--channels", "16,16,16", "--lpips", 0, "--critic", 0.1],
    "kl": ["autoencoder", "--kind", "kl", "--channels", "16,16", "--lpips", 0],
    "prior": ["prior", "--channels", "16,32", "--text-width", 16, "--caption", "a {photo|picture} of a {label} face"],
    "pixel": ["pixel", "--channels", "16,32", "--attention", 16],
    "masked": ["vit", "--width", 24, "--depth", 2],
    "dino": ["vit", "--objective", "dino", "--width", 24, "--depth", 2],
    "clip": ["vit", "--clip", "--width", 24, "--depth", 2, "--heads", 2, "--caption", "label"],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures in two folders of labels, and a file that is none."""
    folder, source = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(12):
        place = folder / ("smiling" if index % 2 else "neutral")
        place.mkdir(exist_ok=True)
        pixels = Image.fromarray(source.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        pixels.resize((40 + index, 36 + index), Image.Resampling.BICUBIC).save(place / f"{index}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def vae(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    assert run("autoencoder", pictures, out, steps=2) == 0
    return out


def run(name: str, data: Path, out: Path, *more: object, steps: int = 4) -> int:
    command, *options = COMMANDS[name]
    given = [command, data, "--out", out, *TINY, *options, "--steps", steps, "--set", f"sheet_every={steps}", *more]
    return main(["train", *map(str, given)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = [file for file in sorted(folder.rglob("*.safetensors")) if "training" not in file.parts]
    return {
        f"{file.relative_to(folder).parent}/{key}": tensor for file in files for key, tensor in load_file(file).items()
    }


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "training" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_training_comes_to_the_weights_of_one_that_was_not(name, pictures, vae, tmp_path, monkeypatch):
    more = ["--vae", vae] if name == "prior" else []
    assert run(name, pictures, tmp_path / "whole", *more) == 0

    def stopped(*args, **kwargs):
        steps = train(*args, **kwargs)
        for done in steps:
            yield done
            if done.step == 2:
                return steps.close()
        return None

    with monkeypatch.context() as patch:
        patch.setattr("stsl.training.run.train", stopped)
        assert run(name, pictures, tmp_path / "halves", *more) == 0
    assert not weights(tmp_path / "halves")
    assert run(name, pictures, tmp_path / "halves", *more) == 0
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole
    assert whole.keys() == halves.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(halves[key], tensor, rtol=0, atol=0)
    losses = [[(row["step"], row["loss"]) for row in rows(tmp_path / half)] for half in ("whole", "halves")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_the_step_that_it_came_in(number, pictures, tmp_path, monkeypatch, capsys):
    draw, drawn = Pixel.draw, []

    def interrupted(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            signal.raise_signal(number)
        return draw(*arguments)

    before = signal.signal(number, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    monkeypatch.setattr(Pixel, "draw", interrupted)
    more = ["--set", "sheet_every=0"]
    try:
        assert run("pixel", pictures, tmp_path, *more) == 130
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert "step 3 of 4 is kept" in capsys.readouterr().err
    assert run("pixel", pictures, tmp_path, *more) == 0
    assert len(drawn) == 4
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]


def test_two_trainings_do_not_write_to_one_folder(pictures, tmp_path, capsys):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "checkpoint.safetensors").touch()
    with FileLock(tmp_path / "training" / "lock"):
        for more in ([], ["--restart"]):
            assert run("pixel", pictures, tmp_path, *more) == 2
            assert "another training writes to" in capsys.readouterr().err
    assert (tmp_path / "training" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "training" / "metrics.csv").exists()
    assert run("pixel", pictures, tmp_path, "--restart") == 0


def test_a_killed_training_comes_to_the_weights_of_one_that_was_not(pictures, tmp_path):
    def command(name):
        arguments = ["pixel", pictures, "--out", tmp_path / name, *TINY, *COMMANDS["pixel"][1:], "--steps", 30]
        arguments += ["--set", "every=0", "--set", "sheet_every=0"]
        return [sys.executable, "-m", "stsl", "train", *map(str, arguments)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL)
    table = tmp_path / "killed" / "training" / "metrics.csv"
    until = time.monotonic() + 200
    while not (table.is_file() and len(table.read_text().splitlines()) > 6):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not weights(tmp_path / "killed")
    for name in ("killed", "whole"):
        subprocess.run(command(name), env=environment, check=True, stderr=subprocess.DEVNULL)
    killed, whole = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert whole
    for key, tensor in whole.items():
        torch.testing.assert_close(killed[key], tensor, rtol=0, atol=0)
    assert [row["step"] for row in rows(tmp_path / "killed")] == [str(step) for step in range(1, 31)]


def test_what_is_written_loads_where_it_should(pictures, vae, tmp_path):
    assert run("prior", pictures, tmp_path / "prior", "--vae", vae, "--half") == 0
    prior = load_prior(tmp_path / "prior", precision="fp32")
    assert prior.latent_shape == (4, 8, 8)
    assert prior.image_shape == (3, 32, 32)
    assert load_file(next((tmp_path / "prior/unet").glob("*.safetensors"))).popitem()[1].dtype == torch.float16
    z = prior.encode(torch.from_numpy(np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)))
    condition = prior.condition(["a smiling face", ""])
    assert prior.epsilon(z, 500, condition).isfinite().all()
    (tmp_path / "prior" / "tokenizer" / "tokenizer.json").unlink()  # as transformers before 5 reads it
    again = load_prior(tmp_path / "prior", precision="fp32").condition(["a smiling face", ""])
    assert torch.equal(again.positive, condition.positive)

    assert run("pixel", pictures, tmp_path / "pixel", "--set", "sheet_every=0") == 0
    assert load_prior(tmp_path / "pixel", precision="fp32").family == "pixel"
    drawn = DDPMPipeline.from_pretrained(tmp_path / "pixel")(num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)

    assert run("masked", pictures, tmp_path / "vit") == 0
    assert ViTModel.from_pretrained(tmp_path / "vit").config.patch_size == 8
    assert run("clip", pictures, tmp_path / "clip") == 0
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.projection_dim == 64


@pytest.mark.parametrize("name", ["prior", "pixel"])
def test_a_prior_goes_on_from_another_one(name, pictures, vae, tmp_path):
    more = ["--vae", vae] if name == "prior" else []
    without = ["--set", "sheet_every=0"]  # sheets of samples take most of the time
    assert run(name, pictures, tmp_path / "first", *more, *without) == 0
    assert run(name, pictures, tmp_path / "second", "--init", tmp_path / "first", "--lr", 0, *without) == 0
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert len(first) > 50
    for key in first:  # with no learning rate they stay what they were, but for the average's rounding
        torch.testing.assert_close(second[key], first[key], rtol=1e-6, atol=1e-6)


def test_shipped_priors_draw_in_diffusers():
    from stsl.priors.load import builtin_folder

    pipeline = StableDiffusionPipeline.from_pretrained(builtin_folder() / "faces-128", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a photo of a face", num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert drawn.shape == (1, 128, 128, 3)
    assert np.isfinite(drawn).all()

    pixels = DDPMPipeline.from_pretrained(builtin_folder() / "faces-64-pixel", torch_dtype=torch.float32)
    pixels.set_progress_bar_config(disable=True)
    drawn = pixels(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()


def test_what_ships_is_small_enough_and_the_papers_preset_works_with_it(world):
    from stsl.perceptual.clip import load_clip
    from stsl.priors.load import builtin_folder

    assert sum(file.stat().st_size for file in builtin_folder().rglob("*.safetensors")) <= 60e6
    restore = Restorer(world.prior, replace(STSL.preset("paper"), steps=1, inner_steps=1, init="gaussian"))
    result = restore.solve(*world.measure("sr4"))
    assert min(result.log[-1]["rV"]) > 0
    gain = load_clip("faces-clip").gain(world.x.float(), "a neutral face", "a smiling face")
    assert gain.isfinite().all()
    assert gain.abs().max() > 0


def test_large_networks_are_written_in_parts_of_which_none_stays_behind(pictures, tmp_path, monkeypatch):
    without = ["--set", "sheet_every=0"]
    with monkeypatch.context() as patch:
        patch.setattr("stsl.training.pixel.SHARD", "300KB")
        assert run("pixel", pictures, tmp_path, *without, steps=1) == 0
    parts = [*(tmp_path / "unet").glob("*.safetensors")]
    assert len(parts) > 1
    first = DDPMPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert run("pixel", pictures, tmp_path, *without, steps=3) == 0  # goes on, into one file
    assert not any(part.exists() for part in parts)
    assert len([*(tmp_path / "unet").iterdir()]) == 2
    for state in (DDPMPipeline.from_pretrained(tmp_path).unet.state_dict(), load_prior(tmp_path).unet.state_dict()):
        assert any(
            not torch.equal(state[key].float(), tensor.to(state[key].dtype).float()) for key, tensor in first.items()
        )


def test_the_table_has_the_loss_of_held_out_pictures(pictures, tmp_path):
    assert run("masked", pictures, tmp_path, "--held-out", pictures) == 0
    assert [bool(row["held_out"]) for row in rows(tmp_path)] == [False, False, False, True]


def test_bad_pictures_are_named_and_skipped(pictures, tmp_path, capsys):
    assert run("masked", pictures, tmp_path, steps=1) == 0
    said = capsys.readouterr().err
    assert "1 of 13 pictures" in said
    assert "bad.png" in said


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("pixel", ["--size", 64], "is needed|are needed"),
        ("pixel", ["--channels", "16,x"], "whole numbers"),
        ("pixel", ["--set", "emma=1"], "did you mean 'ema'"),
        ("pixel", ["--precision", "fp16"], "auto, fp32 or bf16"),
        ("pixel", ["--set", "steps=3"], "steps has an option of its own, --steps"),
        ("pixel", ["--channels", "16,16,16,16,16,16,16"], "halved"),
        ("masked", ["--patch", 5], "tile"),
        ("masked", ["--objective", "mask"], "masked or dino"),
        ("clip", ["--caption", "labell"], "did you mean 'label'"),
        ("clip", ["--caption", "a {mood} face"], "no column 'mood'"),
        ("pixel", ["--init", "faces-64-pixel"], "pixels of --size"),
        ("pixel", ["--init", "faces-128", "--size", 36], "a latent prior"),
        ("prior", [], "needs an autoencoder"),
        ("prior", ["--vae", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_refused(name, more, said, pictures, tmp_path, capsys):
    import re

    command, *options = COMMANDS[name]
    if "--caption" in more:
        options = [*options[: options.index("--caption")]]
    given = ["train", command, pictures, "--out", tmp_path / "out", *TINY, *options, "--steps", 1, *more]
    assert main([*map(str, given)]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_data_that_is_none_is_refused(tmp_path, capsys):
    assert run("pixel", tmp_path / "nowhere", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("pixel", tmp_path / "empty", tmp_path / "out") == 2
    assert "no photo" in capsys.readouterr().err


def test_a_training_with_other_settings_is_not_gone_on_with(pictures, tmp_path, capsys):
    assert run("masked", pictures, tmp_path, steps=1) == 0
    assert run("masked", pictures, tmp_path, "--lr", 0.1, steps=2) == 2
    assert "lr was 0.001 and is now 0.1" in capsys.readouterr().err
    assert run("masked", pictures, tmp_path, "--lr", 0.1, "--restart", steps=2) == 0


def test_a_loss_that_is_not_finite_stops_the_training(pictures, tmp_path, capsys):
    often = ["--set", "every=0", "--set", "log_every=8"]  # checkpoints between two looks at the loss
    assert run("pixel", pictures, tmp_path, "--lr", 1e30, "--set", "warmup=0", "--set", "clip=0", *often, steps=8) == 1
    assert "not finite" in capsys.readouterr().err
    assert not weights(tmp_path)
    kept = load_file(tmp_path / "training" / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for name, tensor in kept.items() if name.startswith("weights/"))


@pytest.mark.parametrize("name", ["prior", "clip"])
def test_held_out_pictures_without_the_captions_column_are_refused(name, pictures, vae, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "0.png").write_bytes((pictures / "neutral" / "0.png").read_bytes())
    more = ["--vae", vae] if name == "prior" else []
    assert run(name, pictures, tmp_path / "out", *more, "--held-out", flat) == 2
    assert "--held-out: the data has no column 'label'" in capsys.readouterr().err


def test_an_autoencoder_may_be_a_folder_of_its_own(pictures, vae, tmp_path):
    assert run("prior", pictures, tmp_path, "--vae", vae / "vae", "--set", "sheet_every=0", steps=1) == 0
    assert load_prior(tmp_path, precision="fp32").latent_shape == (4, 8, 8)


def test_initial_weights_depend_on_the_seed_alone(one_thread):
    before = torch.random.get_rng_state()
    made = []
    for seed in (0, 0, 1):
        torch.rand(3)
        with weights_from(seed):
            made.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    torch.random.set_rng_state(before)


def test_the_learning_rate_rises_stays_and_falls():
    settings = Settings(100, lr=1.0, warmup=9, cooldown=0.2)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[-1] == pytest.approx(0.05)


def test_a_model_folder_says_nothing_of_this_machine_and_can_be_read_by_others(pictures, vae, tmp_path):
    without = ["--set", "sheet_every=0"]
    assert run("prior", pictures, tmp_path / "first", "--vae", vae, *without) == 0
    assert run("prior", pictures, tmp_path / "second", "--init", tmp_path / "first", *without) == 0
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    for file in (path for path in (tmp_path / "second").rglob("*") if path.is_file() and "training" not in path.parts):
        if file.suffix != ".safetensors":
            assert str(tmp_path) not in file.read_text("utf-8")
        assert file.stat().st_mode == ordinary.stat().st_mode
