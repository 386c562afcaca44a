"""Linear operators that deepinv lacks, and the way back from a measurement to an image.

deepinv's `Inpainting`, `Denoising` and `Blur(padding="reflect")` are right and are used as they are (their adjoints are
exact at every size). Its `Downsampling(filter="bicubic")` is not used: it has the right taps, but its outputs are
centred at s j + 1/2 instead of s j + s/2 − 1/2, and its border mirrors without repeating the edge pixel.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, LinearPhysics, NoiseModel

from stsl.shapes import Image, Measurement, Tensor

Adjoint = Literal["paper", "exact"]

# Below this share of the best seen pixel's weight a pixel counts as unseen: dividing by so little would raise the
# measurement's noise a thousandfold.
UNSEEN = 1e-3


class Separable(LinearPhysics):
    """Linear operator that acts on columns and rows apart, given by two small dense matrices.

    A x = V x Hᵀ for every channel; its adjoint Aᵀ y = Vᵀ y H is exact, and its SVD is that of V and H.

    Args:
        vertical: V, shape (h, H).
        horizontal: H, shape (w, W).
        noise_model: deepinv noise model; none when left out.
    """

    def __init__(self, vertical: Tensor, horizontal: Tensor, noise_model: NoiseModel | None = None) -> None:
        super().__init__(noise_model=noise_model)
        # float32, since some devices have nothing wider; A casts to the image's type, so the adjoint stays exact.
        self.register_buffer("vertical", vertical.float())
        self.register_buffer("horizontal", horizontal.float())

    def A(self, x: Image) -> Measurement:
        """V x Hᵀ: (B, C, H, W) -> (B, C, h, w).

        Raises:
            ValueError: the image's sides are not the operator's.
        """
        self._check(x, "an image", self.vertical.shape[1], self.horizontal.shape[1])
        return self.vertical.to(x) @ x @ self.horizontal.to(x).T

    def A_adjoint(self, y: Measurement) -> Image:
        """Vᵀ y H: (B, C, h, w) -> (B, C, H, W).

        Raises:
            ValueError: the measurement's sides are not the operator's.
        """
        self._check(y, "a measurement", self.vertical.shape[0], self.horizontal.shape[0])
        return self.vertical.to(y).T @ y @ self.horizontal.to(y)

    def _check(self, tensor: Tensor, what: str, height: int, width: int) -> None:
        if tuple(tensor.shape[-2:]) != (height, width):
            given = "×".join(map(str, tensor.shape[-2:]))
            raise ValueError(f"the operator takes {what} of {height}×{width} pixels, got {given}")


class GaussianImpulseNoise(NoiseModel):
    """Gaussian noise first, then a share of the pixels set to black or white, all channels of a pixel together.

    y = 0 with probability share/2, 1 with probability share/2, x + σ n otherwise; n ~ N(0, I).

    Args:
        sigma: standard deviation of the Gaussian part on the [0, 1] scale.
        share: share of the pixels that are lost to an impulse, in [0, 1].
        rng: generator on the images' device; the global one when left out, as in deepinv.

    Source: STSL, arXiv:2312.00852 (2 % salt and pepper beside Gaussian noise); the order is our decision.
    """

    def __init__(self, sigma: float, share: float, rng: torch.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.register_buffer("sigma", torch.tensor(float(sigma)))
        self.share = share

    def forward(self, input: Image, seed: int | None = None) -> Image:
        """Corrupt images of shape (B, C, H, W); `seed` restarts `rng`."""
        self.rng_manual_seed(seed)
        noisy = input + self.sigma.to(input) * self.randn_like(input)
        draw = self.rand_like(input[:, :1])
        return torch.where(draw < self.share, (draw < self.share / 2).to(input), noisy)


def bicubic(shape: tuple[int, int, int], factor: int, noise: float = 0.0) -> Separable:
    """Super-resolution's operator: antialiased bicubic downsampling by a whole factor s.

    y_j = Σ_i w(i − s j) x_i along each axis, w(m) ∝ h((m − (s − 1)/2)/s), Σ w = 1: centred at s j + s/2 − ½. h is Keys'
    cubic with a = −½, which gives 4s taps for an even s; the border mirrors with the edge pixel repeated.

    Args:
        shape: (C, H, W) of the image.
        factor: s; output (C, H/s, W/s).
        noise: standard deviation of the Gaussian noise model on the [0, 1] scale.

    Raises:
        ValueError: the factor is below 1 or does not divide the sides.

    Source: the resizer of DPS, arXiv:2209.14687; Keys 1981, doi:10.1109/TASSP.1981.1163711.
    """
    _, height, width = shape
    if factor < 1:
        raise ValueError(f"the factor is a whole number of 1 or more, got {factor}")
    if height % factor or width % factor:
        fitting = f"{height // factor * factor}×{width // factor * factor}"
        raise ValueError(f"{height}×{width} pixels cannot be divided by {factor}; crop the image to {fitting}")
    offsets = torch.arange(-2 * factor, 3 * factor)
    taps = _keys((offsets - (factor - 1) / 2) / factor)

    def matrix(side: int) -> Tensor:
        columns = factor * torch.arange(side // factor)[:, None] + offsets
        return _matrix(_mirror(columns, side, repeat_edge=True), taps / taps.sum(), side)

    return Separable(matrix(height), matrix(width), GaussianNoise(noise))


def gaussian_blur(shape: tuple[int, int, int], std: float, noise: float = 0.0) -> Separable:
    """Blur by a Gaussian truncated at 4 standard deviations; the border mirrors without repeating the edge pixel.

    y = (g gᵀ) * x, g_k ∝ exp(−k² / 2 std²), |k| <= ⌊4 std + ½⌋, Σ g = 1.

    Args:
        shape: (C, H, W) of the image.
        std: standard deviation of the kernel in pixels.
        noise: standard deviation of the Gaussian noise model on the [0, 1] scale.

    Raises:
        ValueError: the std is not above 0, or the kernel reaches further than the image and cannot be mirrored.

    Source: DPS, arXiv:2209.14687 (a delta filtered with std 3 in a 61×61 window, 25×25 taps of which are not zero).
    """
    _, height, width = shape
    if not 0 < std < float("inf"):
        raise ValueError(f"the std of a Gaussian kernel is a number of pixels above 0, got {std:g}")
    radius = int(4 * std + 0.5)
    check_reach(radius, height, width)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-offsets.double().square() / (2 * std**2))

    def matrix(side: int) -> Tensor:
        columns = torch.arange(side)[:, None] + offsets
        return _matrix(_mirror(columns, side, repeat_edge=False), taps / taps.sum(), side)

    return Separable(matrix(height), matrix(width), GaussianNoise(noise))


def check_reach(radius: int, height: int, width: int) -> None:
    """Refuse a blur kernel that cannot be mirrored at the border.

    Raises:
        ValueError: the kernel's half-size is not below both sides of the image.
    """
    if radius >= min(height, width):
        raise ValueError(
            f"a blur kernel of {2 * radius + 1} taps needs an image of at least {radius + 1} pixels on each side, "
            f"got {height}×{width}"
        )


def lift(v: Measurement, physics: LinearPhysics, image_shape: tuple[int, ...], adjoint: Adjoint = "paper") -> Image:
    """Linear map from measurements to images that keeps the brightness: where a method says E(Aᵀ y).

    "paper": v itself for inpainting, blur and denoising, nearest upsampling for super-resolution (the choice of DPS,
    arXiv:2209.14687, and PSLD, arXiv:2307.00619); any other operator takes "exact".
    "exact": Aᵀv / (AᵀA 1) pixel by pixel, 0 where AᵀA 1 is next to nothing.

    Args:
        v: measurement or residual, (B, ...). Gradients pass through.
        physics: the operator.
        image_shape: (C, H, W).
        adjoint: which of the two.

    Returns:
        shape (B, C, H, W), on the scale of `v`. Unseen places are 0.

    Raises:
        ValueError: unknown `adjoint`.
    """
    if _has_papers_choice(v, physics, image_shape, adjoint):
        return F.interpolate(v, size=tuple(image_shape[-2:]), mode="nearest") if isinstance(physics, Separable) else v
    weight = _weight(physics, image_shape, v)
    known = _known(weight)
    return physics.A_adjoint(v) * known / torch.where(known, weight, 1.0)


def glue(r: Measurement, physics: LinearPhysics, image_shape: tuple[int, ...], adjoint: Adjoint = "paper") -> Image:
    """The Aᵀ of a gluing term, x + Aᵀ(y − A x).

    "paper": `lift(r)`, as in PSLD's code. "exact": Aᵀr itself, as in PSLD's text, arXiv:2307.00619; an operator without
    a paper's choice takes it in both cases.

    Args: as for `lift`.

    Raises:
        ValueError: unknown `adjoint`.
    """
    if _has_papers_choice(r, physics, image_shape, adjoint):
        return lift(r, physics, image_shape, adjoint)
    return physics.A_adjoint(r)


def seen(physics: LinearPhysics, image_shape: tuple[int, ...], like: Measurement) -> Tensor:
    """Which pixels the measurement knows anything of: where AᵀA 1 is more than next to nothing, in any channel.

    Args:
        physics: the operator.
        image_shape: (C, H, W).
        like: a measurement; gives the batch, the device and the dtype.

    Returns:
        bool, shape (B, 1, H, W).
    """
    return _known(_weight(physics, image_shape, like)).any(1, keepdim=True)


def as_picture(y: Measurement, physics: LinearPhysics, image_shape: tuple[int, ...]) -> Image:
    """A measurement as a person would look at it: enlarged by bicubic interpolation, unseen places mid-grey.

    A measurement that is no image at all is shown through `lift`. Values are clamped to [0, 1].
    """
    if isinstance(physics, Separable):
        return F.interpolate(y, size=tuple(image_shape[-2:]), mode="bicubic").clamp(0, 1)
    return torch.where(seen(physics, image_shape, y), lift(y, physics, image_shape), 0.5).clamp(0, 1)


def _has_papers_choice(v: Tensor, physics: LinearPhysics, image_shape: tuple[int, ...], adjoint: str) -> bool:
    if adjoint not in ("paper", "exact"):
        raise ValueError(f'adjoint is "paper" or "exact", got {adjoint!r}')
    if adjoint == "exact":
        return False
    if isinstance(physics, Separable):
        return True
    # The types themselves: a subclass such as Demosaicing measures something else in the same shape.
    return type(physics) in (Inpainting, Blur, Denoising) and tuple(v.shape[1:]) == tuple(image_shape)


def _weight(physics: LinearPhysics, image_shape: tuple[int, ...], like: Tensor) -> Image:
    """AᵀA 1, (B, C, H, W)."""
    ones = torch.ones(like.shape[0], *image_shape, dtype=like.dtype, device=like.device)
    return physics.A_adjoint(physics.A(ones))


def _known(weight: Image) -> Tensor:
    return weight > UNSEEN * weight.amax((1, 2, 3), keepdim=True).clamp(min=0)


def _keys(u: Tensor) -> Tensor:
    """Keys' cubic with a = −½, at u in units of the output's pixels."""
    u = u.double().abs()
    near = 1.5 * u**3 - 2.5 * u**2 + 1
    far = -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u <= 1, near, torch.where(u < 2, far, 0.0))


def _mirror(index: Tensor, side: int, *, repeat_edge: bool) -> Tensor:
    """Bring indices outside 0..side−1 back in: −1 is 0 where the edge pixel is repeated, else 1."""
    period = 2 * side if repeat_edge else max(2 * side - 2, 1)
    index = index % period
    return torch.where(index < side, index, period - int(repeat_edge) - index)


def _matrix(columns: Tensor, taps: Tensor, side: int) -> Tensor:
    """Dense (rows, side) matrix with `taps` added at `columns`, shape (rows, taps)."""
    matrix = torch.zeros(len(columns), side, dtype=torch.float64)
    return matrix.scatter_add_(1, columns, taps.expand(len(columns), -1))
