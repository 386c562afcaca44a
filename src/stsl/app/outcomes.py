"""What a job yields on its way, and what it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from stsl.shapes import Image

Outcome_ = TypeVar("Outcome_")


@dataclass(frozen=True, eq=False)
class Step(Generic[Outcome_]):
    """How far a job is.

    Args:
        said: a short sentence.
        done: share that is done, or None while nothing can be said.
        seconds_left: None while nothing can be said.
        preview: the current estimate, (1, 3, H, W), now and then.
        outcome: the last step's.
    """

    said: str
    done: float | None = None
    seconds_left: float | None = None
    preview: Image | None = None
    outcome: Outcome_ | None = None


@dataclass(frozen=True)
class Restored:
    """What a restoration left. All pictures are PNG files without EXIF data.

    Args:
        picture: the result, as large as the photo (times the factor of super-resolution).
        before, after: photo and result at one size that fits a screen.
        settings: everything needed to run it again, as plain values.
        record: a file with the same, and the numbers of every step.
        check: the measurement, what the result would have measured, and their difference.
        white: the difference that is white in that picture, on [0, 1].
        residual, expected: rms of y - A(x) and of the noise, on [0, 1].
        far_off: whether the residual is much larger than the noise.
        kept: whether known pixels are the photo's own; then the residual is that of the model's picture before.
        samples: with several: the samples; else empty.
        mean, std: with several: their mean, and four times their standard deviation.
    """

    picture: Path
    before: Path
    after: Path
    settings: Mapping[str, Any]
    record: Path
    check: Sequence[Path]
    white: float
    residual: float
    expected: float | None
    far_off: bool
    kept: bool
    samples: Sequence[Path] = ()
    mean: Path | None = None
    std: Path | None = None


@dataclass(frozen=True)
class Changed:
    """What an edit left.

    Args:
        restored, edited: PNG files as large as the photo.
        side_by_side: both with their texts.
        words: what each word of both texts looked at.
        settings, record: as for `Restored`.
        reused: whether the inversion of an earlier edit was used again.
    """

    restored: Path
    edited: Path
    side_by_side: Path
    words: Path
    settings: Mapping[str, Any]
    record: Path
    reused: bool


@dataclass(frozen=True)
class Row:
    """What one method made of a photo; `error` says why it could not."""

    method: str
    picture: Path | None = None
    residual: float | None = None
    expected: float | None = None
    evaluations: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Expected:
    """What a run should take; None where nothing can be said yet."""

    seconds: float | None
    bytes: int | None
