"""A Gaussian prior whose prompt moves its mean, so that every gradient by the prompt is a dense formula."""

from dataclasses import dataclass

import torch
from dense import Dense, apply, level
from torch import Tensor

from stsl.priors.base import Condition, Prior

TOKENS, WIDTH = 3, 4


class PromptedPrior(Prior):
    """Latents from N(μ + M c, C): `prior` with its mean moved by M times the embedding c of the prompt."""

    has_text = True

    def __init__(self, prior: Prior, matrix: Tensor) -> None:
        super().__init__()
        self.prior, self.matrix, self.name, self.schedule = prior, matrix, "prompted", prior.schedule
        self.latent_shape, self.image_shape = prior.latent_shape, prior.image_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def epsilon(self, z: Tensor, t: int, condition: Condition | None = None) -> Tensor:
        if condition is None:
            condition = self.condition([""] * z.shape[0])
        assert condition.positive.shape[0] == z.shape[0]
        moved = self.schedule.at(t)[0] * condition.positive.flatten(1) @ self.matrix.T
        return self.prior.epsilon(z - moved.reshape(z.shape), t)

    def encode(self, x: Tensor) -> Tensor:
        return self.prior.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.prior.decode(z)

    def condition(self, prompt: str | list[str], *, negative: str = "", scale: float = 1.0) -> Condition:
        texts = [prompt] if isinstance(prompt, str) else prompt
        rows = [torch.arange(TOKENS * WIDTH, dtype=torch.float64).add(len(text)).sin() for text in texts]
        embedded = 0.1 * torch.stack(rows).reshape(-1, TOKENS, WIDTH)
        return Condition(embedded, torch.zeros_like(embedded), scale)


def matrix() -> Tensor:
    """M, (50, 12)."""
    draws = torch.Generator().manual_seed(11)
    return torch.randn(50, TOKENS * WIDTH, dtype=torch.float64, generator=draws) / 4


@dataclass(frozen=True)
class HandPrompt:
    """The dense problem under a prompt: ẑ₀, ε and the gradients of ‖y − A D(ẑ₀)‖ by latent and embedding."""

    dense: Dense
    matrix: Tensor

    def eps(self, z: Tensor, c: Tensor, t: int) -> Tensor:
        return self.dense.eps(z - level(t)[0] * apply(self.matrix, c), t)

    def clean(self, z: Tensor, c: Tensor, t: int) -> Tensor:
        scale, sigma = level(t)
        return (z - sigma * self.eps(z, c, t)) / scale

    def gradients(self, z: Tensor, c: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """By z and by c. ε = σ P (z − s (μ + M c)), so dẑ₀/dz = (I − σ² P)/s and dẑ₀/dc = σ² P M."""
        r = self.dense.residual(self.clean(z, c, t))
        unit = r / (r.square().sum(1, keepdim=True) + 1e-12).sqrt()
        back = -apply((self.dense.operator @ self.dense.decoder).transpose(-1, -2), unit)
        precision = -self.dense.latents.hessian(z, t)
        by_c = apply((level(t)[1] ** 2 * precision @ self.matrix).transpose(1, 2), back)
        return apply(self.dense.slope(z, t).transpose(1, 2), back), by_c
