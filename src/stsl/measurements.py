"""Files of measurements and operators: what restoring a degraded image again, later or elsewhere, takes.

Both are safetensors with a description as JSON in the metadata, and nothing in them is ever run. A file may come from a
stranger: what is loaded is checked by the same function that proves, before saving, that it would load.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from deepinv.physics import Blur, Inpainting, LinearPhysics
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stsl import tasks
from stsl.files import atomic
from stsl.shapes import Measurement, Tensor

FORMAT = 1
MAX_SIDE = 8192
OWN = ("mask", "kernel")  # in place of a task's specification: a user's own

Content = dict[str, Any]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Kind:
    """A kind of file: what a sentence calls it, the name that `stsl degrade` gives it, its greatest size in bytes."""

    name: str
    called: str
    example: str
    limit: int


OPERATOR = Kind("operator", "an operator file", "STEM_operator.safetensors", 64 << 20)
MEASUREMENT = Kind("measurement", "a measurement file", "STEM.safetensors", 256 << 20)


@dataclass(frozen=True)
class OperatorInfo:
    """What an operator file says of itself: the task, the image's (C, H, W) and the noise's std on the [0, 1] scale.

    `spec` is a task's specification, or "mask" or "kernel" for a user's own.
    """

    spec: str
    shape: tasks.Shape
    noise: float


@dataclass(frozen=True)
class MeasurementInfo:
    """What a measurement file says of itself: the task, the noise's std on the [0, 1] scale, the image's id, the seed.

    `spec` is a task's specification, or "mask" or "kernel" for a user's own. The id is any text: no name for a file.
    """

    spec: str
    noise: float
    id: str
    seed: int


def save_operator(path: Path, spec: str, physics: LinearPhysics, shape: tasks.Shape, noise: float) -> None:
    """Write an operator to one safetensors file: its mask or kernel where it has one, and what `OperatorInfo` holds.

    Args:
        path: the file; written whole or not at all.
        spec: the task's specification, or "mask" or "kernel" for a user's own.
        physics: what `tasks.make`, `measure`, `from_mask` or `from_kernel` gave.
        shape: (C, H, W) of the images.
        noise: standard deviation of the measurement's noise on the [0, 1] scale.

    Raises:
        ValueError: the file would not load again, such as an operator of another kind.
    """
    if type(physics) is Inpainting:
        tensors = {"mask": physics.mask.detach().cpu().to(torch.uint8).contiguous()}
    elif type(physics) is Blur:
        tensors = {"kernel": physics.filter.detach().cpu().float().contiguous()}
    else:
        tensors = {}
    content = {"spec": spec, "shape": list(shape), "noise": float(noise)}
    _operator(content, tensors)
    _write(path, OPERATOR, content, tensors)


def load_operator(path: Path) -> tuple[LinearPhysics, OperatorInfo]:
    """Read an operator file; the operator gives the same A x as the one that was saved, to the bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is damaged, too large, of an unknown version, or contradicts itself.
    """
    return _read(path, OPERATOR, _operator)


def save_measurement(path: Path, y: Measurement, *, spec: str, noise: float, id: str, seed: int) -> None:
    """Write the measurement of one image to one safetensors file: y to the bit, and what `MeasurementInfo` holds.

    Args:
        path: the file; written whole or not at all.
        y: float32, shape (1, C, h, w), on the scale of [0, 1] images.
        spec: the task's specification, or "mask" or "kernel" for a user's own operator.
        noise: standard deviation of the noise in `y` on the [0, 1] scale.
        id: name of the image that its noise, mask and kernel were drawn for.
        seed: seed that they were drawn with.

    Raises:
        ValueError: the file would not load again, such as a batch or a measurement that is not finite.
    """
    content = {"spec": spec, "noise": float(noise), "id": id, "seed": seed}
    tensors = {"y": y.detach().cpu().contiguous()}
    _measurement(content, tensors)
    _write(path, MEASUREMENT, content, tensors)


def load_measurement(path: Path) -> tuple[Measurement, MeasurementInfo]:
    """Read a measurement file.

    Returns:
        y in float32, shape (1, C, h, w), on the CPU, and what the file says of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is damaged, too large, of an unknown version, or holds no measurement
            of one image in finite float32.
    """
    return _read(path, MEASUREMENT, _measurement)


def _operator(content: Content, tensors: Mapping[str, Tensor]) -> tuple[LinearPhysics, OperatorInfo]:
    """The operator that a file describes."""
    spec, noise = _field(content, "spec", str, "a text"), _noise(content)
    sides = content.get("shape")
    if not isinstance(sides, list) or len(sides) != 3 or any(type(side) is not int for side in sides):
        raise ValueError(f"shape is [channels, height, width], got {sides!r}")
    shape = (sides[0], sides[1], sides[2])
    if max(shape) > MAX_SIDE:
        raise ValueError(f"shape {shape} is larger than {MAX_SIDE} on a side")
    holds = _tensor_of(spec)
    if set(tensors) != ({holds} if holds else set()):
        raise ValueError(f"{spec} needs {holds or 'no tensor'}, the file has {', '.join(tensors) or 'no tensor'}")
    info = OperatorInfo(spec, shape, noise)
    if holds is None:
        return tasks.make(spec, shape, noise=noise), info
    tensor = tensors[holds]
    if tensor.dim() != 4 or tensor.shape[0] < 1:
        raise ValueError(f"the {holds} has shape {tuple(tensor.shape)}, not (B, 1, height, width)")
    if holds == "mask":
        if tensor.dtype != torch.uint8 or (tensor > 1).any():
            raise ValueError("a mask holds 0 and 1 as bytes; this one does not")
        return tasks.from_mask(tensor, shape, noise=noise), info
    if tensor.dtype != torch.float32:
        raise ValueError(f"a kernel is float32, this one is {tensor.dtype}")
    blur = tasks.from_kernel(tensor, shape, noise=noise)
    if not torch.allclose(tensor.sum((1, 2, 3)), torch.ones(len(tensor)), rtol=0, atol=1e-4):
        raise ValueError("the kernel does not sum to 1")
    blur.update_parameters(filter=tensor)  # from_kernel divides by the sum, which could change a bit of it
    return blur, info


def _measurement(content: Content, tensors: Mapping[str, Tensor]) -> tuple[Measurement, MeasurementInfo]:
    """The measurement that a file describes."""
    info = MeasurementInfo(
        _field(content, "spec", str, "a text"),
        _noise(content),
        _field(content, "id", str, "a text"),
        _field(content, "seed", int, "a whole number"),
    )
    if info.spec not in OWN:
        tasks.parse(info.spec)
    if set(tensors) != {"y"}:
        raise ValueError(f"a measurement file holds y, this one {', '.join(tensors) or 'no tensor'}")
    y = tensors["y"]
    if y.dtype != torch.float32:
        raise ValueError(f"a measurement is float32, this one is {y.dtype}")
    if y.dim() != 4 or y.shape[0] != 1 or not 1 <= min(y.shape) <= max(y.shape) <= MAX_SIDE:
        raise ValueError(
            f"a file holds the measurement of one image, (1, C, h, w) with no side above {MAX_SIDE}, "
            f"got {tuple(y.shape)}"
        )
    if not y.isfinite().all():
        raise ValueError("the measurement holds values that are not finite")
    return y, info


def _tensor_of(spec: str) -> str | None:
    """Name of the tensor in the file of this operator."""
    if spec in OWN:
        return spec
    if not tasks.is_random(spec):
        return None
    return "kernel" if tasks.parse(spec).name == "motion_blur" else "mask"


def _field(content: Content, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {what}, got {value!r}")
    return value


def _noise(content: Content) -> float:
    noise = float(_field(content, "noise", (int, float), "a number"))
    tasks.check_noise(noise)
    return noise


def _write(path: Path, kind: Kind, content: Content, tensors: Mapping[str, Tensor]) -> None:
    text = json.dumps({"kind": kind.name, "version": FORMAT, **content})
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"stsl": text})
        if temporary.stat().st_size > kind.limit:
            raise ValueError(f"{path}: {_too_large(kind, temporary)}")


def _read(path: Path, kind: Kind, build: Callable[[Content, Mapping[str, Tensor]], Loaded]) -> Loaded:
    """What `build` makes of a file; every refusal names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {kind.name} file {path}")
    try:
        if path.stat().st_size > kind.limit:
            raise ValueError(_too_large(kind, path))
        with safe_open(path, framework="pt") as file:
            content = _content(file.metadata() or {}, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return build(content, tensors)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    except (ValueError, OverflowError) as error:  # a whole number may be beyond any float
        raise ValueError(f"{path}: {error}") from error


def _content(metadata: Mapping[str, str], kind: Kind) -> Content:
    """The description in a file's metadata, when it is of this kind and version."""
    wanted = f"not {kind.called}; `stsl degrade` writes one as {kind.example}"
    if "stsl" not in metadata:
        raise ValueError(wanted)
    try:
        content = json.loads(metadata["stsl"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its description is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("its description is not a JSON object")
    for other in (OPERATOR, MEASUREMENT):
        if other != kind and content.get("kind") == other.name:
            raise ValueError(f"this is {other.called}, {wanted}")
    if content.get("kind") != kind.name:
        raise ValueError(wanted)
    if content.get("version") != FORMAT:
        raise ValueError(f"{kind.name} format {content.get('version')!r}; this version of stsl reads {FORMAT}")
    return content


def _too_large(kind: Kind, path: Path) -> str:
    return f"{kind.called} has at most {kind.limit >> 20} MiB, this one {path.stat().st_size >> 20}"
