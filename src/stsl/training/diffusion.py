"""The loss that every diffusion prior is trained with."""

from collections.abc import Callable

import torch
from torch import Tensor


def noised_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    alpha_bar: Tensor,
    prediction: str,
    gamma: float,
) -> dict[str, Tensor]:
    """Squared error of a prediction from z_t = √ᾱ x + √(1 − ᾱ) ε, weighted by the signal-to-noise ratio up to a limit.

    With s = ᾱ / (1 − ᾱ): weight min(s, γ) / s where ε is predicted, min(s, γ) / (s + 1) where v = √ᾱ ε − √(1 − ᾱ) x is.

    Source: Hang et al. 2023, arXiv:2303.09556, Equation 8; Salimans & Ho 2022, arXiv:2202.00512, for v.

    Args:
        predict: the network, of z_t and t.
        x: clean images or latents, shape (B, C, h, w).
        noise: ε, same shape.
        t: level of each, shape (B,).
        alpha_bar: ᾱ of every level.
        prediction: epsilon or v_prediction.
        gamma: γ; 0 for no weights.

    Returns:
        `loss`, weighted, and `error`, the plain mean square.
    """
    a = alpha_bar[t][:, None, None, None]
    z = a.sqrt() * x + (1 - a).sqrt() * noise
    target = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * x
    error = (predict(z, t).float() - target).square().mean((1, 2, 3))
    snr = (a / (1 - a)).flatten()
    weight = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1) if gamma else torch.ones_like(snr)
    return {"loss": (weight * error).mean(), "error": error.mean()}
