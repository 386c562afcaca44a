"""What a visitor can have done: values in, values out, nothing of gradio.

A job is a generator. It yields a `Step` whenever there is something to see, and its last step has the outcome. Whoever
closes it cancels it: the place to compute is free from the step on that was under way.
"""

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stsl import images, tasks
from stsl.app import pictures
from stsl.app.controls import methods
from stsl.app.deadline import Deadline, Timed
from stsl.app.house import House
from stsl.app.orders import CLEAN, LONGEST_PROMPT, Damage, EditOrder, Order, Part, sampler
from stsl.app.outcomes import Changed, Expected, Restored, Row, Step
from stsl.app.sentences import ERRORS, sentence
from stsl.editing import Edited, Editing
from stsl.editors import EDITORS, Edit, Editor
from stsl.estimate import estimate_memory, plain_problem, predict_seconds, rehearse
from stsl.images import Box, Photo
from stsl.loop import Frame
from stsl.memory import GIB, available
from stsl.options import nearest
from stsl.photos import Job, Prepared, sidecar
from stsl.priors.base import Prior
from stsl.restorer import Restorer
from stsl.result import Result, write_json
from stsl.samplers import Sampler
from stsl.shapes import Tensor

PREVIEWS = 20  # of a job, at most
REHEARSED = 10  # steps that an estimate looks at; the others are like them


def read_photo(house: House, path: Path) -> Photo:
    """An upload, within the limits.

    Raises:
        ValueError, OSError: it is no photo, damaged or too large.
    """
    return images.read(path, max_megapixels=house.limits.megapixels)


def restore(house: House, order: Order) -> Iterator[Step[Restored]]:
    """Restore a photo.

    Raises:
        ValueError, TypeError, OSError, RuntimeError: with a sentence for the visitor; see `sentence`.
    """
    yield from _restoring(house, order, None)


def _restoring(house: House, order: Order, deadline: Deadline | None) -> Iterator[Step[Restored]]:
    """The same; without a deadline the job has its full time from when it begins."""
    _check(house, order.samples, order.seed, order.prompt)
    model = order.model or house.prior_for(type(order.sampler))
    prior = house.prior(model)
    photo = read_photo(house, order.photo)
    if house.is_busy:
        yield Step("waiting for the machine to be free")
    with house.one_at_a_time():
        yield Step("preparing the photo")
        deadline = deadline or Deadline(house.limits.seconds)
        prepared = _prepared(house, Restorer(Timed(prior, deadline), order.sampler), order, photo)
        run = prepared.job.start([prepared])
        for frame, step in _watched(run, deadline):
            yield replace(step, preview=run.preview(frame)[:1]) if _is_shown(frame) else step
        result = run.result()
        again = run.problem.physics.A(result.image)
    yield Step("writing the pictures", 1.0, 0.0)
    folder = house.new_folder()
    yield Step("done", 1.0, 0.0, outcome=_written(folder, order, model, prepared, result, again))


def _prepared(house: House, restorer: Restorer, order: Order | EditOrder, photo: Photo) -> Prepared:
    """The photo's part, ready; what is written later says nothing of where the photo was taken."""
    damage = order.damage or CLEAN
    size = _measured(restorer, damage)
    factor = restorer.prior.image_shape[1] // size[0]
    megapixels = photo.size[0] * photo.size[1] * factor**2 / 1e6
    if megapixels > house.limits.megapixels:
        raise ValueError(
            f"enlarged {factor} times this photo has {megapixels:.3g} megapixels, the limit is "
            f"{house.limits.megapixels:g}: cut out or shrink what is to be enlarged first"
        )
    taken = order.part.of(photo, size, _known(house, damage.mask, photo))
    samples, prompt = (order.samples, order.prompt or None) if isinstance(order, Order) else (1, None)
    job = Job(
        restorer,
        damage.corruption,
        prompt,
        samples,
        order.seed,
        max_megapixels=house.limits.megapixels,
        **taken,
    )
    prepared = job.prepare(order.photo)
    assert prepared.photo is not None
    return replace(prepared, photo=pictures.without_exif(prepared.photo))


def _known(house: House, mask: Path | None, photo: Photo) -> Tensor | None:
    """What of a photo is known."""
    return None if mask is None else images.read_mask(mask, photo.size, max_megapixels=house.limits.megapixels)


def _measured(restorer: Restorer, damage: Damage) -> tuple[int, int]:
    """(height, width) of a photo that is restored as it is."""
    height, width = restorer.prior.image_shape[1:]
    factor = tasks.factor(damage.kind) if damage.kind in tasks.TASKS else 1
    return height // factor, width // factor


def _is_shown(frame: Frame) -> bool:
    every = max(1, frame.total // PREVIEWS)
    return frame.index % every == 0 or frame.index + 1 == frame.total


def _watched(run: Iterator[Frame], deadline: Deadline) -> Iterator[tuple[Frame, Step[Any]]]:
    """The frames of a run with how far it is, until it is through or its time is up.

    Raises:
        Overtime: it took longer than a job may.
    """
    stage, entered = "", time.monotonic()
    ended = entered
    for frame in run:
        deadline.check()
        if frame.stage != stage:
            stage, entered = frame.stage, ended
        ended = time.monotonic()
        left = (ended - entered) / (frame.index + 1) * (frame.total - frame.index - 1)
        yield frame, Step(f"step {frame.index + 1} of {frame.total}", (frame.index + 1) / frame.total, left)


def _written(
    folder: Path, order: Order, model: str, prepared: Prepared, result: Result, again: torch.Tensor
) -> Restored:
    """The files of a result."""
    name = images.safe_stem(order.photo.stem)
    target = folder / f"{name}.png"
    row = prepared.finish(result, target)
    record, settings = _record(target, order, model, prepared)
    assert prepared.photo is not None
    whole = prepared.whole(result.image, keep_known=result.expected_noise_rms == 0)
    before = pictures.before(prepared.photo, (whole.shape[2], whole.shape[3]))
    shown = {"before": before, "after": whole}
    for called, x in shown.items():
        images.write(folder / "shown" / f"{called}.png", pictures.shown(x))
    expected = result.expected_noise_rms
    y, again = result.y.cpu().float(), again.cpu().float()
    gap, white = pictures.difference(y, again, expected)
    check = [folder / "shown" / f"{called}.png" for called in ("measured", "predicted", "difference")]
    for path, x in zip(check, (y, again, gap), strict=True):
        images.write(path, pictures.enlarged(x.clamp(0, 1)))
    several = order.samples > 1
    return Restored(
        picture=target,
        before=folder / "shown" / "before.png",
        after=folder / "shown" / "after.png",
        settings=settings,
        record=record,
        check=check,
        white=white,
        residual=float(result.residual_rms[0]),
        expected=expected,
        far_off=row["residual_is_far_off"],
        kept=prepared.known is not None and expected == 0,
        samples=[folder / f"{name}_sample{k}.png" for k in range(order.samples)] if several else (),
        mean=folder / f"{name}_mean.png" if several else None,
        std=folder / f"{name}_std.png" if several else None,
    )


def _record(target: Path, order: Order, model: str, prepared: Prepared) -> tuple[Path, dict[str, Any]]:
    """The file of settings without the server's paths, and the settings without the numbers of every step."""
    full = json.loads(sidecar(target).read_text(encoding="utf-8"))
    job = prepared.job
    box = None if prepared.fit is None else vars(prepared.fit.box)
    said = {"photo": order.photo.name, "method": order.method, "model": model, **order.damage.settings()}
    said |= {"part": "tiles" if job.tiles else order.part.kind, "box": box}
    full = said | {key: value for key, value in full.items() if key not in ("input", "output", "corruption", *said)}
    sidecar(target).unlink()
    path = target.with_name(f"{target.stem}_settings.json")
    write_json(path, full)
    return path, {key: value for key, value in full.items() if key != "log"}


def compare(house: House, orders: Sequence[Order]) -> Iterator[Step[Sequence[Row]]]:
    """Restore one photo by several methods: the same measurement, the same seed.

    A method that cannot take it has a row that says why.

    Raises:
        ValueError, TypeError, OSError, RuntimeError: fewer than two methods, or a photo that no method could take.
    """
    if len(orders) < 2:
        raise ValueError("a comparison needs two methods or more: choose another one")
    read_photo(house, orders[0].photo)
    rows: list[Row] = []
    deadline = Deadline(house.limits.seconds)
    for number, order in enumerate(orders):
        called = type(order.sampler).__name__
        try:
            for step in _restoring(house, order, deadline):
                share = (number + (step.done or 0.0)) / len(orders)
                said = f"{called} ({number + 1} of {len(orders)}): {step.said}"
                if step.outcome is not None:
                    rows.append(_row(called, step.outcome))
                else:
                    yield Step(said, share, None, step.preview)
        except ERRORS as error:
            rows.append(Row(called, error=sentence(error)))
    yield Step("done", 1.0, 0.0, outcome=rows)


def _row(method: str, outcome: Restored) -> Row:
    settings = outcome.settings
    return Row(
        method,
        outcome.picture,
        outcome.residual,
        outcome.expected,
        settings["network_evaluations"],
        settings["seconds"],
    )


def edit(house: House, order: EditOrder) -> Iterator[Step[Changed]]:
    """Change what a photo shows, by two texts; the inversion is kept for the next edit of the same photo.

    Raises:
        ValueError, TypeError, OSError, RuntimeError: with a sentence for the visitor; see `sentence`.
    """
    _check(house, 1, order.seed, f"{order.source} {order.target}")
    editor, change = _editor(order), Edit(order.source, order.target, **order.edit)
    model = order.model or _text_prior(house)
    house.prior(model)  # refused now, where there is none
    photo = read_photo(house, order.photo)
    if house.is_busy:
        yield Step("waiting for the machine to be free")
    with house.one_at_a_time():
        yield Step("preparing the photo")
        deadline = Deadline(house.limits.seconds)
        prior = Timed(house.prior(model), deadline)
        prepared = _prepared(house, Restorer(prior, editor.stages()[0]), order, photo)
        problem = prepared.job.start([prepared]).problem
        house.sweep()
        run = Editing(prior, editor, cache=house.folder / "inversions").frames(
            problem.y, problem.physics, change, seed=order.seed, ids=(order.photo.stem,)
        )
        if run.was_kept:
            yield Step("the inversion of an earlier edit is used again")
        for frame, step in _watched(run, deadline):
            said = f"{STAGES.get(frame.stage, frame.stage)}: {step.said}"
            shown = run.preview(frame)[:1] if _is_shown(frame) and frame.stage in ("restore", "edit") else None
            yield replace(step, said=said, preview=shown)
        result = run.result()
    yield Step("writing the pictures", 1.0, 0.0)
    yield Step("done", 1.0, 0.0, outcome=_changed(house.new_folder(), order, model, prepared, result))


# What a visitor is told of an editor's stages.
STAGES = {"restore": "restoring", "invert": "inverting", "null": "tuning the empty text", "edit": "editing"}


def _editor(order: EditOrder) -> Editor:
    name = order.editor or ("stsl-cat" if order.damage else "nti-cat")
    if name not in EDITORS:
        raise ValueError(f"unknown editor {name!r}{nearest(name, EDITORS)}; there are {', '.join(EDITORS)}")
    editor: Any = EDITORS[name]()
    allowed = editor.settings().keys() - {"restorer", "vit"}
    if unknown := order.settings.keys() - allowed:
        raise ValueError(f"editor {name} has no setting {min(unknown)!r}; it has {', '.join(sorted(allowed))}")
    changes = dict(order.settings)
    if order.damage is not None:
        changes["restorer"] = sampler("stsl", order.quality, order.damage.kind)
    changed: Editor = replace(editor, **changes)
    return changed


def _text_prior(house: House) -> str:
    for name, prior in house.priors.items():
        if prior.has_text and prior.family == "latent":
            return name
    raise ValueError("no model that is loaded here understands text, so photos cannot be edited by text")


def _changed(folder: Path, order: EditOrder, model: str, prepared: Prepared, result: Edited) -> Changed:
    name = images.safe_stem(order.photo.stem)
    files = {called: folder / f"{name}_{called}.png" for called in ("restored", "edited")}
    for called, x in (("restored", result.restored), ("edited", result.edited)):
        images.write(files[called], prepared.whole(x), like=prepared.photo)
    for called, picture in (("side_by_side", result.side_by_side()), ("words", result.map_pictures())):
        files[called] = folder / f"{name}_{called}.png"
        images.write(files[called], picture)
    said = {"photo": order.photo.name, "model": model, **(order.damage or CLEAN).settings(), "part": order.part.kind}
    full = said | result.record()
    record = folder / f"{name}_settings.json"
    write_json(record, full)
    return Changed(
        restored=files["restored"],
        edited=files["edited"],
        side_by_side=files["side_by_side"],
        words=files["words"],
        settings={key: value for key, value in full.items() if key != "log"},
        record=record,
        reused=bool(result.settings["inversion_was_kept"]),
    )


def estimate(house: House, model: str, sampler: Sampler, samples: int = 1) -> Generator[Expected, None, None]:
    """Seconds of a run, then its memory too. What was found is kept; nothing is run while somebody computes."""
    prior = house.prior(model)
    steps = min(sampler.steps, REHEARSED)
    short: Sampler = replace(sampler, steps=steps)  # type: ignore[type-var]
    key, times = (model, *_what_costs(prior, short)), samples * sampler.steps / steps
    known = house.estimates.get(key, Expected(None, None))
    if known.seconds is None and not house.is_busy:
        with house.one_at_a_time():
            known = Expected(predict_seconds(prior, short), known.bytes)
        house.estimates[key] = known
    yield Expected(known.seconds and known.seconds * times, known.bytes)
    if known.bytes is None and known.seconds is not None and not house.is_busy:
        taken = estimate_memory(prior, short)
        known = Expected(known.seconds, taken.needed if prior.device.type == "cuda" else taken.peak)
        house.estimates[key] = known
        yield Expected(known.seconds and known.seconds * times, known.bytes)


def _what_costs(prior: Prior, sampler: Sampler) -> tuple[Any, ...]:
    """What seconds and bytes depend on: the network calls of each kind of step, choices, and which weights are 0."""
    settings = [value for value in sampler.settings().values() if type(value) is not int]
    choices = [bool(value) if isinstance(value, float) else value for value in settings]
    calls = [tuple(vars(kind.cost).values()) for kind in rehearse(plain_problem(prior, sampler), sampler)]
    return (type(sampler), *choices, *calls)


def health(house: House) -> dict[str, Any]:
    """Whether the application is there, what it has loaded, and what it may be asked for."""
    first = next(iter(house.priors.values()))
    free = available(first.device)
    return {
        "status": "busy" if house.is_busy else "ready",
        "models": list(house.priors),
        "methods": list(methods()),
        "device": str(first.device),
        "free_gib": None if free is None else round(free / GIB, 1),
        "limits": vars(house.limits),
    }


def region(
    house: House, path: Path, model: str, damage: str, part: Part, mask: Path | None = None
) -> tuple[Photo, Box]:
    """An upload, and the part of it that would be restored.

    Args:
        path: the upload.
        model: whose size the part is for.
        damage: kind of the damage.
        part: which part.
        mask: with a mask, it.
    """
    photo, prior = read_photo(house, path), house.prior(model)
    factor = tasks.factor(damage) if damage in tasks.TASKS else 1
    size = (prior.image_shape[1] // factor, prior.image_shape[2] // factor)
    known = _known(house, mask, photo)
    taken = part.of(photo, size, known)
    if taken.get("tiles"):
        return photo, Box(0, 0, *photo.size)
    return photo, images.fit(photo, size, known=known, **taken).box


def _check(house: House, samples: int, seed: int, prompt: str) -> None:
    if not 1 <= samples <= house.limits.samples:
        raise ValueError(f"samples = {samples}: choose 1 to {house.limits.samples}")
    if seed < 0:
        raise ValueError(f"seed = {seed}: choose 0 or more")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"the text has {len(prompt)} letters: {LONGEST_PROMPT} at most")


def new_file(house: House, name: str) -> Path:
    """A place for a file that a job needs, such as a painted mask."""
    return house.new_folder() / name
