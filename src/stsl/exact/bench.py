"""Score samplers against exact posteriors."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stsl.cost import Cost, Metered
from stsl.exact.measures import Yardstick
from stsl.exact.posterior import mixture_prior, posterior
from stsl.exact.problems import repeated
from stsl.exact.rivals import Unguided
from stsl.loop import Diverged, iterate
from stsl.priors.mixture import GaussianMixturePrior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers import STSL, Sampler

# Rows that go through the network at once: few enough to stay in the processor's cache.
CHUNK = 500
# Network evaluations per sample that everyone gets.
BUDGET = 200
# Samples that tell how steep the two terms of STSL are.
PILOT = 64


@dataclass(frozen=True)
class Row:
    """What one sampler did on one problem.

    Args:
        sampler: as it was asked for.
        problem: its name.
        noise: standard deviation of the measurement's noise on [0, 1].
        sigma_y: the same on the papers' scale, twice as much.
        n: number of samples.
        steps: of the sampler; None where it has none.
        evaluations: rows that went through the network, per sample.
        seconds: of processor time for all samples.
        mean_error, spread, sliced_w2, weight_error: see `Scores`; None where the sampler diverged.
        beyond_chance: which of them exact samples would not show.
        trace_ratio: length of the gradient of STSL's second-order term over that of the measurement, median.
        note: why there are no numbers.
        settings: the sampler's fields.
        samples: of problems with one or two numbers, for plots; shape (n, d).
    """

    sampler: str
    problem: str
    noise: float
    sigma_y: float
    n: int
    steps: int | None = None
    evaluations: float = 0.0
    seconds: float = 0.0
    mean_error: float | None = None
    spread: float | None = None
    sliced_w2: float | None = None
    weight_error: float | None = None
    beyond_chance: Sequence[str] = ()
    trace_ratio: float | None = None
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    samples: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of shape (n, d), what they cost, and the median of STSL's trace ratio where it was logged."""

    samples: Tensor
    cost: Cost
    trace_ratio: float | None


def draw(problem: Problem, sampler: Sampler, n: int, seed: int) -> Drawn:
    """n posterior samples of a problem with one measurement, not clamped to [0, 1].

    Sample k is the same however many are drawn.

    Raises:
        TypeError: the sampler refuses the problem.
        Diverged: it does not stay finite.
    """
    prior = Metered(mixture_prior(problem))
    sampler.check(replace(problem, prior=prior))
    parts, ratios = [], []
    began = time.process_time()
    for first in range(0, n, CHUNK):
        rows = min(CHUNK, n - first)
        rng = Rng(seed, ("exact",) * rows, tuple(range(first, first + rows)))
        z = None
        for frame in iterate(repeated(replace(problem, prior=prior), rows), sampler, rng):
            z = frame.state.z
            if "r2" in frame.state.log:
                ratios.append(frame.state.log["r2"])
        assert z is not None
        parts.append(z.flatten(1))
    prior.cost.seconds = time.process_time() - began
    ratio = float(torch.cat(ratios).median()) if ratios else None
    return Drawn(torch.cat(parts), prior.cost, ratio)


def within(problem: Problem, sampler: Sampler, budget: int | None = BUDGET, steps: int | None = None) -> Sampler:
    """The sampler with as many steps as the budget allows, and no more than asked for.

    Args:
        problem: where evaluations are counted, by running the sampler for one sample.
        sampler: of any steps.
        budget: network evaluations per sample; None is any number.
        steps: at most so many; None is the sampler's own number.

    Raises:
        ValueError: one step takes more than the budget.
    """
    wanted = sampler.steps if steps is None else steps
    if budget is None:
        return replace(sampler, steps=wanted)  # type: ignore[type-var]
    # A step takes one evaluation or more.
    wanted = min(wanted, budget)
    while True:
        tried = replace(sampler, steps=wanted)  # type: ignore[type-var]
        needed = draw(problem, tried, 1, 0).cost.unet_samples
        if needed <= budget:
            return tried
        if wanted == 1:
            raise ValueError(f"{type(sampler).__name__} takes {needed} evaluations for a step, the budget is {budget}")
        wanted = max(1, min(wanted - 1, wanted * budget // needed))


def with_trace_ratio(problem: Problem, sampler: STSL, ratio: float, seed: int) -> STSL:
    """The sampler with the eta at which the trace's gradient is `ratio` of the measurement's.

    In the median over levels and some samples. On a given path the ratio is proportional to eta, and the path depends
    on eta a little, hence twice.
    """
    for _ in range(2):
        measured = draw(problem, sampler, PILOT, seed).trace_ratio
        if not measured or not math.isfinite(measured):
            return sampler  # the trace has no gradient: the prior is a single Gaussian
        sampler = replace(sampler, eta=min(sampler.eta * ratio / measured, 1e6))
    return sampler


def score(
    problem: Problem,
    sampler: Sampler,
    *,
    n: int = 2000,
    seed: int = 0,
    name: str = "",
    called: str = "",
    yardstick: Yardstick | None = None,
) -> Row:
    """Draw n posterior samples and measure how far they are from the exact posterior.

    Args:
        problem: one measurement, a `GaussianMixturePrior`, a linear operator, noise above 0.
        sampler: any; steps as they are.
        n: number of samples, 2 or more.
        seed: of all randomness.
        name: what the row calls the problem.
        called: what the row calls the sampler; its class when left out.
        yardstick: of the problem's posterior, n and seed; made when left out.

    Raises:
        TypeError, ValueError: as `observe`; the sampler refuses the problem; n is too small.
    """
    yardstick = yardstick or yardstick_of(problem, n, seed)
    empty = _empty(problem, n, name, called or type(sampler).__name__)
    empty = replace(empty, steps=sampler.steps, settings=sampler.settings())
    try:
        drawn = draw(problem, sampler, n, seed)
    except Diverged as error:
        return replace(empty, note=str(error))
    return _measured(empty, yardstick, drawn)


def yardstick_of(problem: Problem, n: int, seed: int) -> Yardstick:
    """What measures n samples of a problem's posterior.

    Raises: as `posterior`; ValueError for less than two samples.
    """
    if n < 2:
        raise ValueError(f"n = {n}: a spread needs two samples or more")
    return Yardstick(posterior(problem), n, seed)


def control(
    problem: Problem, *, n: int = 2000, seed: int = 0, name: str = "", yardstick: Yardstick | None = None
) -> Row:
    """The row of exact samples: what chance does. Arguments as for `score`."""
    yardstick = yardstick or yardstick_of(problem, n, seed)
    began = time.process_time()
    samples = yardstick.draw("control")
    drawn = Drawn(samples, Cost(seconds=time.process_time() - began), None)
    return _measured(_empty(problem, n, name, "exact posterior"), yardstick, drawn)


def exact_score(
    problem: Problem,
    *,
    steps: int = BUDGET,
    n: int = 2000,
    seed: int = 0,
    name: str = "",
    yardstick: Yardstick | None = None,
) -> Row:
    """The row of DDPM steps with the posterior's exact score: what the number of steps does."""
    yardstick = yardstick or yardstick_of(problem, n, seed)
    exact, prior = yardstick.exact, mixture_prior(problem)
    likely = exact.weights > 1e-300
    guided = GaussianMixturePrior(
        exact.weights[likely],
        exact.means[likely].reshape(-1, *prior.latent_shape),
        exact.covariances[likely],
        schedule=prior.schedule,
    )
    drawn = draw(replace(problem, prior=guided), Unguided(steps=steps), n, seed)
    return _measured(replace(_empty(problem, n, name, "exact score"), steps=steps), yardstick, drawn)


def _empty(problem: Problem, n: int, name: str, sampler: str) -> Row:
    assert problem.sigma_y is not None
    return Row(sampler, name, problem.sigma_y / 2, problem.sigma_y, n)


def _measured(row: Row, yardstick: Yardstick, drawn: Drawn) -> Row:
    scores = yardstick.measure(drawn.samples)
    return replace(
        row,
        evaluations=drawn.cost.unet_samples / row.n,
        seconds=drawn.cost.seconds,
        beyond_chance=yardstick.beyond_chance(scores),
        trace_ratio=drawn.trace_ratio,
        samples=drawn.samples if drawn.samples.shape[1] <= 2 else None,
        **asdict(scores),
    )
