"""The parts that the tabs of the page are made of: components, and the values that a form of them sends."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from stsl.app import controls, words
from stsl.app.controls import Control
from stsl.app.house import House
from stsl.app.orders import Damage, Part
from stsl.images import Box
from stsl.images.writing import FORMATS
from stsl.tasks import TASKS

PARTS = (
    ("Automatic", "auto"),
    ("Face", "face"),
    ("Around the hole", "mask"),
    ("Whole photo, scaled", "whole"),
    ("Whole photo, in tiles", "tiles"),
    ("Chosen square", "box"),
)
NOTHING = ("Nothing", "")
NOISE = 0.005
# What the sliders of a square count. Not pixels: a slider's end cannot follow the photo while a value is on its way.
SHARE = {"left": "% of the width", "top": "% of the height", "side": "% of the shorter side"}

Values = Mapping[Component, Any]
Updates = dict[Component, Any]


def photo_file(tab: str, label: str = "Photo", name: str = "photo", *, visible: bool = True) -> gr.File:
    """Where a picture is uploaded. Not `gr.Image`, which opens it before anything is checked."""
    return gr.File(
        label=label, file_types=list(FORMATS), type="filepath", height=120, elem_id=f"{tab}-{name}", visible=visible
    )


@dataclass(frozen=True, eq=False)
class DamagePanel:
    """What is wrong with the photo."""

    kind: gr.Radio
    noise: gr.Number
    mask: gr.File
    kernel: gr.File
    groups: Mapping[str, gr.Group]
    options: Mapping[tuple[str, str], Component]

    @classmethod
    def build(cls, tab: str, *, clean: bool = False) -> "DamagePanel":
        """Radio, noise, files, and a group per task with options. With `clean`, nothing may be wrong."""
        choices = [NOTHING, *controls.task_choices()] if clean else controls.task_choices()
        kind = gr.Radio(choices, value=choices[0][1], label="What is wrong with it", elem_id=f"{tab}-kind")
        groups, options = {}, {}
        for task in (value for _, value in choices):
            known = controls.controls_of_task(task) if task in TASKS else []
            if known:
                with gr.Group(visible=False) as groups[task], gr.Row():
                    for control in known:
                        options[task, control.name] = component(control, f"{tab}-{task}-{control.name}")
        mask = photo_file(tab, "Mask file", "mask", visible=False)
        kernel = gr.File(
            label="Kernel file",
            file_types=[*FORMATS, ".safetensors"],
            height=100,
            elem_id=f"{tab}-kernel",
            visible=False,
        )
        noise = gr.Number(
            NOISE,
            label="Noise",
            info="standard deviation, colours from 0 to 1",
            minimum=0,
            maximum=1,
            step=0.001,
            elem_id=f"{tab}-noise",
            visible=not clean,
        )
        panel = cls(kind, noise, mask, kernel, groups, options)
        kind.change(
            panel._show,
            kind,
            [mask, kernel, noise, *groups.values()],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        return panel

    def _show(self, kind: str) -> Updates:
        shown: Updates = {
            self.mask: gr.update(visible=kind == "mask"),
            self.kernel: gr.update(visible=kind == "kernel"),
            self.noise: gr.update(visible=bool(kind)),
        }
        return shown | {group: gr.update(visible=kind == task) for task, group in self.groups.items()}

    def shown(self, values: Values) -> tuple[str, Path | None]:
        """The kind of the damage, and its mask where it has one: what the shown part of the photo depends on."""
        kind = values[self.kind]
        return kind, _path(values[self.mask]) if kind == "mask" else None

    @property
    def inputs(self) -> set[Component]:
        return {self.kind, self.noise, self.mask, self.kernel, *self.options.values()}

    def read(self, values: Values) -> Damage | None:
        """What the form says; None for a clean photo.

        Raises:
            ValueError: it makes no sense.
        """
        kind = values[self.kind]
        if not kind:
            return None
        if kind not in {value for _, value in controls.task_choices()}:
            raise ValueError(f"unknown damage {kind!r}")
        if values[self.noise] is None:
            raise ValueError("the noise is empty: give a number from 0 to 1, such as 0.005")
        options = {}
        for (task, name), shown in self.options.items():
            if task == kind:
                control = next(each for each in controls.controls_of_task(task) if each.name == name)
                value = controls.value_of(control, values[shown])
                if value != control.default:
                    options[name] = value
        return Damage(kind, options, float(values[self.noise]), _path(values[self.mask]), _path(values[self.kernel]))


@dataclass(frozen=True, eq=False)
class PartPanel:
    """Which part of the photo."""

    part: gr.Dropdown
    settings: gr.Accordion
    square: gr.Group
    left: gr.Slider
    top: gr.Slider
    side: gr.Slider
    find: gr.Button
    picture: gr.Image
    said: gr.HTML

    @classmethod
    def build(cls, tab: str) -> "PartPanel":
        """The photo with a frame around the part; `settings`, to be rendered, chooses it, by sliders if need be."""
        picture = gr.Image(
            label="Photo and the part that is restored",
            format="png",
            interactive=False,
            height=240,
            visible=False,
            buttons=["fullscreen"],
            elem_id=f"{tab}-region",
            alt_text="The photo, with a frame around the part that is restored",
        )
        said = gr.HTML("", elem_id=f"{tab}-region-note", padding=False)
        with gr.Accordion("Part of the photo", open=False, render=False, elem_id=f"{tab}-part-settings") as settings:
            part = gr.Dropdown(list(PARTS), value="auto", label="Part", elem_id=f"{tab}-part")
            with gr.Group(visible=False) as square:
                left = gr.Slider(0, 100, value=0, step=0.1, label="Left", elem_id=f"{tab}-left", info=SHARE["left"])
                top = gr.Slider(0, 100, value=0, step=0.1, label="Top", elem_id=f"{tab}-top", info=SHARE["top"])
                side = gr.Slider(1, 100, value=100, step=0.1, label="Side", elem_id=f"{tab}-side", info=SHARE["side"])
                find = gr.Button("Find the face", size="sm", elem_id=f"{tab}-find")
        return cls(part, settings, square, left, top, side, find, picture, said)

    @property
    def inputs(self) -> set[Component]:
        return {self.part, self.left, self.top, self.side}

    def read(self, values: Values, size: Callable[[], tuple[int, int]]) -> Part:
        """What the form says.

        Args:
            values: of the form.
            size: gives (height, width) of the photo, where it is needed.
        """
        kind = values[self.part]
        if kind != "box":
            return Part(kind)
        height, width = size()
        left, top, side = ((values[each] or 0) / 100 for each in (self.left, self.top, self.side))
        pixels = max(1, round(side * min(height, width)))
        return Part("box", Box(round(top * height), round(left * width), pixels, pixels))

    def shown(self, box: Box, size: tuple[int, int]) -> Updates:
        """A box on the sliders."""
        height, width = size
        shares = {self.left: box.left / width, self.top: box.top / height}
        shares[self.side] = max(box.height, box.width) / min(height, width)
        return {slider: round(min(max(100 * share, slider.minimum), 100), 1) for slider, share in shares.items()}


@dataclass(frozen=True, eq=False)
class MethodPanel:
    """Model, method, quality, and the controls of every method."""

    house: House
    model: gr.Dropdown
    method: gr.Dropdown
    quality: gr.Radio
    lean: gr.Slider
    estimate: gr.HTML
    settings: gr.Accordion
    groups: Mapping[str, gr.Group]
    fields: Mapping[tuple[str, str], Component]

    @classmethod
    def build(
        cls, tab: str, house: House, *, method: str, task: str | None = None, opened: bool = False
    ) -> "MethodPanel":
        """Quality; `settings`, to be rendered, has model, method and every field as `task` wants them at first."""
        known = controls.methods()
        model_name = house.prior_for(known[method])
        quality = gr.Radio(controls.qualities(known[method]), value="Fast", label="Quality", elem_id=f"{tab}-quality")
        estimate = gr.HTML("", elem_id=f"{tab}-estimate", padding=False)
        lean = gr.Slider(
            -1,
            1,
            value=0,
            step=0.1,
            label="Faithful to detailed",
            info="left keeps nearer to the photo, right follows the model more",
            elem_id=f"{tab}-lean",
        )
        groups, fields = {}, {}
        with gr.Accordion(
            "Method and its settings", open=opened, render=False, elem_id=f"{tab}-method-settings"
        ) as settings:
            with gr.Row():
                model = gr.Dropdown(list(house.priors), value=model_name, label="Model", elem_id=f"{tab}-model")
                choice = gr.Dropdown(
                    method_choices(house, model_name), value=method, label="Method", elem_id=f"{tab}-method"
                )
            for name, sampler in known.items():
                start = controls.at_quality(sampler, controls.qualities(sampler)[0], task).settings()
                with gr.Group(visible=name == method) as groups[name]:
                    for row in _rows(controls.controls_of(name, sampler)):
                        with gr.Row() if len(row) > 1 else nullcontext():
                            for each in row:
                                fields[name, each.name] = component(each, f"{tab}-{name}-{each.name}", start[each.name])
        return cls(house, model, choice, quality, lean, estimate, settings, groups, fields)

    @property
    def inputs(self) -> set[Component]:
        return {self.model, self.method, self.quality, self.lean, *self.fields.values()}

    @property
    def outputs(self) -> list[Component]:
        return [self.quality, self.lean, *self.groups.values(), *self.fields.values()]

    def chosen(self, values: Values) -> dict[str, Any]:
        """The fields of the chosen method, as the form has them."""
        method = self.name(values)
        return {
            control.name: controls.value_of(control, values[self.fields[method, control.name]])
            for control in controls.controls_of(method, controls.methods()[method])
        }

    def name(self, values: Values) -> str:
        """The chosen method.

        Raises:
            ValueError: there is no such method.
        """
        method = values[self.method]
        if method not in controls.methods():
            raise ValueError("choose a method")
        return str(method)

    def of_model(self, values: Values) -> Updates:
        """The methods of a model."""
        choices = method_choices(self.house, values[self.model])
        there = [value for _, value in choices]
        method = values[self.method] if values[self.method] in there else there[0]
        return {self.method: gr.update(choices=choices, value=method)}

    def filled(self, values: Values, task: str | None) -> Updates:
        """The controls of the chosen method at the chosen quality."""
        method = self.name(values)
        cls = controls.methods()[method]
        there = controls.qualities(cls)
        quality = values[self.quality] if values[self.quality] in there else there[0]
        sampler = controls.leaning(method, controls.at_quality(cls, quality, task), values[self.lean])
        updates: Updates = {
            self.quality: gr.update(choices=there, value=quality),
            self.lean: gr.update(interactive=method in controls.FAITHFUL),
        }
        updates |= {group: gr.update(visible=name == method) for name, group in self.groups.items()}
        settings = sampler.settings()
        return updates | {self.fields[key]: settings[key[1]] for key in self.fields if key[0] == method}

    def leant(self, values: Values, task: str | None) -> Updates:
        """The one control that "Faithful to detailed" moves."""
        method = self.name(values)
        if method not in controls.FAITHFUL:
            return {}
        base = controls.at_quality(controls.methods()[method], values[self.quality], task)
        field = controls.FAITHFUL[method][0]
        sampler = controls.leaning(method, base, values[self.lean])
        return {self.fields[method, field]: sampler.settings()[field]}


def _rows(known: Sequence[Control]) -> list[list[Control]]:
    """Numbers stand in pairs, everything else alone."""
    rows: list[list[Control]] = []
    for control in known:
        if control.kind == "number" and rows and len(rows[-1]) == 1 and rows[-1][0].kind == "number":
            rows[-1].append(control)
        else:
            rows.append([control])
    return rows


def method_choices(house: House, model: str) -> list[tuple[str, str]]:
    """(class name, name) of the methods for a model's family."""
    family = house.prior(model).family
    return [(cls.__name__, name) for name, cls in controls.methods().items() if cls.family in (family, "any")]


def component(control: Control, elem_id: str, value: Any = None) -> Component:
    """The component of a control."""
    value = control.default if value is None else value
    common: dict[str, Any] = {"label": control.label, "info": control.info or None, "elem_id": elem_id}
    if control.kind == "choice":
        if len(control.choices) > 3:
            return gr.Dropdown(list(control.choices), value=value, **common)
        return gr.Radio(list(control.choices), value=value, **common)
    if control.kind == "switch":
        return gr.Checkbox(value, **common)
    if control.kind == "slider":
        return gr.Slider(control.low, control.high, value=value, step=control.step, **common)
    return gr.Number(value, minimum=control.low, maximum=control.high, precision=0 if control.whole else None, **common)


@dataclass(frozen=True, eq=False)
class RunPanel:
    """Start, cancel, and how far it is."""

    start: gr.Button
    cancel: gr.Button
    status: gr.HTML

    @classmethod
    def build(cls, tab: str, label: str) -> "RunPanel":
        """Two buttons."""
        with gr.Row(elem_classes="keep-row"):
            start = gr.Button(label, variant="primary", elem_id=f"{tab}-start", scale=3)
            cancel = gr.Button("Cancel", interactive=False, elem_id=f"{tab}-cancel", scale=1)
        return cls(start, cancel, gr.HTML(words.note(""), elem_id=f"{tab}-status", padding=False))


@dataclass(frozen=True, eq=False)
class ResultPanel:
    """What came out of a restoration."""

    preview: gr.Image
    slider: gr.ImageSlider
    download: gr.DownloadButton
    record: gr.DownloadButton
    verdict: gr.HTML
    checked: gr.Row
    check: tuple[gr.Image, ...]
    samples: gr.Gallery
    mean: gr.Image
    std: gr.Image
    sampled: gr.HTML
    settings: gr.JSON

    @classmethod
    def build(cls, tab: str) -> "ResultPanel":
        """Before and after, downloads, and three tabs of evidence."""
        preview = gr.Image(
            label="Preview",
            format="png",
            interactive=False,
            height=420,
            buttons=[],
            elem_id=f"{tab}-preview",
            alt_text="The current estimate",
        )
        slider = gr.ImageSlider(
            label="Before and after",
            format="png",
            type="filepath",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            max_height=440,
            elem_id=f"{tab}-slider",
        )
        with gr.Row(elem_classes="keep-row"):
            download = gr.DownloadButton("Download PNG", interactive=False, elem_id=f"{tab}-download")
            record = gr.DownloadButton("Download settings", interactive=False, elem_id=f"{tab}-download-settings")
        with gr.Tabs(elem_id=f"{tab}-evidence"):
            with gr.Tab("Measurement check"):
                verdict = gr.HTML(
                    words.note("Whether the result, damaged again in the same way, gives the photo back."),
                    elem_id=f"{tab}-verdict",
                )
                with gr.Row(visible=False, elem_classes="keep-row", elem_id=f"{tab}-check") as checked:
                    check = tuple(
                        gr.Image(
                            label=label,
                            format="png",
                            interactive=False,
                            buttons=["fullscreen"],
                            min_width=90,
                            elem_id=f"{tab}-check-{label.lower()}",
                            alt_text=label,
                        )
                        for label in ("Measured", "Predicted", "Difference")
                    )
            with gr.Tab("Samples"):
                sampled = gr.HTML(words.note(ONE_SAMPLE), elem_id=f"{tab}-sampled")
                samples = gr.Gallery(
                    label="Samples",
                    format="png",
                    columns=4,
                    height="auto",
                    interactive=False,
                    visible=False,
                    buttons=["fullscreen"],
                    elem_id=f"{tab}-samples",
                )
                with gr.Row(elem_classes="keep-row"):
                    mean, std = (
                        gr.Image(
                            label=label,
                            format="png",
                            interactive=False,
                            visible=False,
                            height=260,
                            min_width=120,
                            buttons=["fullscreen"],
                            elem_id=f"{tab}-{called}",
                            alt_text=alt,
                        )
                        for label, called, alt in (
                            ("Mean", "mean", "Mean of the samples"),
                            ("Spread", "std", "Standard deviation of the samples"),
                        )
                    )
            with gr.Tab("Settings"):
                settings = gr.JSON(label="Settings of this run", elem_id=f"{tab}-settings", max_height=420)
        return cls(preview, slider, download, record, verdict, checked, check, samples, mean, std, sampled, settings)

    @property
    def outputs(self) -> list[Component]:
        others = [getattr(self, name) for name in self.__dataclass_fields__ if name != "check"]
        return [*others, *self.check]


ONE_SAMPLE = (
    "With two samples or more, their mean and spread are shown here: where the spread is bright, the answers differ."
)
SEVERAL = (
    "Where the spread is bright, the samples differ: that detail is the model's guess. White is a standard deviation "
    "of 64 of 255 grey levels, in the restored part of the photo."
)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
