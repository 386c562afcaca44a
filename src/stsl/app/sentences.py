"""Errors, times and estimates as a visitor reads them."""

import re

from stsl.app.outcomes import Expected
from stsl.memory import GIB

# What is wrong with an order or a photo, or with carrying it out; anything else is a fault of this program.
ERRORS = (ValueError, TypeError, OSError, RuntimeError)


def sentence(error: BaseException) -> str:
    """An error for a visitor: no path of the server, and no option of the command line."""
    said = str(error).strip() or type(error).__name__
    begins_with_file = PATH.match(said) is not None
    said = PATH.sub(r"\1", said)
    for way, instead in WAYS:
        said = re.sub(way, instead, said)
    if not begins_with_file:
        said = said[0].upper() + said[1:]
    return said if said.endswith((".", "!", "?")) else f"{said}."


PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,()'\"]+)+[/\\]([^\s/\\:;,()'\"]+)")

# Options of the command line, as the page calls them.
WAYS = (
    (r"--crop face takes the largest face.*", "choose another part of the photo"),
    (
        r"cut the face out by hand, from forehead to chin, and use --resize, or leave --crop out",
        "choose the square by hand, from forehead to chin, or the whole photo",
    ),
    (
        r"--crop mask cuts around the holes of a mask, and there is none: add --mask FILE",
        "there is no mask to cut around: paint one or upload one",
    ),
    (r"--mask FILE", "a mask"),
    (r"--precision fp32", "full precision"),
    (
        r"--decoder tiny, a smaller prior, --crop in place of the whole photo, --device cpu, or closing what else uses "
        r"the device; `stsl estimate` says what is needed",
        "a smaller part of the photo or a smaller model",
    ),
)


def in_words(expected: Expected) -> str:
    """An estimate as a short text; empty where nothing is known."""
    said = [] if expected.seconds is None else [duration(expected.seconds)]
    if expected.bytes is not None:
        said.append(
            f"{expected.bytes / GIB:.1f} GiB" if expected.bytes > GIB / 2 else f"{expected.bytes / 2**20:.0f} MiB"
        )
    return "about " + " and ".join(said) if said else ""


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in words."""
    if seconds < 1:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} seconds" if round(seconds) != 1 else "a second"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
