"""The cells of a table: all pictures of one block, task and method, as arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stsl.bench.store import COSTS, EDIT_SCORES, SCORES, Store

COLUMNS = (*SCORES, *EDIT_SCORES, *COSTS)
LOWER_IS_BETTER = frozenset(
    {"lpips_vgg", "lpips_alex", "lpips_outside", "key_distance", "fid", "kid", "seconds", "residual"}
)


class Place(NamedTuple):
    """Where a cell is."""

    block: str
    task: str
    method: str


@dataclass(frozen=True, eq=False)
class Cell:
    """What a method did on a task.

    Args:
        images: numbers of the pictures, ascending.
        values: a column per score and cost, shape (n, len(COLUMNS)); NaN where something was not taken.
    """

    images: np.ndarray
    values: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """One score or cost of every picture."""
        return self.values[:, COLUMNS.index(name)]

    def has(self, name: str) -> bool:
        """Whether a column was taken, for every picture."""
        return bool(len(self.values)) and not np.isnan(self.column(name)).any()


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells of a suite.

    Args:
        cells: by place.
        images: the pictures' names; a cell has their numbers.
        failed: how many units failed, by place; with one of their errors.
        expected: how many units a place should have.
    """

    cells: dict[Place, Cell]
    images: list[str]
    failed: dict[Place, tuple[int, str]]
    expected: dict[Place, int]


def load_cells(store: Store, suite: str) -> Cells:
    """Read a suite's cells: a million rows take seconds, and a few hundred bytes each."""
    numbers: dict[str, int] = {}
    chosen = ", ".join(f"u.{name}" for name in COLUMNS)
    query = (
        f"select m.block, m.task, m.method, m.image, {chosen} from members m join units u on u.key = m.key "
        "where m.suite = ? and u.status = 'done'"
    )
    found: dict[Place, list[np.ndarray]] = {}
    for part in _parts(store, query, suite):
        images: dict[Place, list[int]] = {}
        values: dict[Place, list[tuple[float | None, ...]]] = {}
        for block, task, method, image, *numbers_of_row in part:
            place = Place(block, task, method)
            images.setdefault(place, []).append(numbers.setdefault(image, len(numbers)))
            values.setdefault(place, []).append(tuple(numbers_of_row))
        for place, rows in values.items():
            whole = np.column_stack([np.array(images[place], dtype=float), np.array(rows, dtype=float)])
            found.setdefault(place, []).append(whole)
    cells = {}
    for place, parts in found.items():
        whole = np.concatenate(parts)
        order = np.argsort(whole[:, 0])
        cells[place] = Cell(whole[order, 0].astype(int), whole[order, 1:])
    counts = store.all("select block, task, method, count(*) from members where suite = ? group by 1, 2, 3", suite)
    failures = store.all(
        "select m.block, m.task, m.method, count(*), min(u.error) from members m join units u on u.key = m.key "
        "where m.suite = ? and u.status = 'failed' group by 1, 2, 3",
        suite,
    )
    return Cells(
        cells,
        list(numbers),
        {Place(*row[:3]): (row[3], row[4]) for row in map(tuple, failures)},
        {Place(*row[:3]): row[3] for row in map(tuple, counts)},
    )


def common(first: Cell, second: Cell, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of two cells on the pictures that both have."""
    _, a, b = np.intersect1d(first.images, second.images, assume_unique=True, return_indices=True)
    return first.column(column)[a], second.column(column)[b]


def _parts(store: Store, query: str, suite: str) -> Iterator[list[tuple[Any, ...]]]:
    cursor = store.db.execute(query, (suite,))
    cursor.row_factory = None  # plain tuples: half the time of a million named rows
    while part := cursor.fetchmany(100_000):
        yield part
