"""The benchmark's named degradations, as plain deepinv physics.

A task is one function `(shape, ids, seed, *, options) -> LinearPhysics` in `TASKS`. Its keyword-only parameters, with
their annotations and defaults, are what `NAME:key=value,key=value` may set. What is random about a task (mask, kernel,
noise) is a function of (task, seed, image id): every method meets the same measurement, in any batch.
"""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, LinearPhysics
from PIL import Image as Picture
from PIL import ImageDraw, ImageFilter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stsl import operators
from stsl.files import atomic
from stsl.rng import generator
from stsl.shapes import Image, Measurement, Tensor

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Option:
    """What a task's parameter means and, for a number, between which ends it lies (both included)."""

    help: str
    low: float = 0.0
    high: float = 1.0


Match = Annotated[Literal["dps256", "stsl512"], Option("whose kernel for the image's size: DPS at 256 or STSL at 512")]


def sr4(shape: Shape, ids: Sequence[str], seed: int) -> LinearPhysics:
    """Super-resolution by 4: antialiased bicubic downsampling.

    Source: DPS, arXiv:2209.14687; `operators.bicubic` has the equation.
    """
    return operators.bicubic(shape, 4)


def sr8(shape: Shape, ids: Sequence[str], seed: int) -> LinearPhysics:
    """Super-resolution by 8: antialiased bicubic downsampling.

    Source: P2L, arXiv:2310.01110; `operators.bicubic` has the equation.
    """
    return operators.bicubic(shape, 8)


def gaussian_blur(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    match: Match = "dps256",
    std: Annotated[float, Option("std of the kernel in pixels; 0 takes it from match", high=1000.0)] = 0.0,
) -> LinearPhysics:
    """Blur by a Gaussian kernel that scales with the image.

    std = 3 r/256 pixels for `match=dps256`, 3 r/512 for `match=stsl512`; r is the shorter side.

    Source: DPS, arXiv:2209.14687 (std 3 at 256); STSL, arXiv:2312.00852 (std 3 at 512).
    """
    return operators.gaussian_blur(shape, std or 3 * _scale(shape, match))


def motion_blur(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    match: Match = "dps256",
    intensity: Annotated[float, Option("how crooked the path is")] = 0.5,
) -> LinearPhysics:
    """Blur by the path of a shaking camera, one kernel per image.

    The kernel spans 2 round(30 r/256) + 1 pixels for `match=dps256`, 2 round(30 r/512) + 1 for `match=stsl512`; r is
    the shorter side.

    Source: DPS, arXiv:2209.14687 (61 pixels at 256, intensity 0.5); `motion_kernel` tells how it is drawn.
    """
    size = 2 * round(30 * _scale(shape, match)) + 1
    return _blur(
        torch.stack([motion_kernel(_draws("motion_blur", seed, name), size, intensity) for name in ids]), shape
    )


def random_inpaint(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    drop: Annotated[float, Option("share of the pixels that are lost", high=0.99)] = 0.4,
    spread: Annotated[float, Option("the share is drawn from drop ± spread for each image", high=0.5)] = 0.0,
) -> LinearPhysics:
    """Inpainting of pixels lost at random, one mask per image: exactly ⌊p H W⌋ of them, all channels together.

    p ~ U(drop − spread, drop + spread).

    Raises:
        ValueError: drop ± spread leaves [0, 0.99].

    Source: STSL, arXiv:2312.00852 (40 %). PSLD, arXiv:2307.00619, and DPS are `drop=0.5,spread=0.2`.
    """
    if drop - spread < 0 or drop + spread > 0.99:
        raise ValueError(
            f"random_inpaint loses from {drop - spread:g} to {drop + spread:g}; keep that within 0 to 0.99"
        )
    _, height, width = shape

    def mask(draws: np.random.Generator) -> Tensor:
        lost = int(draws.uniform(drop - spread, drop + spread) * height * width)
        known = torch.ones(height * width)
        known[torch.from_numpy(draws.permutation(height * width)[:lost])] = 0
        return known.reshape(height, width)

    return _inpainting(torch.stack([mask(_draws("random_inpaint", seed, name)) for name in ids]), shape)


def box_inpaint(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    side: Annotated[float, Option("side of the box as a share of the image's shorter side", low=0.01, high=0.85)] = 0.5,
) -> LinearPhysics:
    """Inpainting of one square box, at another place for each image.

    The box has round(side · r) pixels on each side; its corner is uniform in [m, size − m − box), m = ⌊16 r/256⌋; r is
    the shorter side.

    Raises:
        ValueError: the box does not fit between the margins.

    Source: DPS, arXiv:2209.14687 (128 pixels at 256).
    """
    _, height, width = shape
    shorter = min(height, width)
    box, margin = max(1, round(side * shorter)), 16 * shorter // 256
    if box + 2 * margin >= shorter:
        raise ValueError(f"a box of {box} pixels and margins of {margin} leave no room in {height}×{width} pixels")

    def mask(draws: np.random.Generator) -> Tensor:
        known = torch.ones(height, width)
        top, left = (int(draws.integers(margin, length - margin - box)) for length in (height, width))
        known[top : top + box, left : left + box] = 0
        return known

    return _inpainting(torch.stack([mask(_draws("box_inpaint", seed, name)) for name in ids]), shape)


def freeform_inpaint(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    low: Annotated[float, Option("least share of lost pixels")] = 0.1,
    high: Annotated[float, Option("greatest share of lost pixels")] = 0.2,
) -> LinearPhysics:
    """Inpainting of brush strokes that cover 10 to 20 % of the image, other ones for each image.

    Raises:
        ValueError: the strokes cannot cover a share between `low` and `high`.

    Source: the protocol of P2L, arXiv:2310.01110, and Palette, arXiv:2111.05826; `brush_mask` tells how it is drawn.
    """
    masks = [brush_mask(_draws("freeform_inpaint", seed, name), *shape[1:], low, high) for name in ids]
    return _inpainting(torch.stack(masks), shape)


def salt_pepper(
    shape: Shape,
    ids: Sequence[str],
    seed: int,
    *,
    share: Annotated[float, Option("share of the pixels set to black or white")] = 0.02,
) -> LinearPhysics:
    """Denoising of salt and pepper on top of Gaussian noise.

    A = I; `operators.GaussianImpulseNoise` has the equation.

    Source: STSL, arXiv:2312.00852 (2 %).
    """
    return Denoising(operators.GaussianImpulseNoise(0.0, share))


def denoise(shape: Shape, ids: Sequence[str], seed: int) -> LinearPhysics:
    """Denoising of Gaussian noise: A = I."""
    return Denoising(GaussianNoise(0.0))


TASKS: dict[str, Callable[..., LinearPhysics]] = {
    "sr4": sr4,
    "sr8": sr8,
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "random_inpaint": random_inpaint,
    "box_inpaint": box_inpaint,
    "freeform_inpaint": freeform_inpaint,
    "salt_pepper": salt_pepper,
    "denoise": denoise,
}
FACTORS = {"sr4": 4, "sr8": 8}
RANDOM = frozenset({"motion_blur", "random_inpaint", "box_inpaint", "freeform_inpaint"})

# Of operator files, which may come from a stranger.
FORMAT = 1
MAX_BYTES = 64 << 20
MAX_SIDE = 8192


@dataclass(frozen=True)
class Task:
    """A task by name, with the options that were set; `str` gives the specification back."""

    name: str
    options: Mapping[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ":".join(filter(None, [self.name, ",".join(f"{key}={value}" for key, value in self.options.items())]))


@dataclass(frozen=True)
class OperatorInfo:
    """What an operator file says of itself: the task, the image's (C, H, W) and the noise's std on the [0, 1] scale.

    `spec` is a task's specification, or "mask" or "kernel" for a user's own.
    """

    spec: str
    shape: Shape
    noise: float


def parse(spec: str) -> Task:
    """Read `NAME` or `NAME:key=value,key=value`.

    Raises:
        ValueError: the task or a key is unknown, or a value is of the wrong type or outside its range; the message
            tells what is allowed.
    """
    name, _, rest = spec.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{_nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    known = _parameters(name)
    options: dict[str, float | str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if key not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"task {name} has no option {key!r}{_nearest(key, known)}; {allowed}")
        if not equals:
            raise ValueError(f"task {name}: option {key} needs a value, as in {name}:{key}={known[key].default}")
        if key in options:
            raise ValueError(f"task {name}: option {key} is given twice")
        options[key] = known[key].read(f"task {name}: {key}", text)
    return Task(name, options)


def make(spec: str, shape: Shape, *, noise: float = 0.0, ids: Sequence[str] = ("0",), seed: int = 0) -> LinearPhysics:
    """The operator of a task for a batch of images; what is random about it is stacked along the batch.

    Args:
        spec: `NAME` or `NAME:key=value,key=value`.
        shape: (C, H, W) of the images.
        noise: standard deviation of the noise model (`physics.noise_model.sigma`) on the [0, 1] scale.
        ids: name of each image. Mask and kernel of an image depend on (task, seed, id) only.
        seed: see `ids`.

    Raises:
        ValueError: the specification, the shape or the noise makes no sense, or the task does not fit the shape.
    """
    task = parse(spec)
    _check(shape, noise)
    if isinstance(ids, str) or not ids:
        raise ValueError(f'ids are one name per image, as in ("a", "b"), got {ids!r}')
    physics = TASKS[task.name](shape, ids, seed, **task.options)
    physics.noise_model.update_parameters(sigma=float(noise))
    return physics


def measure(
    spec: str, x: Image, *, noise: float = 0.005, ids: Sequence[str], seed: int = 0
) -> tuple[Measurement, LinearPhysics]:
    """Degrade images: y = A x + n, or y = m (x + n) for inpainting, with holes exactly 0.

    Made image by image on the CPU: an image's y is a function of (spec, noise, seed, id), the same in any batch.

    Args:
        spec: `NAME` or `NAME:key=value,key=value`.
        x: images in [0, 1], shape (B, C, H, W).
        noise: standard deviation of n on the [0, 1] scale. A paper's σ_y = 0.05 on [−1, 1] is 0.025 here.
        ids: name of each image.
        seed: see above.

    Returns:
        y in float32 on the device of `x`, and the batch's operator on that device.

    Raises:
        ValueError: as `make`; the number of ids is not the batch; an image is not finite.
    """
    if x.dim() != 4 or len(ids) != x.shape[0]:
        raise ValueError(f"{len(ids)} ids for images of shape {tuple(x.shape)}; give (B, C, H, W) and B ids")
    if not x.isfinite().all():
        raise ValueError("the images hold values that are not finite")
    _, *sides = x.shape
    shape = (sides[0], sides[1], sides[2])
    physics = make(spec, shape, noise=noise, ids=ids, seed=seed)
    rows = []
    for image, name in zip(x.detach().to("cpu", torch.float32).split(1), ids, strict=True):
        single = make(spec, shape, noise=noise, ids=(name,), seed=seed)
        single.noise_model.rng = generator("noise", parse(spec).name, seed, name)
        rows.append(single(image))
    return torch.cat(rows).to(x.device), physics.to(x.device)


def from_mask(mask: Tensor, shape: Shape, *, noise: float = 0.0) -> LinearPhysics:
    """Inpainting with a mask of one's own.

    Args:
        mask: shape (H, W), (1, H, W) or (B, 1, H, W); what is above 1/2 is known, the rest is lost.
        shape: (C, H, W) of the images.
        noise: standard deviation of the noise model on the [0, 1] scale.

    Raises:
        ValueError: the mask has another size than the images, is not finite, or has nothing known in it.
    """
    _check(shape, noise)
    mask = _planes(mask, "mask")
    if tuple(mask.shape[-2:]) != tuple(shape[1:]):
        raise ValueError(f"the mask has {_size(mask.shape)} pixels (height×width), the image {_size(shape)}")
    if not mask.isfinite().all():
        raise ValueError("the mask holds values that are not finite")
    known = (mask > 0.5).float()
    if not known.flatten(1).any(1).all():
        raise ValueError(
            "the mask has no known pixel: nothing would be left of the photo (white is known, black is lost)"
        )
    return _inpainting(known, shape, noise)


def from_kernel(kernel: Tensor, shape: Shape, *, noise: float = 0.0) -> LinearPhysics:
    """Blur with a kernel of one's own, which is divided by its sum.

    A convolution: a delta is blurred to the kernel as it is, not to its mirror image.

    Args:
        kernel: shape (k, l), (1, k, l) or (B, 1, k, l), k and l odd.
        shape: (C, H, W) of the images.
        noise: standard deviation of the noise model on the [0, 1] scale.

    Raises:
        ValueError: the kernel has an even side, reaches further than the image, is negative or not finite somewhere, or
            is 0 everywhere.
    """
    _check(shape, noise)
    kernel = _planes(kernel, "kernel")
    if not (kernel.shape[-2] % 2 and kernel.shape[-1] % 2):
        raise ValueError(f"a kernel has odd sides, so that it has a centre; got {_size(kernel.shape)}")
    operators.check_reach(max(kernel.shape[-2:]) // 2, *shape[1:])
    if not kernel.isfinite().all() or (kernel < 0).any():
        raise ValueError("a kernel holds finite values of 0 or more; this one does not")
    total = kernel.double().sum((1, 2), keepdim=True)
    if not (total > 0).all():
        raise ValueError("the kernel is 0 everywhere")
    return _blur((kernel / total).float(), shape, noise)


def factor(spec: str) -> int:
    """How many times smaller than the image a task's measurement is on each side: 4 for sr4, 1 where sizes agree."""
    return FACTORS.get(parse(spec).name, 1)


def is_random(spec: str) -> bool:
    """Whether a task draws a mask or a kernel, so that a photo cannot be restored by the task's name alone."""
    return parse(spec).name in RANDOM


def describe() -> list[dict[str, Any]]:
    """One row per task: name, description, parameters with their defaults, and `knobs`, which adds what is allowed."""
    rows = []
    for name, task in TASKS.items():
        known = _parameters(name)
        rows.append(
            {
                "name": name,
                "description": (inspect.getdoc(task) or "").partition("\n")[0],
                "parameters": {key: knob.default for key, knob in known.items()},
                "knobs": [
                    {"name": key, "default": knob.default, "allowed": knob.allowed, "help": knob.help}
                    for key, knob in known.items()
                ],
            }
        )
    return rows


def save_operator(path: Path, spec: str, physics: LinearPhysics, shape: Shape, noise: float) -> None:
    """Write an operator to one safetensors file: its mask or kernel where it has one, and what `OperatorInfo` holds.

    Args:
        path: the file; written whole or not at all.
        spec: the task's specification, or "mask" or "kernel" for a user's own.
        physics: what `make`, `measure`, `from_mask` or `from_kernel` gave.
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
    info = OperatorInfo(spec, shape, float(noise))
    _rebuild(info, tensors)
    content = {"version": FORMAT, "spec": spec, "shape": list(shape), "noise": info.noise}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"stsl": json.dumps(content)})


def load_operator(path: Path) -> tuple[LinearPhysics, OperatorInfo]:
    """Read an operator file; the operator gives the same A x as the one that was saved, to the bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is damaged, too large, of an unknown version, or contradicts itself.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no operator file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: an operator file has at most {MAX_BYTES >> 20} MiB, this one {path.stat().st_size >> 20}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("stsl")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if text is None:
        raise ValueError(f"{path}: not an operator file; `stsl degrade` writes one as STEM_operator.safetensors")
    try:
        info = _info(text)
        return _rebuild(info, tensors), info
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _info(text: str) -> OperatorInfo:
    """Check and read the JSON text of an operator file."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its description is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("its description is not a JSON object")
    if content.get("version") != FORMAT:
        raise ValueError(f"operator format {content.get('version')!r}; this version of stsl reads {FORMAT}")
    spec, shape, noise = (content.get(key) for key in ("spec", "shape", "noise"))
    if not isinstance(spec, str):
        raise ValueError(f"spec is a text, got {spec!r}")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(side) is not int for side in shape):
        raise ValueError(f"shape is [channels, height, width], got {shape!r}")
    if not isinstance(noise, int | float) or isinstance(noise, bool):
        raise ValueError(f"noise is a number, got {noise!r}")
    return OperatorInfo(spec, (shape[0], shape[1], shape[2]), float(noise))


def _rebuild(info: OperatorInfo, tensors: Mapping[str, Tensor]) -> LinearPhysics:
    """The operator of a file's content, checked as something a stranger wrote."""
    _check(info.shape, info.noise)
    if max(info.shape) > MAX_SIDE:
        raise ValueError(f"shape {info.shape} is larger than {MAX_SIDE} on a side")
    if info.spec not in ("mask", "kernel"):
        parse(info.spec)
    holds = _holds(info.spec)
    if set(tensors) != ({holds} if holds else set()):
        raise ValueError(f"{info.spec} needs {holds or 'no tensor'}, the file has {', '.join(tensors) or 'no tensor'}")
    if holds is None:
        return make(info.spec, info.shape, noise=info.noise)
    tensor = tensors[holds]
    if tensor.dim() != 4 or tensor.shape[0] < 1:
        raise ValueError(f"the {holds} has shape {tuple(tensor.shape)}, not (B, 1, height, width)")
    if holds == "mask":
        if tensor.dtype != torch.uint8 or (tensor > 1).any():
            raise ValueError("a mask holds 0 and 1 as bytes; this one does not")
        return from_mask(tensor, info.shape, noise=info.noise)
    if tensor.dtype != torch.float32:
        raise ValueError(f"a kernel is float32, this one is {tensor.dtype}")
    from_kernel(tensor, info.shape)  # refuses what is no kernel; dividing by the sum again could change a bit
    if not torch.allclose(tensor.sum((1, 2, 3)), torch.ones(len(tensor)), rtol=0, atol=1e-4):
        raise ValueError("the kernel does not sum to 1")
    return _blur(tensor[:, 0], info.shape, info.noise)


def _holds(spec: str) -> str | None:
    """Name of the tensor in the file of this operator."""
    name = spec.partition(":")[0]
    if name in ("motion_blur", "kernel"):
        return "kernel"
    return "mask" if name in RANDOM or name == "mask" else None


def motion_kernel(draws: np.random.Generator, size: int = 61, intensity: float = 0.5) -> Tensor:
    """Kernel of a random walk that bends smoothly and at times flips the sense of its bend.

    Drawn on a canvas of twice the size: a line of 1/150 of the diagonal, blurred, reduced, divided by its sum. Below 61
    pixels it is drawn at 61 and averaged over areas, since line width and blur would round to nothing.

    Args:
        draws: source of randomness; used up.
        size: side of the kernel in pixels, odd.
        intensity: 0 is nearly straight, 1 is most crooked.

    Returns:
        shape (size, size), sum 1, 8-bit precision.

    Source: the kernels of DPS, arXiv:2209.14687 (the generator of the `motionblur` package).
    """
    drawn = max(size, 61)
    canvas = 2 * drawn
    diagonal = canvas * math.sqrt(2)
    path = motion_path(draws, drawn, intensity) + complex(canvas / 2, canvas / 2)
    picture = Picture.new("L", (canvas, canvas))
    ImageDraw.Draw(picture).line([(v.real, v.imag) for v in path], fill=255, width=int(diagonal / 150))
    picture = picture.filter(ImageFilter.GaussianBlur(int(0.01 * diagonal)))
    picture = picture.resize((drawn, drawn), Picture.Resampling.LANCZOS)
    kernel = torch.from_numpy(np.asarray(picture, dtype=np.float64))
    if size < drawn:
        average = _area_average(drawn, size)
        kernel = average @ kernel @ average.T
    return (kernel / kernel.sum()).float()


def motion_path(draws: np.random.Generator, size: int = 61, intensity: float = 0.5) -> np.ndarray:
    """Vertices of the path of `motion_kernel` as complex numbers around 0, in pixels of a canvas of side 2 · size.

    Steps s_k ~ Beta(1, 30) (1.1 − q) D until their sum reaches L = ¾ D (U(0, 1) + U(0, q²)); absolute directions φ_k of
    magnitude Triangular(0, q φ_max, φ_max + 0.1), the sign flipped with probability Beta(2, 20); then the whole path is
    turned by U(0, π). D is the canvas's diagonal, q the intensity, φ_max ~ U(0, q π).
    """
    diagonal = 2 * size * math.sqrt(2)
    limit = 0.0
    while limit < 1:  # a path below a pixel would make the search for shorter steps endless
        limit = 0.75 * diagonal * (draws.uniform() + draws.uniform(0, intensity**2))
    steps: list[float] = []
    while sum(steps) < limit:
        step = draws.beta(1, 30) * (1.1 - intensity) * diagonal
        if step < limit:
            steps.append(step)
    widest = draws.uniform(0, intensity * math.pi)
    flip = draws.beta(2, 20)
    angles = [draws.uniform(-widest, widest)]
    while len(angles) < len(steps):
        sign = math.copysign(1, angles[-1]) * (-1 if draws.uniform() < flip else 1)
        angles.append(sign * draws.triangular(0, intensity * widest, widest + 0.1))
    path = np.cumsum(np.array(steps) * np.exp(1j * np.array(angles)))
    return (path - path.mean()) * np.exp(1j * draws.uniform(0, math.pi))


def brush_mask(draws: np.random.Generator, height: int, width: int, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Mask (1 = known) of 1 to 3 brush strokes, drawn again until the lost share lies in [low, high].

    A stroke has 4 to 11 segments of length N(r, (r/2)²) cut to [0, 2r], r = diagonal/8, in directions within
    2π/5 ± U(0, 2π/15), every other one replaced by 2π minus itself. Round joints, width 12 to 39 pixels at 256, random
    flips.

    Args:
        draws: source of randomness; used up.
        height, width: size of the mask; brush widths follow the shorter side.
        low, high: bounds of the lost share, both included.

    Returns:
        shape (height, width), 0 or 1.

    Raises:
        ValueError: no such mask came up in 1000 tries.

    Source: the strokes of Palette's free-form masks, arXiv:2111.05826, after a public re-implementation.
    """
    for _ in range(1000):
        lost = _strokes(draws, height, width)
        if low <= lost.mean() <= high:
            return torch.from_numpy(1 - lost).float()
    raise ValueError(f"brush strokes do not cover {low:g} to {high:g} of {height}×{width} pixels; widen that range")


def _strokes(draws: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One try of `brush_mask`: 1 where a stroke covers the pixel."""
    picture = Picture.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    length = math.hypot(height, width) / 8
    for _ in range(draws.integers(1, 4)):
        first = 2 * math.pi / 5 - draws.uniform(0, 2 * math.pi / 15)
        last = 2 * math.pi / 5 + draws.uniform(0, 2 * math.pi / 15)
        x, y = float(draws.uniform(0, width)), float(draws.uniform(0, height))
        points = [(x, y)]
        for k in range(draws.integers(4, 12)):
            angle = draws.uniform(first, last)
            angle = angle if k % 2 else 2 * math.pi - angle
            reach = float(np.clip(draws.normal(length, length / 2), 0, 2 * length))
            x = min(max(x + reach * math.cos(angle), 0.0), float(width))
            y = min(max(y + reach * math.sin(angle), 0.0), float(height))
            points.append((x, y))
        brush = max(1, round(int(draws.integers(12, 40)) * min(height, width) / 256))
        pen.line(points, fill=1, width=brush)
        for x, y in points:
            pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
    lost = np.asarray(picture)
    lost = lost[::-1] if draws.uniform() < 0.5 else lost
    return np.ascontiguousarray(lost[:, ::-1] if draws.uniform() < 0.5 else lost)


def _area_average(many: int, few: int) -> Tensor:
    """Matrix (few, many) that averages over areas of many/few pixels, whole or in part."""
    edges = torch.arange(few, dtype=torch.float64)[:, None] * many / few
    pixels = torch.arange(many, dtype=torch.float64)
    overlap = torch.minimum(pixels + 1, edges + many / few) - torch.maximum(pixels, edges)
    return overlap.clamp(min=0) * few / many


def _draws(task: str, seed: int, name: str) -> np.random.Generator:
    """NumPy's generator (it has beta and triangular draws), seeded as all else by the hash of what it is for."""
    return np.random.default_rng(generator(task, seed, name).initial_seed())


def _scale(shape: Shape, match: str) -> float:
    return min(shape[1:]) / {"dps256": 256, "stsl512": 512}[match]


def _inpainting(known: Tensor, shape: Shape, noise: float = 0.0) -> LinearPhysics:
    """From masks of shape (B, H, W)."""
    return Inpainting(tuple(shape), mask=known[:, None], noise_model=GaussianNoise(noise))


def _blur(kernels: Tensor, shape: Shape, noise: float = 0.0) -> LinearPhysics:
    """From kernels of shape (B, k, l)."""
    operators.check_reach(max(kernels.shape[1:]) // 2, *shape[1:])
    # By FFT: four times as fast as the direct sum at 31 taps, and it takes images of any float type.
    return Blur(kernels[:, None], padding="reflect", use_fft=True, noise_model=GaussianNoise(noise))


def _planes(tensor: Tensor, what: str) -> Tensor:
    """A user's mask or kernel as (B, h, w)."""
    if tensor.dim() not in (2, 3, 4) or (tensor.dim() > 2 and tensor.shape[-3] != 1) or not tensor.numel():
        raise ValueError(f"a {what} has shape (h, w), (1, h, w) or (B, 1, h, w), got {tuple(tensor.shape)}")
    return tensor.reshape(-1, *tensor.shape[-2:])


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}×{shape[-1]}"


def _check(shape: Sequence[int], noise: float) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"an image's shape is (channels, height, width), got {tuple(shape)}")
    if not 0 <= noise <= 1:
        hint = "; divide grey levels by 255" if noise > 1 else ""
        raise ValueError(f"noise is a standard deviation from 0 to 1 on the [0, 1] scale, got {noise:g}{hint}")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class _Parameter:
    """A keyword-only parameter of a task, read off its signature."""

    kind: Any
    option: Option
    default: float | str

    @property
    def help(self) -> str:
        return self.option.help

    @property
    def allowed(self) -> str:
        if get_origin(self.kind) is Literal:
            return " or ".join(get_args(self.kind))
        return f"a number from {self.option.low:g} to {self.option.high:g}"

    def read(self, what: str, text: str) -> float | str:
        if get_origin(self.kind) is Literal:
            if text not in get_args(self.kind):
                raise ValueError(f"{what} is {self.allowed}, got {text!r}")
            return text
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{what} is {self.allowed}, got {text!r}") from None
        if not self.option.low <= value <= self.option.high:
            raise ValueError(f"{what} is {self.allowed}, got {text}")
        return value


def _parameters(name: str) -> dict[str, _Parameter]:
    hints = get_type_hints(TASKS[name], include_extras=True)
    found = {}
    for key, parameter in inspect.signature(TASKS[name]).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind, option = get_args(hints[key])
            found[key] = _Parameter(kind, option, parameter.default)
    return found
