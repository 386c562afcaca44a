"""Problems small enough for dense matrices: latents (2, 5, 5), images (3, 4, 4), two images each."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import Inpainting, LinearPhysics, Physics
from dense import Dense, Mixture, MixturePrior, apply
from torch import Tensor

from stsl import operators, tasks
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem

LATENT, IMAGE, BATCH = (2, 5, 5), (3, 4, 4), 2
D, P = 50, 48

Make = Callable[..., tuple[Problem, Dense]]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(seed: int) -> Tensor:
    root = normal(D, D, seed=seed) / D**0.5
    return root @ root.T + 0.2 * torch.eye(D, dtype=torch.float64)


def planes(matrix: Tensor) -> Tensor:
    """The same matrix on each of three colour planes."""
    return torch.kron(torch.eye(3, dtype=torch.float64), matrix)


def inpainting() -> tuple[Physics, Tensor, Tensor]:
    first = [1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1]
    second = [0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1]
    masks = torch.tensor([first, second])
    matrix = torch.diag_embed(masks.repeat(1, 3).double())
    return Inpainting(IMAGE, mask=masks.reshape(BATCH, 1, 4, 4).float()), matrix, torch.eye(P, dtype=torch.float64)


def superresolution() -> tuple[Physics, Tensor, Tensor]:
    """Keys' cubic stretched by 2: output j meets input 2 j + 1 + k with weight h((k + ½)/2), k = −4..3."""

    def keys(u: float) -> float:
        u = abs(u)
        if u <= 1:
            return 1.5 * u**3 - 2.5 * u**2 + 1
        return -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2 if u < 2 else 0.0

    line, up = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    total = sum(keys((k + 0.5) / 2) for k in range(-4, 4))
    for j in range(2):
        for k in range(-4, 4):
            i = 2 * j + 1 + k
            i = -1 - i if i < 0 else 7 - i if i > 3 else i
            line[j, i] += keys((k + 0.5) / 2) / total
        up[2 * j : 2 * j + 2, j] = 1
    line = line.float().double()  # the operator keeps its matrices in float32
    return operators.bicubic(IMAGE, 2), planes(torch.kron(line, line)), planes(torch.kron(up, up))


def blur() -> tuple[Physics, Tensor, Tensor]:
    """A lopsided kernel, so that a correlation in place of the convolution would be seen; borders mirror as abcb."""
    kernel = torch.tensor([[1, 2, 0], [3, 5, 1], [1, 1, 2]], dtype=torch.float64) / 16
    matrix = torch.zeros(16, 16, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            for i in range(3):
                for j in range(3):
                    r, c = abs(row - (i - 1)), abs(column - (j - 1))
                    r, c = 6 - r if r > 3 else r, 6 - c if c > 3 else c
                    matrix[4 * row + column, 4 * r + c] += kernel[i, j]
    # Sixteenths are exact in float32; the Fourier transform of a float32 kernel would not be.
    return tasks.from_kernel(kernel, IMAGE).double(), planes(matrix), torch.eye(P, dtype=torch.float64)


def anything() -> tuple[Physics, Tensor, None]:
    """A linear operator for which the papers choose no Aᵀ: 7 weighted sums of all numbers of an image."""
    matrix = normal(7, P, seed=8).abs() / P
    physics = LinearPhysics(A=lambda x: x.flatten(1) @ matrix.T, A_adjoint=lambda y: (y @ matrix).reshape(-1, *IMAGE))
    return physics, matrix, None


OPERATORS = {"inpainting": inpainting, "superresolution": superresolution, "blur": blur, "anything": anything}


@pytest.fixture
def make(one_thread: None) -> Make:
    """make(operator, adjoint="paper", components=1): the library's problem, and the same one as dense matrices."""

    def build(operator: str = "inpainting", adjoint: str = "paper", components: int = 1) -> tuple[Problem, Dense]:
        physics, matrix, papers = OPERATORS[operator]()
        weights = torch.tensor([1.0] if components == 1 else [0.4, 0.6], dtype=torch.float64)
        means = 0.6 * normal(components, D, seed=1)
        covariances = torch.stack([covariance(2 + k) for k in range(components)])
        mixture = Mixture(weights, means, covariances)
        decoder = normal(P, D, seed=6) / (2 * D**0.5)
        # W takes many latents to one image, so its rows are independent. Gluing with a pseudo-inverse cannot tell the
        # sign of the correction, whose code is orthogonal to the rest of the gap: the mixture's encoder is another one.
        encoder = decoder.T @ torch.linalg.inv(decoder @ decoder.T)
        if components == 1:
            prior = GaussianPrior(means.reshape(LATENT), covariances[0], decoder=decoder, image_shape=IMAGE)
        else:
            encoder = encoder + 0.5 * normal(D, P, seed=10) / P**0.5
            prior = MixturePrior(mixture, decoder, encoder, LATENT, IMAGE)
        x = (1 + apply(decoder, normal(BATCH, D, seed=7))) / 2
        y = apply(matrix, x + 0.01 * normal(BATCH, P, seed=9))

        transposed = matrix.transpose(-1, -2)
        weight = apply(transposed @ matrix, torch.ones(BATCH, P, dtype=torch.float64))
        known = weight > 1e-12
        exact = torch.where(known, 1 / weight.clamp(min=1e-12), 0.0)[:, :, None] * transposed
        lift = exact if papers is None or adjoint == "exact" else papers
        glue = transposed if papers is None or adjoint == "exact" else papers
        seen = known.reshape(BATCH, 3, 16).any(1).repeat(1, 3)
        dense = Dense(mixture, decoder, encoder, matrix, lift, glue, seen, y)
        shaped = y.reshape(physics.A(torch.zeros(BATCH, *IMAGE, dtype=torch.float64)).shape)
        return Problem(shaped, physics, prior), dense

    return build
