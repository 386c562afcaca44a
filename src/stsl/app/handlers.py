"""From the values of a form to what the page shows: generators around the jobs."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component

from stsl import images
from stsl.app import controls, jobs, orders, outcomes, pictures, sentences, words
from stsl.app.house import House
from stsl.app.orders import CLEAN, Damage, Order, Part
from stsl.app.outcomes import Step
from stsl.app.panels import (
    ONE_SAMPLE,
    SEVERAL,
    DamagePanel,
    MethodPanel,
    PartPanel,
    ResultPanel,
    RunPanel,
    Updates,
    Values,
)

log = logging.getLogger("stsl")


FAULT = "Something went wrong in the application itself. The server's log says what; try another setting."


def told(run: RunPanel, updates: Callable[[Values], Iterator[Updates]]) -> Callable[[Values], Iterator[Updates]]:
    """A handler with the same updates, whose errors become a sentence for the visitor, never a traceback."""

    def handler(values: Values) -> Iterator[Updates]:
        try:
            yield from updates(values)
            return
        except sentences.ERRORS as error:
            sentence = sentences.sentence(error)
        except Exception:
            log.exception("the application failed")
            sentence = FAULT
        yield {run.status: words.alert(sentence)}
        raise gr.Error(sentence, duration=15, print_exception=False)

    return handler


def photo_of(values: Values, field: gr.File) -> Path:
    """The upload.

    Raises:
        ValueError: there is none.
    """
    if not values[field]:
        raise ValueError("there is no photo yet: upload one, or take an example")
    return Path(values[field])


def size_of(house: House, path: Path) -> Callable[[], tuple[int, int]]:
    """Reads the size of a photo when it is asked for."""
    return lambda: jobs.read_photo(house, path).size


def whole(value: Any, what: str) -> int:
    """A whole number of a form.

    Raises:
        ValueError: the field is empty, or no whole number.
    """
    if value is None or value != round(value):
        raise ValueError(f"the {what} is a whole number, got {'nothing' if value is None else value}")
    return round(value)


def progressing(step: Step[Any], run: RunPanel, preview: gr.Image) -> Updates:
    """What a step under way changes on the page."""
    updates: Updates = {run.status: words.progress(step)}
    if step.preview is not None:
        updates[preview] = gr.update(value=pictures.pixels(step.preview), visible=True)
    return updates


def restored(outcome: outcomes.Restored, run: RunPanel, result: ResultPanel) -> Updates:
    """What a result changes on the page."""
    several = bool(outcome.samples)
    seconds = sentences.duration(outcome.settings["seconds"])
    return {
        run.status: words.status(f"Done in {seconds}."),
        result.preview: gr.update(visible=False),
        result.slider: gr.update(value=(str(outcome.before), str(outcome.after)), visible=True),
        result.download: gr.update(value=str(outcome.picture), interactive=True),
        result.record: gr.update(value=str(outcome.record), interactive=True),
        result.verdict: words.verdict(outcome),
        result.checked: gr.update(visible=True),
        **{shown: str(path) for shown, path in zip(result.check, outcome.check, strict=True)},
        result.sampled: words.note(SEVERAL if several else ONE_SAMPLE),
        result.samples: gr.update(
            value=[(str(path), f"Sample {k + 1}") for k, path in enumerate(outcome.samples)], visible=several
        ),
        result.mean: gr.update(value=_shown(outcome.mean), visible=several),
        result.std: gr.update(value=_shown(outcome.std), visible=several),
        result.settings: dict(outcome.settings),
    }


def cleared(result: ResultPanel) -> Updates:
    """A place for a new result."""
    return {
        result.preview: gr.update(value=None, visible=True),
        result.slider: gr.update(value=None, visible=False),
        result.download: gr.update(value=None, interactive=False),
        result.record: gr.update(value=None, interactive=False),
        result.verdict: "",
        result.checked: gr.update(visible=False),
        result.settings: None,
    }


def _shown(path: Path | None) -> str | None:
    return None if path is None else str(path)


def restoration(
    house: House,
    order: Callable[[Values], Order],
    run: RunPanel,
    result: ResultPanel,
) -> Callable[[Values], Iterator[Updates]]:
    """The handler of a form that `order` reads."""

    def updates(values: Values) -> Iterator[Updates]:
        yield cleared(result)
        for step in jobs.restore(house, order(values)):
            if step.outcome is None:
                yield progressing(step, run, result.preview)
            else:
                yield restored(step.outcome, run, result)

    return told(run, updates)


def ordered(
    house: House,
    photo: gr.File,
    damage: DamagePanel,
    part: PartPanel,
    method: MethodPanel,
    more: Mapping[str, Component],
) -> Callable[[Values], Order]:
    """Reads the form of the tab Restore."""

    def read(values: Values) -> Order:
        wrong = damage.read(values)
        assert wrong is not None
        path = photo_of(values, photo)
        return order_of(path, wrong, part.read(values, size_of(house, path)), method, more, values)

    return read


def painted(
    house: House,
    photo: gr.File,
    editor: gr.ImageEditor,
    mask: gr.File,
    part: PartPanel,
    method: MethodPanel,
    more: Mapping[str, Component],
) -> Callable[[Values], Order]:
    """Reads the form of the tab Inpaint: the mask is what was painted, or a file."""

    def read(values: Values) -> Order:
        path = photo_of(values, photo)
        hole = Path(values[mask]) if values[mask] else painted_mask(house, path, values[editor])
        wrong = Damage("mask", noise=0.0, mask=hole)
        return order_of(path, wrong, part.read(values, size_of(house, path)), method, more, values)

    return read


def painted_mask(house: House, path: Path, drawn: Mapping[str, Any] | None) -> Path:
    """A file with what was painted over a photo, at the photo's own size.

    Raises:
        ValueError: nothing was painted.
    """
    photo = jobs.read_photo(house, path)
    layers = [np.asarray(layer) for layer in (drawn or {}).get("layers") or []]
    hole = pictures.mask_from_layers(layers, photo.size)
    if hole is None:
        raise ValueError("nothing is painted yet: paint over what is to be filled, or upload a mask")
    mask = jobs.new_file(house, "mask.png")
    pictures.write_mask(mask, hole)
    return mask


def order_of(
    path: Path, wrong: Damage, part: Part, method: MethodPanel, more: Mapping[str, Component], values: Values
) -> Order:
    """The order of a form."""
    name = method.name(values)
    sampler = orders.sampler(name, values[method.quality], wrong.kind, method.chosen(values))
    return Order(
        path,
        wrong,
        name,
        sampler,
        values[method.model],
        part,
        values[more["prompt"]] or "",
        whole(values[more["samples"]], "number of samples"),
        whole(values[more["seed"]], "seed"),
    )


def estimating(house: House, method: MethodPanel, samples: gr.Slider) -> Callable[[Values], Iterator[str]]:
    """What the form's method would take."""

    def handler(values: Values) -> Iterator[str]:
        try:
            name = method.name(values)
            sampler = orders.sampler(name, values[method.quality], None, method.chosen(values))
            for expected in jobs.estimate(house, values[method.model], sampler, round(values[samples])):
                said = sentences.in_words(expected)
                yield words.note(f"Takes {said} on this machine." if said else "An estimate follows when it is free.")
        except sentences.ERRORS as error:  # the form is not complete yet, or the method does not take this model
            yield words.note(sentences.sentence(error))

    return handler


def _of(width: int, height: int, size: tuple[int, int]) -> str:
    return "all of it" if (height, width) == size else f"the framed part, {width} x {height},"


def showing_part(
    house: House,
    photo: gr.File,
    part: PartPanel,
    kind: Callable[[Values], tuple[str, Path | None]],
    model: Callable[[Values], str],
    *,
    is_painted: bool = False,
) -> Callable[[Values], Updates]:
    """The photo with a frame around what would be restored; where it is painted on, that stands elsewhere already."""

    def handler(values: Values) -> Updates:
        hidden = {part.picture: gr.update(value=None, visible=False)}
        if not values[photo]:
            return hidden | {part.said: ""}
        try:
            path, (damage, mask) = Path(values[photo]), kind(values)
            chosen = part.read(values, size_of(house, path))
            if is_painted and mask is None and chosen.kind in ("auto", "mask"):
                jobs.read_photo(house, path)
                return hidden | {part.said: words.note("The face is filled in, or a square around what you paint.")}
            found, box = jobs.region(house, path, model(values), damage, chosen, mask)
        except sentences.ERRORS as error:
            return hidden | {part.said: words.alert(sentences.sentence(error))}
        said = f"{found.size[1]} x {found.size[0]} pixels; {_of(box.width, box.height, found.size)} is restored."
        return {
            part.picture: gr.update(value=pictures.pixels(pictures.framed(found, box)), visible=True),
            part.said: words.note(said),
        }

    return handler


def choosing_part(
    house: House,
    photo: gr.File,
    part: PartPanel,
    kind: Callable[[Values], tuple[str, Path | None]],
    model: Callable[[Values], str],
    show: Callable[[Values], Updates],
) -> Callable[[Values], Updates]:
    """The frame of another part; the sliders of a square begin at what would be taken without a choice."""

    def handler(values: Values) -> Updates:
        is_square = values[part.part] == "box"
        shown: Updates = {part.square: gr.update(visible=is_square)}
        sliders: Updates = {}
        if is_square and values[photo]:
            with suppress(*sentences.ERRORS):  # what is wrong is said below
                damage, mask = kind(values)
                found, box = jobs.region(house, Path(values[photo]), model(values), damage, Part(), mask)
                sliders = part.shown(box, found.size)
        return shown | sliders | show({**values, **sliders})

    return handler


def finding_face(
    house: House, photo: gr.File, part: PartPanel, show: Callable[[Values], Updates]
) -> Callable[[Values], Updates]:
    """Set the square to the largest face."""

    def handler(values: Values) -> Updates:
        try:
            found = jobs.read_photo(house, photo_of(values, photo))
            sliders = part.shown(images.find_face(found), found.size)
        except sentences.ERRORS as error:
            return {part.said: words.alert(sentences.sentence(error))}
        return sliders | show({**values, **sliders})

    return handler


def to_paint_on(house: House) -> Callable[[str | None], Any]:
    """The upright photo for the editor; what was painted on the one before is gone."""

    def handler(path: str | None) -> Any:
        try:
            found = jobs.read_photo(house, Path(path)) if path else None
        except sentences.ERRORS:  # what is wrong with it is said elsewhere
            found = None
        if found is None:
            return gr.update(value=None, visible=False)
        shown = pictures.pixels(pictures.shown(pictures.on_white(found)))
        return gr.update(value={"background": shown, "layers": [], "composite": None}, visible=True)

    return handler


def editing(
    house: House, form: Mapping[str, Component], damage: DamagePanel, part: PartPanel, run: RunPanel,
    out: Mapping[str, Component],
) -> Callable[[Values], Iterator[Updates]]:  # fmt: skip
    """The handler of the tab Edit with text."""

    def read(values: Values) -> orders.EditOrder:
        editor = values[form["editor"]] or None
        edit = {"cross": values[form["cross"]], "self_attention": values[form["self_attention"]]}
        if words_ := (values[form["blend"]] or "").strip():
            edit["blend"] = tuple(word.strip() for word in words_.split(","))
        path = photo_of(values, form["photo"])
        return orders.EditOrder(
            path,
            values[form["source"]] or "",
            values[form["target"]] or "",
            damage.read(values),
            editor,
            {"steps": whole(values[form["steps"]], "number of steps"), "guidance": float(values[form["guidance"]])},
            values[form["quality"]],
            edit,
            values[form["model"]],
            part.read(values, size_of(house, path)),
            whole(values[form["seed"]], "seed"),
        )

    def updates(values: Values) -> Iterator[Updates]:
        order = read(values)
        yield {out["preview"]: gr.update(value=None, visible=True), out["note"]: "", out["settings"]: None} | {
            out[name]: gr.update(value=None) for name in ("restored", "edited", "words")
        }
        for step in jobs.edit(house, order):
            if step.outcome is None:
                yield progressing(step, run, out["preview"])
                continue
            done = step.outcome
            yield {
                run.status: words.status(f"Done in {sentences.duration(done.settings['seconds'])}."),
                out["preview"]: gr.update(visible=False),
                out["restored"]: str(done.restored),
                out["edited"]: str(done.edited),
                out["words"]: str(done.words),
                out["note"]: words.note(REUSED if done.reused else ANEW),
                out["download"]: gr.update(value=str(done.edited), interactive=True),
                out["record"]: gr.update(value=str(done.record), interactive=True),
                out["settings"]: dict(done.settings),
            }

    return told(run, updates)


REUSED = "Inversion reused: an earlier edit of this photo had the same settings."
ANEW = "Inverted anew; the next edit of this photo with the same settings reuses it."


def comparing(
    house: House, form: Mapping[str, Component], damage: DamagePanel, part: PartPanel, run: RunPanel,
    out: Mapping[str, Component],
) -> Callable[[Values], Iterator[Updates]]:  # fmt: skip
    """The handler of the tab Compare."""

    def updates(values: Values) -> Iterator[Updates]:
        path, wrong = photo_of(values, form["photo"]), damage.read(values) or CLEAN
        seed, chosen = whole(values[form["seed"]], "seed"), values[form["methods"]] or []
        wanted = [
            Order(
                path,
                wrong,
                name,
                orders.sampler(name, quality_of(name, values[form["quality"]]), wrong.kind),
                values[form["model"]],
                part.read(values, size_of(house, path)),
                seed=seed,
            )
            for name in chosen
        ]
        yield {out["gallery"]: None, out["table"]: "", out["preview"]: gr.update(value=None, visible=True)}
        for step in jobs.compare(house, wanted):
            if step.outcome is None:
                yield progressing(step, run, out["preview"])
                continue
            pairs = [(str(row.picture), row.method) for row in step.outcome if row.picture is not None]
            yield {
                run.status: words.status("Done."),
                out["preview"]: gr.update(visible=False),
                out["gallery"]: [(str(path), "Photo"), *pairs],
                out["table"]: words.table(step.outcome),
            }

    return told(run, updates)


def quality_of(method: str, wanted: str) -> str:
    """The quality that was asked for, or the next slower one that a method has."""
    if method not in controls.methods():
        raise ValueError(f"unknown method {method!r}")
    there = controls.qualities(controls.methods()[method])
    order = list(controls.QUALITIES)
    return next((name for name in order[order.index(wanted) :] if name in there), there[-1])
