"""What a step takes: from shapes alone, against what it really takes, and against a budget."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models import sd15_folder
from scripts import benchmark
from stsl import PSLD, STSL, estimate, load_prior
from stsl.estimate import Estimate, estimate_memory, fit_into, footprint_of, plain_problem, rehearse
from stsl.memory import GIB, available, footprint, ran_out
from stsl.priors.network import NetworkPrior
from stsl.rng import Rng
from stsl.samplers import LDPS, Sampler, State

INNER = STSL(inner_steps=1, reuse_last=True)  # one refinement with two probes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A thousandth of Stable Diffusion, with an `AutoencoderKL`."""
    return sd15_folder(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def sd15() -> ModuleType:
    """The script with the sizes of Stable Diffusion 1.5."""
    return benchmark("sd15")


@pytest.fixture(scope="module")
def really() -> Callable[[Callable[[], object]], int]:
    """Most bytes that the allocator had given out at once, beyond those before."""
    return benchmark("speed").most_held


def test_kept_and_peak_are_those_of_a_graph_drawn_by_hand(really):
    """y = exp(x), kept for the backward pass: one tensor of 4 MB and the sum; the gradient is another one."""
    x = torch.zeros(1 << 20, requires_grad=True)
    weights = torch.ones(1 << 20)

    def function():
        return torch.autograd.grad((x.exp() * weights.view(1, -1)).sum(), x)

    taken = footprint(function, [x, weights], torch.device("cpu"))
    assert taken.kept == 4 * (1 << 20) + 4 + 4  # exp(x), the sum, and the 1 that its gradient begins with
    assert taken.peak == really(function)
    matrix = torch.ones(64, 32)
    # 2 · 64 · 32 · 16 operations, and none is done: the tensors that come back have no values.
    assert footprint(lambda: matrix @ torch.ones(32, 16), [matrix], torch.device("cpu")).flops == 65536


@pytest.mark.parametrize(("sampler", "checkpointing"), [(INNER, False), (PSLD(), True)], ids=["stsl", "psld"])
def test_the_peak_told_from_shapes_is_the_real_one(sampler, checkpointing, small, really):
    prior = load_prior(small, device="cpu", precision="fp32", checkpointing=checkpointing)
    problem = plain_problem(prior, sampler)
    kind = max(rehearse(problem, sampler), key=lambda kind: kind.count)
    told = footprint_of(problem, sampler, kind).peak

    def step():
        with torch.no_grad():
            sampler.step(problem, kind.state, kind.t, kind.t_next, Rng(0, ("0",)).at("restore", kind.index))

    step()
    # Convolutions may take work space that no operation shows.
    assert told == pytest.approx(really(step), rel=0.1)


def test_recomputing_keeps_less_and_costs_more(small):
    taken = {}
    for on in (False, True):
        prior = load_prior(small, device="cpu", precision="fp32", checkpointing=on)
        problem = plain_problem(prior, INNER)
        taken[on] = footprint_of(problem, INNER, max(rehearse(problem, INNER), key=lambda kind: kind.count))
    assert taken[True].kept < taken[False].kept / 2
    assert taken[True].peak < taken[False].peak
    assert 1.1 * taken[False].flops < taken[True].flops < 1.6 * taken[False].flops


def test_a_refinement_at_512_pixels_stays_within_its_budget(sd15):
    """Stable Diffusion's shape, bf16, recomputing: 1.2 GiB kept, 3 GiB at most, and a GPU of 8 GB holds the run."""
    prior = sd15.shapes("bf16", checkpointing=True)
    problem = plain_problem(prior, INNER)
    plain = max(rehearse(problem, INNER), key=lambda kind: kind.count)
    taken = footprint_of(problem, INNER, plain)
    assert taken.kept <= 1.2 * GIB
    assert taken.peak <= 3.0 * GIB
    # 3 rows of the UNet and a decoder, forward, again, and backward; counted by hand: 3 · 2.39 + 6.80.
    assert taken.flops / 1e12 == pytest.approx(13.97, rel=0.01)
    assert estimate_memory(prior, INNER).needed <= 8e9


def test_savings_are_made_one_by_one_until_it_fits(small, caplog, monkeypatch):
    caplog.set_level("INFO", "stsl")
    needs = {(False, "fp32"): 8, (True, "fp32"): 5, (True, "bf16"): 3}
    monkeypatch.setattr(
        estimate, "estimate_memory", lambda p, *_: Estimate(GIB, needs[p.checkpointing, p.precision] * GIB)
    )
    prior = load_prior(small, device="cpu", precision="fp32")
    assert isinstance(prior, NetworkPrior)
    same, roomy = fit_into(prior, LDPS(), 10 * GIB)
    assert same is prior
    assert roomy.peak == 9 * GIB
    assert not prior.checkpointing
    _, less = fit_into(prior, LDPS(), 9 * GIB)  # 9 GiB, and what comes on top of them
    assert less.peak == 6 * GIB
    assert (prior.checkpointing, prior.precision) == (True, "fp32")
    asked = []

    def tiny(prior):
        asked.append(prior)
        raise FileNotFoundError("no TAESD here")

    fit_into(prior, LDPS(), 1.0, tiny=tiny)
    assert (prior.checkpointing, prior.precision) == (True, "bf16")
    assert len(asked) == 1
    said = [record.getMessage() for record in caplog.records]
    assert [any(word in line for line in said) for word in ("recomputed", "bf16", "no TAESD here", "may run out")] == [
        True
    ] * 4


def test_what_cannot_be_followed_is_said_and_costs_nothing(world, caplog):
    class Deciding(Sampler):
        steps = 3

        def step(self, problem, state, t, t_next, rng):
            eps = problem.epsilon(state.z, t)
            z = eps if eps.sum() > 1e9 else 0.9 * state.z
            return State(z, clean=z)

    told = estimate_memory(world.prior, object.__new__(Deciding))
    assert told.peak is told.needed is None
    assert told.weights > 0
    assert "cannot be told" in caplog.text


def test_a_rehearsal_that_diverges_stops_no_run(world, caplog):
    class Exploding(Sampler):
        steps = 3

        def step(self, problem, state, t, t_next, rng):
            z = state.z * float("inf")
            return State(z, clean=z)

    _, told = fit_into(world.prior, object.__new__(Exploding), 1.0)
    assert told.peak is None
    assert told.weights > 0
    assert "cannot be told" in caplog.text
    assert "diverged" in caplog.text


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), False),
        (RuntimeError("shapes do not fit"), False),
        (MemoryError("out of memory"), False),  # Python's own: no tensor was too large
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_one):
    assert ran_out(error) == is_one


def test_a_cpu_says_what_it_has():
    has = available(torch.device("cpu"))
    assert has is None or has > 0
