"""The contrastive loss against its equation, against transformers, and against files that nobody vouches for."""

import json
import logging
import math
import os
import threading

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViTModel

from models import vit_folder
from stsl.cli import main
from stsl.files import sha256
from stsl.perceptual import ContrastiveLoss, contrastive, load_contrastive

# float64: sums of some hundred terms of order 1, in another order.
EXACT = {"rtol": 0, "atol": 1e-12}


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vit_folder(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture
def loss(folder, one_thread) -> ContrastiveLoss:
    return load_contrastive(folder, dtype=torch.float64)


@pytest.fixture
def mine(tmp_path):
    """A folder of one's own, to spoil."""
    return vit_folder(tmp_path / "vit")


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- the loss


def test_keys_are_those_of_the_last_attention_layer_of_transformers_own_network(loss, folder):
    theirs = ViTModel.from_pretrained(folder, add_pooling_layer=False).double().eval()
    x = pictures(2, 3, 32, 32)
    mean, std = (torch.tensor(c).view(3, 1, 1).float() for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    before_last = theirs((x - mean.double()) / std.double(), output_hidden_states=True).hidden_states[-2]
    last = theirs.layers[-1]
    assert loss.keys(x).shape == (2, 17, 24)  # the class and 4 x 4 patches; two heads of 12
    assert_close(loss.keys(x), last.attention.k_proj(last.layernorm_before(before_last)), **EXACT)


def test_the_loss_is_its_equation_written_out(loss):
    x, truth = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, seed=1)
    written = []
    for k, k0 in zip(loss.keys(x).tolist(), loss.keys(truth).tolist(), strict=True):
        total = 0.0
        for i, mine in enumerate(k):
            cosines = [
                sum(a * b for a, b in zip(mine, other, strict=True)) / (math.hypot(*mine) * math.hypot(*other))
                for other in k0
            ]
            total -= math.log(math.exp(cosines[i] / 0.07) / sum(math.exp(s / 0.07) for s in cosines))
        written.append(total / len(k))
    assert_close(loss(x, truth), torch.tensor(written, dtype=torch.float64), **EXACT)


def test_a_picture_is_nearer_to_itself_than_with_its_patches_moved(loss):
    x = pictures(1, 3, 32, 32)
    moved = x.roll((8, 16), (2, 3))
    assert 0 < loss(x, x) < loss(moved, x)


def test_the_gradient_is_the_slope_of_the_loss(loss):
    x, truth, way = (pictures(2, 3, 40, 40, seed=seed) for seed in range(3))  # 40 pixels: through the resizing, too
    x.requires_grad_()
    (slope,) = torch.autograd.grad(loss(x, truth).sum(), x)
    h = 1e-5
    moved = (loss(x + h * way, truth) - loss(x - h * way, truth)) / (2 * h)
    # Central differences: h² times third derivatives of order 1e3, and rounding of 1e-16 / h.
    assert_close(moved.detach(), (slope * way).sum((1, 2, 3)), rtol=1e-5, atol=1e-7)


def test_each_picture_has_its_own_loss_and_its_own_gradient(loss):
    x, truth = pictures(3, 3, 32, 32).requires_grad_(), pictures(3, 3, 32, 32, seed=1)
    assert_close(loss(x, truth)[1:2], loss(x[1:2], truth[1:2]), **EXACT)
    (slope,) = torch.autograd.grad(loss(x, truth)[1], x)
    assert slope[1].abs().max() > 0
    assert not slope[[0, 2]].any()


def test_only_the_picture_is_differentiated(loss):
    x, truth = (pictures(1, 3, 32, 32, seed=seed).requires_grad_() for seed in (0, 1))
    loss(x, truth).sum().backward()
    assert x.grad is not None
    assert truth.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not loss.vit.training


@pytest.mark.parametrize(
    ("shape", "patches"),
    [
        ((32, 32), 16),
        ((128, 128), 16),
        ((8, 8), 16),
        ((16, 24), 4 * 6),  # in proportion: 32 x 48
        ((20, 100), 1 * 8),  # at most 480/224 · 32 = 69 pixels long: 14 x 69, of which whole patches count
    ],
)
def test_pictures_of_any_size_are_brought_to_the_side_that_the_vit_knows(loss, shape, patches):
    assert loss.keys(pictures(1, 3, *shape)).shape == (1, 1 + patches, 24)


def test_what_is_no_picture_is_refused(loss):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) pictures, got \(1, 1, 32, 32\)"):
        loss.keys(pictures(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"keys of shape \(1, 25, 24\), their models of \(1, 17, 24\)"):
        loss(pictures(1, 3, 32, 48), pictures(1, 3, 32, 32))


def test_runs_in_two_threads_catch_their_own_keys(loss):
    x = [pictures(1, 3, 32, 32, seed=seed) for seed in range(2)]
    alone = [loss.keys(each) for each in x]
    wrong = []

    def run(index):
        for _ in range(20):
            if not torch.equal(loss.keys(x[index]), alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not [module for module in loss.vit.modules() if module._forward_hooks]


# ---- where the ViT comes from


def test_pixels_are_normalised_as_the_folder_says(loss, mine):
    edit(mine, "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 4])
    x = pictures(1, 3, 32, 32)
    other = load_contrastive(mine, dtype=torch.float64)
    shifted = other.std * (x - loss.mean) / loss.std + other.mean
    assert_close(other.keys(shifted), loss.keys(x), **EXACT)
    edit(mine, "preprocessor_config.json", do_normalize=False)
    os.utime(mine / "model.safetensors", ns=(0, 1))
    plain = load_contrastive(mine, dtype=torch.float64)
    assert_close(plain.keys((x - loss.mean) / loss.std), loss.keys(x), **EXACT)


def test_a_vit_is_loaded_once_until_its_weights_change(mine):
    first = load_contrastive(mine)
    assert load_contrastive(mine) is first
    assert load_contrastive(str(mine)) is first
    assert load_contrastive(mine, dtype=torch.float64) is not first
    tensors = load_file(mine / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, mine / "model.safetensors")
    os.utime(mine / "model.safetensors", ns=(0, 1))
    second = load_contrastive(mine)
    weights = [each.vit.layernorm.weight for each in (first, second)]
    assert torch.equal(2 * weights[0], weights[1])


def test_a_pooler_in_the_files_is_passed_over_in_silence(tmp_path, caplog):
    folder = vit_folder(tmp_path / "vit", pooler=True)
    with caplog.at_level(logging.WARNING):
        assert load_contrastive(folder).vit.pooler is None
    assert not caplog.records


def test_a_vit_loaded_under_inference_mode_can_be_differentiated_through(tmp_path):
    with torch.inference_mode():
        loss = load_contrastive(vit_folder(tmp_path / "vit"))
    x = pictures(1, 3, 32, 32).requires_grad_()
    loss(x, pictures(1, 3, 32, 32, seed=1)).sum().backward()
    assert x.grad.abs().max() > 0


def test_loading_leaves_the_global_generator_alone(mine):
    before = torch.get_rng_state()
    load_contrastive(mine)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def built_in(tmp_path, monkeypatch):
    """A package that ships faces-vit."""
    shelf = tmp_path / "builtin"
    monkeypatch.setattr(contrastive, "builtin_folder", lambda: shelf)
    folder = vit_folder(shelf / "faces-vit")
    names = [file.name for file in folder.iterdir()]
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names))
    return folder


def test_no_name_means_the_vit_that_ships(built_in):
    assert contrastive.builtin_vits() == ["faces-vit"]
    assert load_contrastive() is load_contrastive("faces-vit")
    with pytest.raises(FileNotFoundError, match=r"no ViT 'face-vit', did you mean 'faces-vit'\?; give a built-in one"):
        load_contrastive("face-vit")


def test_a_built_in_vit_is_compared_with_its_manifest(built_in):
    edit(built_in, hidden_act="relu")
    with pytest.raises(ValueError, match=r"config.json is damaged.*reinstall stsl"):
        load_contrastive()


def test_without_a_built_in_vit_it_is_said_what_would_work(tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "builtin_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ships none; give the folder of a transformers ViTModel.*hub id"):
        load_contrastive()
    with pytest.raises(FileNotFoundError, match=r"no ViT 'faces-vit'; give the folder"):
        load_contrastive("faces-vit")


@pytest.fixture
def hub(mine, tmp_path, monkeypatch):
    """A stand-in for the hub's download, which copies what is asked for out of a folder and takes notes."""
    asked, snapshot = [], tmp_path / "cache" / "c0ffee"

    def download(name, *, revision=None, allow_patterns, local_files_only=False):
        asked.append((name, revision, local_files_only))
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects([file.name for file in mine.iterdir()], allow_patterns=allow_patterns):
            (snapshot / file).write_bytes((mine / file).read_bytes())
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return mine, asked, snapshot


def test_of_a_hub_id_what_is_needed_is_fetched_at_the_revision_that_is_named(hub):
    remote, asked, snapshot = hub
    for name in ("pytorch_model.bin", "tf_model.h5", "modeling.py", "README.md"):
        (remote / name).touch()
    load_contrastive("facebook/dino-vitb8@refs/pr/1")
    assert asked == [("facebook/dino-vitb8", "refs/pr/1", False)]
    assert {file.name for file in snapshot.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    load_contrastive("facebook/dino-vitb8", offline=True)
    assert asked[1:] == [("facebook/dino-vitb8", None, True)]


def test_stsl_fetch_gets_a_vit_by_its_hub_id(hub, capsys):
    _, asked, _ = hub
    assert main(["fetch", "facebook/dino-vitb8@main"]) == 0
    assert asked == [("facebook/dino-vitb8", "main", False)]
    assert "vit=facebook/dino-vitb8@main" in capsys.readouterr().err.replace("\n", "")
    assert main(["fetch", "lpipz"]) != 0
    assert len(asked) == 1


def test_a_hub_id_with_pickles_alone_is_refused_with_the_ways_out(hub):
    remote, _, _ = hub
    (remote / "model.safetensors").rename(remote / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no safetensors weights of a/b.*a/b@refs/pr/1.*save_pretrained"):
        load_contrastive("a/b")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"architectures": ["Dinov2Model"]}, "class 'Dinov2Model'; as vit stsl loads ViTModel"),
        ("config.json", {"auto_map": {"AutoModel": "mine.py"}}, "runs no code"),
        ("config.json", {"image_size": 30}, "image_size is 30 and patch_size 8"),
        ("config.json", {"image_size": [32, 32]}, "sides of square images"),
        ("config.json", {"patch_size": 0}, "patch_size 0"),
        ("config.json", {"num_channels": 1}, "ViT of RGB images"),
        ("config.json", {"hidden_size": 48}, r"does not fit its config.json|does not describe"),
        ("config.json", {"num_hidden_layers": 4}, "missing"),
        ("config.json", {"num_hidden_layers": 1 << 19}, "asks for more than"),
        ("preprocessor_config.json", {"image_std": [0.2, 0.2, 0]}, "a std above 0"),
        ("preprocessor_config.json", {"image_mean": "0.5"}, "three numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_that_cannot_be_trusted_or_does_not_fit_is_refused(file, changes, words, mine):
    edit(mine, file, **changes)
    with pytest.raises(ValueError, match=words):
        load_contrastive(mine)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, mine):
    (mine / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load_contrastive(mine)


def test_damaged_weights_are_named(mine):
    (mine / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or not safetensors"):
        load_contrastive(mine)
