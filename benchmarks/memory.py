"""Memory and operations of one step, from shapes alone: nothing is computed, and no GPU is needed.

    python benchmarks/memory.py [--json]

For a model of the shape of Stable Diffusion 1.5 at 512 x 512 and for the built-in prior: what the networks' weights
take, what is kept for the backward pass, the most that a step holds at once, and its floating-point operations. The
table of docs/performance.md comes from here.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import sd15

from stsl import PSLD, STSL, Prior, Sampler, load_prior
from stsl.estimate import estimate_memory, footprint_of, plain_problem, rehearse
from stsl.memory import GIB

# One refinement with its two probes; what a level repeats five times, one after the other.
STEPS: dict[str, Sampler] = {"STSL, one refinement": STSL(inner_steps=1, reuse_last=True), "PSLD": PSLD()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = []
    for row in measured():
        rows.append(row)
        if not args.json:
            if len(rows) == 1:
                print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


def measured() -> Iterator[dict[str, Any]]:
    """The rows, one after another."""
    for step, sampler in STEPS.items():
        for precision in ("fp32", "bf16"):
            for checkpointing in (False, True):
                prior = sd15.shapes(precision, checkpointing=checkpointing)  # type: ignore[arg-type]
                yield of(prior, sampler) | {"step": step, "settings": settings(precision, checkpointing)}
        tiny = sd15.shapes("bf16", checkpointing=True, tiny=True)
        yield of(tiny, sampler) | {"step": step, "settings": settings("bf16", True) + ", tiny decoder"}
        for precision in ("fp32", "bf16"):
            prior = load_prior("faces-128", precision=precision, device="cpu")
            yield of(prior, sampler) | {"step": step, "settings": precision}


def settings(precision: str, checkpointing: bool) -> str:
    """What a row calls its settings."""
    return precision + (", recomputing" if checkpointing else "")


def of(prior: Prior, sampler: Sampler) -> dict[str, Any]:
    """One row: the kind of step that a run has most of, and the estimate for the whole run."""
    problem = plain_problem(prior, sampler)
    kind = max(rehearse(problem, sampler), key=lambda kind: kind.count)
    taken, whole = footprint_of(problem, sampler, kind), estimate_memory(prior, sampler)
    assert whole.peak is not None
    assert whole.needed is not None
    return {
        "model": prior.name,
        "step": "",
        "settings": "",
        "weights, GiB": round(whole.weights / GIB, 2),
        "kept, GiB": round(taken.kept / GIB, 2),
        "peak of the step, GiB": round(taken.peak / GIB, 2),
        "peak of the run, GiB": round(whole.peak / GIB, 2),
        "free GPU memory needed, GiB": round(whole.needed / GIB, 2),
        "TFLOP": round(taken.flops / 1e12, 3),
    }


if __name__ == "__main__":
    main()
