"""The benchmark's named degradations, as plain deepinv physics.

A task is one function `(shape, ids, seed, *, options) -> LinearPhysics` in `TASKS`. Its keyword-only parameters, with
their annotations and defaults, are what `NAME:key=value,key=value` may set. What is random about a task (mask, kernel,
noise) is a function of (task, seed, image id): every method meets the same measurement, in any batch.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, LinearPhysics
from torch.nn.functional import pad

from stsl import operators
from stsl.drawings import brush_mask, motion_kernel
from stsl.options import Option, nearest, parameters, read_options
from stsl.rng import generator
from stsl.shapes import Image, Measurement, Tensor

Shape = tuple[int, int, int]


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


@dataclass(frozen=True)
class Task:
    """A task by name, with the options that were set; `str` gives the specification back."""

    name: str
    options: Mapping[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ":".join(filter(None, [self.name, ",".join(f"{key}={value}" for key, value in self.options.items())]))


def parse(spec: str) -> Task:
    """Read `NAME` or `NAME:key=value,key=value`.

    Raises:
        ValueError: the task or a key is unknown, or a value is of the wrong type or outside its range; the message
            tells what is allowed.
    """
    name, _, rest = spec.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    return Task(name, read_options(name, rest, parameters(TASKS[name])))


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
        raise ValueError("the mask has no known pixel: nothing would be left of the photo (1 is known, 0 is lost)")
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
        known = parameters(task)
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


def check_noise(noise: float) -> None:
    """Refuse what is no standard deviation of noise on the [0, 1] scale.

    Raises:
        ValueError: it is not from 0 to 1; the message guesses when it was meant for grey levels.
    """
    if not 0 <= noise <= 1:
        hint = "; divide grey levels by 255" if noise > 1 else ""
        raise ValueError(f"noise is a standard deviation from 0 to 1 on the [0, 1] scale, got {noise:g}{hint}")


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
    # deepinv's adjoint fails for a kernel one tap thick: zeros on both sides change nothing else.
    down, across = (int(side == 1) for side in kernels.shape[1:])
    kernels = pad(kernels, (across, across, down, down))
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
    check_noise(noise)
