"""The pieces of a training: data, captions, order, losses, checkpoints."""

import io
import json
import logging
import math

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

from stsl import images
from stsl.rng import generator
from stsl.training import checkpoint
from stsl.training.autoencoder import Autoencoder
from stsl.training.captions import Captions, make_text_encoder, make_tokenizer, read_words, tidy, token_ids
from stsl.training.clip import CLIP
from stsl.training.data import Pictures, prepare
from stsl.training.diffusion import noised_loss
from stsl.training.dino import DINO
from stsl.training.export import fresh, sign
from stsl.training.latents import Latents, encode
from stsl.training.masked import Masked
from stsl.training.prior import LatentDiffusion, make_unet
from stsl.training.run import Settings, batch_rows, train
from stsl.training.task import Task
from stsl.training.vit import crops, lay_out, patches


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read(data, size, folder) -> Pictures:
    *_, pictures = prepare(data, size, folder)
    assert isinstance(pictures, Pictures)
    return pictures


# Data


def test_a_folder_gives_the_middle_square_with_labels_and_metadata(tmp_path):
    folder = tmp_path / "data"
    (folder / "cats").mkdir(parents=True)
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[:, 2:10] = 100  # the middle square
    (folder / "cats" / "a.png").write_bytes(png(wide))
    (folder / "b.png").write_bytes(png(np.full((8, 8, 3), 7, np.uint8)))
    (folder / "metadata.csv").write_text("file_name,mood\nb.png,glad\n")
    pictures = read(folder, 8, tmp_path / "kept")
    assert len(pictures) == 2
    rows = {pictures.row(index)["label"]: index for index in range(2)}
    assert pictures.row(rows["cats"]) == {"label": "cats", "mood": ""}
    assert pictures.row(rows[""]) == {"label": "", "mood": "glad"}
    assert (pictures.pixels[rows["cats"]] == 100).all()
    assert torch.equal(pictures.at(torch.tensor([rows[""]])), torch.full((1, 3, 8, 8), 7 / 255))


def test_a_parquet_file_gives_its_columns_as_text(tmp_path):
    cells = [{"bytes": png(np.full((9, 9, 3), value, np.uint8)), "path": None} for value in (1, 2)]
    table = pa.table({"image": [*cells, None], "color": [True, None, False], "n": [1, 2, 3], "box": [[1], [2], [3]]})
    parquet.write_table(table, tmp_path / "faces.parquet")
    pictures = read(tmp_path / "faces.parquet", 8, tmp_path / "kept")
    assert pictures.columns == {"color": ["true", ""], "n": ["1", "2"]}
    bad = json.loads((tmp_path / "kept" / "pictures.json").read_text())["bad"]
    assert list(bad) == ["faces-2"]


def test_pictures_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder, kept = tmp_path / "data", tmp_path / "kept"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    first = read(folder, 8, kept)
    with monkeypatch.context() as patch:
        patch.setattr(images, "read", None)
        assert read(folder, 8, kept).key == first.key
    (folder / "b.png").write_bytes(png(np.ones((8, 8, 3), np.uint8)))
    assert len(read(folder, 8, kept)) == 2


def test_data_of_no_use_leaves_what_was_read_of_other_data(tmp_path, monkeypatch):
    folder, kept = tmp_path / "data", tmp_path / "kept"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(np.full((8, 8, 3), 7, np.uint8)))
    first = read(folder, 8, kept)
    with pytest.raises(ValueError, match=r"all 1 were skipped.*16 x 16 are needed"):
        read(folder, 16, kept)
    monkeypatch.setattr(images, "read", None)
    again = read(folder, 8, kept)
    assert again.key == first.key
    assert (again.pixels == 7).all()


def test_rows_of_metadata_without_a_picture_are_told(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "metadata.csv").write_text("file_name,mood\na.png,glad\nb.png,sad\nc.png,sad\n")
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, 8, tmp_path / "kept")) == 1
    assert "rows for 2 files that are no pictures of this folder, such as b.png" in caplog.text


def test_a_data_set_of_the_hub_gives_bytes_files_and_the_names_of_classes(tmp_path, monkeypatch):
    cached = tmp_path / "cached.png"
    cached.write_bytes(png(np.full((8, 8, 3), 2, np.uint8)))
    cells = [{"bytes": png(np.full((8, 8, 3), 1, np.uint8)), "path": None}, {"bytes": None, "path": str(cached)}]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "n": datasets.Value("int8")}
    rows = {"image": [*cells, {"bytes": b"no picture", "path": None}], "label": [1, None, 0], "n": [5, 6, 7]}
    table, asked = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)), []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or table)
    pictures = read("owner/animals", 8, tmp_path / "kept")
    assert asked == [("owner/animals", "train")]
    assert pictures.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert pictures.columns == {"label": ["dog", ""], "n": ["5", "6"]}
    assert list(json.loads((tmp_path / "kept" / "pictures.json").read_text())["bad"]) == ["owner/animals-2"]


def test_a_data_set_that_the_hub_does_not_give_is_named(tmp_path, monkeypatch):
    def refused(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(ValueError, match="'owner/animals' cannot be loaded from the hub: no network"):
        read("owner/animals", 8, tmp_path / "kept")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="the columns text; it needs image"):
        read("owner/animals", 8, tmp_path / "kept")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"x"), "not a Parquet file"),
        (lambda path: parquet.write_table(pa.table({"photo": [b""]}), path), "needs one called image"),
        (lambda path: parquet.write_table(pa.table({"image": [b""]}), path), "no picture to learn from"),
    ],
)
def test_parquet_files_of_no_use_are_refused(make, said, tmp_path):
    make(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a.parquet", 8, tmp_path / "kept")


def test_other_files_and_names_are_refused_before_the_hub_is_asked(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"\.parquet file or a hub id"):
        read(tmp_path / "a.txt", 8, tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read("no such folder", 8, tmp_path / "kept")


def test_metadata_without_file_names_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "metadata.csv").write_text("name,mood\na.png,glad\n")
    with pytest.raises(ValueError, match="needs file_name"):
        read(tmp_path, 8, tmp_path / "kept")


# Captions

WORDS = {"emotion": {"happiness": ("smiling", "happy"), "": ("",)}, "color": {"false": ("black and white",)}}


def test_captions_fill_slots_with_words_and_alternatives():
    captions = Captions(("a {color} {photo|picture} of a {emotion} face",), WORDS)
    said = {
        captions.draw({"color": "false", "emotion": "happiness"}, generator("captions", index)) for index in range(40)
    }
    whole = {
        f"a black and white {kind} of a {mood} face" for kind in ("photo", "picture") for mood in ("smiling", "happy")
    }
    assert said == whole
    assert set(captions.all([{"color": "false", "emotion": "happiness"}])) == whole
    assert captions.draw({"color": "", "emotion": ""}, generator(0)) in {"a photo of a face", "a picture of a face"}


def test_a_column_is_a_template_and_columns_must_be_there():
    assert Captions(("label",)).check(["label"]).templates == ("{label}",)
    with pytest.raises(ValueError, match="no column 'emotions', did you mean 'emotion'"):
        Captions(("a {emotions} face",)).check(["emotion"])
    with pytest.raises(ValueError, match="same for every picture"):
        Captions(("a face",)).check(["emotion"])
    with pytest.raises(ValueError, match="no column 'mood'"):
        Captions(("a {label} face",), {"mood": {}}).check(["label"])
    with pytest.raises(ValueError, match="need a template"):
        Captions(())


def test_words_are_read_from_the_command_line():
    assert read_words(["emotion: happiness=smiling|happy, neutral=calm", "color:true=color"]) == {
        "emotion": {"happiness": ("smiling", "happy"), "neutral": ("calm",)},
        "color": {"true": ("color",)},
    }
    with pytest.raises(ValueError, match="column: value=word"):
        read_words(["emotion"])


def test_articles_and_spaces_are_put_right():
    assert tidy("a  angry face of  a person ") == "an angry face of a person"


def test_the_tokenizer_has_a_token_for_each_word_and_is_always_the_same():
    texts = ["an unhappy cat and a catfish", "a happy café, 7 times"]
    first, second = (make_tokenizer(order, 16) for order in (texts, texts[::-1]))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("a catfish, happy") == ["a</w>", "catfish</w>", ",</w>", "happy</w>"]
    assert first.tokenize("unhappy") == ["un", "happy</w>"]
    ids = token_ids(first, ["a happy cat", "an unknown zebra " * 9, ""], 16)
    assert ids.shape == (3, 16)
    assert (ids[:, 0] == first.bos_token_id).all()
    assert (ids[:, -1] == first.eos_token_id).all()
    assert "café" in first.decode(token_ids(first, ["a café"], 16)[0])


# Order and losses


def test_every_pass_sees_every_picture_once_in_an_order_of_its_own():
    seen = torch.cat([batch_rows(10, step, 4, seed=0) for step in range(10)])
    passes = seen.split(10)
    assert all(sorted(order.tolist()) == list(range(10)) for order in passes)
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(batch_rows(10, 0, 4, seed=1), seen[:4])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_a_level_is_the_weighted_square_of_its_error(prediction):
    source = generator("loss")
    x, noise = torch.randn(2, 3, 4, 4, generator=source), torch.randn(2, 3, 4, 4, generator=source)
    alpha_bar = torch.tensor([0.99, 0.5, 0.1])
    t = torch.tensor([0, 2])
    given = noised_loss(lambda z, t: z, x, noise, t, alpha_bar, prediction, 5.0)["loss"]
    expected = 0.0
    for index, a in enumerate((0.99, 0.1)):
        z = math.sqrt(a) * x[index] + math.sqrt(1 - a) * noise[index]
        v = math.sqrt(a) * noise[index] - math.sqrt(1 - a) * x[index]
        snr = a / (1 - a)
        if prediction == "epsilon":
            expected += min(snr, 5) / snr * (z - noise[index]).square().mean() / 2
        else:
            expected += min(snr, 5) / (snr + 1) * (z - v).square().mean() / 2
    torch.testing.assert_close(given, expected)


def test_the_right_prediction_has_no_loss():
    source = generator("loss")
    x, noise = torch.randn(2, 3, 4, 4, generator=source), torch.randn(2, 3, 4, 4, generator=source)
    alpha_bar, t = torch.tensor([0.7]), torch.zeros(2, dtype=torch.long)
    assert noised_loss(lambda z, t: noise, x, noise, t, alpha_bar, "epsilon", 0.0)["loss"] == 0
    v = math.sqrt(0.7) * noise - math.sqrt(0.3) * x
    assert noised_loss(lambda z, t: v, x, noise, t, alpha_bar, "v_prediction", 5.0)["loss"] < 1e-12


def faces(n: int, size: int) -> Pictures:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return Pictures(pixels, {}, "test")


class Squares(torch.nn.Module):
    """In LPIPS's place: needs no weights."""

    def __init__(self, net):
        super().__init__()

    def forward(self, x, truth):
        return (x - truth).square().mean((1, 2, 3))


def test_an_autoencoder_is_judged_by_pixels_lpips_and_a_critic_that_learns_in_turns(monkeypatch):
    monkeypatch.setattr("stsl.training.autoencoder.LPIPS", Squares)
    task = Autoencoder(16, channels=(16, 16), lpips=0.5, critic=0.1)
    inputs = task.draw(faces(2, 16), torch.arange(2), generator(0))
    x = 2 * inputs["x"] - 1
    drawn = task.vae.decode(task.vae.encode(x).latents).sample
    objection = -task.critic(drawn).mean()
    squares = (drawn - x).square().mean() / 4  # between pixels in [0, 1]
    expected = (drawn - x).abs().mean() + 0.5 * squares + 0.1 * objection
    torch.testing.assert_close(task(inputs, "main")["loss"], expected)

    hinge = (1 - task.critic(x)).relu().mean() + (1 + task.critic(drawn)).relu().mean()
    critic = task(inputs, "critic")["loss"]
    torch.testing.assert_close(critic, hinge)
    critic.backward()
    assert all(parameter.grad is not None for parameter in task.critic.parameters())
    assert all(parameter.grad is None for parameter in task.vae.parameters())
    assert {name.split(".")[0] for name, _ in task.trained("main")} == {"vae"}


def test_the_scaling_factor_brings_latents_to_unit_variance(tmp_path):
    task, data = Autoencoder(16, channels=(16, 16), lpips=0.0), faces(4, 16)
    task.save(tmp_path, data, torch.float32)
    vae = AutoencoderTiny.from_pretrained(tmp_path / "vae")
    z = vae.config.scaling_factor * vae.encode(2 * data.at(torch.arange(4)) - 1).latents
    torch.testing.assert_close(z.std(), torch.tensor(1.0))
    assert abs(vae.config.scaling_factor - 1) > 0.1


def test_latents_are_encoded_once_with_their_mirror_images(tmp_path):
    vae, data = Autoencoder(16, channels=(16, 16), lpips=0.0).vae, faces(3, 16)
    vae.register_to_config(scaling_factor=2.5)
    *said, latents = encode(data, vae, tmp_path, "a")
    assert said == [(3, 3)]
    x, rows = 2 * data.at(torch.arange(3)) - 1, torch.arange(3)
    for mirrored in (False, True):
        z = 2.5 * vae.encode(x.flip(-1) if mirrored else x).latents
        # kept in float16
        torch.testing.assert_close(latents.at(rows, torch.full((3,), mirrored)), z.detach(), rtol=1e-3, atol=1e-4)
    (again,) = encode(data, vae, tmp_path, "a")
    assert np.array_equal(again.values, latents.values)
    said_of_another = [*encode(data, vae, tmp_path, "b")]
    assert len(said_of_another) == 2


def test_a_tenth_of_the_captions_is_left_out_and_half_of_the_latents_mirrored():
    tokenizer = make_tokenizer(["a smiling face"], 8)
    unet, text = make_unet(4, 4, 16, (16, 32)), make_text_encoder(tokenizer, 8, 16)
    captions, vae = Captions(("a {mood} face",)), torch.nn.Identity()
    task = LatentDiffusion(vae, unet, text, tokenizer, captions, prediction="v_prediction")
    n = 500
    values = np.stack([np.zeros((n, 4, 4, 4)), np.ones((n, 4, 4, 4))], 1).astype(np.float16)
    inputs = task.draw(Latents(values, {"mood": ["smiling"] * n}, "test"), torch.arange(n), generator(0))
    empty, full = (token_ids(tokenizer, [text], 8) for text in ("", "a smiling face"))
    left_out = (inputs["ids"] == empty).all(1)
    assert 0.09 < left_out.float().mean() < 0.15  # 0.12 ± 0.015
    assert (inputs["ids"][~left_out] == full).all()
    assert 0.43 < inputs["z"].mean() < 0.57  # 0.5 ± 0.022
    assert task.scheduler.config.prediction_type == "v_prediction"


def test_masked_reconstruction_does_not_see_what_it_has_to_draw():
    task = Masked(16, patch=4, width=16, depth=1, heads=2)
    inputs = dict(task.draw(faces(2, 16), torch.arange(2), generator(0)))
    hidden = inputs["order"][:, task.seen :]
    read = []
    task.draws.register_forward_hook(lambda _, __, out: read.append(out.detach().clone()))
    task(inputs, "main")
    columns = patches(inputs["x"], 4)
    columns = columns.scatter(1, hidden[..., None].expand(-1, -1, columns.shape[-1]), 0.3)
    changed = torch.nn.functional.fold(columns.transpose(1, 2), 16, 4, stride=4)
    task(inputs | {"x": changed}, "main")
    torch.testing.assert_close(read[0], read[1])
    seen = inputs["order"][:, : task.seen]
    columns = columns.scatter(1, seen[..., None].expand(-1, -1, columns.shape[-1]), 0.6)
    task(inputs | {"x": torch.nn.functional.fold(columns.transpose(1, 2), 16, 4, stride=4)}, "main")
    assert not torch.allclose(read[0], read[2])


def test_the_teacher_follows_the_student_and_gets_no_gradient():
    task = DINO(16, 10, patch=4, width=12, depth=1, heads=2, prototypes=8, small=2)
    inputs = task.draw(faces(2, 16), torch.arange(2), generator(0))
    loss = task(inputs, "main")["loss"]
    loss.backward()
    assert loss < 2 * math.log(8)
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(p.grad is not None for name, p in task.trained("main") if "position" not in name)
    with torch.no_grad():
        for parameter in task.vit.parameters():
            parameter.add_(1.0)
    before = task.teacher["vit"].layernorm.bias.clone()
    task.moved(0)
    torch.testing.assert_close(task.teacher["vit"].layernorm.bias, before + 0.01)
    task.moved(10)  # at the end it stands still
    torch.testing.assert_close(task.teacher["vit"].layernorm.bias, before + 0.01)


def test_places_begin_apart_and_nearer_to_their_neighbours():
    places = torch.zeros(64, 16)
    lay_out(places)
    apart = torch.cdist(places, places)
    assert (apart + torch.eye(64)).min() > 0.2
    middle = apart[27].view(8, 8)
    assert middle[3, 4] < middle[3, 6]
    assert middle[4, 3] < middle[6, 3]
    torch.testing.assert_close(middle[4, 3], middle[3, 4])
    with pytest.raises(ValueError, match="a width of 18 is no multiple of 4"):
        lay_out(torch.zeros(64, 18))


def test_a_pair_learns_from_pictures_while_its_text_encoder_stays_as_it_is():
    captions = Captions(("a {face} face",), {"face": {"1": ("smiling",), "0": ("sad",)}})
    tokenizer = make_tokenizer(["a smiling face", "a sad face"], 8)
    task = CLIP(16, tokenizer, captions, patch=4, width=16, depth=1, heads=2, text_width=8)
    data = Pictures(faces(8, 16).pixels, {"face": list("10101010")}, "test")
    task(task.draw(data, torch.arange(8), generator(0)), "main")["loss"].backward()
    learning = {name for name, parameter in task.trained("main") if parameter.grad is not None}
    assert {name.split(".")[1] for name in learning} == {"vision_model", "visual_projection"}
    assert all(parameter.grad is None for parameter in task.clip.text_model.parameters())


def test_a_crop_of_the_whole_is_the_image_or_its_mirror():
    x = torch.rand(8, 3, 16, 16, generator=generator("crop"))
    cut = crops(x, (1.0, 1.0), 16, generator("cut"))
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(cut, x, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(cut, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


# The loop


class Line(Task):
    """One weight that should become the data's mean."""

    def __init__(self):
        super().__init__()
        self.line, self.saved = torch.nn.Linear(1, 1, bias=False), None

    def parts(self, turn):
        return {"line": self.line}

    def draw(self, data, rows, source):
        return {"x": data.at(rows).mean((1, 2, 3))}

    def forward(self, inputs, turn):
        return {"loss": (self.line.weight - inputs["x"]).square().mean()}

    def sheet(self, data):
        return None

    def save(self, folder, data, dtype):
        self.saved = self.line.weight.item()


def test_what_is_saved_is_the_moving_average_of_the_weights(tmp_path):
    task = Line()
    average, weights = task.line.weight.item(), []
    for _ in train(task, faces(4, 4), Settings(20, batch=2, lr=0.1, warmup=0, ema=0.6), tmp_path, facts={}):
        weights.append(task.line.weight.item())
    for step, weight in enumerate(weights):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert task.saved == pytest.approx(average, abs=1e-6)
    assert abs(task.saved - weights[-1]) > 1e-4


# Model folders


def test_weights_of_an_earlier_training_do_not_stay_beside_those_of_another_number_of_files(tmp_path):
    home, other = tmp_path / "unet", {"w": torch.zeros(1)}
    one, index = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
    parts = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    home.mkdir()
    save_file(other, home / "mine.safetensors")
    for names in ([one], [index, *parts], [one]):
        with fresh(tmp_path) as place:
            (place / "unet").mkdir()
            for name in names:
                (place / "unet" / name).write_text("{}")
        assert {file.name for file in home.iterdir()} == {"mine.safetensors", *names}


def test_the_manifest_has_nothing_of_a_training_or_of_one_that_was_killed_while_it_wrote(tmp_path):
    for folder in ("unet", "training", ".tmp-x", "unet/.tmp-y"):
        (tmp_path / folder).mkdir()
        save_file({"w": torch.zeros(1)}, tmp_path / folder / "a.safetensors")
    sign(tmp_path)
    assert [line.split()[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()] == ["unet/a.safetensors"]


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    names = [name for name, _ in layer.named_parameters()]
    state = checkpoint.optimizer_state(optimizer, names)
    checkpoint.save(tmp_path / "a.safetensors", state, {"step": 3})
    tensors, facts = checkpoint.load(tmp_path / "a.safetensors")
    assert facts == {"step": 3}
    other = torch.optim.AdamW(layer.parameters())
    checkpoint.load_optimizer_state(other, names, tensors)
    assert checkpoint.optimizer_state(other, names).keys() == state.keys()
    for key, value in checkpoint.optimizer_state(other, names).items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_damaged_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="--restart begins anew"):
        checkpoint.load(tmp_path / "a.safetensors")
