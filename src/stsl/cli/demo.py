"""`stsl demo`: restore the astronaut, three ways corrupted, by two methods."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table, say, watch
from stsl.cli.shared import Device, Offline, PrecisionName, PriorName

if TYPE_CHECKING:
    from stsl.priors.base import Prior
    from stsl.samplers import Sampler
    from stsl.shapes import Image

TASKS = ("sr4", "gaussian_blur", "random_inpaint")
NOISE = 0.005
# Above this the tasks after the first run their fast presets.
PATIENCE_SECONDS = 240.0


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and run.json.")] = Path("demo"),
    fast: Annotated[bool, typer.Option("--fast", help="Fast presets for all tasks.")] = False,
    prior: PriorName = "faces-128",
    device: Device = None,
    precision: PrecisionName = "auto",
    offline: Offline = False,
    seed: Annotated[int, typer.Option(help="Seed of all noise.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Restore a public-domain photo that was made small, blurred, or robbed of 40 % of its pixels.

    Example: `stsl demo --out demo`
    """
    from stsl import images
    from stsl.estimate import predict_seconds
    from stsl.priors.load import load_prior
    from stsl.samplers import PSLD, STSL

    began = time.perf_counter()
    model = load_prior(prior, device=device, precision=precision, offline=offline)  # type: ignore[arg-type]
    side = model.image_shape[-1]
    truth = images.astronaut_face(side)
    images.write(out / "truth.png", truth)

    full: list[tuple[str, Sampler]] = [("default", STSL()), ("250 steps", PSLD(steps=250))]
    quick: list[tuple[str, Sampler]] = [("fast", STSL.preset("fast")), ("fast", PSLD.preset("fast"))]
    slow = False
    if not fast:
        predicted = sum(predict_seconds(model, sampler) for _, sampler in full) * len(TASKS)
        say(f"predicted: {predicted:.0f} s for everything at full settings")
        slow = predicted > PATIENCE_SECONDS
        if slow:
            say("that is more than 4 minutes: sr4 keeps the full settings, the other two tasks run --fast")

    rows: list[dict[str, Any]] = []
    records: dict[str, Any] = {}
    pictures: list[list[tuple[str, Image]]] = []
    for index, task in enumerate(TASKS):
        settings = quick if fast or (slow and index > 0) else full
        pictures.append(_restore_task(task, model, truth, settings, seed, out, rows, records))
    images.write(out / "comparison.png", images.comparison(pictures))
    from stsl.result import write_json

    write_json(out / "run.json", {"rows": rows, "runs": records})

    restored = [row for row in rows if row["sampler"] != "degraded"]
    if json:
        as_json(restored)
    else:
        columns = ["task", "sampler", "preset", "psnr", "ssim", "lpips_vgg", "lpips_alex", "nfe_paper", "unet_samples"]
        cells = [[_cell(column, row[column]) for column in [*columns, "seconds"]] for row in rows]
        as_table("noise 0.005; higher PSNR and SSIM, lower LPIPS are better", [*columns, "seconds"], cells)
        say(f"{time.perf_counter() - began:.0f} s. Look at {out / 'comparison.png'}")


def _restore_task(
    task: str,
    prior: "Prior",
    truth: "Image",
    settings: "list[tuple[str, Sampler]]",
    seed: int,
    out: Path,
    rows: list[dict[str, Any]],
    records: dict[str, Any],
) -> "list[tuple[str, Image]]":
    """Degrade and restore; append table rows and records; return the labelled pictures of the task."""
    from stsl import images, operators, tasks
    from stsl.restorer import Restorer
    from stsl.samplers import SAMPLERS

    names = {cls: name for name, cls in SAMPLERS.items()}
    y, physics = tasks.measure(task, truth, noise=NOISE, ids=("astronaut",), seed=seed)
    degraded = operators.as_picture(y, physics, truth.shape[1:])
    images.write(out / f"{task}_degraded.png", degraded)
    pictures = [("original", truth), (task, degraded)]
    rows.append(_row(task, "degraded", "", degraded, truth, None))
    for preset, sampler in settings:
        name = names[type(sampler)]
        run = Restorer(prior, sampler).frames(y, physics, ids=("astronaut",), seed=seed)
        for _ in watch(run, f"{task}: {name}"):
            pass
        result = run.result()
        images.write(out / f"{task}_{name}.png", result.image)
        rows.append(_row(task, name, preset, result.image, truth, result.record()))
        records[f"{task}_{name}"] = result.record()
        pictures.append((f"{type(sampler).__name__} ({preset})", result.image))
    return pictures


def _row(
    task: str, sampler: str, preset: str, x: "Image", truth: "Image", record: dict[str, Any] | None
) -> dict[str, Any]:
    from stsl.metrics import psnr, ssim

    # Scored as the saved 8-bit file will be.
    x = (x.cpu() * 255).round() / 255
    return {
        "task": task,
        "sampler": sampler,
        "preset": preset,
        "psnr": float(psnr(x, truth)),
        "ssim": float(ssim(x, truth)),
        "lpips_vgg": _lpips("vgg", x, truth),
        "lpips_alex": _lpips("alex", x, truth),
        "nfe_paper": record["nfe_paper"] if record else 0,
        "unet_samples": record["unet_samples"] if record else 0,
        "seconds": record["seconds"] if record else 0.0,
    }


def _lpips(net: str, x: "Image", truth: "Image") -> float | None:
    """The distance, or None where the weights were not fetched."""
    from stsl.perceptual import LPIPS

    return float(LPIPS(net)(x, truth)) if LPIPS.available(net) else None


def _cell(column: str, value: Any) -> object:
    if value is None:
        return "not fetched"
    if isinstance(value, float):
        return f"{value:.{ {'psnr': 2, 'seconds': 0, 'unet_samples': 0}.get(column, 3) }f}"
    return value
