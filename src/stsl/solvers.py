"""Linear algebra of operators: singular values where they are known, conjugate gradients where they are not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from deepinv.physics import Blur, BlurFFT, DecomposablePhysics, LinearPhysics

from stsl.operators import Separable
from stsl.shapes import Image, Measurement, Tensor

# Enough on photos but for the highest levels of noise, where the prior weighs next to nothing in a proximal step. What
# is left undone there is fine detail, and later levels see it again.
CG_STEPS = 50
# Above the smallest number of float32, below any sum of squares that matters.
TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A = U S Vᵀ with orthonormal columns in U and V; directions outside V are not seen by A.

    Args:
        values: s >= 0, broadcasting against coefficients.
        from_image: Vᵀ x.
        from_measurement: Uᵀ y.
        to_image: V c.
    """

    values: Tensor
    from_image: Callable[[Image], Tensor]
    from_measurement: Callable[[Measurement], Tensor]
    to_image: Callable[[Tensor], Image]


def has_spectrum(physics: Any) -> bool:
    """Whether the singular values of an operator are known: masks, denoising, circular and separable operators."""
    if isinstance(physics, Blur):
        return physics.padding == "circular" and physics.filter is not None
    if isinstance(physics, DecomposablePhysics):
        return isinstance(physics.mask, torch.Tensor) and not physics.mask.is_complex()
    return isinstance(physics, Separable)


def spectrum(physics: Any, image_shape: tuple[int, int, int], like: Tensor, cutoff: float = 0.0) -> Spectrum:
    """The singular value decomposition of an operator.

    Masks and denoising: the identity. `Separable`, A x = V x Hᵀ: the Kronecker product of the decompositions of V and
    H, in float64. Blur with a circular border: the Fourier transform. Any other deepinv `DecomposablePhysics`: its own.

    Args:
        physics: an operator for which `has_spectrum`.
        image_shape: (C, H, W).
        like: a tensor with the images' dtype and device.
        cutoff: singular values below it count as 0.

    Raises:
        TypeError: the singular values are not known.
    """
    if not has_spectrum(physics):
        raise TypeError(f"the singular values of {type(physics).__name__} are not known")
    if isinstance(physics, Separable):
        return _kronecker(physics, like, cutoff)
    if isinstance(physics, Blur):
        physics = BlurFFT(image_shape, physics.filter.to(like))
    mask = physics.mask.to(like)
    sign = mask.sign()
    return Spectrum(
        _cut(mask.abs(), cutoff), physics.V_adjoint, lambda y: sign * physics.U_adjoint(y), lambda c: physics.V(c)
    )


def _kronecker(physics: Separable, like: Tensor, cutoff: float) -> Spectrum:
    # On the CPU: some devices have neither float64 nor a decomposition.
    (left, down, rows), (right, across, columns) = (
        torch.linalg.svd(matrix.detach().cpu().double(), full_matrices=False)
        for matrix in (physics.vertical, physics.horizontal)
    )
    values = _cut((down[:, None] * across).to(like), cutoff)
    left, right, rows, columns = (factor.to(like) for factor in (left, right, rows, columns))
    return Spectrum(
        values,
        lambda x: rows @ x @ columns.T,
        lambda y: left.T @ y @ right,
        lambda c: rows.T @ c @ columns,
    )


def _cut(values: Tensor, cutoff: float) -> Tensor:
    return torch.where(values < cutoff, 0.0, values)


def backproject(
    r: Measurement, physics: LinearPhysics, a: float, b: float, known: Spectrum | None = None, steps: int = CG_STEPS
) -> Image:
    """Aᵀ (a I + b A Aᵀ)⁻¹ r: how a residual corrects an image.

    x₀ + backproject(y − A x₀, a = ρ, b = 1) is the proximal step argmin_x ‖y − A x‖² + ρ ‖x − x₀‖².

    Args:
        r: residual, shape of the measurement.
        physics: the operator.
        a, b: weights of the noise and of the operator, a >= 0, b > 0. Where a = 0, directions with s = 0 stay.
        known: the operator's singular values, for the closed form V s/(a + b s²) Uᵀ r; without them `steps` conjugate
            gradients from 0 solve for (a I + b A Aᵀ)⁻¹ r.
        steps: of conjugate gradients, at most.
    """
    if known is None:
        return physics.A_adjoint(conjugate_gradient(lambda u: a * u + b * physics.A(physics.A_adjoint(u)), r, steps))
    s = known.values
    weight = torch.where(s > 0, s / (a + b * s.square()).clamp(min=TINY), 0.0)
    return known.to_image(weight * known.from_measurement(r))


def conjugate_gradient(apply: Callable[[Tensor], Tensor], b: Tensor, steps: int = CG_STEPS) -> Tensor:
    """M⁻¹ b for a symmetric positive semi-definite M and b in its range, image by image.

    deepinv's solver stops when the slowest image of a batch has converged, and so lets images change their neighbours;
    here an image stops alone, at a residual of ε^(2/3) ‖b‖, ε the rounding of its type.

    Args:
        apply: u -> M u, for a whole batch.
        b: right-hand sides, shape (B, ...).
        steps: iterations, at most.

    Source: Hestenes and Stiefel 1952, doi:10.6028/jres.049.044.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    x, r, p, squares = torch.zeros_like(b), b, b, dot(b, b)
    goal = squares * torch.finfo(b.dtype).eps ** (4 / 3)
    for _ in range(steps):
        going = squares > goal
        if not going.any():
            break
        change = apply(p)
        length = torch.where(going, squares / dot(p, change).clamp(min=TINY), 0.0)
        x, r = x + length * p, r - length * change
        before, squares = squares, dot(r, r)
        p = r + torch.where(going, squares / before.clamp(min=TINY), 0.0) * p
    return x
