"""Seconds of a restoration, beside those of the bare networks in it.

    python benchmarks/speed.py [--prior NAME|FOLDER|sd15] [--sampler stsl] [--set steps=50] [--batch 1] [--device cpu]

Prints, for one batch of images: seconds per image, step and network evaluation; the sum of the bare parts of the run
(UNet forward and backward, decoder, encoder, each at the run's batch, precision and layout) and the ratio of the whole
to it (overhead); operations per second, and their share of the best matrix product's (utilisation); peak memory, beside
what `stsl estimate` says. A run's seconds are those of its steps: one of each kind is timed, and counts for all of its
kind. Parts, separate calls and precisions are timed in turn within one process, and the median counts, so that what
else a machine does disturbs all alike. `--prior sd15` has the shape of Stable Diffusion 1.5 and random weights.
The figures of docs/performance.md come from here.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from stsl import Prior, load_prior
from stsl.cli.choose import changes, choose_sampler
from stsl.estimate import Kind, estimate_memory, footprint_of, plain_problem, rehearse
from stsl.memory import GIB
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers import SAMPLERS, Sampler

Timed = Mapping[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", default="faces-128", help="built-in name, folder, or sd15")
    parser.add_argument("--sampler", default="stsl")
    parser.add_argument("--preset", default=None, help="the sampler's own defaults when left out")
    parser.add_argument("--set", action="append", default=[], help="key=value of a field")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is timed")
    parser.add_argument("--device", default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--decoder", default="full")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compare", action="store_true", help="also time separate calls, and fp32 beside bf16")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    prior = load(args, args.precision)
    sampler = chosen(args)
    report = measure(prior, sampler, args.batch, args.rounds)
    if args.compare:
        report |= compare(prior, load(args, "fp32"), sampler, args.batch, args.rounds)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:44} {value:.4g}" if isinstance(value, float) else f"{name:44} {value}")


def load(args: argparse.Namespace, precision: str) -> Prior:
    """The prior that the arguments describe."""
    folder, decoder = args.prior, args.decoder
    if folder == "sd15":
        import sd15

        folder = sd15.folder(Path("sd15-random"))
        decoder = sd15.tiny_folder(Path("taesd-random")) if decoder == "tiny" else decoder
    return load_prior(
        folder,
        device=args.device,
        precision=precision,  # type: ignore[arg-type]
        checkpointing=args.checkpointing,
        decoder=decoder,
        compiled=args.compile,
    )


def chosen(args: argparse.Namespace) -> Sampler:
    """The sampler that the arguments describe: with its defaults, unlike the command line's."""
    if args.preset is not None:
        return choose_sampler(args.sampler, args.preset, args.set)
    base = SAMPLERS[args.sampler]()
    return replace(base, **changes(base, args.set))  # type: ignore[type-var]


def measure(prior: Prior, sampler: Sampler, batch: int, rounds: int) -> dict[str, Any]:
    """One run, step by step of each kind, and the bare parts of it."""
    device = prior.device
    problem = plain_problem(prior, sampler, batch)
    kinds = rehearse(problem, sampler)
    steps: dict[str, Callable[[], object]] = {
        f"step {i}": (lambda kind=kind: step(problem, sampler, kind)) for i, kind in enumerate(kinds)
    }
    parts, needed = bare_parts(prior, kinds, batch)
    side = 8192 if device.type == "cuda" else 1024
    seconds = in_turn(steps | parts | {"matrix product": matrix_product(prior, side)}, rounds, device)
    expected, peak = estimate_memory(prior, sampler, batch), peak_of(problem, sampler, kinds)

    whole = sum(kind.count * seconds[f"step {i}"] for i, kind in enumerate(kinds))
    bare = sum(count * seconds[name] for name, count in needed.items())
    flops = sum(kind.count * footprint_of(problem, sampler, kind).flops for kind in kinds)
    evaluations = sum(kind.count * kind.cost.unet_samples for kind in kinds)
    rate = 2 * side**3 / seconds["matrix product"]
    report: dict[str, Any] = machine(device) | {
        "prior, precision": f"{prior.name}, {prior.describe().get('precision')}",
        "sampler": repr(sampler),
        "batch": batch,
        "seconds per image": whole / batch,
        "seconds per step": whole / sum(kind.count for kind in kinds),
        "seconds per network evaluation": whole / evaluations,
        "seconds of the bare parts, per image": bare / batch,
        "overhead (whole / bare parts)": whole / bare,
        "TFLOP per image": flops / 1e12 / batch,
        "GFLOP/s": flops / whole / 1e9,
        "GFLOP/s of the best matrix product": rate / 1e9,
        "utilisation": flops / whole / rate,
        "peak memory of a step, weights included, GiB": None if peak is None else peak / GIB,
        "the run's as estimated, GiB": None if expected.peak is None else expected.peak / GIB,
    }
    return report | {f"median seconds: {name}": value for name, value in seconds.items()}


def step(problem: Problem, sampler: Sampler, kind: Kind) -> object:
    """One step of a kind, as the loop runs it."""
    here = replace(problem, prior=problem.prior.for_step(kind.left))
    rng = Rng(0, tuple(str(i) for i in range(problem.batch))).at("restore", kind.index)
    with torch.no_grad():
        return sampler.step(here, kind.state, kind.t, kind.t_next, rng)


def peak_of(problem: Problem, sampler: Sampler, kinds: list[Kind]) -> int | None:
    """Most bytes that PyTorch's allocator gives out during a step, the weights among them; None where it cannot tell.

    Steps that do a part of what another one does are left out.
    """
    device, prior = problem.prior.device, problem.prior
    if device.type not in ("cuda", "cpu"):
        return None
    there = sum(tensor.untyped_storage().nbytes() for tensor in [*prior.parameters(), *prior.buffers()])
    peaks = []
    for kind in kinds:
        if any(kind.is_part_of(other) for other in kinds):
            continue
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step(problem, sampler, kind)
            peaks.append(torch.cuda.max_memory_allocated(device))
        else:
            peaks.append(there + most_held(partial(step, problem, sampler, kind)))
    return max(peaks)


def most_held(call: Callable[[], object]) -> int:
    """Most bytes that the CPU's allocator had given out at once during a call, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    live = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def bare_parts(prior: Prior, kinds: list[Kind], batch: int) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """The networks alone, and how often a run needs each.

    A step with gradients asks the network for as many rows at once as its calls have in the mean.
    """
    parts: dict[str, Callable[[], object]] = {}
    needed: dict[str, float] = {}

    def need(name: str, count: float, part: Callable[[], object]) -> None:
        if count > 0:
            parts.setdefault(name, part)
            needed[name] = needed.get(name, 0) + count

    for kind in kinds:
        cost, n = kind.cost, kind.count
        with_gradient = min(max(cost.decoder_backward_samples / batch, 1), cost.unet_calls)
        with_gradient = with_gradient if cost.unet_backward_samples else 0
        plain_calls = cost.unet_calls - with_gradient
        rows = round((cost.unet_samples - plain_calls * batch) / with_gradient) if with_gradient else batch
        # More backward passes than forward ones: two gradients of one graph, told apart.
        again = max(cost.unet_backward_samples - rows * with_gradient, 0) / rows
        both, forward = network(prior, rows, gradient=True), network(prior, batch, gradient=False)
        need(f"UNet, {rows} rows, forward and backward", n * with_gradient, both)
        need(f"UNet, {batch} rows, forward", n * plain_calls, forward)
        need(f"UNet, {rows} rows, backward once more", n * again, network(prior, rows, gradient=True, twice=True))
        here = prior.for_step(kind.left)
        size = "" if here is prior else "tiny "
        for name, part, calls, backward in (
            ("decoder", decoder, cost.decoder_samples / batch, cost.decoder_backward_samples / batch),
            ("encoder", encoder, cost.encoder_samples / batch, cost.encoder_backward_samples / batch),
        ):
            need(f"{size}{name}, forward and backward", n * backward, part(here, batch))
            need(f"{size}{name}, forward", n * (calls - backward), part(here, batch, gradient=False))
    once_more = [name for name in needed if name.endswith("once more")]
    for name in once_more:  # timed as two backward passes, of which one is counted already
        pair = name.replace("backward once more", "forward and backward")
        needed[pair] = needed.get(pair, 0) - needed[name]
    return parts, needed


def network(prior: Prior, rows: int, *, gradient: bool, twice: bool = False) -> Callable[[], object]:
    """Calls the network as a step does; `twice` takes the gradient of two losses of one graph."""
    z = torch.randn(rows, *prior.latent_shape, device=prior.device, dtype=prior.dtype)
    condition = prior.condition([""] * rows) if prior.has_text else None

    def call() -> object:
        if not gradient:
            with torch.no_grad():
                return prior.epsilon(z, 501, condition)
        leaf = z.clone().requires_grad_()
        out = prior.epsilon(leaf, 501, condition)
        if twice:
            torch.autograd.grad(out.sum(), leaf, retain_graph=True)
        return torch.autograd.grad(out.sum(), leaf)

    return call


def decoder(prior: Prior, rows: int, *, gradient: bool = True) -> Callable[[], object]:
    """Calls the decoder, forward and backward or forward alone."""
    return passes(
        prior.decode, torch.randn(rows, *prior.latent_shape, device=prior.device, dtype=prior.dtype), gradient
    )


def encoder(prior: Prior, rows: int, *, gradient: bool = True) -> Callable[[], object]:
    """Calls the encoder, forward and backward or forward alone."""
    return passes(prior.encode, torch.rand(rows, *prior.image_shape, device=prior.device, dtype=prior.dtype), gradient)


def passes(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, gradient: bool) -> Callable[[], object]:
    """Calls a function of one tensor, with its gradient if asked."""

    def call() -> object:
        if not gradient:
            with torch.no_grad():
                return function(x)
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)

    return call


def matrix_product(prior: Prior, side: int) -> Callable[[], object]:
    """Multiplies two large matrices in the prior's precision: the most that a device can be asked for."""
    dtype = torch.bfloat16 if prior.is_narrow else torch.float32
    square = torch.randn(side, side, device=prior.device, dtype=dtype)
    return lambda: square @ square


def compare(prior: Prior, wide: Prior, sampler: Sampler, batch: int, rounds: int) -> dict[str, Any]:
    """What one call for iterate and probes saves against three, and what half precision saves against float32."""
    rows = 3 * batch
    at_once, apart = network(prior, rows, gradient=True), network(prior, batch, gradient=True)
    steps = {"narrow": most_common_step(prior, sampler, batch), "fp32": most_common_step(wide, sampler, batch)}
    seconds = in_turn({"at once": at_once, "apart": lambda: [apart() for _ in range(3)]} | steps, rounds, prior.device)
    return {
        "three network calls / one batched call": seconds["apart"] / seconds["at once"],
        f"step in fp32 / step in {prior.describe().get('precision')}": seconds["fp32"] / seconds["narrow"],
    }


def most_common_step(prior: Prior, sampler: Sampler, batch: int) -> Callable[[], object]:
    """The kind of step that a run has most of."""
    problem = plain_problem(prior, sampler, batch)
    kind = max(rehearse(problem, sampler), key=lambda kind: kind.count)
    return lambda: step(problem, sampler, kind)


def in_turn(calls: Timed, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call; all are timed once, then all again, and so on. The first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            wait(device)
            began = time.perf_counter()
            call()
            wait(device)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def wait(device: torch.device) -> None:
    """Until a device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
        can = torch.cpu.get_capabilities()
        name += ", " + (", ".join(key for key in ("amx_bf16", "avx512_bf16") if can.get(key)) or "no bf16 instructions")
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
