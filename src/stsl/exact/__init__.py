"""Exact posteriors, and how far samplers are from them."""

from stsl.exact.bench import Row, control, score
from stsl.exact.measures import Scores, Yardstick
from stsl.exact.posterior import Observation, log_likelihood, observe, posterior
from stsl.exact.problems import PROBLEMS, make

__all__ = [
    "PROBLEMS",
    "Observation",
    "Row",
    "Scores",
    "Yardstick",
    "control",
    "log_likelihood",
    "make",
    "observe",
    "posterior",
    "score",
]
