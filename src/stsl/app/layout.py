"""What the page shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from stsl.app import api, controls, handlers, words
from stsl.app.examples import Example, make_examples, whole_face
from stsl.app.house import QUEUE, House
from stsl.app.panels import (
    DamagePanel,
    MethodPanel,
    PartPanel,
    ResultPanel,
    RunPanel,
    Updates,
    Values,
    method_choices,
    photo_file,
)
from stsl.editors import EDITORS

PAINT = "rgba(236, 72, 110, 0.75)"
# Quick to answer, outside the queue of jobs.
LIGHT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build(house: House) -> gr.Blocks:
    """The page. `look.theme()` and `look.CSS` go to its `launch`.

    Args:
        house: models, limits and the folder for results.
    """
    first = next(iter(house.priors.values()))
    examples = make_examples(house.examples, first.image_shape[-1])
    face = whole_face(house.examples, 2 * first.image_shape[-1])
    with gr.Blocks(title="stsl", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        gr.HTML(words.header(house), elem_id="header", padding=False)
        with gr.Tabs():
            with gr.Tab("Restore", id="restore"):
                restore_tab(house, examples)
            with gr.Tab("Inpaint", id="inpaint"):
                inpaint_tab(house, face)
            with gr.Tab("Edit with text", id="edit"):
                edit_tab(house, face)
            with gr.Tab("Compare", id="compare"):
                compare_tab(house, examples)
            with gr.Tab("About", id="about"):
                gr.HTML(words.about(house, controls.methods()), elem_id="about", padding=False)
        api.register(page, house)
    return page


def restore_tab(house: House, examples: Sequence[Example]) -> None:
    """Upload, say what is wrong, restore."""
    tab = "restore"
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photo = photo_file(tab)
            buttons = example_buttons(tab, examples)
            part = PartPanel.build(tab)
            damage = DamagePanel.build(tab)
            method = MethodPanel.build(tab, house, method=default_method(house, "stsl"))
            run = RunPanel.build(tab, "Restore")
            part.settings.render()
            more = more_fields(tab, house)
            method.settings.render()
        with gr.Column(scale=7, min_width=320):
            result = ResultPanel.build(tab)
    for button, example in zip(buttons, examples, strict=True):
        take_example(button, example, {photo: "photo", damage.kind: "kind", damage.noise: "noise", damage.mask: "mask"})
    wire_method(house, photo, method, more, damage.kind)
    wire_part(house, photo, part, damage.shown, method.model, [damage.kind, damage.mask])
    order = handlers.ordered(house, photo, damage, part, method, more)
    wire_job(
        run,
        handlers.restoration(house, order, run, result),
        {photo, *damage.inputs, *part.inputs, *method.inputs, *more.values()},
        [run.status, *result.outputs],
    )


def inpaint_tab(house: House, face: Example) -> None:
    """Upload, paint a mask, fill it."""
    tab = "inpaint"
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photo = photo_file(tab)
            buttons = example_buttons(tab, [face])
            editor = gr.ImageEditor(
                label="Paint over what is to be filled",
                type="numpy",
                image_mode="RGBA",
                format="png",
                sources=[],
                transforms=[],
                layers=gr.LayerOptions(allow_additional_layers=False),
                brush=gr.Brush(default_size=24, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
                eraser=gr.Eraser(default_size=24),
                buttons=["fullscreen"],
                height=460,
                visible=False,
                elem_id=f"{tab}-editor",
            )
            part = PartPanel.build(tab)
            method = MethodPanel.build(tab, house, method=default_method(house, "psld"), task="mask", opened=True)
            run = RunPanel.build(tab, "Inpaint")
            with gr.Accordion("A mask from a file", open=False, elem_id=f"{tab}-mask-settings"):
                mask = photo_file(tab, "Mask file", "mask")
                gr.HTML(words.note("A picture as large as the photo: white is filled, black is kept."))
            part.settings.render()
            more = more_fields(tab, house)
            method.settings.render()
        with gr.Column(scale=7, min_width=320):
            result = ResultPanel.build(tab)
    take_example(buttons[0], face, {photo: "photo"})
    photo.change(handlers.to_paint_on(house), photo, editor, **LIGHT)

    def kind_of(values: Values) -> tuple[str, Path | None]:
        return "mask", Path(values[mask]) if values[mask] else None

    wire_part(house, photo, part, kind_of, method.model, [mask], is_painted=True)
    wire_method(house, photo, method, more, "mask")
    order = handlers.painted(house, photo, editor, mask, part, method, more)
    wire_job(
        run,
        handlers.restoration(house, order, run, result),
        {photo, editor, mask, *part.inputs, *method.inputs, *more.values()},
        [run.status, *result.outputs],
    )


def edit_tab(house: House, face: Example) -> None:
    """Two texts, and what one shows becomes what the other says."""
    tab = "edit"
    models = [name for name, prior in house.priors.items() if prior.has_text and prior.family == "latent"]
    if not models:
        gr.HTML(words.note("No model that is loaded here understands text. `stsl app` loads faces-128 by default."))
        return
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photo = photo_file(tab)
            buttons = example_buttons(tab, [face])
            source = gr.Textbox(
                "a neutral face", label="From: what the photo shows", max_length=150, elem_id=f"{tab}-from"
            )
            target = gr.Textbox("a smiling face", label="To: what it shall show", max_length=150, elem_id=f"{tab}-to")
            part = PartPanel.build(tab)
            damage = DamagePanel.build(tab, clean=True)
            quality = gr.Radio(
                list(controls.QUALITIES), value="Fast", label="Quality of the restoration", visible=False
            )
            with gr.Row():
                steps = gr.Slider(1, 100, value=20, step=1, label="Steps", elem_id=f"{tab}-steps")
                guidance = gr.Slider(1, 15, value=3, step=0.1, label="Guidance", elem_id=f"{tab}-guidance")
            run = RunPanel.build(tab, "Edit")
            part.settings.render()
            with gr.Accordion("Editor and its settings", open=False):
                with gr.Row():
                    model = gr.Dropdown(models, value=models[0], label="Model", elem_id=f"{tab}-model")
                    editor = gr.Dropdown(
                        [("Automatic", ""), *((cls.__name__, name) for name, cls in EDITORS.items())],
                        value="",
                        label="Editor",
                        elem_id=f"{tab}-editor",
                    )
                cross = gr.Slider(
                    0,
                    1,
                    value=0.8,
                    step=0.05,
                    label="Follow the words' places",
                    info="share of the steps; more keeps more",
                )
                own = gr.Slider(
                    0, 1, value=0.5, step=0.05, label="Follow the shapes", info="share of the steps; more keeps more"
                )
                blend = gr.Textbox(
                    "",
                    label="Change only (optional)",
                    info="WORD,WORD of both texts, such as neutral,smiling",
                    max_length=60,
                )
                seed = gr.Number(0, label="Seed", minimum=0, precision=0, elem_id=f"{tab}-seed")
        with gr.Column(scale=7, min_width=320):
            preview = gr.Image(
                label="Preview", format="png", interactive=False, height=360, buttons=[], elem_id=f"{tab}-preview",
                alt_text="The current estimate", visible=False,
            )  # fmt: skip
            with gr.Row(elem_classes="keep-row"):
                restored = gr.Image(
                    label="Restored", format="png", interactive=False, buttons=["fullscreen"], min_width=120,
                    elem_id=f"{tab}-restored", alt_text="The photo, restored",
                )  # fmt: skip
                edited = gr.Image(
                    label="Edited", format="png", interactive=False, buttons=["fullscreen"], min_width=120,
                    elem_id=f"{tab}-edited", alt_text="The photo, edited",
                )  # fmt: skip
            note = gr.HTML("", elem_id=f"{tab}-note")
            with gr.Row(elem_classes="keep-row"):
                download = gr.DownloadButton("Download PNG", interactive=False, elem_id=f"{tab}-download")
                record = gr.DownloadButton("Download settings", interactive=False)
            with gr.Tabs():
                with gr.Tab("Words"):
                    looked = gr.Image(
                        label="What each word looked at", format="png", interactive=False, buttons=["fullscreen"],
                        alt_text="Attention of each word of both texts",
                    )  # fmt: skip
                with gr.Tab("Settings"):
                    settings = gr.JSON(label="Settings of this run", max_height=420, elem_id=f"{tab}-settings")
    take_example(buttons[0], face, {photo: "photo"})
    damage.kind.change(lambda kind: gr.update(visible=bool(kind)), damage.kind, quality, **LIGHT)
    form: dict[str, Component] = {
        "photo": photo,
        "source": source,
        "target": target,
        "quality": quality,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "model": model,
        "editor": editor,
        "cross": cross,
        "self_attention": own,
        "blend": blend,
    }
    out: dict[str, Component] = {
        "preview": preview,
        "restored": restored,
        "edited": edited,
        "note": note,
        "download": download,
        "record": record,
        "words": looked,
        "settings": settings,
    }

    wire_part(house, photo, part, damage.shown, model, [damage.kind, damage.mask])
    wire_job(
        run,
        handlers.editing(house, form, damage, part, run, out),
        {*form.values(), *damage.inputs, *part.inputs},
        [run.status, *out.values()],
    )


def compare_tab(house: House, examples: Sequence[Example]) -> None:
    """Several methods on one photo."""
    tab = "compare"
    name = next(iter(house.priors))
    choices = method_choices(house, name)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            photo = photo_file(tab)
            buttons = example_buttons(tab, examples)
            part = PartPanel.build(tab)
            damage = DamagePanel.build(tab)
            model = gr.Dropdown(list(house.priors), value=name, label="Model", elem_id=f"{tab}-model")
            methods = gr.CheckboxGroup(
                choices, value=[value for _, value in choices][:2], label="Methods", elem_id=f"{tab}-methods"
            )
            quality = gr.Radio(list(controls.QUALITIES), value="Fast", label="Quality", elem_id=f"{tab}-quality")
            run = RunPanel.build(tab, "Compare")
            part.settings.render()
            with gr.Accordion("Seed", open=False):
                seed = gr.Number(0, label="Seed", minimum=0, precision=0, elem_id=f"{tab}-seed")
        with gr.Column(scale=7, min_width=320):
            preview = gr.Image(
                label="Preview", format="png", interactive=False, height=300, buttons=[], elem_id=f"{tab}-preview",
                alt_text="The current estimate", visible=False,
            )  # fmt: skip
            gallery = gr.Gallery(
                label="Side by side", format="png", columns=3, object_fit="contain", height="auto", interactive=False,
                buttons=["fullscreen"], elem_id=f"{tab}-gallery",
            )  # fmt: skip
            table = gr.HTML("", elem_id=f"{tab}-table")
    for button, example in zip(buttons, examples, strict=True):
        take_example(button, example, {photo: "photo", damage.kind: "kind", damage.noise: "noise", damage.mask: "mask"})

    def of_model(name: str) -> Any:
        there = method_choices(house, name)
        return gr.update(choices=there, value=[value for _, value in there][:2])

    model.change(of_model, model, methods, **LIGHT)

    wire_part(house, photo, part, damage.shown, model, [damage.kind, damage.mask])
    form: dict[str, Component] = {"photo": photo, "methods": methods, "quality": quality, "seed": seed, "model": model}
    out: dict[str, Component] = {"preview": preview, "gallery": gallery, "table": table}
    wire_job(
        run,
        handlers.comparing(house, form, damage, part, run, out),
        {*form.values(), *damage.inputs, *part.inputs},
        [run.status, *out.values()],
    )


def default_method(house: House, wanted: str) -> str:
    """The wanted method where a loaded model is of its family, else the first that can be used."""
    known = controls.methods()
    families = {prior.family for prior in house.priors.values()} | {"any"}
    return wanted if known[wanted].family in families else next(n for n, cls in known.items() if cls.family in families)


def more_fields(tab: str, house: House) -> dict[str, Any]:
    """Prompt, seed and samples."""
    with gr.Accordion("Prompt, seed and samples", open=False, elem_id=f"{tab}-more"), gr.Group():
        prompt = gr.Textbox(
            "", label="Prompt (optional)", info="what the photo shows", max_length=300, elem_id=f"{tab}-prompt"
        )
        seed = gr.Number(0, label="Seed", minimum=0, precision=0, elem_id=f"{tab}-seed")
        samples = gr.Slider(1, house.limits.samples, value=1, step=1, label="Samples", elem_id=f"{tab}-samples-number")
    return {"prompt": prompt, "seed": seed, "samples": samples}


def example_buttons(tab: str, examples: Sequence[Example]) -> list[gr.Button]:
    """A button with a picture per example."""
    with gr.Row(elem_classes=["examples", "keep-row"]):
        return [
            gr.Button(
                example.label,
                icon=str(example.photo),
                size="sm",
                min_width=60,
                elem_id=f"{tab}-example-{example.label.lower()}",
            )
            for example in examples
        ]


def take_example(button: gr.Button, example: Example, fields: Mapping[Component, str]) -> None:
    """A button that fills the form with an example."""

    def handler() -> list[Any]:
        values = {name: getattr(example, name) for name in fields.values()}
        return [str(value) if isinstance(value, Path) else value for value in values.values()]

    button.click((lambda: handler()[0]) if len(fields) == 1 else handler, None, list(fields), **LIGHT)


def wire_method(
    house: House, photo: gr.File, method: MethodPanel, more: Mapping[str, Any], kind: gr.Radio | str
) -> None:
    """Controls that follow model, method, quality and damage; the estimate that follows them."""
    inputs: set[Component] = {*method.inputs, more["samples"]}
    if not isinstance(kind, str):
        inputs.add(kind)

    def task(values: Values) -> str | None:
        return kind if isinstance(kind, str) else values[kind]

    def of_model(values: Values) -> Updates:
        return method.of_model(values)

    def fill(values: Values) -> Updates:
        return method.filled(values, task(values))

    def lean(values: Values) -> Updates:
        return method.leant(values, task(values))

    estimate = handlers.estimating(house, method, more["samples"])
    estimated: dict[str, Any] = {
        "fn": estimate,
        "inputs": inputs,
        "outputs": method.estimate,
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_id": "estimate",
        "concurrency_limit": 1,
    }
    method.model.change(of_model, inputs, [method.method], **LIGHT)
    triggers = [method.method.change, method.quality.input]
    if not isinstance(kind, str):
        triggers.append(kind.change)
    filled = gr.on(triggers, fill, inputs, method.outputs, **LIGHT)
    filled.then(**estimated)
    method.lean.change(lean, inputs, list(method.fields.values()), trigger_mode="always_last", **LIGHT)
    moved = [
        shown.release if isinstance(shown, gr.Slider) else shown.input
        for shown in [*method.fields.values(), more["samples"]]
    ]
    gr.on([photo.change, *moved], **estimated, trigger_mode="always_last")


def wire_part(
    house: House,
    photo: gr.File,
    part: PartPanel,
    kind: Callable[[Values], tuple[str, Path | None]],
    model: Component,
    follows: Sequence[Component],
    *,
    is_painted: bool = False,
) -> None:
    """The frame around the part that is restored, which follows photo, part, model and damage."""
    show = handlers.showing_part(house, photo, part, kind, lambda values: values[model], is_painted=is_painted)
    inputs: set[Component] = {photo, model, *part.inputs, *follows}
    outputs = [part.picture, part.said]
    triggers = [photo.change, part.left.input, part.top.input, part.side.input]
    triggers += [each.change for each in (*follows, model)]
    gr.on(triggers, show, inputs, outputs, trigger_mode="always_last", **LIGHT)
    choose = handlers.choosing_part(house, photo, part, kind, lambda values: values[model], show)
    find = handlers.finding_face(house, photo, part, show)
    outputs += [part.square, part.left, part.top, part.side]
    part.part.change(choose, inputs, outputs, **LIGHT)
    part.find.click(find, inputs, outputs, **LIGHT)


def wire_job(
    run: RunPanel, handler: Callable[[Values], Iterator[Updates]], inputs: set[Component], outputs: Sequence[Component]
) -> None:
    """Start and cancel: the buttons change at once, the job waits its turn."""

    def begin() -> list[Any]:
        return [gr.update(interactive=False), gr.update(interactive=True), words.status(words.WAITING)]

    def end(shown: str) -> list[Any]:
        return [gr.update(interactive=True), gr.update(interactive=False), words.ended(shown or "")]

    buttons = [run.start, run.cancel]
    begun = run.start.click(begin, None, [*buttons, run.status], **LIGHT)
    job = begun.then(
        handler,
        inputs,
        list(outputs),
        concurrency_id=QUEUE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=run.status,
        api_visibility="private",
    )
    job.then(end, run.status, [*buttons, run.status], **LIGHT)
    run.cancel.click(lambda: gr.update(interactive=False), None, run.cancel, cancels=[job], **LIGHT)
