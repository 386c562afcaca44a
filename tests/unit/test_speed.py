"""The script that times a run: it takes the steps that a run takes, and its parts add up to the run."""

from types import ModuleType

import pytest
from test_cost import COUNTS

from scripts import benchmark
from stsl import PSLD, STSL, LatentDAPS, ReSample
from stsl.cost import Metered
from stsl.estimate import plain_problem, rehearse
from stsl.priors.base import Wrapped


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    return benchmark("speed")


class Recording(Wrapped):
    """A prior that writes down under which name it decodes and encodes."""

    def __init__(self, prior, called, calls):
        super().__init__(prior)
        self.called, self.calls = called, calls

    def encode(self, x):
        self.calls.append(self.called)
        return self.prior.encode(x)

    def decode(self, z):
        self.calls.append(self.called)
        return self.prior.decode(z)


class TwoDecoders(Recording):
    """A prior with a tiny decoder for all steps but the last three."""

    def __init__(self, prior):
        super().__init__(prior, "full", [])
        self.quick = Recording(prior, "tiny", self.calls)

    def for_step(self, left):
        return self if left <= 3 else self.quick


def test_most_steps_are_timed_with_the_tiny_decoder_and_the_last_with_the_full_one(speed, world):
    prior, sampler = TwoDecoders(world.prior), PSLD(steps=8)
    problem = plain_problem(prior, sampler)
    kinds = rehearse(problem, sampler)
    seen = []
    for kind in kinds:
        prior.calls.clear()
        speed.step(problem, sampler, kind)
        seen.append((kind.count, [*prior.calls]))
    assert seen == [(5, ["tiny", "tiny"]), (3, ["full", "full"])]
    parts, needed = speed.bare_parts(prior, kinds, 1)
    assert needed == {
        "UNet, 1 rows, forward and backward": 8,
        "tiny decoder, forward and backward": 5,
        "tiny encoder, forward and backward": 5,
        "decoder, forward and backward": 3,
        "encoder, forward and backward": 3,
    }
    prior.calls.clear()
    for part in parts.values():
        part()
    assert prior.calls == ["tiny", "tiny", "full", "full"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "sampler",
    [
        STSL(steps=7),
        STSL(steps=7, init="ddim", eta=0.0),
        STSL(steps=7, refine="langevin"),
        PSLD(steps=7),
        ReSample(steps=40),
        LatentDAPS(steps=4, mcmc_steps=3),
    ],
    ids=str,
)
def test_the_bare_parts_ask_for_as_much_as_the_run(sampler, batch, speed, world):
    kinds = rehearse(plain_problem(world.prior, sampler, batch), sampler)
    metered = Metered(world.prior)
    parts, needed = speed.bare_parts(metered, kinds, batch)
    total = dict.fromkeys(COUNTS, 0.0)
    for name, count in needed.items():
        before = vars(metered.cost).copy()
        parts[name]()
        for key in COUNTS:
            total[key] += count * (getattr(metered.cost, key) - before[key])
    assert total == pytest.approx({key: sum(kind.count * getattr(kind.cost, key) for kind in kinds) for key in COUNTS})


def test_a_report_adds_up(speed, world):
    report = speed.measure(TwoDecoders(world.prior), STSL(steps=6, inner_steps=1), 2, 1)
    medians = [value for name, value in report.items() if name.startswith("median seconds: step")]
    # With the tiny decoder a step that tells two gradients apart and two that do not; with the full one two and one.
    whole = sum(count * seconds for count, seconds in zip((1, 2, 2, 1), medians, strict=True))
    assert 2 * report["seconds per image"] == pytest.approx(whole)
    assert 6 * report["seconds per step"] == pytest.approx(whole)
    evaluations = 2 * (6 * 3 + 6)  # two images; a refinement with two probes and an outer step, six times
    assert evaluations * report["seconds per network evaluation"] == pytest.approx(whole)
    assert report["overhead (whole / bare parts)"] == pytest.approx(
        report["seconds per image"] / report["seconds of the bare parts, per image"]
    )
    weights = sum(tensor.untyped_storage().nbytes() for tensor in world.prior.buffers()) / 2**30
    for key in ("peak memory of a step, weights included, GiB", "the run's as estimated, GiB"):
        assert report[key] > weights
