"""The driver: which units a suite has, which of them are left, and what becomes of them."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from stsl.bench.data import Picture
from stsl.bench.engine import Engine
from stsl.bench.identity import (
    PriorChoice,
    PriorFiles,
    code_version,
    digest,
    prior_files,
    prior_folder,
    unit_key,
)
from stsl.bench.inpainting import check_inpainter
from stsl.bench.measuring import Measured, Measurer
from stsl.bench.store import COSTS, Member, Store
from stsl.bench.suite import Corruption, Method, Suite, check_side
from stsl.bench.ways import Way
from stsl.bench.work import Batch, Item, Outcome, Restoring
from stsl.files import atomic
from stsl.images import safe_stem
from stsl.options import nearest

log = logging.getLogger("stsl")

# What one picture or one file can have wrong with it.
ERRORS = (ValueError, TypeError, OSError, RuntimeError)


@dataclass(frozen=True)
class Unit:
    """One picture, one task, one method: what a row of results is about."""

    key: str
    block: str
    task: str
    method: Method
    way: Way
    measured: Measured


@dataclass(frozen=True)
class Chosen:
    """A block with the prior that was found for it."""

    name: str
    prior: PriorChoice
    files: PriorFiles


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        suite: the table, or the part of it that was asked for.
        blocks: those whose priors are here.
        pictures: of what.
        fast: every method at its preset "fast".
        seed: of measurements and methods.
        batch: units that are restored together.
        rerun_changed: also do again what another version of the code did.
        threads: of PyTorch in each worker.
        own: weights of rows that have their own, by the row's name.
        left_out: blocks and rows that are not run, and why.
    """

    suite: Suite
    blocks: tuple[Chosen, ...]
    pictures: Sequence[Picture]
    fast: bool = False
    seed: int = 0
    batch: int = 4
    rerun_changed: bool = False
    threads: int | None = None
    own: Mapping[str, "Chosen"] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def weights(self, block: "Chosen", method: Method) -> "Chosen":
        """What a row is run with: its own weights or its block's."""
        return self.own.get(method.name, block)

    def rows(self, block: str) -> list[tuple[str, Method]]:
        """The (task, method) pairs of a block."""
        return [
            (task, method)
            for task in self.suite.tasks
            for method in self.suite.methods
            if method.block == block and self.suite.runs(method, task)
        ]

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.pictures) * sum(len(self.rows(block.name)) for block in self.blocks)


def choose_blocks(
    suite: Suite, given: Mapping[str, str], device: str | None, precision: str, offline: bool
) -> tuple[tuple[Chosen, ...], dict[str, str]]:
    """The blocks of a suite whose priors are here, and why the others are left out.

    Raises:
        ValueError: a prior is given for a block that the suite has not, or is of the wrong family.
    """
    known = [*suite.blocks, *(method.name for method in suite.methods if method.prior is not None)]
    for name in given:
        if name not in known:
            raise ValueError(
                f"--prior {name}=...: {suite.name} has no such block{nearest(name, known)}; it has {', '.join(known)}"
            )
    chosen, left_out = [], {}
    for name, block in suite.blocks.items():
        if not any(method.block == name for method in suite.methods):
            continue
        prior = given.get(name, block.prior)
        if prior is None:
            left_out[name] = block.note or f"the suite names no prior: give one by --prior {name}=FOLDER"
            continue
        choice = PriorChoice(prior, device, precision, offline)
        try:
            files = prior_files(choice)
        except OSError as error:
            if name in given:
                raise
            left_out[name] = f"{error} {block.note}".strip()
            continue
        for task in suite.tasks:
            if name in suite.blocks_of(task):
                check_side(suite.tasks[task].spec, files.side)
        chosen.append(Chosen(name, choice, files))
    return tuple(chosen), left_out


def choose_rows(
    suite: Suite,
    blocks: Sequence[Chosen],
    given: Mapping[str, str],
    device: str | None,
    precision: str,
    offline: bool,
    *,
    fast: bool = False,
) -> tuple[Suite, dict[str, Chosen], dict[str, str]]:
    """The suite with the rows that can be run here, weights of their own that some have, and why the others cannot.

    Raises:
        ValueError: weights were given for a row and are not what it needs.
    """
    own, left_out = dict[str, Chosen](), dict[str, str]()
    there = {block.name: block for block in blocks}
    for method in suite.methods:
        if method.block not in there:
            continue  # with its block
        spec = next((suite.tasks[task].spec for task in suite.tasks if suite.runs(method, task)), None)
        if spec is None:
            continue
        if why := method.way(spec, suite.edit, fast=fast).lacks():
            left_out[method.name] = why
        elif method.prior is not None:
            choice = PriorChoice(given.get(method.name, method.prior), device, precision, offline)
            try:
                check_inpainter(prior_folder(choice))
                own[method.name] = Chosen(method.block, choice, prior_files(choice))
            except (OSError, ValueError) as error:
                if method.name in given:
                    raise
                left_out[method.name] = f"{error}; BLOCK is {method.name} here"
    kept = tuple(method for method in suite.methods if method.name not in left_out)
    return suite.model_copy(update={"methods": kept}), own, left_out


class Driver:
    """Runs a plan into a store; the only writer of either."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan = store, plan
        self._in_flight: dict[str, Unit] = {}
        self._tried: set[str] = set()
        self.done_before = 0

    def run(self, engine: Engine) -> Iterator[tuple[Unit, str | None]]:
        """Each unit with its error, or None where it went well, as they are finished. What is done is left alone.

        Raises:
            ValueError: a task is another corruption in this folder; nothing is done.
        """
        plan = self.plan
        for block in plan.blocks:
            measurer = Measurer(self.store, block.files.side, plan.seed)
            for task in dict.fromkeys(task for task, _ in plan.rows(block.name)):
                measurer.check(task, plan.suite.tasks[task])
        settings: dict[str, Any] = {
            "fast": plan.fast,
            "seed": plan.seed,
            "batch": plan.batch,
            "pictures": len(plan.pictures),
        }
        settings |= {"blocks": {b.name: b.prior.name for b in plan.blocks}, "code": code_version()}
        settings |= {"left_out": dict(plan.left_out)}
        started = datetime.now(UTC).isoformat(timespec="microseconds")
        self.store.put("runs", {"suite": plan.suite.name, "started": started, "settings": json.dumps(settings)})
        self._failed: list[tuple[Unit, str]] = []
        for batch, done in engine.run(Restoring(plan.threads), self._batches()):
            yield from self._take_failed()
            yield from self._record(batch, done)
        yield from self._take_failed()

    def _batches(self) -> Iterator[Batch]:
        """What is left to do. A batch holds the same pictures in every run, so that a resumed one gives equal bits."""
        for block in self.plan.blocks:
            measurer = Measurer(self.store, block.files.side, self.plan.seed)
            pictures = iter(self.plan.pictures)
            while part := list(islice(pictures, self.plan.batch)):
                for task, corruption in self.plan.suite.tasks.items():
                    rows = [method for name, method in self.plan.rows(block.name) if name == task]
                    if rows:
                        measured = self._measure(measurer, block, part, task, corruption, rows)
                        for method in rows:
                            yield from self._batch(block, task, corruption, method, measured)

    def _measure(
        self,
        measurer: Measurer,
        block: Chosen,
        part: Sequence[Picture],
        task: str,
        corruption: Corruption,
        rows: Sequence[Method],
    ) -> list[Measured]:
        """The measurements of some pictures; one that cannot be made fails the units that needed it."""
        found = []
        for picture in part:
            try:
                found.append(measurer.measure(picture, task, corruption))
            except ERRORS as error:
                nothing = Measured(picture.id, task, Path(), Path(), "")
                for method in rows:
                    way = method.way(corruption.spec, self.plan.suite.edit, fast=self.plan.fast)
                    key = digest([self.plan.suite.name, block.name, task, method.name, picture.id, "no measurement"])
                    self._fail(Unit(key, block.name, task, method, way, nothing), f"no measurement: {error}")
        return found

    def _batch(
        self, block: Chosen, task: str, corruption: Corruption, method: Method, measured: Sequence[Measured]
    ) -> Iterator[Batch]:
        way, weights = (
            method.way(corruption.spec, self.plan.suite.edit, fast=self.plan.fast),
            self.plan.weights(block, method),
        )
        settings = way.settings()
        units = []
        for each in measured:
            key = unit_key(way.name, settings, self.plan.seed, each.sha256, weights.files.hash)
            units.append(Unit(key, block.name, task, method, way, each))
        with self.store.together():
            self.store.add_members(self._member(unit) for unit in units)
        items = []
        for unit in units:
            if self._is_done(unit.key):
                self.done_before += 1
            elif unit.key not in self._tried:  # the same settings in two rows are one unit
                self._tried.add(unit.key)
                try:
                    items.append(Item(unit.key, unit.measured.image, *unit.measured.read()))
                    self._in_flight[unit.key] = unit
                except ERRORS as error:
                    self._fail(unit, str(error))
        if items:
            yield Batch(weights.prior, way, self.plan.seed, tuple(items))

    def _is_done(self, key: str) -> bool:
        row = self.store.unit(key)
        if row is None or row["status"] != "done" or not (self.store.folder / row["png"]).is_file():
            return False
        return not self.plan.rerun_changed or row["code"] == code_version()

    def _record(self, batch: Batch, done: "list[Outcome] | Exception") -> Iterator[tuple[Unit, str | None]]:
        """Write the PNGs, then their rows all at once: a batch is done or it is not."""
        if isinstance(done, Exception):
            said = f"{type(done).__name__}: {done}"
            done = [Outcome(item.key, None, said, {}) for item in batch.items]
        finished, rows = [], []
        for outcome in done:
            unit = self._in_flight.pop(outcome.key)
            png, error = None, outcome.error
            if outcome.png is not None:
                png = self._place(unit)
                try:
                    with atomic(self.store.folder / png) as temporary:
                        temporary.write_bytes(outcome.png)
                except OSError as failure:
                    png, error = None, f"the picture could not be written: {failure}"
            rows.append(self._row(unit, outcome.facts, png, error))
            finished.append((unit, error))
        with self.store.together():
            for row in rows:
                self.store.finish(row)
        yield from finished

    def _fail(self, unit: Unit, error: str) -> None:
        with self.store.together():
            # Where a result stands it stays: data of another folder must not empty a finished table.
            self.store.add_members([self._member(unit)], keep=True)
            self.store.finish(self._row(unit, {}, None, error))
        self._failed.append((unit, error))

    def _take_failed(self) -> Iterator[tuple[Unit, str | None]]:
        """Those that failed before they reached an engine."""
        failed, self._failed = self._failed, []
        yield from failed

    def _member(self, unit: Unit) -> Member:
        return Member(self.plan.suite.name, unit.block, unit.task, unit.method.name, unit.measured.image, unit.key)

    def _place(self, unit: Unit) -> str:
        """Where a restored picture goes: a name for people, and enough of the key to keep settings apart."""
        name = f"{safe_stem(unit.measured.image)}-{unit.key[:12]}.png"
        return "/".join(("restored", unit.block, safe_stem(unit.task), safe_stem(unit.method.name), name))

    def _row(self, unit: Unit, facts: dict[str, Any], png: str | None, error: str | None) -> dict[str, Any]:
        block = next(block for block in self.plan.blocks if block.name == unit.block)
        weights = self.plan.weights(block, unit.method)
        corruption = self.plan.suite.tasks[unit.task]
        return {
            "key": unit.key,
            "status": "done" if png is not None else "failed",
            "error": error,
            "png": png,
            "image": unit.measured.image,
            "task": unit.task,
            "spec": corruption.spec,
            "noise": corruption.noise,
            "block": unit.block,
            "side": block.files.side,
            "sampler": unit.way.name,
            "settings": json.dumps(unit.way.settings(), sort_keys=True),
            "seed": self.plan.seed,
            "measurement": unit.measured.sha256,
            "prior": facts.get("prior", weights.prior.name),
            "prior_hash": weights.files.hash,
            "code": code_version(),
            "device": facts.get("device"),
            "batch": facts.get("batch"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **{name: facts.get(name) for name in COSTS},
        }
