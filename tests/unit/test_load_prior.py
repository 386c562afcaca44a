"""Loading priors from names, folders and the hub, when all is well and when somebody means harm."""

import hashlib
import importlib
import json
import pickle
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from models import pixel_folder, sd15_folder, write_json
from stsl import load_prior
from stsl.priors import load
from stsl.priors.latent import LatentPrior
from stsl.priors.precision import pick_device, pick_precision

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORKS = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
FILES = (*NETWORKS, SCHEDULER, UNET, VAE, TEXT, "tokenizer/vocab.json", "tokenizer/merges.txt")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return sd15_folder(tmp_path_factory.mktemp("models") / "sd15", dtype=torch.float16)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A model for a test to damage."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(scope="module")
def original_shards(tmp_path_factory) -> Path:
    return sd15_folder(tmp_path_factory.mktemp("models") / "sharded", dtype=torch.float16, sharded=True)


@pytest.fixture
def shards(original_shards, tmp_path) -> Path:
    """A model with a UNet in several files, to damage."""
    return Path(shutil.copytree(original_shards, tmp_path / "sharded"))


@pytest.fixture(autouse=True)
def trap(tmp_path, monkeypatch) -> Path:
    """A file that hostile code would make; no test may leave it behind, nor reach for the network."""

    def refuse(*_: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    file = tmp_path / "owned"
    yield file
    assert not file.exists()


def change(file: Path, **entries: object) -> None:
    write_json(file, json.loads(file.read_text()) | entries)


def retensor(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file, {"format": "pt"})


# ---- names


def test_the_default_prior_ships_with_the_package():
    assert load.builtin_names() == ["faces-128", "faces-64-pixel"]
    prior = load_prior(device="cpu")
    assert (prior.name, prior.latent_shape, prior.image_shape) == ("faces-128", (4, 32, 32), (3, 128, 128))
    assert prior.has_text
    pixels = load_prior("faces-64-pixel", device="cpu")
    assert (pixels.family, pixels.latent_shape, pixels.image_shape) == ("pixel", (3, 64, 64), (3, 64, 64))
    assert not pixels.has_text


NO_PATHS = ["", " ", "faces128", "C:\\models\\sd15", "owner\\model", "../nowhere/x", "/no/x", "~nobody/x"]
NO_IDS = ["owner/", "owner/model/part", "https://huggingface.co/a/b", "a/b\n", "a/b\0", "ä/ö", ".a/b"]


@pytest.mark.parametrize("name", [*NO_PATHS, *NO_IDS])
def test_what_is_no_name_of_anything_is_refused_with_the_ways_out(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ways = r"a built-in one .faces-128, faces-64-pixel., the path of a diffusers folder, or a hub"
    with pytest.raises(FileNotFoundError, match=ways):
        load_prior(name)


def test_a_name_nearly_right_is_suggested():
    with pytest.raises(FileNotFoundError, match="did you mean 'faces-128'"):
        load_prior("face-128")


def test_a_path_is_never_looked_for_on_the_hub():
    with pytest.raises(FileNotFoundError, match="no prior"):
        load_prior(Path("owner/model"))


def test_a_file_is_no_prior_and_the_error_says_how_to_make_one(tmp_path):
    file = tmp_path / "v1-5-pruned.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=r"is a file; a prior is a folder.*from_single_file"):
        load_prior(file)


def test_a_folder_goes_before_a_hub_id_and_a_built_in_name_before_a_folder(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/model", "faces-128"):
        shutil.copytree(original, tmp_path / name)
    assert load_prior("owner/model").image_shape == (3, 64, 64)
    assert load_prior("faces-128").image_shape == (3, 128, 128)
    assert load_prior("./faces-128").image_shape == (3, 64, 64)
    assert load_prior(Path("faces-128")).image_shape == (3, 64, 64)
    monkeypatch.chdir(tmp_path / "owner" / "model")
    assert load_prior(".").name == "model"


@pytest.mark.parametrize("name", ["faces-128", "folder"])
def test_only_hub_ids_have_a_revision(name, folder):
    with pytest.raises(ValueError, match="only hub ids have a revision: leave 'main' out"):
        load_prior(folder if name == "folder" else name, revision="main")


# ---- what ships


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The built-in priors as if they were installed in a place that a test may damage."""
    place = Path(shutil.copytree(load.builtin_folder(), tmp_path / "builtin"))
    monkeypatch.setattr(load, "builtin_folder", lambda: place)
    return place / "faces-128"


SHARD = "unet/diffusion_pytorch_model-00002-of-00003.safetensors"


@pytest.mark.parametrize("file", [SHARD, VAE, TEXT, "unet/config.json", "tokenizer/merges.txt", SCHEDULER])
def test_a_flipped_bit_in_a_built_in_file_is_found(file, installed):
    data = bytearray((installed / file).read_bytes())
    data[len(data) // 2] ^= 1
    (installed / file).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{installed / file} is damaged") + ".*reinstall stsl"):
        load_prior("faces-128")


SHIPPED = sorted(path.name for path in load.builtin_folder().iterdir() if (path / "README.md").is_file())


def test_a_missing_built_in_file_is_named(installed):
    (installed / VAE).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(installed / VAE)) + ".*reinstall stsl"):
        load_prior("faces-128")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_manifest_lists_every_file_that_is_loaded_and_all_are_right(name):
    folder = load.builtin_folder() / name
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    shipped = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    pictures = {file for file in shipped if file.endswith((".png", ".jpg"))}
    assert {file for _, file in lines} == shipped - {"SHA256SUMS", "README.md"} - pictures
    for digest, file in lines:
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file


@pytest.mark.parametrize("name", SHIPPED)
def test_a_built_in_network_says_where_it_comes_from_and_what_it_is_not_for(name):
    card = (load.builtin_folder() / name / "README.md").read_text(encoding="utf-8")
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: other" in front
    assert "license_name:" in front
    for said in ("Labeled Faces in the Wild", "real people", "research and demonstration", "identif"):
        assert said in text, said
    assert "../" not in card
    for picture in re.findall(r"\]\(([^)]+\.(?:png|jpg))\)", text):
        assert (load.builtin_folder() / name / picture).stat().st_size <= 300_000


# ---- the hub


class Hub:
    """A stand-in for huggingface_hub's download: it copies what is asked for out of a folder, and takes notes."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.snapshot = remote, cache / "snapshots" / ("c0ffee" * 7)[:40]
        self.asked: list[dict[str, object]] = []
        self.error: Exception | None = None

    def download(self, name, *, revision=None, allow_patterns, local_files_only=False):
        self.asked.append({"name": name, "revision": revision, "offline": local_files_only})
        if self.error is not None:
            raise self.error
        files = [file.relative_to(self.remote).as_posix() for file in self.remote.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            if not local_files_only:
                (self.snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.remote / file, self.snapshot / file)
        return str(self.snapshot)

    @property
    def fetched(self) -> set[str]:
        files = self.snapshot.rglob("*")
        return {file.relative_to(self.snapshot).as_posix() for file in files if file.is_file()}


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Hub:
    fake = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.download)
    return fake


def test_a_revision_reaches_the_hub_and_the_commit_the_record(hub):
    prior = load_prior("owner/model", revision="v2", device="cpu")
    assert hub.asked == [{"name": "owner/model", "revision": "v2", "offline": False}]
    assert prior.name == "owner/model"
    assert prior.describe()["commit"] == hub.snapshot.name


def test_of_a_repository_only_what_is_loaded_is_fetched(hub, folder):
    for name in (UNET, VAE, TEXT):
        file = folder / name
        for ending in (".fp16.safetensors", ".non_ema.safetensors", ".bin", ".fp16.bin", ".msgpack"):
            file.with_name(file.name.removesuffix(".safetensors") + ending).touch()
    for name in ("pipeline.py", "unet/modeling.py", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md"):
        (folder / name).touch()
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").touch()
    load_prior("owner/model")
    more = {"model_index.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"}
    assert hub.fetched == {*FILES, *more}
    assert len(hub.asked) == 1


@pytest.mark.parametrize("parts", [["unet"], ["unet", "vae", "text_encoder"]], ids="-".join)
def test_half_precision_files_are_fetched_where_there_are_no_others(parts, hub, folder):
    for name in (UNET, VAE, TEXT):
        file = folder / name
        half = file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))
        shutil.copy(file, half)
        if file.parent.name in parts:
            file.unlink()
    load_prior("owner/model")
    assert {file.split("/")[0] for file in hub.fetched if ".fp16." in file} == set(parts)


def test_shards_are_fetched_with_their_index(hub, shards):
    hub.remote = shards
    load_prior("owner/model")
    assert len([file for file in hub.fetched if "-of-" in file]) > 1


def test_a_pixel_model_in_one_folder_is_fetched_whole(hub, folder):
    shutil.rmtree(folder)
    pixel_folder(folder, flat=True)
    assert load_prior("google/ddpm").family == "pixel"
    assert len(hub.asked) == 1


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_asks_the_cache_alone(how, hub, folder, monkeypatch):
    shutil.copytree(folder, hub.snapshot)
    if how == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_prior("owner/model", offline=how == "argument").name == "owner/model"
    assert hub.asked == [{"name": "owner/model", "revision": None, "offline": True}]


def test_the_links_of_the_hubs_cache_are_followed(original, tmp_path, monkeypatch):
    cache, commit = tmp_path / "hub" / "models--owner--model", "c0ffee" * 6 + "c0ff"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for number, file in enumerate(file for file in original.rglob("*") if file.is_file()):
        shutil.copy(file, cache / "blobs" / str(number))
        link = cache / "snapshots" / commit / file.relative_to(original)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache / "blobs" / str(number))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache.parent))
    prior = load_prior("owner/model", offline=True)  # by the real snapshot_download
    assert prior.describe()["commit"] == commit


def test_an_empty_cache_is_told_apart_from_a_missing_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"is not in the cache, and offline.*`hf download owner/model`"):
        load_prior("owner/model", offline=True)


def answer(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    return kind("no", response=httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co")))


@pytest.mark.parametrize(
    ("error", "raised", "way_out"),
    [
        (answer(errors.GatedRepoError, 403), PermissionError, "accept its terms on the hub, then run `hf auth login`"),
        (answer(errors.RepositoryNotFoundError, 404), FileNotFoundError, "no model 'owner/model'.*no such folder here"),
        (
            answer(errors.RevisionNotFoundError, 404),
            FileNotFoundError,
            "no revision 'v9'; give a branch, tag or commit",
        ),
        (answer(errors.HfHubHTTPError, 503), ConnectionError, "at revision v9.*HF_ENDPOINT.*--local-dir.*faces-128"),
        (errors.LocalEntryNotFoundError("down"), ConnectionError, "could not be reached.*built-in prior .faces-128"),
        (httpx2.ReadTimeout("slow"), ConnectionError, "could not be reached .ReadTimeout."),
        (OSError(28, "No space left on device"), OSError, "No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_way_the_hub_fails_has_its_way_out(error, raised, way_out, hub):
    hub.error = error
    with pytest.raises(raised, match=way_out):
        load_prior("owner/model", revision="v9")


# ---- files that are missing or damaged


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder / name} is missing")):
        load_prior(folder)


def test_a_model_index_is_not_needed(folder):
    (folder / "model_index.json").unlink()
    assert load_prior(folder).has_text


@pytest.mark.parametrize("name", ["model_index.json", *NETWORKS, SCHEDULER, "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"_class_name": "UNet', b"[1, 2]", b"\xff\xfe\x00\x01", b"[" * 100_000, b'{"scaling_factor": NaN}'],
    ids=["empty", "torn", "a list", "binary", "nested", "not a number"],
)
def test_a_config_that_is_no_json_object_is_named(name, content, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} (is not valid JSON|holds no JSON object)"):
        load_prior(folder)


def test_a_huge_config_is_refused_before_it_is_read(folder):
    with (folder / "unet/config.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(ValueError, match=f"has {1 << 40} bytes; stsl reads at most"):
        load_prior(folder)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
@pytest.mark.parametrize("damage", ["cut", "empty", "git-lfs", "noise", "header"])
def test_damaged_weights_are_named(name, damage, folder):
    file = folder / name
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "empty": b"",
            "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "noise": bytes(range(256)) * 16,
            "header": data[:20] + bytes([data[20] ^ 255]) + data[21:],
        }[damage]
    )
    with pytest.raises(ValueError, match=re.escape(f"{file} is damaged or not safetensors")):
        load_prior(folder)


def test_weights_of_another_shape_are_named(folder):
    retensor(folder / UNET, lambda weights: weights | {"conv_in.bias": torch.zeros(33)})
    with pytest.raises(ValueError, match=r"unet.*conv_in.bias is F32 of shape \[33\].* floats of shape \[32\]"):
        load_prior(folder)


def test_missing_weights_are_named(folder):
    retensor(folder / VAE, lambda weights: {k: v for k, v in weights.items() if not k.startswith("decoder.conv_in")})
    with pytest.raises(ValueError, match=r"vae do not fit its config.json: decoder.conv_in.bias and 1 more missing"):
        load_prior(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_quantised_weights_are_refused(dtype, folder):
    retensor(folder / UNET, lambda weights: weights | {"conv_in.bias": torch.zeros(32).to(dtype)})
    with pytest.raises(ValueError, match=r"conv_in.bias is .* network has floats"):
        load_prior(folder)


def test_weights_that_are_not_used_are_mentioned(folder, caplog):
    retensor(folder / UNET, lambda weights: weights | {"lora.up": torch.zeros(3), "lora.down": torch.zeros(3)})
    load_prior(folder)
    assert "lora.down and 1 more not used" in caplog.text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", {"a": "b"}),
        ("vocab.json", {}),
        ("vocab.json", {"a": -1}),
        ("merges.txt", "a b c\nd"),
        ("merges.txt", "x y\nnot there\n"),
        ("added_tokens.json", {"<a>": "b"}),
        ("special_tokens_map.json", {"pad_token": {"lstrip": False}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
    ],
    ids=str,
)
def test_a_damaged_tokenizer_is_named(file, content, folder):
    path = folder / "tokenizer" / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"the tokenizer in {folder / 'tokenizer'}")):
        load_prior(folder)


def test_an_added_token_keeps_its_number_or_is_refused(folder):
    write_json(folder / "tokenizer" / "added_tokens.json", {"<a>": 5})
    with pytest.raises(ValueError, match="leaves gaps between the numbers of its added tokens"):
        load_prior(folder)


# ---- parts that do not fit, and models that are none of ours


@pytest.mark.parametrize(
    ("file", "entries", "reason"),
    [
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "'flow_prediction' is not known: epsilon, v_prediction"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "'sigmoid' is not known: linear, scaled_linear"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "as scheduler stsl loads DDIMScheduler"),
        (SCHEDULER, {"num_train_timesteps": 10**6}, "1 to 10000 num_train_timesteps"),
        (SCHEDULER, {"num_train_timesteps": "1000"}, "num_train_timesteps"),
        (SCHEDULER, {"beta_end": 1.0}, r"beta_end in \(0, 1\)"),
        (SCHEDULER, {"beta_start": None}, "beta_start"),
        (SCHEDULER, {"steps_offset": "1"}, "describes no noise levels"),
        (SCHEDULER, {"trained_betas": []}, "trained_betas"),
        (SCHEDULER, {"trained_betas": [0.1, 2.0]}, "trained_betas"),
        (SCHEDULER, {"trained_betas": "0.1"}, "trained_betas"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None"),
        ("unet/config.json", {"sample_size": 100_000}, "1 to 4096"),
        ("unet/config.json", {"sample_size": [8]}, r"sample_size is \[8\]"),
        ("unet/config.json", {"class_embed_type": "identity"}, "asks for class_embed_type: not a model in the layout"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "asks for latents_mean"),
        ("vae/config.json", {"scaling_factor": 0.0}, "scaling factor 0.0"),
        ("vae/config.json", {"scaling_factor": 1e999}, "is no number|scaling factor inf"),
    ],
    ids=str,
)
def test_a_model_that_stsl_cannot_run_is_refused_when_it_is_loaded(file, entries, reason, folder):
    change(folder / file, **entries)
    with pytest.raises(ValueError, match=reason):
        load_prior(folder)


def test_an_inpainting_model_is_refused(folder):
    change(folder / "unet/config.json", in_channels=9)
    retensor(folder / UNET, lambda weights: weights | {"conv_in.weight": torch.zeros(32, 9, 3, 3)})
    with pytest.raises(ValueError, match=r"UNet takes 9 channels.*inpainting and depth variants are not priors"):
        load_prior(folder)


def test_a_text_encoder_of_another_model_is_refused(original):
    prior = load_prior(original)
    other = CLIPTextModel(CLIPTextConfig(vocab_size=530, hidden_size=48, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ValueError, match="UNet attends to 32 numbers per token, its text encoder gives 48"):
        LatentPrior(prior.unet, prior.vae, other, prior.tokenizer, {"prediction_type": "epsilon"}, name="mixed")


@pytest.mark.parametrize(("key", "value"), [("num_class_embeds", 10), ("class_embed_type", "identity")])
def test_a_pixel_model_of_classes_is_refused(key, value, tmp_path):
    folder = pixel_folder(tmp_path / "ddpm")
    change(folder / "unet/config.json", **{key: value})
    retensor(folder / UNET, lambda weights: weights | {"class_embedding.weight": torch.zeros(10, 64)})
    with pytest.raises(ValueError, match="wants the class of each image"):
        load_prior(folder)


# ---- malice


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_the_traps_of_these_tests_work(trap):
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists()
    trap.unlink()


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_pickled_weights_are_refused_and_never_opened(name, folder, trap):
    file = folder / name
    file.unlink()
    plain = {"text_encoder": "pytorch_model.bin"}.get(file.parent.name, "diffusion_pytorch_model.bin")
    for ending in (plain, "model.pt", "model.ckpt"):
        torch.save({"conv_in.weight": Bomb(trap)}, file.parent / ending)
    with pytest.raises(ValueError, match=r"has only .* and 2 more: pickle files can run code.*safetensors"):
        load_prior(folder)


def test_a_pickle_called_safetensors_is_refused_and_never_unpickled(folder, trap):
    torch.save({"conv_in.weight": Bomb(trap)}, folder / UNET)
    with pytest.raises(ValueError, match="is damaged or not safetensors"):
        load_prior(folder)


def test_code_that_lies_in_a_folder_is_not_run(folder, trap):
    modules = set(sys.modules)
    code = f"open({str(trap)!r}, 'w').close()"
    for name in ("pipeline.py", "__init__.py", "unet/unet.py", "unet/diffusion_pytorch_model.py", "vae/__init__.py"):
        (folder / name).write_text(code)
    load_prior(folder)
    assert not [name for name in set(sys.modules) - modules if "unet" in name or "pipeline" in name]


CODE = [{"auto_map": {"AutoModel": "modeling.Mine"}}, {"custom_pipeline": "owner/code"}, {"custom_pipelines": []}]


@pytest.mark.parametrize("entries", CODE, ids=lambda entries: next(iter(entries)))
@pytest.mark.parametrize("name", ["model_index.json", *NETWORKS, SCHEDULER, "tokenizer/tokenizer_config.json"])
def test_a_config_that_asks_for_code_is_refused(name, entries, folder, trap):
    for place in (folder, (folder / name).parent):
        (place / "modeling.py").write_text(f"open({str(trap)!r}, 'w').close()")
    change(folder / name, **entries)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} asks to run code of the model folder"):
        load_prior(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"_class_name": ["pipeline", "Mine"]},
        {"_class_name": "../pipeline"},
        {"_class_name": None},
        {"unet": ["pipeline.py", "Mine"]},
        {"unet": ["os", "system"]},
        {"unet": ["diffusers", "UNet3DConditionModel"]},
        {"unet": ["diffusers"]},
        {"vae": ["diffusers", "os.system"]},
        {"text_encoder": ["transformers", "AutoModel"]},
        {"extra": ["my_library", "Mine"]},
        {"extra": [["nested"], "Mine"]},
    ],
    ids=str,
)
def test_an_index_that_names_classes_of_its_own_is_refused(entries, folder):
    change(folder / "model_index.json", **entries)
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'model_index.json'} asks for")):
        load_prior(folder)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}),
        ("unet/config.json", {"_class_name": ["modeling", "Mine"]}),
        ("unet/config.json", {"_class_name": None}),
        ("vae/config.json", {"_class_name": "AutoencoderKLTemporalDecoder"}),
        ("text_encoder/config.json", {"architectures": ["LlamaForCausalLM"]}),
        ("text_encoder/config.json", {"architectures": 5}),
        ("text_encoder/config.json", {"architectures": []}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "MyTokenizer"}),
        (SCHEDULER, {"_class_name": "MyScheduler"}),
    ],
    ids=str,
)
def test_a_class_that_is_not_ours_is_refused(name, entries, folder):
    change(folder / name, **entries)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} asks for class"):
        load_prior(folder)


def test_keys_with_which_configs_lead_their_libraries_elsewhere_do_nothing(folder, trap):
    before = load_prior(folder, device="cpu").state_dict()
    kernels = {"attn_implementation": "owner/kernels", "_attn_implementation_internal": "owner/kernels"}
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    change(folder / "text_encoder/config.json", **kernels, **quantised, fusion_config={"patch": True})
    change(folder / "unet/config.json", **quantised)
    write_json(folder / "text_encoder" / "adapter_config.json", {"base_model_name_or_path": "owner/model"})
    (folder / "tokenizer" / "secret.json").write_text("{}")
    named = {key: str(trap) for key in ("gguf_file", "vocab_file", "merges_file", "tokenizer_file", "vocab")}
    change(folder / "tokenizer/tokenizer_config.json", **named, fast_tokenizer_files=["tokenizer.9.json"])
    (folder / "tokenizer" / "tokenizer.model").touch()
    after = load_prior(folder, device="cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())
    assert after.text_encoder.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        ".hidden.safetensors",
        "weights.bin",
        "weights.safetensors\n",
        "weights.safetensors.bin",
        "",
        5,
        None,
    ],
    ids=repr,
)
def test_a_shard_is_a_safetensors_file_beside_its_index(shard, shards, trap):
    index = shards / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    (shards.parent / "outside.safetensors").touch()
    torch.save({"conv_in.weight": Bomb(trap)}, shards / "unet" / "weights.bin")
    listed = json.loads(index.read_text())["weight_map"]
    change(index, weight_map=listed | {"conv_in.weight": shard})
    with pytest.raises(ValueError, match=f"{re.escape(str(index))} names the shard {re.escape(repr(shard))}"):
        load_prior(shards)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"], ids=repr)
def test_an_index_without_shards_is_refused(weight_map, shards):
    change(shards / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ValueError, match="has no weight_map"):
        load_prior(shards)


def test_a_missing_shard_is_named(shards):
    shard = sorted((shards / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{shard} is missing") + ".*index.json lists it"):
        load_prior(shards)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("unet/config.json", {"block_out_channels": [1 << 20] * 4}),
        ("unet/config.json", {"layers_per_block": 1 << 20}),
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"transformer_layers_per_block": 1 << 20, "layers_per_block": 1 << 10}),
        ("unet/config.json", {"cross_attention_dim": 10**30}),
        ("vae/config.json", {"latent_channels": 1 << 20}),
        ("vae/config.json", {"layers_per_block": 1 << 20}),
        ("text_encoder/config.json", {"vocab_size": 1 << 20}),
        ("text_encoder/config.json", {"num_hidden_layers": 1 << 20}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**12}),
    ],
    ids=str,
)
def test_a_config_cannot_make_stsl_fill_the_memory(name, entries, folder):
    resource = pytest.importorskip("resource")
    importlib.import_module("stsl.priors.latent")
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    change(folder / name, **entries)
    with pytest.raises(ValueError, match=r"config.json"):
        load_prior(folder)
    # What is asked for would take from gigabytes to exabytes, or hours.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # in kilobytes
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("unet/config.json", {"block_out_channels": "wide"}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"down_block_types": ["os.system"] * 4}),
        ("unet/config.json", {"act_fn": "__import__"}),
        ("vae/config.json", {"block_out_channels": None}),
        ("text_encoder/config.json", {"hidden_act": "exec"}),
        ("text_encoder/config.json", {"hidden_size": "32"}),
        ("text_encoder/config.json", {"num_attention_heads": 5}),
    ],
    ids=str,
)
def test_values_that_make_no_network_are_refused_in_one_sentence(name, entries, folder):
    change(folder / name, **entries)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} does not describe the"):
        load_prior(folder)


# ---- devices and precisions


@pytest.fixture
def machine(monkeypatch):
    """A machine that has what a test says."""

    def has(cuda: int = 0, mps: bool = False, bf16: bool = False, cpu: dict[str, bool] | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu or {}, raising=False)

    return has


@pytest.mark.parametrize(("cuda", "mps", "best"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_the_best_device_is_cuda_then_mps_then_cpu(cuda, mps, best, machine):
    machine(cuda=cuda, mps=mps)
    assert pick_device() == torch.device(best)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine):
    machine(cuda=2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    for given in ("cuda:2", "mps", "meta", torch.device("xpu")):
        with pytest.raises(ValueError, match="is not available here: this machine has 2 cuda, 1 cpu"):
            pick_device(given)
    with pytest.raises(ValueError, match="'gpu' is not known: give cuda, cuda:N, mps or cpu"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("device", "has", "chosen"),
    [
        ("cuda", {"cuda": 1, "bf16": True}, "bf16"),
        ("cuda", {"cuda": 1, "bf16": False}, "fp32"),  # emulation does not count
        ("mps", {"mps": True}, "fp32"),
        ("cpu", {"cpu": {"amx_bf16": True}}, "bf16"),
        ("cpu", {"cpu": {"avx512_bf16": True}}, "bf16"),
        ("cpu", {"cpu": {"avx2": True, "amx_bf16": False}}, "fp32"),
    ],
    ids=str,
)
def test_bf16_is_chosen_where_the_hardware_has_it(device, has, chosen, machine):
    machine(**has)
    assert pick_precision("auto", torch.device(device)) == chosen
    assert pick_precision("fp16", torch.device(device)) == "fp16"


def test_a_pytorch_that_cannot_tell_gets_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_precision("auto", torch.device("cpu")) == "fp32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'half' is not known: give auto, fp32, tf32, bf16 or fp16"):
        pick_precision("half", torch.device("cpu"))
