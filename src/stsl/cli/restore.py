"""`stsl restore`: corrupted photos in, restored photos out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table, complain, say, watch
from stsl.cli.shared import Device, Offline, PrecisionName, PriorName

if TYPE_CHECKING:
    from stsl.photos import Corruption, Job


def restore(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Corrupted photos: files, folders, globs.")],
    task: Annotated[str | None, typer.Option(help="How they were corrupted: NAME[:key=value,...].")] = None,
    mask: Annotated[Path | None, typer.Option(help="Picture as large as the photo: white is missing.")] = None,
    kernel: Annotated[Path | None, typer.Option(help="Picture of the blur kernel, odd sides.")] = None,
    operator: Annotated[str | None, typer.Option(help="File of `stsl degrade`, or my_file.py:function.")] = None,
    noise: Annotated[float | None, typer.Option(help="Std of the noise on [0, 1]; 0.005 where no file says.")] = None,
    sampler: Annotated[str, typer.Option(help="Name of `stsl list samplers`, or file.py:Class.")] = "stsl",
    preset: Annotated[str | None, typer.Option(help="Named setting; balanced when left out.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The preset fast.")] = False,
    set: Annotated[list[str] | None, typer.Option("--set", help="key=value of a field; may be repeated.")] = None,
    prior: PriorName = "faces-128",
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the photo shows; the empty text when left out.")] = None,
    samples: Annotated[int, typer.Option(help="Posterior samples; several give mean and std pictures.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all noise.", min=0)] = 0,
    crop: Annotated[str | None, typer.Option(help="face or mask: restore that square and put it back.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale the whole photo to the prior and back.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("restored"),
    resume: Annotated[bool, typer.Option("--resume", help="Skip photos that are done with these settings.")] = False,
    on_error: Annotated[str, typer.Option(help="skip a photo that fails, or stop.")] = "skip",
    device: Device = None,
    precision: PrecisionName = "auto",
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Restore corrupted photos. INPUT is what you have: nothing is degraded.

    A result keeps its photo's size (times the factor for super-resolution), format, orientation, colour profile,
    transparency and EXIF data, the GPS position among them. A JSON file beside it holds settings, seed and residual.

    Example: `stsl restore old/*.jpg --task gaussian_blur --crop face --out restored`
    """
    if on_error not in ("skip", "stop"):
        raise ValueError(f"--on-error {on_error}: give skip or stop")
    from stsl import images
    from stsl.cli.choose import choose_sampler
    from stsl.photos import Job
    from stsl.priors.load import load_prior
    from stsl.restorer import Restorer

    corruption = _corruption(task, mask, kernel, operator, noise)
    method = choose_sampler(sampler, preset, set or [], task, fast=fast)
    sources = images.find(inputs, skip=out)
    targets = images.outputs(sources, out)
    model = load_prior(prior, revision=revision, device=device, precision=precision, offline=offline)  # type: ignore[arg-type]
    job = Job(Restorer(model, method), corruption, prompt, samples, seed, crop, resize)

    rows: list[dict[str, Any]] = []
    try:
        for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
            try:
                if resume and job.is_done(source.path, target):
                    say(f"{source.path} is done already")
                    continue
                rows.append(_restore_one(job, source.path, target, f"{source.path.name} ({number}/{len(sources)})"))
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                rows.append({"input": str(source.path), "output": None, "error": str(error)})
                # Most errors name the file already.
                complain(str(error) if source.path.name in str(error) else f"{source.path}: {error}")
                if on_error == "stop":
                    break
    except KeyboardInterrupt:
        done = sum(row["output"] is not None for row in rows)
        say(f"stopped: {done} of {len(sources)} photos are done and stay; --resume goes on from there")
        raise typer.Exit(130) from None
    finally:
        _report(rows, json)
    if any(row["output"] is None for row in rows):
        raise typer.Exit(1)


def _restore_one(job: "Job", source: Path, target: Path, label: str) -> dict[str, Any]:
    prepared = job.prepare(source)
    for _ in watch(prepared.run, label):
        pass
    row = prepared.finish(target)
    if row["residual_is_far_off"]:
        say(
            f"{source}: the result leaves a residual of {row['residual_rms']:.4f} where noise of "
            f"{row['expected_noise_rms']:.4f} was expected: another operator, more noise, or more steps?"
        )
    return row


def _corruption(
    task: str | None, mask: Path | None, kernel: Path | None, operator: str | None, noise: float | None
) -> "Corruption":
    from stsl.cli.choose import load_attribute
    from stsl.photos import Corruption

    for path in (mask, kernel):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    if operator is not None and ".py:" in operator:
        function = (load_attribute(operator, "--operator"), operator)
        return Corruption(task, mask, kernel, None, function, noise)
    path = None if operator is None else Path(operator)
    if path is not None and not path.is_file():
        raise FileNotFoundError(
            f"there is no operator file {path}; `stsl degrade` writes one, or give my_file.py:function"
        )
    return Corruption(task, mask, kernel, path, None, noise)


def _report(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        as_json(rows)
        return
    done = [row for row in rows if row["output"] is not None]
    if done:
        cells = [
            (
                row["output"],
                f"{row['residual_rms']:.4f}",
                f"{row['expected_noise_rms'] or 0:.4f}",
                f"{row['seconds']:.0f}",
            )
            for row in done
        ]
        as_table("restored", ("photo", "residual", "expected", "seconds"), cells)
