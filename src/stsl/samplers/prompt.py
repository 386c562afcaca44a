"""Prompt tuning: a text embedding that follows the measurement, for every sampler that wants it."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from stsl.numerics import Adam, gradient, norm_per_image
from stsl.priors.base import Condition
from stsl.problem import Problem
from stsl.shapes import Latent, PerImage


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompts of a batch under tuning: their embeddings as they stand, and the moments of their optimiser.

    Args:
        condition: what the network is given.
        start: the embeddings that tuning began with, shape (B, L, D).
        adam: moments, kept from level to level.
    """

    condition: Condition
    start: Tensor
    adam: Adam = field(default_factory=Adam)

    @classmethod
    def of(cls, problem: Problem) -> "Prompt":
        """The problem's own prompts, or else the empty ones.

        Raises:
            TypeError: the prior has no text.
        """
        condition = problem.condition or problem.prior.condition([""] * problem.batch)
        return cls(condition, condition.positive)

    def tune(self, problem: Problem, z: Latent, t: int, steps: int, lr: float) -> "Prompt":
        """`steps` steps of Adam on the embeddings c: c ← c − lr · Adam(∇_c ‖y − A(D(ẑ₀(z, c)))‖).

        Each image has its own embedding and sees its own measurement only. One step costs the network and the decoder
        forward and backward.

        Source: Chung et al. 2023, arXiv:2310.01110, as restated by others: its text was not available to us.
        """
        condition, adam = self.condition, self.adam
        for _ in range(steps):

            def misfit(embedding: Tensor, condition: Condition = condition) -> PerImage:
                aware = replace(problem, condition=replace(condition, positive=embedding))
                return norm_per_image(aware.residual(problem.schedule.clean(z, aware.epsilon(z, t), t)))

            (grad,) = gradient(misfit, condition.positive)
            adam, direction = adam.update(grad)
            condition = replace(condition, positive=condition.positive - lr * direction)
        return Prompt(condition, self.start, adam)

    def applied(self, problem: Problem) -> Problem:
        """The problem under these prompts."""
        return replace(problem, condition=self.condition)

    def moved(self) -> PerImage:
        """How far tuning has taken each embedding: root mean square over its numbers."""
        return (self.condition.positive - self.start).flatten(1).square().mean(1).sqrt()
