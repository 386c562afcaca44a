"""The table of `stsl exact`: every sampler on every problem at every noise level."""

import csv
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stsl.exact import bench, problems
from stsl.exact.bench import BUDGET, Row
from stsl.exact.measures import Yardstick
from stsl.exact.rivals import TMPD
from stsl.files import atomic
from stsl.problem import Problem
from stsl.result import versions, write_json
from stsl.samplers import SAMPLERS, STSL, Sampler

# What the others are compared with: always in the table.
REFERENCES = ("exact posterior", "exact score", "tmpd")
# The second-order term without, with the paper's weight, and with a gradient of a tenth of the measurement's. At equal
# evaluations the first takes three times the steps of the others, so it also runs with theirs.
STSL_ARMS = ("stsl, eta 0", "stsl, eta 0, fewer steps", "stsl", "stsl, trace 1/10")
# A tenth.
TENTH = 0.1
DEFAULT = ("stsl", "stsl:calibrated", "ldps", "gml_dps", "psld", "dps")

Resolve = Callable[[str], Sampler]


@dataclass(frozen=True)
class Job:
    """One row to be made.

    Args:
        arm: a sampler as it was asked for, one of `REFERENCES`, or one of `STSL_ARMS`.
        problem, sigma_y: which problem.
        n, seed: how many samples, from which seed.
        steps: at most so many; None is the sampler's own number.
        budget: network evaluations per sample; None is any number.
    """

    arm: str
    problem: str
    sigma_y: float
    n: int
    seed: int
    steps: int | None
    budget: int | None


def arms(names: Sequence[str]) -> list[str]:
    """The rows that a list of samplers asks for: "stsl" has four, "all" is every registered sampler."""
    found: dict[str, None] = {}
    for name in names:
        for each in (*SAMPLERS, "stsl:calibrated") if name == "all" else (name,):
            found |= dict.fromkeys(STSL_ARMS if each == "stsl" else (each,))
    return [*REFERENCES, *found]


def refusal(sampler: Sampler, problem: str, sigma_y: float) -> str | None:
    """Why a sampler cannot serve a problem; None where it can. Nothing is sampled."""
    try:
        sampler.check(_problem(problem, sigma_y, 0, sampler))
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def play(job: Job, resolve: Resolve) -> Row:
    """Make one row; a sampler that fails gets one that says so."""
    plain = problems.make(job.problem, job.sigma_y, seed=job.seed)
    yardstick = _yardstick(job.problem, job.sigma_y, job.n, job.seed)
    if job.arm == "exact posterior":
        return bench.control(plain, n=job.n, seed=job.seed, name=job.problem, yardstick=yardstick)
    if job.arm == "exact score":
        most = min(job.steps or 1000, job.budget or 1000)
        return bench.exact_score(plain, steps=most, n=job.n, seed=job.seed, name=job.problem, yardstick=yardstick)
    sampler = _sampler(job.arm, resolve)
    problem = _problem(job.problem, job.sigma_y, job.seed, sampler)
    try:
        dearest = STSL() if job.arm == "stsl, eta 0, fewer steps" else sampler
        steps = _steps(dearest, job.problem, job.steps, job.budget)
        sampler = replace(sampler, steps=steps)  # type: ignore[type-var]
        if job.arm == "stsl, trace 1/10":
            assert isinstance(sampler, STSL)
            sampler = bench.with_trace_ratio(problem, sampler, TENTH, job.seed)
        return bench.score(
            problem, sampler, n=job.n, seed=job.seed, name=job.problem, called=job.arm, yardstick=yardstick
        )
    except (TypeError, ValueError, RuntimeError) as error:
        return Row(job.arm, job.problem, job.sigma_y / 2, job.sigma_y, job.n, note=f"{type(error).__name__}: {error}")


def rows(jobs: Sequence[Job], resolve: Resolve, workers: int) -> Iterator[Row]:
    """The rows of all jobs, as they come; the dearest start first.

    Args:
        jobs: what to make.
        resolve: the sampler of an arm; a function of a module, since other processes call it.
        workers: processes, each with one thread; 1 stays in this one.
    """
    jobs = sorted(jobs, key=_weight, reverse=True)
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                yield play(job, resolve)
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        waiting = [pool.submit(play, job, resolve) for job in jobs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(found: Sequence[Row], jobs: Sequence[Job]) -> list[Row]:
    """The rows in the order of their jobs: problem by problem, noise by noise."""
    place = {(job.arm, job.problem, job.sigma_y): index for index, job in enumerate(jobs)}
    return sorted(found, key=lambda row: place[row.sampler, row.problem, row.sigma_y])


def write(folder: Path, found: Sequence[Row], settings: dict[str, Any]) -> None:
    """Write results.csv and results.json; each appears whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    names = [each.name for each in fields(Row) if each.name not in ("samples", "settings")]
    with atomic(folder / "results.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for row in found:
            table.writerow([_cell(getattr(row, name)) for name in names])
    records = [{name: _plain(getattr(row, name)) for name in (*names, "settings")} for row in found]
    write_json(folder / "results.json", {"rows": records, "settings": settings, "versions": versions()})


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


@lru_cache
def _yardstick(name: str, sigma_y: float, n: int, seed: int) -> Yardstick:
    return bench.yardstick_of(problems.make(name, sigma_y, seed=seed), n, seed)


@lru_cache
def _steps(sampler: Sampler, name: str, steps: int | None, budget: int | None) -> int:
    """What the budget allows, counted at one noise level for all."""
    return bench.within(_problem(name, problems.SIGMAS[0], 0, sampler), sampler, budget, steps).steps


def _one_thread() -> None:
    torch.set_num_threads(1)


def _sampler(arm: str, resolve: Resolve) -> Sampler:
    if arm == "tmpd":
        return TMPD()
    if arm in STSL_ARMS:
        return STSL(eta=0.0, probes=0) if "eta 0" in arm else STSL()
    return resolve(arm)


def _problem(name: str, sigma_y: float, seed: int, sampler: Sampler) -> Problem:
    return problems.make(name, sigma_y, seed=seed, family="pixel" if sampler.family == "pixel" else "latent")


def _weight(job: Job) -> tuple[int, int]:
    """How long a job takes, roughly."""
    slow = {"tmpd": 3, "stsl, trace 1/10": 2, "stsl": 2, "exact posterior": 0}
    return int(job.problem not in ("bimodal", "degenerate")), slow.get(job.arm, 1)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(value) if isinstance(value, list | tuple) else value


__all__ = [
    "BUDGET",
    "DEFAULT",
    "REFERENCES",
    "STSL_ARMS",
    "Job",
    "arms",
    "in_order",
    "play",
    "refusal",
    "rows",
    "usable_cores",
    "write",
]
