"""A suite: one table of a paper as data. Which pictures, which corruptions, which methods with which settings."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stsl import tasks
from stsl.bench.inpainting import InpaintPipeline
from stsl.bench.ways import EditedBy, Inpainted, Restored, Way
from stsl.editors import EDITORS, Edit, Editor
from stsl.options import nearest
from stsl.perceptual.edits import Region
from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers import SAMPLERS, Sampler

METHODS: Mapping[str, type[Sampler]] = SAMPLERS | RECONSTRUCTORS
PIPELINES: Mapping[str, type[InpaintPipeline]] = {"inpaint": InpaintPipeline}
# What --fast makes of an editor, which has no presets; its restorer has. Null-text optimisation is not shortened: with
# 3 steps a level a colour photo came out grey.
FAST_EDITOR = {"steps": 10}
# Below this a super-resolution task leaves too little to restore from: sr8 is not run at 64 pixels.
LEAST_MEASURED_SIDE = 16

Value = bool | int | float | str


class Part(BaseModel):
    """A piece of a suite: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Part):
    """Which pictures the table was made with.

    Attributes:
        layout: how the data set lies on disk, or "faces" for what comes with the built-in prior.
        images: how many of them.
        choose: the first by name, or at random by a hash of seed and name; the papers' lists of files are not public.
        only: a part of them: of ImageNet the dogs or the domestic cats, of faces with a column `emotion` the neutral or
            the smiling ones.
        note: what is known of the papers' choice.
    """

    layout: Literal["faces", "ffhq", "imagenet", "coco"]
    images: int = Field(ge=1)
    choose: Literal["first", "random"] = "first"
    seed: int = 0
    only: Literal["dogs", "cats", "neutral", "smiling"] | None = None
    note: str = ""


class Block(Part):
    """Methods that share a prior. Methods of two blocks solve problems of two sizes and are never ranked together."""

    prior: str | None = None
    side: int = Field(ge=16)
    note: str = ""


class Corruption(Part):
    """A task: `NAME:key=value` and the std of the noise on [0, 1]; a paper's σ_y on [−1, 1] is twice that."""

    spec: str
    noise: float = Field(ge=0, le=1)
    blocks: tuple[str, ...] | None = None
    published: str | None = None


class Changed(Part):
    """What an editing table changes, and who judges it.

    Attributes:
        source, target: the texts.
        mode, cross, self_attention, blend, weights: as for `stsl.Edit`.
        region: top, left, height, width of the box that may change, as shares of the sides; the rest is compared with
            the truth. None where it differs from picture to picture.
        clip: the CLIP of the accuracy, by name, folder or hub id; "" is the built-in one.
        vit: the ViT of the distance of keys, likewise.
        ceiling: the part of the data that shows the target: how often the CLIP is right about real photos.
    """

    source: str
    target: str
    mode: Literal["auto", "replace", "refine"] = "auto"
    cross: float = 0.8
    self_attention: float = 0.5
    blend: tuple[str, ...] = ()
    weights: dict[str, float] = {}
    region: tuple[float, float, float, float] | None = None
    clip: str = ""
    vit: str = ""
    ceiling: Literal["cats", "smiling"] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _ = self.edit, self.box
        return self

    @property
    def edit(self) -> Edit:
        """As editors take it."""
        return Edit(
            self.source, self.target, self.mode, self.cross, self.self_attention, self.blend, dict(self.weights)
        )

    @property
    def box(self) -> Region | None:
        """The region that may change."""
        return None if self.region is None else Region(*self.region)


class Before(Part):
    """The restorer of an editor's row."""

    sampler: str
    preset: str | None = None
    set: dict[str, Value] = {}

    def build(self, spec: str, *, fast: bool) -> Sampler:
        """The sampler, at its full setting or at its preset "fast"."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown restorer {self.sampler!r}{nearest(self.sampler, SAMPLERS)}")
        cls, preset = SAMPLERS[self.sampler], "fast" if fast else self.preset
        base = cls.preset(preset, spec) if preset else cls()
        return replace(base, **({} if fast else self.set))  # type: ignore[type-var]


class Method(Part):
    """A row of the table: a sampler, an editor or a pipeline of diffusers.

    Attributes:
        name: what the table calls it.
        sampler: a registered sampler or reconstructor.
        editor: a registered editor; the suite says what it changes.
        pipeline: `inpaint`.
        block: its block.
        prior: weights of its own, in place of the block's: what a pipeline needs.
        restorer: of an editor; what is left out is the editor's own.
        preset, set: its full setting: a named one, and fields that differ from it.
        task_presets: tasks, by the name before the colon, that have another preset.
        vary: the fields that make the row what it is; they hold under --fast, too.
        published: the row's name in the published table.
        tasks: those that it is run on; all when left out.
    """

    name: str
    block: str
    sampler: str | None = None
    editor: str | None = None
    pipeline: str | None = None
    prior: str | None = None
    restorer: Before | None = None
    preset: str | None = None
    task_presets: dict[str, str] = {}
    set: dict[str, Value] = {}
    vary: dict[str, Value] = {}
    published: str | None = None
    tasks: tuple[str, ...] | None = None

    @property
    def of(self) -> str:
        """The registered name of its method, such as psld or psld+nti."""
        before = f"{self.restorer.sampler}+" if self.restorer else ""
        return f"{before}{self.sampler or self.editor or self.pipeline}"

    @model_validator(mode="after")
    def _exists(self) -> Self:
        kinds: dict[str, tuple[str | None, Mapping[str, Any]]] = {
            "sampler": (self.sampler, METHODS),
            "editor": (self.editor, EDITORS),
            "pipeline": (self.pipeline, PIPELINES),
        }
        given = [kind for kind, (name, _) in kinds.items() if name is not None]
        if len(given) != 1:
            raise ValueError(f"{self.name}: give one of sampler, editor and pipeline")
        name, known = kinds[given[0]]
        if name not in known:
            raise ValueError(f"unknown {given[0]} {name!r}{nearest(str(name), known)}")
        if self.restorer is not None and self.editor is None:
            raise ValueError(f"{self.name}: only an editor has a restorer")
        if self.sampler is None and (self.preset or self.task_presets):
            raise ValueError(f"{self.name}: only a sampler has presets")
        if (self.pipeline is None) != (self.prior is None):
            raise ValueError(f"{self.name}: a pipeline names the weights that it needs as its prior, and nothing else")
        for task in ("sr4", *self.task_presets):
            for fast in (False, True):
                self.build(task, fast=fast)
        return self

    def build(self, spec: str, *, fast: bool = False) -> Any:
        """The sampler, editor or pipeline of this row for a task, at its full setting or at its preset "fast".

        Raises:
            ValueError: fields or values that it does not have.
        """
        changed = self.vary if fast else self.set | self.vary
        try:
            if self.editor is not None:
                return self._editor(spec, fast, changed)
            if self.pipeline is not None:
                return PIPELINES[self.pipeline](**changed)  # type: ignore[arg-type]
            chosen = self.task_presets.get(tasks.parse(spec).name, self.preset)
            cls, preset = METHODS[self.sampler or ""], "fast" if fast else chosen
            base = cls.preset(preset, spec) if preset else cls()
            return replace(base, **changed)  # type: ignore[type-var]
        except TypeError as error:  # an unknown field, or a value of the wrong type
            raise ValueError(f"{self.name}: {error}") from error

    def _editor(self, spec: str, fast: bool, changed: Mapping[str, Value]) -> Editor:
        editor: Any = EDITORS[self.editor or ""]()
        quick = {key: value for key, value in FAST_EDITOR.items() if fast and key in editor.settings()}
        editor = replace(editor, **(quick | dict(changed)))
        if self.restorer is not None:
            return replace(editor, restorer=self.restorer.build(spec, fast=fast))
        if fast and editor.restorer is not None:
            return replace(editor, restorer=type(editor.restorer).preset("fast", spec))
        return editor

    def way(self, spec: str, changed: Changed | None, *, fast: bool = False) -> Way:
        """What a worker does for this row on a task."""
        built = self.build(spec, fast=fast)
        if self.pipeline is not None:
            return Inpainted(built)
        if self.editor is None:
            return Restored(built)
        assert changed is not None  # the suite is checked
        return EditedBy(built, changed.edit)


class Published(Part):
    """Which rows of `bench/published/` the table shows beside ours.

    Attributes:
        file: the CSV file; none when left out, for a suite of one's own.
        tables, dataset: what to take of it.
        comparable: whether ours solve the same problem; the twins on the built-in priors do not.
        note: why not, or what to mind.
    """

    file: str = Field(default="", pattern=r"^([\w-]+\.csv)?$")
    tables: tuple[str, ...] = ()
    dataset: str | None = None
    comparable: bool = True
    note: str = ""


class Suite(Part):
    """One table of a paper.

    Attributes:
        name: as on the command line.
        title, source, note: for people.
        edit: what its editors change.
        reference: the row that the others are paired with.
    """

    name: str
    title: str
    source: str
    note: str = ""
    data: Data
    edit: Changed | None = None
    blocks: dict[str, Block]
    tasks: dict[str, Corruption]
    methods: tuple[Method, ...]
    reference: str
    published: Published = Published()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two methods have one name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}"
            )
        if commas := [name for name in names if "," in name]:
            raise ValueError(f"the method's name {commas[0]!r} has a comma, which stands between names in --methods")
        if self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is no method of this suite")
        for method in self.methods:
            if method.editor is not None and self.edit is None:
                raise ValueError(f"{method.name} edits: say what, with edit: {{source: ..., target: ...}}")
            _known(method.block, self.blocks, f"{method.name}: block")
            for task in method.tasks or ():
                _known(task, self.tasks, f"{method.name}: task")
        for name, corruption in self.tasks.items():
            for block in corruption.blocks or ():
                _known(block, self.blocks, f"task {name}: block")
            for block in self.blocks_of(name):
                check_side(corruption.spec, self.blocks[block].side)
        return self

    def blocks_of(self, task: str) -> tuple[str, ...]:
        """The blocks that a task is run in."""
        chosen = self.tasks[task].blocks
        return tuple(self.blocks) if chosen is None else chosen

    def runs(self, method: Method, task: str) -> bool:
        """Whether a method is run on a task."""
        return method.block in self.blocks_of(task) and (method.tasks is None or task in method.tasks)

    def only(self, methods: str | None, tasks: str | None) -> "Suite":
        """The part that `--methods` and `--tasks` name, methods by the row's or the method's name.

        Raises:
            ValueError: a name that is none of them, or no method that is run on one of the tasks.
        """
        rows = self.methods
        if methods is not None:
            wanted = [word.strip() for word in methods.split(",")]
            known = {m.name.lower(): m.name for m in rows} | {m.of: m.name for m in rows}
            for word in wanted:
                _known(word.lower(), known, "--methods:")
            low = {word.lower() for word in wanted}
            rows = tuple(m for m in rows if m.name.lower() in low or m.of in low)
        chosen = dict(self.tasks)
        if tasks is not None:
            for word in tasks.split(","):
                _known(word.strip(), chosen, "--tasks:")
            chosen = {name: chosen[name] for name in self.tasks if name in {w.strip() for w in tasks.split(",")}}
        rows = tuple(
            m if m.tasks is None else m.model_copy(update={"tasks": tuple(t for t in m.tasks if t in chosen)})
            for m in rows
        )
        part = self.model_copy(update={"methods": rows, "tasks": chosen})
        if not any(part.runs(method, task) for method in rows for task in chosen):
            raise ValueError(
                f"--methods, --tasks: {self.name} runs none of {', '.join(m.name for m in rows)} on {', '.join(chosen)}"
            )
        return part

    @cached_property
    def order(self) -> dict[str, int]:
        """The place of each method in the table."""
        return {method.name: place for place, method in enumerate(self.methods)}


def check_side(spec: str, side: int) -> None:
    """Refuse a super-resolution whose measurement would be too small to mean anything.

    Raises:
        ValueError: the measurement's side is below 16 pixels, or the task does not exist.
    """
    measured = side // tasks.factor(spec)
    if measured < LEAST_MEASURED_SIDE:
        raise ValueError(
            f"{spec} at {side} pixels leaves {measured}, and needs {LEAST_MEASURED_SIDE}: leave the block out of "
            "its blocks"
        )


def suite_folder() -> Path:
    """Where the suites are that come with the package."""
    return Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in suite_folder().glob("*.yaml"))


def load_suite(name: str | Path) -> Suite:
    """A suite by name, or a YAML file of the user's.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: the file is not a valid suite; the message says where.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else suite_folder() / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"no suite {str(name)!r}{nearest(str(name), suite_names())}; there are {', '.join(suite_names())}, or give "
            "a .yaml file"
        )
    try:
        return Suite.model_validate(_plain(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'suite'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ValueError(f"{path}: {said}") from error


def _plain(content: Any) -> Any:
    if not isinstance(content, dict):
        raise ValueError("a suite is a YAML mapping")
    return content


def _known(name: str, known: Mapping[str, object], what: str) -> None:
    if name not in known:
        raise ValueError(f"{what} {name!r} is not in this suite{nearest(name, known)}; there are {', '.join(known)}")
