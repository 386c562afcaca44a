"""The REST functions: what the page does, for programs. Uploads and values in, values and PNG files out."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import gradio as gr
from gradio import FileData
from pydantic import TypeAdapter, ValidationError

from stsl.app import jobs, orders, sentences
from stsl.app.house import QUEUE, House
from stsl.images import Box

Quality = Literal["fast", "balanced", "paper"]
PartName = Literal["auto", "face", "mask", "whole", "tiles", "box"]
Options = dict[str, float | str]
Settings = dict[str, bool | int | float | str]


class Restoration(TypedDict):
    """What a restoration left: the picture as large as the photo, samples with their mean and std, and how."""

    picture: FileData
    samples: list[FileData]
    mean: FileData | None
    std: FileData | None
    settings: dict[str, Any]
    residual: float
    expected_noise: float | None
    residual_is_far_off: bool


class Change(TypedDict):
    """What an edit left: the photo restored, and edited."""

    restored: FileData
    edited: FileData
    settings: dict[str, Any]
    inversion_reused: bool


class Progress(TypedDict):
    """How far a job is."""

    said: str
    done: float | None
    seconds_left: float | None


class Restoring(Progress):
    """How far a job is; the last one has the result."""

    result: Restoration | None


class Editing(Progress):
    """How far a job is; the last one has the result."""

    result: Change | None


class Estimate(TypedDict):
    """What a run should take; None where that is not known."""

    seconds: float | None
    bytes: int | None


@dataclass(frozen=True, eq=False)
class Rest:
    """The functions, on one house. Their docstrings and types are what `/gradio_api/info` and the page "API" show."""

    house: House

    def restore(
        self,
        photo: FileData,
        task: str = "sr4",
        options: Options | None = None,
        noise: float = 0.005,
        mask: FileData | None = None,
        kernel: FileData | None = None,
        method: str = "stsl",
        quality: Quality = "balanced",
        settings: Settings | None = None,
        model: str | None = None,
        part: PartName = "auto",
        box: list[int] | None = None,
        prompt: str = "",
        samples: int = 1,
        seed: int = 0,
    ) -> Iterator[Restoring]:
        """Restore a photo. Streams how far it is; the last message has the result.

        Args:
            photo: upload, PNG, JPEG, WebP, TIFF or BMP.
            task: what is wrong with it: sr4, sr8, gaussian_blur, denoise, mask, kernel and others of `stsl list tasks`.
            options: of the task, such as {"std": 2}.
            noise: standard deviation of the photo's noise on [0, 1].
            mask: upload as large as the photo, white where it is missing; for the task mask.
            kernel: upload, small and grey; for the task kernel.
            method: a name that /health lists.
            quality: fast, balanced or paper; not every method has all.
            settings: fields of the method, such as {"steps": 50}.
            model: a name that /health lists; the first that fits the method when left out.
            part: of the photo that is restored.
            box: top, left, height, width in pixels, for the part box.
            prompt: what the photo shows.
            samples: posterior samples; several give mean and std.
            seed: of all noise.

        Returns:
            said, done (0 to 1), seconds_left and, in the last message, result: picture, samples, mean, std, settings.
        """
        damage = orders.Damage(task, options or {}, noise, _path(mask), _path(kernel))
        order = orders.Order(
            photo=Path(photo.path),
            damage=damage,
            method=method,
            sampler=orders.sampler(method, quality.capitalize(), task, settings),
            model=model,
            part=_part(part, box),
            prompt=prompt,
            samples=samples,
            seed=seed,
        )
        for step in jobs.restore(self.house, order):
            done = step.outcome
            result = (
                None
                if done is None
                else Restoration(
                    picture=_file(done.picture),
                    samples=[_file(sample) for sample in done.samples],
                    mean=None if done.mean is None else _file(done.mean),
                    std=None if done.std is None else _file(done.std),
                    settings=dict(done.settings),
                    residual=done.residual,
                    expected_noise=done.expected,
                    residual_is_far_off=done.far_off,
                )
            )
            yield Restoring(said=step.said, done=step.done, seconds_left=step.seconds_left, result=result)

    def inpaint(
        self,
        photo: FileData,
        mask: FileData,
        noise: float = 0.0,
        method: str = "psld",
        quality: Quality = "balanced",
        settings: Settings | None = None,
        model: str | None = None,
        part: PartName = "auto",
        box: list[int] | None = None,
        prompt: str = "",
        samples: int = 1,
        seed: int = 0,
    ) -> Iterator[Restoring]:
        """Fill the holes of a photo. Without noise its other pixels come back as they were.

        Args:
            photo: upload, PNG, JPEG, WebP, TIFF or BMP.
            mask: upload as large as the photo: white is filled, black is kept.
            noise: standard deviation of the photo's noise on [0, 1].
            method: a name that /health lists.
            quality: fast, balanced or paper; not every method has all.
            settings: fields of the method, such as {"steps": 50, "gamma": 0.2}.
            model: a name that /health lists; the first that fits the method when left out.
            part: of the photo that is worked on.
            box: top, left, height, width in pixels, for the part box.
            prompt: what the photo shows.
            samples: posterior samples; several give mean and std.
            seed: of all noise.

        Returns:
            said, done (0 to 1), seconds_left and, in the last message, result: picture, samples, mean, std, settings.
        """
        yield from self.restore(
            photo,
            "mask",
            noise=noise,
            mask=mask,
            method=method,
            quality=quality,
            settings=settings,
            model=model,
            part=part,
            box=box,
            prompt=prompt,
            samples=samples,
            seed=seed,
        )

    def edit(
        self,
        photo: FileData,
        source: str,
        target: str,
        task: str | None = None,
        options: Options | None = None,
        noise: float = 0.005,
        mask: FileData | None = None,
        kernel: FileData | None = None,
        editor: Literal["stsl-cat", "nti-cat", "nti", "p2p"] | None = None,
        quality: Quality = "balanced",
        settings: Settings | None = None,
        model: str | None = None,
        part: PartName = "auto",
        box: list[int] | None = None,
        seed: int = 0,
    ) -> Iterator[Editing]:
        """Change what a photo shows, by two texts. A second edit of the same photo is quick: its inversion is kept.

        Args:
            photo: upload, PNG, JPEG, WebP, TIFF or BMP.
            source: what it shows, such as "a neutral face".
            target: what it shall show, such as "a smiling face".
            task: what is wrong with it, as for /restore; nothing when left out.
            options: of the task.
            noise: standard deviation of its noise on [0, 1], where there is a task.
            mask: upload, for the task mask.
            kernel: upload, for the task kernel.
            editor: stsl-cat for a damaged photo and nti-cat for a clean one when left out.
            quality: of the restoration that goes before.
            settings: fields of the editor, such as {"guidance": 3}.
            model: a name that /health lists.
            part: of the photo that is edited.
            box: top, left, height, width in pixels, for the part box.
            seed: of all noise.

        Returns:
            said, done (0 to 1), seconds_left and, in the last message, result: restored, edited, settings.
        """
        damage = None if task is None else orders.Damage(task, options or {}, noise, _path(mask), _path(kernel))
        order = orders.EditOrder(
            photo=Path(photo.path),
            source=source,
            target=target,
            damage=damage,
            editor=editor,
            settings=settings or {},
            quality=quality.capitalize(),
            model=model,
            part=_part(part, box),
            seed=seed,
        )
        for step in jobs.edit(self.house, order):
            done = step.outcome
            result = (
                None
                if done is None
                else Change(
                    restored=_file(done.restored),
                    edited=_file(done.edited),
                    settings=dict(done.settings),
                    inversion_reused=done.reused,
                )
            )
            yield Editing(said=step.said, done=step.done, seconds_left=step.seconds_left, result=result)

    def estimate(
        self,
        method: str = "stsl",
        quality: Quality = "balanced",
        task: str | None = None,
        settings: Settings | None = None,
        model: str | None = None,
        samples: int = 1,
    ) -> Iterator[Estimate]:
        """Estimate time and memory of a restoration; a few of its steps are run.

        Args:
            method: a name that /health lists.
            quality: fast, balanced or paper.
            task: for presets that depend on it.
            settings: fields of the method.
            model: a name that /health lists; the first that fits the method when left out.
            samples: posterior samples.

        Returns:
            seconds and bytes.
        """
        chosen = orders.sampler(method, quality.capitalize(), task, settings)
        for expected in jobs.estimate(self.house, model or self.house.prior_for(type(chosen)), chosen, samples):
            yield Estimate(seconds=expected.seconds, bytes=expected.bytes)

    def health(self) -> dict[str, Any]:
        """Say whether the application is ready or busy, and what there is: models, methods, limits.

        POST /gradio_api/run/health with {"data": []} answers even when the queue is full.

        Returns:
            status, models, methods, device, free_gib and limits.
        """
        return jobs.health(self.house)


def register(page: gr.Blocks, house: House) -> None:
    """Give the page that is being built its REST functions, in the queue of its own jobs."""
    rest = Rest(house)
    for function in (rest.restore, rest.inpaint, rest.edit, rest.estimate):
        event = gr.api(_checked(function), api_name=function.__name__, concurrency_limit=1, concurrency_id=QUEUE)
        described = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(function) or "", re.MULTILINE))
        for name, number in zip(inspect.signature(function).parameters, event["inputs"], strict=True):
            page.blocks[number].api_info()["additional_description"] = described[name]
    gr.api(rest.health, api_name="health", queue=False)


def _checked(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A function that holds its arguments to their annotations, and says what is wrong in a sentence.

    Gradio documents annotations, and passes on whatever comes. What the documentation shows of the result is one of the
    values that are streamed.
    """
    signature = inspect.signature(function)
    readers = {name: TypeAdapter(each.annotation) for name, each in signature.parameters.items()}

    @wraps(function)
    def checked(*values: Any) -> Iterator[Any]:
        try:
            given = dict(zip(readers, values, strict=True))
            yield from function(**{name: _read(name, reader, given[name]) for name, reader in readers.items()})
        except sentences.ERRORS as error:
            raise gr.Error(sentences.sentence(error), print_exception=False) from error

    (streamed,) = get_args(signature.return_annotation)
    checked.__signature__ = signature.replace(return_annotation=streamed)  # type: ignore[attr-defined]
    return checked


def _read(name: str, reader: TypeAdapter[Any], value: Any) -> Any:
    """A value as its annotation wants it.

    Raises:
        ValueError: it is none.
    """
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _path(upload: FileData | None) -> Path | None:
    return None if upload is None else Path(upload.path)


def _part(kind: str, box: list[int] | None) -> orders.Part:
    if box is not None and len(box) != 4:
        raise ValueError(f"box: needs top, left, height and width, got {len(box)} numbers")
    return orders.Part(kind, None if box is None else Box(*box))


def _file(path: Path) -> FileData:
    """A file of the results as plain values, which is what Gradio looks through for files to hand out."""
    return FileData(path=str(path), orig_name=path.name, mime_type="image/png").model_dump()
