"""The pieces of a training: data, captions, order, losses, checkpoints."""

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from stsl import images
from stsl.rng import generator
from stsl.training import checkpoint
from stsl.training.captions import Captions, make_tokenizer, read_words, tidy, token_ids
from stsl.training.clip import CLIP
from stsl.training.data import Pictures, prepare
from stsl.training.diffusion import noised_loss
from stsl.training.dino import DINO
from stsl.training.masked import Masked
from stsl.training.run import batch_rows
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
