"""Calculus that samplers share: gradients, norms per image, Adam as a value, trace estimators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stsl.shapes import PerImage


def gradient(function: Callable[[Tensor], Tensor | tuple[Any, ...]], z: Tensor) -> tuple[Tensor, ...]:
    """Gradient of a loss per image with respect to `z`, and whatever else the function returns, detached.

    ∇_z Σ_b loss_b. The sum, not the mean: the gradient of an image does not depend on the size of its batch.

    Args:
        function: z -> loss of shape (B,), or z -> (loss, other tensors...). Of a list of n losses each is
            differentiated through its own part of the graph only.
        z: where, shape (B, ...). Not changed. Works under a caller's `no_grad` or `inference_mode`.

    Returns:
        (gradient, other tensors...), without graph. The gradient has the shape of z, or (n, ...) for n losses.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # The clone is an ordinary tensor even where z was made under inference_mode.
        leaf = z.detach().clone().requires_grad_(True)
        value = function(leaf)
        loss, *rest = value if isinstance(value, tuple) else (value,)
        losses = loss if isinstance(loss, list) else [loss]
        grads = [torch.autograd.grad(term.sum(), leaf, retain_graph=term is not losses[-1])[0] for term in losses]
    grad = torch.stack(grads) if isinstance(loss, list) else grads[0]
    return grad, *(r.detach() for r in rest)


def norm_per_image(r: Tensor) -> PerImage:
    """‖r_b‖₂ over all but the first dimension, shape (B,), in float32 or wider.

    One norm per image: a norm over the batch would let each image change its neighbours' step. 1e-12 under the root
    keeps the gradient finite at 0.
    """
    r = r.flatten(1)
    if r.dtype in (torch.float16, torch.bfloat16):
        r = r.float()
    return (r.square().sum(1) + 1e-12).sqrt()


def trace_estimate(probes: Tensor, moved: Tensor, score: Tensor, scale: float = 1.0) -> PerImage:
    """Hutchinson's estimate of the trace of the score's Jacobian, by finite differences.

    Tr ∇²log p(z) ≈ (1/N) Σ_n ε_n · (s(z + δ ε_n) − s(z)) / δ

    Args:
        probes: ε_n ~ N(0, I), shape (N, B, ...).
        moved: s(z + δ ε_n), shape (N, B, ...).
        score: s(z), shape (B, ...).
        scale: δ; the STSL paper's listing has 1.

    Returns:
        shape (B,). Subtracting s(z) ("centring") leaves the mean unchanged and lowers the variance.

    Source: Rout et al. 2024, arXiv:2312.00852, appendix A.4.
    """
    return (probes * (moved - score)).flatten(2).sum(2).mean(0) / scale


@dataclass(frozen=True)
class Adam:
    """Adam's moments as a value: `moments, step = moments.update(grad)`, then z ← z − lr · step.

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  step = m̂ / (√v̂ + ε)

    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1.
    """

    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    count: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def update(self, grad: Tensor) -> tuple["Adam", Tensor]:
        """Take in a gradient; return the new moments and the direction to subtract."""
        (b1, b2), count = self.betas, self.count + 1
        first = b1 * self.first + (1 - b1) * grad
        second = b2 * self.second + (1 - b2) * grad.square()
        step = (first / (1 - b1**count)) / ((second / (1 - b2**count)).sqrt() + self.eps)
        return Adam(first, second, count, self.betas, self.eps), step
