"""CLIP's judgement of pictures, and what an edit kept of the photo."""

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import CLIPModel

from models import clip_folder, vit_folder
from stsl.cli import main
from stsl.files import sha256
from stsl.metrics import psnr
from stsl.perceptual import clip as clips
from stsl.perceptual import load_contrastive
from stsl.perceptual.clip import CLIP, load_clip
from stsl.perceptual.edits import Region, key_distance, lpips_outside, psnr_outside

TEXTS = ["a photo of a face", "an"]
MOUTH = Region(0.5, 0.25, 0.25, 0.5)


@pytest.fixture
def folder(tmp_path):
    return clip_folder(tmp_path / "clip")


@pytest.fixture
def pictures():
    return torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def test_cosines_are_those_of_transformers_own_model(folder, pictures):
    """The reference is loaded and fed by transformers alone; the pictures have the network's size already."""
    x = pictures[..., :32, :32]
    ours = load_clip(folder)
    theirs = CLIPModel.from_pretrained(folder).eval()
    ids = ours.tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids  # shorter padding: it changes nothing
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=(x - mean) / std)
    expected = out.logits_per_image / theirs.logit_scale.exp()
    assert ours.similarity(x, TEXTS).shape == (5, 2)
    torch.testing.assert_close(ours.similarity(x, TEXTS), expected, rtol=0, atol=1e-5)


def test_gain_and_accuracy_follow_the_cosines(folder, pictures):
    clip = load_clip(folder)
    cosines = clip.similarity(pictures, TEXTS)
    gain = clip.gain(pictures, *TEXTS)
    torch.testing.assert_close(gain, cosines[:, 1] - cosines[:, 0])
    assert torch.equal(clip.accuracy(pictures, *TEXTS) == 1, gain > 0)
    assert torch.equal(clip.accuracy(pictures, *TEXTS[::-1]) == 1, gain < 0)


def test_balanced_accuracy_is_chance_for_a_clip_that_always_says_the_same(folder, pictures, monkeypatch):
    clip = load_clip(folder)
    monkeypatch.setattr(
        CLIP,
        "similarity",
        lambda self, x, texts: torch.tensor([[0.1, 0.2][text == "an"] for text in texts]).expand(len(x), -1),
    )
    assert clip.accuracy(pictures, *TEXTS).mean() == 1
    assert clip.balanced_accuracy(pictures, pictures[:2], *TEXTS) == 0.5


def test_both_sets_count_the_same_in_balanced_accuracy_whatever_their_sizes(folder, pictures, monkeypatch):
    clip = load_clip(folder)
    monkeypatch.setattr(CLIP, "gain", lambda self, x, source, target: x.mean((1, 2, 3)) * (1 if source == "a" else -1))
    sources = torch.tensor([-1.0, -1.0, -1.0, 1.0]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)  # 3 of 4 are called "a"
    targets = torch.tensor([1.0]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    assert clip.balanced_accuracy(sources, targets, "a", "b") == pytest.approx((0.75 + 1.0) / 2)
    with pytest.raises(ValueError, match="pictures of both kinds"):
        clip.balanced_accuracy(sources[:0], targets, "a", "b")


def test_a_picture_does_not_depend_on_its_batch_and_an_oblong_one_is_cropped(folder, pictures):
    clip = load_clip(folder)
    torch.testing.assert_close(clip.similarity(pictures, TEXTS)[2:3], clip.similarity(pictures[2:3], TEXTS))
    wide = torch.cat([torch.zeros(5, 3, 40, 7), pictures, torch.ones(5, 3, 40, 7)], 3)
    torch.testing.assert_close(clip.similarity(wide, TEXTS), clip.similarity(pictures, TEXTS))


def test_a_text_that_is_too_long_is_refused(folder, pictures):
    with pytest.raises(ValueError, match=r"reads 16 tokens, and 'a very.* has more"):
        load_clip(folder).similarity(pictures, ["a very very very long text about a face"])
    with pytest.raises(ValueError, match="at least one text"):
        load_clip(folder).similarity(pictures, [])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) pictures, got \(3, 40, 40\)"):
        load_clip(folder).similarity(pictures[0], TEXTS)


@pytest.fixture
def built_in(tmp_path, monkeypatch):
    """A package that ships faces-clip."""
    shelf = tmp_path / "builtin"
    monkeypatch.setattr(clips, "builtin_folder", lambda: shelf)
    made = clip_folder(shelf / "faces-clip")
    names = [file.name for file in made.iterdir()]
    (made / "SHA256SUMS").write_text("".join(f"{sha256(made / name)}  {name}\n" for name in names))
    return made


def test_no_name_means_the_clip_that_ships_and_it_is_compared_with_its_manifest(built_in):
    assert clips.builtin_clips() == ["faces-clip"]
    assert load_clip() is load_clip("faces-clip")
    with pytest.raises(FileNotFoundError, match="did you mean 'faces-clip'"):
        load_clip("face-clip")
    weights = built_in / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_clip()


def test_without_a_built_in_clip_it_is_said_what_would_work(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "builtin_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ships none; give the folder of a transformers CLIPModel.*openai/"):
        load_clip()


def test_stsl_fetch_gets_a_clip_by_its_hub_id(folder, tmp_path, monkeypatch, capsys):
    snapshot = tmp_path / "cache" / "c0ffee"

    def download(name, *, revision=None, allow_patterns, local_files_only=False):
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects([file.name for file in folder.iterdir()], allow_patterns=allow_patterns):
            (snapshot / file).write_bytes((folder / file).read_bytes())
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (folder / "pytorch_model.bin").touch()
    assert main(["fetch", "openai/clip"]) == 0
    assert "clip: openai/clip" in capsys.readouterr().err.replace("\n", "")
    assert not (snapshot / "pytorch_model.bin").exists()
    assert load_clip("openai/clip", offline=True).length == 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["BlipModel"]}, "class 'BlipModel'; as clip stsl loads CLIPModel"),
        ({"auto_map": {"AutoModel": "mine.py"}}, "runs no code"),
        ({"text_config": None}, "text_config is None"),
        ({"vision_config": {"image_size": 30, "patch_size": 8}}, "image_size is 30 and patch_size 8"),
        ({"projection_dim": 9}, "does not fit its config.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_that_cannot_be_trusted_or_does_not_fit_is_refused(folder, change, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_clip(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "vocab.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        load_clip(folder)


def test_psnr_outside_is_that_of_the_pixels_outside():
    draws = torch.Generator().manual_seed(2)
    x, truth = torch.rand(2, 2, 3, 16, 16, generator=draws)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[8:12, 4:12] = True
    expected = -10 * (x - truth).square()[..., ~inside].mean((1, 2)).log10()
    torch.testing.assert_close(psnr_outside(x, truth, MOUTH), expected)
    assert (psnr_outside(x, truth, MOUTH) != psnr(x, truth)).all()


def test_what_changes_inside_the_region_is_not_counted_outside():
    truth = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    inside, outside = truth.clone(), truth.clone()
    inside[..., 32:48, 16:48] = 0
    outside[..., :8, :8] = 0

    def mean_difference(x, y):  # in place of LPIPS, whose weights may not be here
        return (x - y).abs().mean((1, 2, 3))

    assert lpips_outside(mean_difference, inside, truth, MOUTH) == 0
    assert lpips_outside(mean_difference, outside, truth, MOUTH) > 0
    assert psnr_outside(inside, truth, MOUTH).isinf().all()


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.6, 0, 0.5, 1), (0, 0, 0, 1), (-0.1, 0, 0.5, 0.5)])
def test_a_region_is_a_box_that_leaves_something_outside(box):
    with pytest.raises(ValueError, match=r"no box in a picture|whole picture"):
        Region(*box)


def test_the_key_distance_is_zero_for_equal_pictures_and_grows_with_change(tmp_path):
    vit = load_contrastive(vit_folder(tmp_path / "vit"))
    truth = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    # Eight bits fewer than float32 has, since the cosine divides by two norms.
    assert key_distance(vit, truth, truth).abs().max() < 1e-5
    near, far = (key_distance(vit, truth + change * (0.5 - truth), truth) for change in (0.1, 1.0))
    assert (far > near).all()
    assert (near > 0).all()
