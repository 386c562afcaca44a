"""`stsl restore`: corrupted photos in, restored photos out."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table, complain, say, watch
from stsl.cli.shared import Decoder, Device, Memory, Offline, PrecisionName, PriorName, memory_budget, planned

if TYPE_CHECKING:
    from stsl.photos import Corruption, Job, Prepared
    from stsl.priors.base import Prior
    from stsl.result import Result
    from stsl.samplers import Sampler

# What is wrong with a photo, or with restoring it; anything else is a fault of this program.
ERRORS = (ValueError, TypeError, OSError, RuntimeError)

WORTH_A_REHEARSAL = 40  # steps in all; a rehearsal takes two of each kind


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
    prior: PriorName = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the photo shows; the empty text when left out.")] = None,
    samples: Annotated[int, typer.Option(help="Posterior samples; several give mean and std pictures.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all noise.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Photos, or samples of one photo, restored together.", min=1)] = 1,
    crop: Annotated[str | None, typer.Option(help="face or mask: restore that square and put it back.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale the whole photo to the prior and back.")] = False,
    tiles: Annotated[bool, typer.Option("--tiles", help="The whole photo at its own size, in tiles.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("restored"),
    resume: Annotated[bool, typer.Option("--resume", help="Skip photos that are done with these settings.")] = False,
    on_error: Annotated[str, typer.Option(help="skip a photo that fails, or stop.")] = "skip",
    engine: Annotated[str, typer.Option(help="local, or ray: on every GPU of this machine or of a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster that you trust.")] = None,
    device: Device = None,
    precision: PrecisionName = "auto",
    memory: Memory = "auto",
    decoder: Decoder = None,
    compile: Annotated[bool, typer.Option("--compile", help="Minutes now, faster photos then.")] = False,
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
    from stsl.cli.choose import choose_prior, choose_sampler, kind_of
    from stsl.photos import Job
    from stsl.priors.load import load_prior
    from stsl.restorer import Restorer

    corruption = _corruption(task, mask, kernel, operator, noise)
    method = choose_sampler(sampler, preset, set or [], kind_of(corruption), fast=fast)
    chosen = choose_prior(prior, method)
    sources = images.find(inputs, skip=out)
    targets = images.outputs(sources, out)
    budget = memory_budget(memory)
    loading: dict[str, Any] = {"name": chosen, "revision": revision, "device": device, "precision": precision}
    loading |= {"offline": offline, "decoder": decoder or "full", "compiled": compile}
    if engine != "local" or address is not None:
        if budget is not None or on_error == "stop":
            raise ValueError(f"--engine {engine} takes no --memory and no --on-error stop: leave them out")
        options = {"prompt": prompt, "samples": samples, "seed": seed, "crop": crop, "resize": resize, "tiles": tiles}
        pairs = [(source.path.resolve(), target.resolve()) for source, target in zip(sources, targets, strict=True)]
        rows = _spread(engine, address, loading, method, corruption, options | {"batch": batch}, pairs, resume)
        _report(rows, json)
        if any(row["output"] is None for row in rows):
            raise typer.Exit(1)
        return
    model = load_prior(**loading)
    model, _ = planned(model, method, budget, _rows(len(sources), samples, batch), offline=offline, decoder=decoder)
    code = tuple(Path(name.rpartition(":")[0]) for name in (sampler, operator or "") if ".py:" in name)
    job = Job(Restorer(model, method), corruption, prompt, samples, seed, crop, resize, tiles, batch, code)
    together = Together(job, batch if samples == 1 else 1)
    stop = on_error == "stop"

    try:
        photos = list(zip(sources, targets, strict=True))
        done = [resume and job.is_done(source.path, target) for source, target in photos]
        if not tiles:
            _say_how_long(model, method, done.count(False), samples, batch)
        for number, ((source, target), is_done) in enumerate(zip(photos, done, strict=True), start=1):
            if is_done:
                say(f"{source.path} is done already")
            elif not together.take(source.path, target, f"({number}/{len(sources)})") and stop:
                break
        else:
            together.restore_the_rest(stop)
    except KeyboardInterrupt:
        finished = sum(row["output"] is not None for row in together.rows)
        say(f"stopped: {finished} of {len(sources)} photos are done and stay; --resume goes on from there")
        raise typer.Exit(130) from None
    finally:
        order = {str(source.path): place for place, source in enumerate(sources)}
        rows = sorted(together.rows, key=lambda row: order[row["input"]])
        _report(rows, json)
    if any(row["output"] is None for row in rows):
        raise typer.Exit(1)


def _rows(photos: int, samples: int, batch: int) -> int:
    """How many photos, or samples of one, are restored together at most."""
    return min(batch, max(photos, samples))


def _say_how_long(prior: "Prior", method: "Sampler", photos: int, samples: int, batch: int) -> None:
    """What `stsl estimate` would say, where finding out takes a small part of the time itself."""
    from stsl.estimate import predict_seconds

    if photos * samples * len(method.plan(prior.schedule)) < WORTH_A_REHEARSAL:
        return
    rows = _rows(photos, samples, batch)
    try:
        seconds = predict_seconds(prior, method, rows) / rows * samples
    except ERRORS:
        return  # whatever is wrong, the run itself will say it, or save the memory that lacks
    each, whole = (datetime.timedelta(seconds=round(time)) for time in (seconds, seconds * photos))
    say(f"expected: {each} a photo" + (f", {whole} for {photos}" if photos > 1 else "") + " (hours:minutes:seconds)")


def _spread(
    engine: str,
    address: str | None,
    loading: dict[str, Any],
    method: "Sampler",
    corruption: "Corruption",
    options: dict[str, Any],
    pairs: list[tuple[Path, Path]],
    resume: bool,
) -> list[dict[str, Any]]:
    """Restore on an engine; the rows of what was not done already, in the order of the photos."""
    from stsl.bench.engine import engine_named
    from stsl.bench.folder import Restoration, restore_folder

    rows: list[dict[str, Any]] = []
    restoration = Restoration(loading, method, corruption, options, resume)
    together = options["batch"] if options["samples"] == 1 else 1
    for row in restore_folder(engine_named(engine, address), restoration, pairs, together):
        if row.get("done_already"):
            say(f"{row['input']} is done already")
            continue
        if row["output"] is None:
            complain(f"{row['input']}: {row['error']}")
        else:
            say(f"{row['output']}: {len(rows) + 1} of {len(pairs)}")
        rows.append(row)
    order = {str(source): place for place, (source, _) in enumerate(pairs)}
    return sorted(rows, key=lambda row: order[row["input"]])


@dataclass
class _Waiting:
    """A photo that is read and waits for company."""

    photo: "Prepared"
    target: Path
    label: str


class Together:
    """Restores photos of one kind together, up to `size` of them; one bad photo never stops the others."""

    def __init__(self, job: "Job", size: int) -> None:
        self.job, self.size = job, size
        self.rows: list[dict[str, Any]] = []
        self._waiting: dict[tuple[object, ...], list[_Waiting]] = {}

    def take(self, source: Path, target: Path, label: str) -> bool:
        """Read a photo, and restore it with those of its kind when there are enough. Whether all went well."""
        failed = len(self._failures)
        try:
            photo = self.job.prepare(source)
        except ERRORS as error:
            self._fail(source, error)
            return False
        group = self._waiting.setdefault(photo.kind, [])
        group.append(_Waiting(photo, target, label))
        if len(group) >= self.size:
            self._restore(self._waiting.pop(photo.kind))
        return len(self._failures) == failed

    def restore_the_rest(self, stop: bool) -> None:
        """Restore what still waits; with `stop`, until one fails."""
        while self._waiting and not (stop and self._failures):
            self._restore(self._waiting.pop(next(iter(self._waiting))))

    def _restore(self, group: list[_Waiting]) -> None:
        first = group[0]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        try:
            run = self.job.start([each.photo for each in group])
            for _ in watch(run, f"{first.photo.source.name}{more} {first.label}"):
                pass
            result = run.result()
        except ERRORS as error:
            if len(group) == 1:
                self._fail(first.photo.source, error)
                return
            message = str(error)
        else:
            for place, each in enumerate(group):
                self._finish(each, result.of(place) if len(group) > 1 else result)
            return
        half = len(group) // 2
        say(f"{len(group)} photos could not be restored together, now in halves: {message}")
        for part in (group[:half], group[half:]):
            self._restore(part)

    def _finish(self, each: _Waiting, result: "Result") -> None:
        source = each.photo.source
        try:
            row = each.photo.finish(result, each.target)
        except ERRORS as error:
            self._fail(source, error)
            return
        self.rows.append(row)
        if row["residual_is_far_off"]:
            say(
                f"{source}: the result leaves a residual of {row['residual_rms']:.4f} where noise of "
                f"{row['expected_noise_rms']:.4f} was expected: another operator, more noise, or more steps?"
            )

    @property
    def _failures(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["output"] is None]

    def _fail(self, source: Path, error: Exception) -> None:
        self.rows.append({"input": str(source), "output": None, "error": str(error)})
        # Most errors name the file already.
        complain(str(error) if source.name in str(error) else f"{source}: {error}")


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
