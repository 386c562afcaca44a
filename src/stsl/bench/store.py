"""What a benchmark has done: one SQLite file, written by the driver only, and the pictures beside it.

Write-ahead logging: readers see a whole state while a run goes on, and a run that is killed loses only what was not
committed.
"""

import csv
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SCORES = ("lpips_vgg", "lpips_alex", "psnr", "ssim", "psnr_uint8_wrap")
# Of edited pictures alone: what a CLIP says of them, and what they kept of the truth.
EDIT_SCORES = (
    "clip_accuracy",
    "clip_balanced",
    "clip_similarity",
    "lpips_outside",
    "psnr_outside",
    "key_distance",
)
COSTS = (
    "seconds",
    "nfe_paper",
    "unet_samples",
    "unet_backward_samples",
    "decoder_samples",
    "decoder_backward_samples",
    "encoder_samples",
    "residual",
)
SCHEMA = f"""
create table if not exists pictures (
    id text, side integer, source text not null, tag text, resize text, primary key (id, side)) without rowid;
create table if not exists measurements (
    image text, side integer, task text, spec text not null, noise real not null, seed integer not null,
    sha256 text not null, primary key (image, side, task, seed)) without rowid;
create table if not exists units (
    key text primary key, status text not null, error text, png text, image text, task text, spec text, noise real,
    block text, side integer, sampler text, settings text, seed integer, measurement text, prior text, prior_hash text,
    code text, device text, batch integer, attempts integer not null default 1, finished text,
    {", ".join(f"{name} real" for name in (*COSTS, *SCORES, *EDIT_SCORES))}, judge text) without rowid;
create table if not exists members (
    suite text, block text, task text, method text, image text, key text not null,
    primary key (suite, block, task, method, image)) without rowid;
create table if not exists suites (name text primary key, content text not null) without rowid;
create table if not exists runs (
    suite text, started text, settings text, primary key (suite, started)) without rowid;
create table if not exists sets (
    suite text, block text, task text, method text, metric text, value real, error real, keys text,
    primary key (suite, block, task, method, metric)) without rowid;
"""


@dataclass(frozen=True)
class Member:
    """A cell of a table: which unit stands for which picture in which row."""

    suite: str
    block: str
    task: str
    method: str
    image: str
    key: str


class Store:
    """The file `results.sqlite` of an output folder.

    Args:
        folder: the output folder.
        create: make it where it is not there.

    Raises:
        FileNotFoundError: there is no benchmark in the folder.
        OSError: its file cannot be opened or written, or is no database.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder, path = folder, folder / "results.sqlite"
        if not create and not path.is_file():
            raise FileNotFoundError(f"{folder} holds no benchmark: `stsl bench run SUITE --out {folder}` makes one")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open(path)
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}; give a folder of results of your own that may be written") from error

    def _open(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self.db.row_factory = sqlite3.Row
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = normal")
        self.db.executescript(SCHEMA)
        there = {row["name"] for row in self.all("select name from pragma_table_info('units')")}
        for name in (*EDIT_SCORES, "judge"):  # a file of an older version
            if name not in there:
                self.db.execute(f"alter table units add column {name} {'text' if name == 'judge' else 'real'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything inside is written, or nothing."""
        self.db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self.db.execute("rollback")
            raise
        self.db.execute("commit")

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Write a row, in place of the one with the same primary key."""
        marks = ", ".join("?" * len(row))
        self.db.execute(f"insert or replace into {table} ({', '.join(row)}) values ({marks})", tuple(row.values()))

    def add_members(self, members: Iterable[Member], *, keep: bool = False) -> None:
        """Say which units stand in which cells; a cell that is there already gets its new unit, or keeps its own."""
        rows = [tuple(vars(member).values()) for member in members]
        instead = "ignore" if keep else "replace"
        self.db.executemany(f"insert or {instead} into members values (?, ?, ?, ?, ?, ?)", rows)

    def unit(self, key: str) -> sqlite3.Row | None:
        """What is known of a unit."""
        return self.one("select * from units where key = ?", key)

    def finish(self, row: Mapping[str, Any]) -> None:
        """Write the outcome of a unit; what was known of it is replaced, but its attempts are counted on."""
        before = self.one("select attempts from units where key = ?", row["key"])
        self.put("units", {**row, "attempts": 1 + (before["attempts"] if before else 0)})

    def one(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query."""
        with closing(self.db.execute(query, values)) as found:
            return found.fetchone()

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query."""
        with closing(self.db.execute(query, values)) as found:
            return found.fetchall()

    def suites(self) -> list[str]:
        """The suites that have cells here."""
        return [row[0] for row in self.all("select distinct suite from members order by suite")]

    def export(self, path: Path, suite: str | None = None) -> int:
        """Write a row per cell to a .csv or .parquet file; returns how many.

        Raises:
            ValueError: another suffix, or a suite that has no cells here.
        """
        if suite is not None and suite not in self.suites():
            raise ValueError(f"{self.folder} has nothing of {suite!r}; it has {', '.join(self.suites()) or 'no suite'}")
        # Named one by one: cells and units share columns, and the cell's names are those of the table.
        units = [row["name"] for row in self.all("select name from pragma_table_info('units')")]
        columns = ["suite", "block", "task", "method", "image", "tag", *(c for c in units if c not in SHARED)]
        chosen = ", ".join(
            {"tag": "p.tag"}.get(c, f"m.{c}" if c in ("suite", "block", "task", "method", "image") else f"u.{c}")
            for c in columns
        )
        query = (
            f"select {chosen} from members m join units u on u.key = m.key "
            "left join pictures p on p.id = m.image and p.side = u.side "
            f"{'where m.suite = ?' if suite else ''} order by m.suite, m.block, m.task, m.method, m.image"
        )
        rows = self.db.execute(query, (suite,) if suite else ())
        if path.suffix == ".csv":
            return _write_csv(path, columns, rows)
        if path.suffix == ".parquet":
            return _write_parquet(path, columns, rows)
        raise ValueError(f"{path}: export to .csv or .parquet")


SHARED = ("block", "task", "image")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    from stsl.files import atomic

    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow(tuple(row))
            count += 1
    return count


def _write_parquet(path: Path, columns: Sequence[str], rows: sqlite3.Cursor) -> int:
    import pyarrow
    import pyarrow.parquet as parquet

    from stsl.files import atomic

    whole = ("side", "seed", "batch", "attempts")
    real = ("noise", *COSTS, *SCORES, *EDIT_SCORES)
    kinds = {**dict.fromkeys(whole, pyarrow.int64()), **dict.fromkeys(real, pyarrow.float64())}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
    count = 0
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while part := rows.fetchmany(50_000):
            values = zip(*map(tuple, part), strict=True)
            arrays = [pyarrow.array(column, type=field.type) for column, field in zip(values, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            count += len(part)
    return count
