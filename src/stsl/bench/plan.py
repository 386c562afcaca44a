"""What a run will take, before it is run: units, hours, disk."""

import json
from pathlib import Path
from typing import Any

from stsl import tasks
from stsl.bench.drive import Plan
from stsl.bench.identity import code_version, unit_key
from stsl.bench.store import Store

# A unit's rows in the database, with their indices: measured on a million of them.
ROW_BYTES = 1500


def forecast(plan: Plan, out: Path) -> dict[str, Any]:
    """Units in all and left, hours of one worker for what is left, and the most disk that all of it can take.

    Seconds are those of units with the same settings at the same side that are in `out` already; where there are
    none, `unmeasured` names the methods, and their hours are not in the sum: a run with --limit 1 measures them.
    """
    known: dict[tuple[str, int, str], str] = {}
    done: set[str] = set()
    seconds: dict[tuple[str, str, int], float] = {}
    if (out / "results.sqlite").is_file():
        with Store(out) as store:
            rows = store.all("select image, side, task, sha256 from measurements where seed = ?", plan.seed)
            known = {(row["image"], row["side"], row["task"]): row["sha256"] for row in rows}
            rows = store.all("select key, code from units where status = 'done'")
            done = {row["key"] for row in rows if not plan.rerun_changed or row["code"] == code_version()}
            taken = (
                "select sampler, settings, side, avg(seconds) mean from units where status = 'done' group by 1, 2, 3"
            )
            seconds = {(row["sampler"], row["settings"], row["side"]): row["mean"] for row in store.all(taken)}
    left, hours, unmeasured = 0, 0.0, set()
    for block in plan.blocks:
        for task, method in plan.rows(block.name):
            way = method.way(plan.suite.tasks[task].spec, plan.suite.edit, fast=plan.fast)
            settings, weights = way.settings(), plan.weights(block, method)
            hashes = [known.get((picture.id, block.files.side, task)) for picture in plan.pictures]
            here = sum(
                value is None or unit_key(way.name, settings, plan.seed, value, weights.files.hash) not in done
                for value in hashes
            )
            left += here
            each = seconds.get((way.name, json.dumps(settings, sort_keys=True), block.files.side))
            if here and each is None:
                unmeasured.add(method.name)
            hours += here * (each or 0.0) / 3600
    return {
        "units": plan.units,
        "left": left,
        "hours_of_one_worker": round(hours, 2),
        "unmeasured": ", ".join(sorted(unmeasured)) or None,
        "disk_gib_at_most": round(_bytes(plan) / 2**30, 2),
    }


def _bytes(plan: Plan) -> int:
    """Uncompressed truths, measurements, masks and results."""
    total = 0
    for block in plan.blocks:
        side, rows = block.files.side, plan.rows(block.name)
        total += len(plan.pictures) * (3 * side**2 + len(rows) * (3 * side**2 + ROW_BYTES))
        for task in {task for task, _ in rows}:
            spec = plan.suite.tasks[task].spec
            total += len(plan.pictures) * (
                12 * (side // tasks.factor(spec)) ** 2 + (side**2 if tasks.is_random(spec) else 0)
            )
    return total
