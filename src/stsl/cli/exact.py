"""`stsl exact`: how far samplers are from posteriors that are known exactly."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stsl.cli.console import as_json, as_table, notes, say

if TYPE_CHECKING:
    from stsl.exact.bench import Row
    from stsl.exact.table import Job
    from stsl.samplers import Sampler

SAMPLERS = "stsl,stsl:calibrated,ldps,gml_dps,psld,dps"
PROBLEMS = "bimodal,degenerate,inpainting,blur,sr4"


def exact(
    samplers: Annotated[
        str,
        typer.Option(help="Names of `stsl list samplers` or file.py:Class, each with :PRESET or :key=value; or all."),
    ] = SAMPLERS,
    problems: Annotated[str, typer.Option(help="Names, separated by commas.")] = PROBLEMS,
    sigma_y: Annotated[
        str, typer.Option(help="Std of the measurement noise on the papers' scale [-1, 1], separated by commas.")
    ] = "0.02,0.1,0.6",
    steps: Annotated[
        int | None, typer.Option(help="At most so many steps; the sampler's own number if left out.", min=1, max=1000)
    ] = None,
    n: Annotated[int, typer.Option(help="Posterior samples of each.", min=2)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0)] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="No limit of 200 network evaluations per sample: as published.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with one thread; as many as cores if left out.", min=1)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plots.")] = Path("exact"),
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare samplers with posteriors that are known exactly: Gaussian mixtures, linear operators, Gaussian noise.

    Writes results.csv, results.json and plots. Each sampler gets as many steps as fit into 200 network evaluations per
    sample. docs/exactness.md explains the columns.

    Example: `stsl exact --samplers stsl,psld,my_method.py:Mine --problems bimodal,sr4 --n 500`
    """
    from stsl.exact import table
    from stsl.exact.plots import draw_all
    from stsl.exact.problems import check_sigma, make

    sigmas = _numbers(sigma_y)
    for sigma in sigmas:
        check_sigma(sigma)
    names = _words(problems, "--problems")
    for name in names:
        make(name, sigmas[0])
    asked = _words(samplers, "--samplers")
    if samplers == SAMPLERS:
        asked = [name for name in asked if name in _registered() or ":" in name]
    jobs = [
        table.Job(arm, name, sigma, n, seed, steps, None if full else table.BUDGET)
        for name in names
        for sigma in sigmas
        for arm in table.arms(asked)
    ]
    jobs = _served(jobs, strict="all" not in asked)
    out.mkdir(parents=True, exist_ok=True)
    found = table.in_order(_watched(jobs, workers or table.usable_cores()), jobs)
    settings = {"n": n, "seed": seed, "steps": steps, "budget": jobs[0].budget, "sigma_y": sigmas}
    table.write(out, found, settings)
    try:
        draw_all(out, found, seed)
    except ImportError as error:
        say(f"no plots: {error}")
    for row in found:
        if row.note:
            say(f"{row.sampler} on {row.problem}, sigma_y {row.sigma_y:g}: {row.note}")
    say(f"wrote {out / 'results.csv'} and {out / 'results.json'}")
    if json:
        as_json([_record(row) for row in found])
    else:
        columns = [
            "problem",
            "sigma_y",
            "sampler",
            "steps",
            "evaluations",
            "mean error",
            "spread",
            "sliced W2",
            "modes",
        ]
        as_table("distance from the exact posterior", [*columns, "seconds", "beyond chance"], map(_cells, found))


def resolve(arm: str) -> "Sampler":
    """The sampler of NAME[:PRESET or :key=value]..., where NAME may be file.py:Class.

    Raises:
        ValueError, TypeError: unknown name, preset or field, or a value outside its range.
    """
    from stsl.cli.choose import choose_sampler

    file, dot_py, rest = arm.rpartition(".py:")
    first, *words = (rest if dot_py else arm).split(":")
    presets = [word for word in words if "=" not in word]
    if len(presets) > 1:
        raise ValueError(f"--samplers {arm}: one preset at most, got {' and '.join(presets)}")
    sets = [word for word in words if "=" in word]
    return choose_sampler(f"{file}{dot_py}{first}", presets[0] if presets else None, sets)


def _served(jobs: "list[Job]", *, strict: bool) -> "list[Job]":
    """The jobs whose sampler takes the problem; says which ones do not.

    Raises:
        TypeError: a sampler takes none of the problems, unless all samplers were asked for.
    """
    from stsl.exact.table import REFERENCES, STSL_ARMS, refusal

    known = {arm: resolve(arm) for arm in dict.fromkeys(job.arm for job in jobs) if arm not in REFERENCES + STSL_ARMS}
    reasons: dict[str, list[str | None]] = {}
    kept = []
    for job in jobs:
        reason = refusal(known[job.arm], job.problem, job.sigma_y) if job.arm in known else None
        reasons.setdefault(job.arm, []).append(reason)
        if reason is None:
            kept.append(job)
    for arm, said in reasons.items():
        refused = [reason for reason in said if reason is not None]
        if refused:
            some = "all" if len(refused) == len(said) else "some"
            if strict and some == "all":
                raise TypeError(f"{arm}: {refused[0]}")
            say(f"{arm} is left out of {some} problems: {refused[0]}")
    return kept


def _watched(jobs: "list[Job]", workers: int) -> "list[Row]":
    """The rows of all jobs, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stsl.exact.table import rows

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    with Progress(*columns, console=notes, transient=True) as progress:
        bar = progress.add_task("rows", total=len(jobs))
        for row in rows(jobs, resolve, workers):
            found.append(row)
            progress.update(bar, advance=1, description=f"{row.problem} {row.sigma_y:g} {row.sampler}")
    return found


def _registered() -> set[str]:
    from stsl.samplers import SAMPLERS

    return set(SAMPLERS)


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(f"{option} names nothing; leave it out for the default")
    return words


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text, "--sigma-y")]
    except ValueError:
        raise ValueError(f"--sigma-y {text}: needs numbers separated by commas, as in 0.02,0.1,0.6") from None


def _record(row: "Row") -> dict[str, object]:
    from dataclasses import asdict, replace

    record = asdict(replace(row, samples=None))
    del record["samples"]
    return record


def _cells(row: "Row") -> list[object]:
    shown = [
        "–" if value is None else f"{value:.3f}"
        for value in (row.mean_error, row.spread, row.sliced_w2, row.weight_error)
    ]
    beyond = " ".join(row.beyond_chance) if row.mean_error is not None else "failed"
    return [
        row.problem,
        f"{row.sigma_y:g}",
        row.sampler,
        row.steps,
        f"{row.evaluations:.0f}",
        *shown,
        f"{row.seconds:.1f}",
        beyond,
    ]
