"""`stsl estimate`: how long, and how much memory."""

from typing import Annotated, Any

import typer

from stsl.cli.console import as_json, as_table
from stsl.cli.shared import Decoder, Device, Memory, Offline, PrecisionName, PriorName, memory_budget, planned


def estimate(
    sampler: Annotated[str, typer.Option(help="Name of `stsl list samplers`, or file.py:Class.")] = "stsl",
    preset: Annotated[str | None, typer.Option(help="Named setting of the sampler.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The preset fast.")] = False,
    set: Annotated[list[str] | None, typer.Option("--set", help="key=value of a field; may be repeated.")] = None,
    prior: PriorName = None,
    images: Annotated[int, typer.Option(help="How many photos there are.", min=1)] = 1,
    device: Device = None,
    batch: Annotated[int, typer.Option(help="How many of them are restored together.", min=1)] = 1,
    precision: PrecisionName = "auto",
    memory: Memory = "auto",
    decoder: Decoder = None,
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate time and memory of a restoration. Two steps of each kind are run; memory is told from shapes alone.

    Example: `stsl estimate --sampler psld --set steps=250 --images 100`
    """
    from stsl.cli.choose import choose_prior, choose_sampler
    from stsl.estimate import estimate_memory, predict_seconds
    from stsl.memory import GIB
    from stsl.priors.load import load_prior

    method, budget = choose_sampler(sampler, preset, set or [], fast=fast), memory_budget(memory)
    model = load_prior(
        choose_prior(prior, method),
        device=device,
        precision=precision,  # type: ignore[arg-type]
        offline=offline,
        decoder=decoder or "full",
    )
    model, expected = planned(model, method, budget, batch, offline=offline, decoder=decoder)
    taken = expected or estimate_memory(model, method, batch)
    seconds = predict_seconds(model, method, batch) / batch
    row: dict[str, Any] = {
        "sampler": type(method).__name__,
        "prior": model.name,
        "device": str(model.device),
        "precision": model.describe().get("precision"),
        "nfe_paper": method.nfe,
        "seconds_per_image": round(seconds, 1),
        "hours_total": round(seconds * images / 3600, 2),
        "peak_gib": None if taken.peak is None else round(taken.peak / GIB, 2),
        "needed_gib": None if taken.needed is None else round(taken.needed / GIB, 2),
    }
    if json:
        as_json(row)
    else:
        as_table(f"{images} image(s), {batch} at a time", list(row), [list(row.values())])
