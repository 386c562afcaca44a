"""What a visitor may order; nonsense is refused before anything is read or run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stsl import images, tasks
from stsl.app.controls import at_quality, methods
from stsl.images import Box, Photo
from stsl.options import nearest
from stsl.photos import Corruption
from stsl.samplers import Sampler
from stsl.shapes import Tensor

LONGEST_PROMPT = 300

PARTS = ("auto", "face", "mask", "whole", "tiles", "box")


@dataclass(frozen=True)
class Damage:
    """What is wrong with a photo.

    Args:
        kind: a task without random parts, "mask" or "kernel".
        options: of the task.
        noise: std on [0, 1].
        mask, kernel: the file, where the kind is that.

    Raises:
        ValueError: a kind, option or noise that makes no sense, or a file that is missing.
    """

    kind: str
    options: Mapping[str, float | str] = field(default_factory=dict)
    noise: float = 0.005
    mask: Path | None = None
    kernel: Path | None = None

    def __post_init__(self) -> None:
        if self.kind == "mask" and self.mask is None:
            raise ValueError("nothing says which parts are missing: upload a mask as large as the photo, white where")
        if self.kind == "kernel" and self.kernel is None:
            raise ValueError("a blur kernel is needed: upload it as a small grey picture with odd sides")
        assert self.corruption  # refused now, before anything is read

    @property
    def corruption(self) -> Corruption:
        """The same, as `stsl restore` takes it."""
        if self.kind == "mask":
            return Corruption(mask=self.mask, noise=self.noise)
        if self.kind == "kernel":
            return Corruption(kernel=self.kernel, noise=self.noise)
        return Corruption(task=str(tasks.parse(str(tasks.Task(self.kind, self.options)))), noise=self.noise)

    def settings(self) -> dict[str, Any]:
        """As plain values, without the places of files."""
        return {"task": self.kind, "task_options": dict(self.options), "noise": self.noise}


CLEAN = Damage("denoise", noise=0.0)


@dataclass(frozen=True)
class Part:
    """Which part of a photo is restored.

    Args:
        kind: "auto" (as it is where the size is right; else the face, unless it is smaller than what the model makes or
            a hole reaches over it; else around the hole, or the whole), "face", "mask", "whole" (scaled), "tiles" (at
            its own size) or "box".
        box: where the kind is that, in pixels of the upright photo.
    """

    kind: str = "auto"
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.kind not in PARTS:
            raise ValueError(f"unknown part {self.kind!r}{nearest(self.kind, PARTS)}; there are {', '.join(PARTS)}")
        if (self.kind == "box") != (self.box is not None):
            raise ValueError("the part box needs a box, and no other part takes one")

    def of(self, photo: Photo, size: tuple[int, int], known: Tensor | None = None) -> dict[str, Any]:
        """The arguments of `Job` that take this part of a photo.

        Args:
            photo: the photo.
            size: (height, width) that a whole photo would need.
            known: mask of the photo, 1 = known, (1, 1, H, W); None without a mask.
        """
        choices: dict[str, dict[str, Any]] = {
            "face": {"crop": "face"},
            "mask": {"crop": "mask"},
            "whole": {} if photo.size == size else {"resize": True},
            "tiles": {"tiles": True},
            "box": {"box": self.box},
        }
        if self.kind != "auto":
            return choices[self.kind]
        if photo.size == size:
            return {}
        try:
            face = images.find_face(photo)
        except ValueError:  # no face in it
            return {"resize": True} if known is None else {"crop": "mask"}
        if known is not None and (face.height < size[0] or not _holds(face, known)):
            return {"crop": "mask"}
        return {"box": face}


def _holds(box: Box, known: Tensor) -> bool:
    """Whether all holes of a mask lie in a box, which may reach over the photo's edge."""
    rows, columns = (known[0, 0] < 0.5).nonzero(as_tuple=True)
    return bool(
        (rows >= box.top).all()
        and (rows < box.top + box.height).all()
        and (columns >= box.left).all()
        and (columns < box.left + box.width).all()
    )


@dataclass(frozen=True)
class Order:
    """A restoration.

    Args:
        photo: the upload.
        damage: what is wrong with it.
        method: what the registry calls the sampler.
        sampler: the method with its settings.
        model: name of a loaded prior; None is the first of the method's family.
        part: which part of the photo.
        prompt: what it shows; empty is the empty text.
        samples, seed: as for `Restorer.frames`.
    """

    photo: Path
    damage: Damage
    method: str
    sampler: Sampler
    model: str | None = None
    part: Part = field(default_factory=Part)
    prompt: str = ""
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class EditOrder:
    """An edit by text.

    Args:
        photo: the upload.
        source, target: what it shows, and what it shall show.
        damage: what is wrong with it; None is a clean photo.
        editor: name of the editor; None is stsl-cat for a damaged photo and nti-cat for a clean one.
        settings: fields of the editor.
        quality: of the restoration that goes before.
        edit: fields of `Edit` beside the prompts.
        model, part, seed: as for `Order`.
    """

    photo: Path
    source: str
    target: str
    damage: Damage | None = None
    editor: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    quality: str = "Balanced"
    edit: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    part: Part = field(default_factory=Part)
    seed: int = 0


def sampler(method: str, quality: str, task: str | None = None, settings: Mapping[str, Any] | None = None) -> Sampler:
    """A registered method at a quality, with single fields changed.

    Args:
        method: what the registry calls it.
        quality: Fast, Balanced or Paper.
        task: for presets that depend on it; "mask" and "kernel" stand for a user's own.
        settings: fields to change.

    Raises:
        ValueError, TypeError: an unknown method, quality or field, or a value outside its range.
    """
    known = methods()
    if method not in known:
        raise ValueError(f"unknown method {method!r}{nearest(method, known)}; there are {', '.join(known)}")
    base = at_quality(known[method], quality, task)
    changes = dict(settings or {})
    if unknown := [name for name in changes if name not in base.settings()]:
        raise ValueError(f"{type(base).__name__} has no setting {unknown[0]!r}{nearest(unknown[0], base.settings())}")
    # Texts may name files and models, which nobody but who starts the application decides about.
    free = [name for name, value in base.settings().items() if isinstance(value, str) and not _has_choices(base, name)]
    if chosen := [name for name in free if name in changes]:
        raise ValueError(f"{type(base).__name__}: {chosen[0]} cannot be set here")
    return replace(base, **changes)  # type: ignore[type-var]


def _has_choices(sampler: Sampler, name: str) -> bool:
    return bool(type(sampler).__dataclass_fields__[name].metadata.get("choices"))  # type: ignore[attr-defined]
