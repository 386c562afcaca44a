"""What a restoration will take, before it is run: seconds and bytes."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from stsl import tasks
from stsl.cost import Cost, Metered
from stsl.loop import iterate
from stsl.memory import GIB, Footprint, footprint
from stsl.priors.base import Condition, Prior, Wrapped
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State
from stsl.shapes import Image, Latent

log = logging.getLogger("stsl")

# What a process takes beside its tensors on a GPU: PyTorch's context and the libraries' work space. From experience,
# not measured by this project; and the share of memory that an allocator cannot use.
CONTEXT, FRAGMENTS = 0.5 * GIB, 0.05


@dataclass(frozen=True, eq=False)
class Kind:
    """Steps of one cost.

    Args:
        t, t_next: levels of the first of them.
        left: steps left then, itself among them.
        index: its place in the plan.
        state: what it started from.
        count: how many steps are of this kind.
        cost: network evaluations of one of them.
        is_last: whether the prior is the one of the last steps.
    """

    t: int
    t_next: int
    left: int
    index: int
    state: State
    count: int
    cost: Cost
    is_last: bool

    def is_part_of(self, other: "Kind") -> bool:
        """Whether the other asks the same prior for all that this one does, and more."""
        mine, others = vars(self.cost), vars(other.cost)
        return self.is_last == other.is_last and mine != others and all(mine[name] <= others[name] for name in mine)


@dataclass(frozen=True)
class Estimate:
    """What one batch will take.

    Args:
        weights: bytes of the networks on the device.
        activations: most bytes beside them at any time; None where PyTorch could not follow a step.
    """

    weights: int
    activations: int | None

    @property
    def peak(self) -> int | None:
        """Most bytes that tensors will hold: what `torch.cuda.max_memory_allocated` will say."""
        return None if self.activations is None else self.weights + self.activations

    @property
    def needed(self) -> int | None:
        """Bytes that should be free on a GPU: the peak, and what comes on top of it."""
        return None if self.peak is None else int(self.peak * (1 + FRAGMENTS) + CONTEXT)


def estimate_memory(prior: Prior, sampler: Sampler, batch: int = 1) -> Estimate:
    """Memory of a run, from shapes alone: no network is called.

    Args:
        prior, sampler: what will run.
        batch: images or samples at once.

    Raises:
        TypeError, ValueError: the sampler does not take this prior.
    """
    problem = plain_problem(prior, sampler, batch)
    weights = sum(tensor.untyped_storage().nbytes() for tensor in _weights(prior) if tensor.device == prior.device)
    z, x = (
        torch.zeros(batch, *shape, dtype=prior.dtype, device=prior.device)
        for shape in (problem.prior.latent_shape, prior.image_shape)
    )
    try:
        kinds = rehearse(problem, sampler)
        largest = [kind for kind in kinds if not any(kind.is_part_of(other) for other in kinds)]
        ends = [_follow(problem, lambda: problem.prior.decode(z)), _follow(problem, lambda: problem.prior.encode(x))]
        peak = max(taken.peak for taken in [*ends, *(footprint_of(problem, sampler, kind) for kind in largest)])
    except Exception as error:  # whatever a sampler does that cannot be followed
        log.warning("%s: its memory cannot be told beforehand (%s)", type(sampler).__name__, str(error).split("\n")[0])
        return Estimate(weights, None)
    return Estimate(weights, peak)


def footprint_of(problem: Problem, sampler: Sampler, kind: Kind) -> Footprint:
    """What one step takes, from shapes alone.

    Raises:
        RuntimeError: PyTorch cannot follow it.
    """
    return _follow(problem, lambda: _step(problem, sampler, kind))


def predict_seconds(prior: Prior, sampler: Sampler, batch: int = 1) -> float:
    """How long a run will take: a step of each kind is run twice, and the second time counts for all of its kind."""
    problem = plain_problem(prior, sampler, batch)
    total = 0.0
    for kind in rehearse(problem, sampler):
        for _ in range(2):
            began = time.perf_counter()
            with torch.inference_mode(False), torch.no_grad():
                state = _step(problem, sampler, kind)
            state.z.sum().item()  # waits for the device
            seconds = time.perf_counter() - began
        total += kind.count * seconds
    return total


def rehearse(problem: Problem, sampler: Sampler) -> list[Kind]:
    """The kinds of steps that a run has, found by running it with a stand-in for the networks.

    Two steps are of one kind when they ask for equally many evaluations, forward and backward, of the same prior.
    """
    ids = tuple(str(i) for i in range(problem.batch))
    rng = Rng(0, ids)
    metered = Metered(_StandIn(problem.prior))
    stand_in = replace(problem, prior=metered)
    kinds: dict[tuple[object, ...], Kind] = {}
    with _silence():
        with torch.inference_mode(False), torch.no_grad():
            state = sampler.begin(stand_in, rng.at("restore/begin", 0))
        plan, before = sampler.plan(problem.schedule), vars(metered.cost).copy()
        for frame in iterate(stand_in, sampler, rng, start=state):
            after = vars(metered.cost).copy()
            counts = {name: after[name] - before[name] for name in after}
            left = frame.total - frame.index
            is_last = problem.prior.for_step(left) is problem.prior
            key = (*counts.values(), is_last)
            if key in kinds:
                kinds[key] = replace(kinds[key], count=kinds[key].count + 1)
            else:
                t, t_next = plan[frame.index]
                kinds[key] = Kind(t, t_next, left, frame.index, state, 1, Cost(**counts), is_last)
            state, before = frame.state, after
    return list(kinds.values())


def fit_into(
    prior: Prior, sampler: Sampler, budget: float, batch: int = 1, tiny: Callable[[Prior], Prior] | None = None
) -> tuple[Prior, Estimate]:
    """Save memory, setting by setting, until a run should fit; say what was changed.

    Args:
        prior: whose settings change.
        sampler: what will run.
        budget: bytes that the device has for this.
        batch: images or samples at once.
        tiny: gives a prior a tiny decoder, when nothing else helps.

    Returns:
        the prior to use, and what it will take.
    """
    expected = estimate_memory(prior, sampler, batch)
    while expected.needed is not None and expected.needed > budget:
        change = prior.lighten()
        if change is None and tiny is not None:
            try:
                prior, change, tiny = tiny(prior), "most steps decode with a tiny decoder", None
            except (ValueError, OSError) as error:
                log.warning("a tiny decoder would save memory, but: %s", error)
                tiny = None
        if change is None:
            log.warning(
                "this needs about %.1f GiB where there are %.1f, with every saving made: it may run out of memory",
                expected.needed / GIB,
                budget / GIB,
            )
            break
        log.info("to save memory, %s", change)
        expected = estimate_memory(prior, sampler, batch)
    return prior, expected


def plain_problem(prior: Prior, sampler: Sampler, batch: int = 1) -> Problem:
    """Images to denoise: an operator that costs nothing.

    Raises:
        TypeError, ValueError: the sampler does not take this prior.
    """
    x = torch.full((batch, *prior.image_shape), 0.5)
    ids = tuple(str(i) for i in range(batch))
    y, physics = tasks.measure("denoise", x, noise=0.005, ids=ids)
    problem = Restorer(prior, sampler).frames(y, physics.to(prior.device), ids=ids).problem
    assert isinstance(problem.prior, Metered)
    return replace(problem, prior=problem.prior.prior)


def _weights(prior: Prior) -> list[torch.Tensor]:
    return [*prior.parameters(), *prior.buffers()]


def _follow(problem: Problem, function: Callable[[], object]) -> Footprint:
    known = [*_weights(problem.prior), *problem.physics.buffers(), problem.y]
    if problem.condition is not None:
        known += [problem.condition.positive, problem.condition.negative]
    with torch.no_grad():
        return footprint(function, known, problem.prior.device)


def _step(problem: Problem, sampler: Sampler, kind: Kind) -> State:
    here = replace(problem, prior=problem.prior.for_step(kind.left))
    rng = Rng(0, tuple(str(i) for i in range(problem.batch)))
    return sampler.step(here, kind.state, kind.t, kind.t_next, rng.at("restore", kind.index))


class _StandIn(Wrapped):
    """A prior of unit normal latents that costs nothing: the mean channel, enlarged, is its image.

    A pixel of the image moves the less the more pixels a latent place has, so that the measurement is as steep for
    large images as for small ones: a method must not diverge here that does not on a network.
    """

    def for_step(self, left: int) -> Prior:
        return self

    @property
    def is_narrow(self) -> bool:
        return False

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        noise = self.schedule.at(t)[1] * z
        if condition is not None:  # gradients with respect to a prompt exist, and are 0
            noise = noise + 0 * condition.positive.flatten(1).sum(1).to(z)[:, None, None, None]
        return noise

    def encode(self, x: Image) -> Latent:
        channels, height, width = self.latent_shape
        return F.adaptive_avg_pool2d(2 * x.mean(1, keepdim=True) - 1, (height, width)).expand(-1, channels, -1, -1)

    def decode(self, z: Latent) -> Image:
        factor = self.image_shape[1] / self.latent_shape[1]
        x = F.interpolate(z.mean(1, keepdim=True), size=self.image_shape[1:], mode="nearest")
        return ((1 + x / factor) / 2).expand(-1, self.image_shape[0], -1, -1)


@contextmanager
def _silence() -> Iterator[None]:
    """What a sampler logs about a rehearsal is not about the run."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
