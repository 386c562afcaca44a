"""`stsl estimate`: how long, and how much memory."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table
from stsl.cli.shared import Device, Offline, PrecisionName, PriorName

if TYPE_CHECKING:
    from stsl.priors.base import Prior
    from stsl.samplers import Sampler
    from stsl.shapes import Image


def estimate(
    sampler: Annotated[str, typer.Option(help="Name of `stsl list samplers`, or file.py:Class.")] = "stsl",
    preset: Annotated[str | None, typer.Option(help="Named setting of the sampler.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The preset fast.")] = False,
    set: Annotated[list[str] | None, typer.Option("--set", help="key=value of a field; may be repeated.")] = None,
    prior: PriorName = "faces-128",
    images: Annotated[int, typer.Option(help="How many photos there are.", min=1)] = 1,
    device: Device = None,
    precision: PrecisionName = "auto",
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate time and memory of a restoration by running two of its steps.

    Example: `stsl estimate --sampler psld --set steps=250 --images 100`
    """
    import torch

    from stsl.cli.choose import choose_sampler
    from stsl.priors.load import load_prior

    method = choose_sampler(sampler, preset, set or [], fast=fast)
    model = load_prior(prior, device=device, precision=precision, offline=offline)  # type: ignore[arg-type]
    x = torch.full((1, *model.image_shape), 0.5)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    seconds = predict_seconds(model, method, x)
    row: dict[str, Any] = {
        "sampler": type(method).__name__,
        "prior": model.name,
        "device": str(model.device),
        "precision": model.describe().get("precision"),
        "nfe_paper": method.nfe,
        "seconds_per_image": round(seconds, 1),
        "hours_total": round(seconds * images / 3600, 2),
        "peak_gib": round(_peak_bytes(model.device) / 2**30, 2),
    }
    if json:
        as_json(row)
    else:
        as_table(f"{images} image(s), one at a time", list(row), [list(row.values())])


def predict_seconds(prior: "Prior", sampler: "Sampler", truth: "Image") -> float:
    """How long a run will take, from the time of its first two steps (the first one warms up)."""
    from stsl import tasks
    from stsl.restorer import Restorer

    y, physics = tasks.measure("denoise", truth, noise=0.005, ids=("probe",))
    run = Restorer(prior, sampler).frames(y.to(prior.device), physics.to(prior.device))
    next(run)
    warm = run.cost.seconds
    frame = next(run)
    return warm + (run.cost.seconds - warm) * (frame.total - 1)


def _peak_bytes(device: Any) -> int:
    """Peak memory so far: of the allocator on CUDA, of the whole process elsewhere. 0 where it cannot be told."""
    import sys

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
