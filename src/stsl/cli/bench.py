"""`stsl bench`: the papers' tables again, on one's own pictures and priors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table, bar, complain, say
from stsl.cli.shared import Device, Offline, PrecisionName

if TYPE_CHECKING:
    from stsl.bench.data import Picture
    from stsl.bench.drive import Chosen, Driver, Plan
    from stsl.bench.engine import Engine
    from stsl.bench.store import Store
    from stsl.bench.suite import Suite

bench = typer.Typer(
    no_args_is_help=True,
    help="The papers' tables again: one command per table, resumable, ours beside the published figures.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option(help="Folder of results.")]
# Where --data is left out there is no more to find than this.
FACES = "faces"


@bench.command("list")
def _list(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the suites: which table, which pictures, which methods.

    Example: `stsl bench list`
    """
    from stsl.bench.suite import load_suite, suite_names

    rows: list[dict[str, Any]] = []
    for name in suite_names():
        suite = load_suite(name)
        rows.append(
            {
                "suite": name,
                "title": suite.title,
                "images": suite.data.images,
                "tasks": list(suite.tasks),
                "methods": [method.name for method in suite.methods],
            }
        )
    if json:
        as_json(rows)
    else:
        cells = [(r["suite"], r["images"], ", ".join(r["tasks"]), ", ".join(r["methods"])) for r in rows]
        as_table("suites", ("suite", "images", "tasks", "methods"), cells)


@bench.command("run")
def _run(
    suite: Annotated[str, typer.Argument(help="A suite of `stsl bench list`, or a .yaml file.")],
    data: Annotated[Path | None, typer.Option(help="Folder of pictures or .parquet file.")] = None,
    out: Out = Path("bench"),
    limit: Annotated[int | None, typer.Option(help="At most so many pictures.", min=1)] = None,
    methods: Annotated[str | None, typer.Option(help="Rows of the table, with commas between them.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Its tasks, with commas between them.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Every method at its preset fast.")] = False,
    prior: Annotated[list[str] | None, typer.Option(help="BLOCK=NAME: another prior for a block.")] = None,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster that you trust.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures restored together.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of measurements and methods.", min=0)] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Say what there is to do, and do nothing.")] = False,
    rerun_changed: Annotated[
        bool, typer.Option("--rerun-changed", help="Also do again what another version of the code did.")
    ] = False,
    device: Device = None,
    precision: PrecisionName = "auto",
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a suite, or go on with it: what is done is never done again. A unit that fails is recorded and tried again.

    Every method gets the same stored measurement of a picture. Scores come from the saved 8-bit files.

    Example: `stsl bench run mini-table1 --limit 1 --methods stsl,psld --tasks sr4 --fast --out bench`
    """
    from stsl.bench.drive import Driver, Plan, choose_blocks, choose_rows
    from stsl.bench.engine import engine_named
    from stsl.bench.store import Store
    from stsl.bench.suite import load_suite
    from stsl.priors.precision import pick_device, pick_precision

    complete = load_suite(suite)
    table = complete.only(methods, tasks)
    if engine == "local":  # on a cluster the workers choose
        pick_precision(precision, pick_device(device))  # type: ignore[arg-type]
    given = dict(_split(item) for item in prior or [])
    chosen_engine = engine_named(engine, address)
    blocks, left_out = choose_blocks(table, given, device, precision, offline)
    for name, why in left_out.items():
        say(f"block {name} is left out: {why}")
    if not blocks:
        raise FileNotFoundError(f"no prior of {suite} is here, so there is nothing to run")
    table, own, missing = choose_rows(table, blocks, given, device, precision, offline, fast=fast)
    for name, why in missing.items():
        say(f"row {name} is left out: {why}")
    if not table.methods:
        raise FileNotFoundError(f"no row of {suite} can be run here")
    pictures = _pictures(table, data, limit, blocks)
    left_out |= missing
    whole = Plan(table, blocks, pictures, fast, seed, batch, rerun_changed, own=own, left_out=left_out)
    if plan:
        _say_plan(whole, out, json)
        return
    with Store(out, create=True) as store:
        store.put("suites", {"name": complete.name, "content": complete.model_dump_json()})
        driver = Driver(store, whole)
        failed = _watched(driver, whole, chosen_engine)
        _score(store, table, data, {block.name: block.files.side for block in blocks})
        rows = _means(store, table)
        if json:
            as_json({"suite": table.name, "units": whole.units, "failed": failed, "rows": rows})
        else:
            shown = [list(row.values()) for row in rows]
            if rows:
                as_table(f"{table.title}; means over pictures", list(rows[0]), shown)
            say(f"`stsl bench report {out}` writes the tables and pictures")
    if failed:
        raise typer.Exit(1)


def _split(item: str) -> tuple[str, str]:
    block, equals, name = item.partition("=")
    if not equals or not name:
        raise ValueError(f"--prior {item}: give BLOCK=NAME, as in --prior latent=faces-128")
    return block, name


def _pictures(suite: "Suite", data: Path | None, limit: int | None, blocks: "tuple[Chosen, ...]") -> "list[Picture]":
    from stsl.bench.data import find_pictures, what_to_place

    if data is not None:
        return find_pictures(data, suite.data, limit)
    if suite.data.layout != FACES:
        raise FileNotFoundError(f"{suite.name} needs --data: {what_to_place(suite.data)}. {suite.data.note}")
    from stsl.bench.faces import builtin_faces

    count = min(limit or suite.data.images, suite.data.images)
    if suite.edit is not None:
        say(
            f"without --data: {count} samples of {blocks[0].prior.name} under {suite.edit.source!r}, biased towards "
            "that prior; figures to be quoted need --data"
        )
        return builtin_faces(blocks[0].prior, count, suite.edit.source)
    if count > 1:
        say(
            f"without --data: the astronaut and {count - 1} unconditional samples of {blocks[0].prior.name}, biased "
            "towards that prior; figures to be quoted need --data"
        )
    return builtin_faces(blocks[0].prior, count)


def _watched(driver: "Driver", plan: "Plan", engine: "Engine") -> int:
    """Run with a progress bar; how many units failed."""
    failed = 0
    with bar() as progress:
        task = progress.add_task(plan.suite.name, total=plan.units, said="")
        for unit, error in driver.run(engine):
            left = plan.units - driver.done_before
            progress.update(task, advance=1, total=left, description=f"{unit.task} {unit.method.name}")
            if error is not None:
                failed += 1
                complain(f"{unit.measured.image}, {unit.task}, {unit.method.name}: {error}")
    if driver.done_before:
        say(f"{driver.done_before} of {plan.units} units were done already")
    return failed


def _score(store: "Store", suite: "Suite", data: Path | None = None, sides: Mapping[str, int] | None = None) -> None:
    """Take the scores that can be taken; what is lacking is said, with what to do."""
    from stsl.bench.scores import EditJudge, measures, score_edits, score_missing, take_ceiling
    from stsl.bench.store import SCORES

    if missing := [name for name in SCORES if name not in measures()]:
        say(f"without {' and '.join(missing)}: `stsl fetch lpips` gets the weights once")
    for _ in score_missing(store):
        pass
    if suite.edit is None:
        return
    judge = EditJudge.of(suite.edit)
    for said in judge.lacking:
        say(said)
    for _ in score_edits(store, suite, judge):
        pass
    if data is not None:
        take_ceiling(store, suite, judge, data, dict(sides or {}))


def _means(store: "Store", suite: "Suite") -> list[dict[str, Any]]:
    """A row per block, task and method, for the end of a run."""
    from stsl.bench.report import shown

    means = ", ".join(f"avg(u.{name}) {name}" for name in (*shown(suite), "unet_samples", "seconds"))
    found = store.all(
        f"select m.block, m.task, m.method, count(*) n, {means} from members m join units u on u.key = m.key "
        "where m.suite = ? and u.status = 'done' group by m.block, m.task, m.method",
        suite.name,
    )
    kept = [row for row in found if row["method"] in suite.order and row["task"] in suite.tasks]
    digits = {"psnr": 2, "psnr_outside": 2, "unet_samples": 0, "seconds": 1}
    return [
        {
            key: round(row[key], digits.get(key, 3)) if isinstance(row[key], float) else row[key]
            for key in row.keys()  # noqa: SIM118 (a row of SQLite is no dict)
        }
        for row in sorted(
            kept, key=lambda row: (row["block"], list(suite.tasks).index(row["task"]), suite.order[row["method"]])
        )
    ]


def _say_plan(plan: "Plan", out: Path, json: bool) -> None:
    from stsl.bench.plan import forecast

    row = forecast(plan, out)
    if json:
        as_json(row)
    else:
        as_table(f"{plan.suite.title}: what there is to do", list(row), [list(row.values())])


@bench.command("export")
def _export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of results.")],
    to: Annotated[Path, typer.Option(help="A .csv or .parquet file.")],
    suite: Annotated[str | None, typer.Option(help="One suite; all when left out.")] = None,
) -> None:
    """Write a row per cell of every table: settings, costs and scores.

    Example: `stsl bench export bench --to rows.parquet`
    """
    from stsl.bench.store import Store

    with Store(out) as store:
        say(f"{store.export(to, suite)} rows in {to}")


@bench.command("report")
def _report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of results.")],
    suite: Annotated[str | None, typer.Option(help="One suite; all when left out.")] = None,
    pictures: Annotated[bool, typer.Option(help="Show the best, median and worst pictures.")] = True,
    distances: Annotated[bool, typer.Option(help="Take FID and KID.")] = True,
) -> None:
    """Write HTML, Markdown, LaTeX and CSV: ours beside the published figures, pairs, costs, pictures.

    The pictures in it are the user's: look at whose they are before the report goes anywhere.

    Example: `stsl bench report bench`
    """
    from stsl.bench.report import write_report
    from stsl.bench.store import Store
    from stsl.bench.suite import Suite

    with Store(out) as store:
        # A run that was stopped before its first unit left nothing to report.
        begun = "select name, content from suites where name in (select suite from members) order by name"
        ran = {row["name"]: row["content"] for row in store.all(begun)}
        if suite is not None and suite not in ran:
            raise ValueError(f"{out} has nothing of {suite!r}; it has {', '.join(ran) or 'no suite'}")
        if not ran:
            raise ValueError(f"{out} has no units yet: `stsl bench run SUITE --out {out}` makes them")
        for name in [suite] if suite else ran:
            table = Suite.model_validate_json(ran[name])
            _score(store, table)
            for path in write_report(store, table, pictures=pictures, distances=distances):
                say(str(path))


@bench.command("compare")
def _compare(
    a: Annotated[Path, typer.Argument(help="Folder of results.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two folders of results picture by picture: the same cells, such as before and after a change.

    Example: `stsl bench compare before after`
    """
    from stsl.bench.compare import compare
    from stsl.bench.store import Store

    with Store(a) as first, Store(b) as second:
        rows = compare(first, second)
    if not rows:
        raise ValueError(f"{a} and {b} have no scored cell in common: suite, block, task, method and picture")
    if json:
        as_json(rows)
    else:
        as_table(f"{a} minus {b}", list(rows[0]), [list(row.values()) for row in rows])
