"""What the command line says, and where: results to stdout, everything else to stderr."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stsl.loop import Frame

# Texts are printed as they are: rich would make pictures of words between colons.
notes = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
# Into a file or a pipe tables are as wide as they need; rich would cut them to 80 columns.
results = Console(highlight=False, soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else 200)


class _ToNotes(logging.Handler):
    """Library messages, one line each, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        notes.print(record.getMessage(), style=style, markup=False)


def listen() -> None:
    """Show what the library logs. Calling it again changes nothing."""
    logger = logging.getLogger("stsl")
    if not any(isinstance(handler, _ToNotes) for handler in logger.handlers):
        logger.addHandler(_ToNotes())
        logger.setLevel(logging.INFO)


def say(message: str) -> None:
    """A line for the person watching, never part of the result."""
    notes.print(message, markup=False)


def complain(message: str) -> None:
    """An error, on stderr."""
    notes.print("[bold red]Error:[/] ", end="")
    notes.print(message, markup=False)


def as_json(value: Any) -> None:
    """A result for a program."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def as_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A result for a person. Columns whose first value is a number are aligned to the right."""
    rows = list(rows)
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], int | float)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        # As it is: rich would take the "[eta=0]" of a name for a style.
        table.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    results.print(table)


def bar(*, quiet: bool = False) -> Progress:
    """A progress bar on stderr: what, how many, the time taken and left, and what the task's field `said` tells."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    return Progress(*columns, console=notes, transient=True, disable=quiet)


def watch(run: Iterable["Frame"], label: str, *, quiet: bool = False) -> Iterator["Frame"]:
    """The frames of a run, with a progress bar: steps, time left, and the residual as it falls."""
    with bar(quiet=quiet) as progress:
        task = progress.add_task(label, total=None, said="")
        for frame in run:
            residual = frame.state.log.get("residual")
            said = f"residual {float(residual.mean()):.4f}" if residual is not None else ""
            what = label if frame.stage == "restore" else f"{label}, {frame.stage}"
            progress.update(task, description=what, completed=frame.index + 1, total=frame.total, said=said)
            yield frame
