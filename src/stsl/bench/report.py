"""The report of a suite: ours beside the published figures, who beats whom, what it cost, and what it looks like."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stsl import images, operators
from stsl.bench.cells import LOWER_IS_BETTER, Cell, Cells, Place, common, load_cells
from stsl.bench.document import (
    Drawing,
    Heading,
    Paragraph,
    Pictures,
    Piece,
    Table,
    Text,
    to_html,
    to_latex,
    to_markdown,
)
from stsl.bench.identity import digest
from stsl.bench.measuring import truth_path
from stsl.bench.published import Figure, figures
from stsl.bench.scores import CEILING
from stsl.bench.stats import intervals, paired
from stsl.bench.store import EDIT_SCORES, SCORES, Store
from stsl.bench.suite import Suite
from stsl.files import atomic
from stsl.measurements import load_measurement, load_operator
from stsl.shapes import Image

SHOWN = ("lpips_vgg", "lpips_alex", "psnr", "ssim")
TITLES = {
    "lpips_vgg": "LPIPS (VGG), lower is better",
    "lpips_alex": "LPIPS (AlexNet), lower is better",
    "psnr": "PSNR in dB, higher is better",
    "ssim": "SSIM, higher is better",
    "psnr_uint8_wrap": "PSNR with squares taken modulo 256: a diagnostic, no quality",
    "clip_accuracy": "CLIP accuracy: share nearer to the target text than to the source text, higher is better",
    "clip_balanced": "CLIP accuracy, balanced with the unedited pictures (0.5 is chance), higher is better",
    "clip_similarity": "Cosine of picture and target text, higher is better",
    "lpips_outside": "LPIPS (AlexNet) to the truth outside the edited region, lower is better",
    "psnr_outside": "PSNR in dB outside the edited region, higher is better",
    "key_distance": "Distance of a ViT's keys to the truth, lower is better",
}
COSTS = {
    "nfe_paper": "NFE as the paper counts",
    "unet_samples": "network evaluations",
    "unet_backward_samples": "backward",
    "decoder_samples": "decoder passes",
    "encoder_samples": "encoder passes",
    "seconds": "seconds a picture",
}
COLOURS = ("#1b6ca8", "#c0392b", "#27833c", "#8e44ad", "#b9770e", "#117a8b", "#7f8c8d", "#d35495", "#5d6d1e", "#34495e")
WRAPPED = (
    "The published PSNR of the STSL paper lie between 28 and 33 dB whatever LPIPS and SSIM say, and are no target; "
    "squares taken modulo 256 would give that range, which nobody has confirmed. The last column is ours taken so."
)
JUDGED = (
    "CLIP says whether the text has arrived, not whether the rest has stayed: look at both. The balanced accuracy is "
    "the mean of the edits' and of the unedited pictures', which a CLIP that always says the same cannot raise."
)
NOT_RANKED = "Blocks solve problems of different sizes with different priors and are not compared with each other."


@dataclass(frozen=True)
class Score:
    """One number of the report, with what goes with it.

    Args:
        place, metric: which.
        n: pictures.
        mean, low, high: with its 95 % interval; NaN ends for a distance of sets.
        rank: 1 is the best of its block and task, 2 the second; 0 where it is neither, or a picture is missing.
        published: the paper's figure, if it has one.
    """

    place: Place
    metric: str
    n: int
    mean: float
    low: float
    high: float
    rank: int
    published: Figure | None


def write_report(store: Store, suite: Suite, *, pictures: bool = True, distances: bool = True) -> list[Path]:
    """Write a suite's report as HTML, Markdown, LaTeX and CSV to `report/` in the output folder.

    Args:
        store, suite: what to report on.
        pictures: show the best, median and worst picture of each task.
        distances: take FID and KID of the sets of pictures.

    Raises:
        ValueError: the folder has nothing of this suite.
    """
    cells = load_cells(store, suite.name)
    if not cells.expected:
        raise ValueError(
            f"{store.folder} has nothing of {suite.name}; it has {', '.join(store.suites()) or 'no suite'}"
        )
    folder = store.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    scores = list(score(suite, cells))
    pieces: list[Piece] = [*_opening(store, suite, cells)]
    of_sets: list[Score] = []
    for block in _blocks(suite, cells):
        inside = [place for place in cells.cells if place.block == block]
        pieces += [Heading(f"Block {block}"), Paragraph(_about(store, suite, block))]
        pieces += _tables(suite, block, scores, cells)
        pieces += _ceiling(store, suite, block, cells)
        if distances and suite.edit is None:
            pieces += _distances(store, suite, block, inside, of_sets)
        pieces += _pairs(suite, block, cells)
        pieces += _costs(suite, block, cells)
        pieces += _curves(suite, block, cells)
        if pictures:
            pieces += _strips(store, suite, block, cells, folder)
    pieces += _failures(cells)
    stem = images.safe_stem(suite.name)
    written = {
        folder / f"{stem}.html": to_html(suite.title, pieces),
        folder / f"{stem}.md": to_markdown(suite.title, pieces, folder),
        folder / f"{stem}.tex": to_latex(pieces),
    }
    for path, text in written.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    _write_csv(folder / f"{stem}.csv", [*scores, *of_sets])
    return [*written, folder / f"{stem}.csv"]


def score(suite: Suite, cells: Cells) -> Iterator[Score]:
    """Every mean of the report with its interval, its rank among the methods of its block and task, and the paper's."""
    printed = {(f.task, f.method, f.metric): f for f in figures(suite.published)}
    rows = {method.name: method.published for method in suite.methods}
    for block, task in dict.fromkeys((place.block, place.task) for place in cells.cells):
        here = {place: cell for place, cell in cells.cells.items() if (place.block, place.task) == (block, task)}
        name = _printed_task(suite, next(iter(here)))
        most = max(len(cell.images) for cell in here.values())
        for metric in (*SCORES, *EDIT_SCORES):
            taken = {place: cell for place, cell in here.items() if cell.has(metric)}
            complete = [place for place, cell in taken.items() if len(cell.images) == most]
            means = {place: float(taken[place].column(metric).mean()) for place in taken}
            order = sorted(complete, key=lambda place: means[place], reverse=metric not in LOWER_IS_BETTER)
            ranked = order[:2] if len(complete) > 1 and metric in shown(suite) else []
            for place, cell in taken.items():
                low, high = intervals(cell.column(metric)[:, None])[:, 0]
                yield Score(
                    place,
                    metric,
                    len(cell.images),
                    means[place],
                    float(low),
                    float(high),
                    ranked.index(place) + 1 if place in ranked else 0,
                    printed.get((name, rows.get(place.method) or "", metric)),
                )


def _printed_task(suite: Suite, place: Place) -> str:
    """What the paper calls the task of a place."""
    return suite.tasks[place.task].published or place.task if place.task in suite.tasks else place.task


def shown(suite: Suite) -> tuple[str, ...]:
    """The scores that a suite's tables have; of edits, distances to the truth say nothing where it was to change."""
    return SHOWN if suite.edit is None else EDIT_SCORES


def _headline(suite: Suite, cell: Cell) -> str | None:
    """The score by which pictures are shown, and drawn against evaluations."""
    order = ("lpips_vgg", "psnr") if suite.edit is None else ("clip_similarity", "lpips_outside", "lpips_vgg", "psnr")
    return next((metric for metric in order if cell.has(metric)), None)


def _ordered(suite: Suite, places: Sequence[Place]) -> list[Place]:
    """By task, then by method, as the suite has them."""
    tasks = list(suite.tasks)
    last = len(tasks)
    return sorted(
        places,
        key=lambda p: (tasks.index(p.task) if p.task in tasks else last, suite.order.get(p.method, last), p.method),
    )


def _blocks(suite: Suite, cells: Cells) -> list[str]:
    there = {place.block for place in cells.cells}
    return [block for block in suite.blocks if block in there]


def _opening(store: Store, suite: Suite, cells: Cells) -> Iterator[Piece]:
    source = f"Source: {suite.source}. {suite.note}".strip()
    yield Paragraph(source)
    # A sample's source is "sample-01 of PRIOR"; a photo's is its path.
    samples = store.one(
        "select 1 from pictures p where p.id like 'sample-%' and p.source like p.id || ' of %' "
        "and exists (select 1 from members m where m.suite = ? and m.image = p.id) limit 1",
        suite.name,
    )
    if samples is not None:
        yield Paragraph(
            "Some of the pictures are unconditional samples of the prior, and so biased towards it: methods that use "
            "the prior have it easier with them. These figures are not to be quoted."
        )
    (resize,) = [row[0] for row in store.all("select distinct resize from pictures limit 1")] or [""]
    yield Paragraph(
        f"Pictures: {len(cells.images)}; brought to size by: {resize}. Scores are of the saved 8-bit files."
    )
    if suite.published.note:
        yield Paragraph(f"Published: {suite.published.note}")
    runs = [
        json.loads(row["settings"])
        for row in store.all("select settings from runs where suite = ? order by started", suite.name)
    ]
    ran = {name for place in cells.cells for name in (place.block, place.method)}
    for name, why in (runs[-1].get("left_out", {}) if runs else {}).items():
        if name not in ran:  # an earlier run had it
            yield Paragraph(f"{name} was not run: {why}")
    if any(run["fast"] for run in runs):
        yield Paragraph("Some of these units were run with --fast, which is not the setting of the table.")
    codes = [row[0] for row in store.all("select distinct code from units limit 5")]
    yield Paragraph(f"Code: {', '.join(map(str, codes))}. {NOT_RANKED}")


def _about(store: Store, suite: Suite, block: str) -> str:
    own = [method.name for method in suite.methods if method.prior is not None]
    row = store.one(
        "select u.prior, u.side from members m join units u on u.key = m.key where m.suite = ? and m.block = ? and "
        f"u.status = 'done' order by m.method in ({', '.join('?' * len(own))}) limit 1",
        suite.name,
        block,
        *own,
    )
    assert row is not None
    try:
        prior = json.loads(row["prior"])["name"]
    except ValueError:
        prior = row["prior"]
    said = f"Prior {prior} at {row['side']} pixels. {suite.blocks[block].note}".strip()
    if suite.published.comparable and row["side"] != suite.blocks[block].side:
        said += f" The published protocol has {suite.blocks[block].side} pixels: the figures are not of one problem."
    return said


def _tables(suite: Suite, block: str, scores: Sequence[Score], cells: Cells) -> Iterator[Piece]:
    """A table per metric: methods by tasks."""
    inside = [each for each in scores if each.place.block == block]
    tasks = [task for task in suite.tasks if any(each.place.task == task for each in inside)]
    methods = [method.name for method in suite.methods if any(each.place.method == method.name for each in inside)]
    for metric in shown(suite):
        found = {(each.place.method, each.place.task): each for each in inside if each.metric == metric}
        if not found:
            continue
        rows = [(Text(method), *(_cell(found.get((method, task)), cells) for task in tasks)) for method in methods]
        n = sorted({each.n for each in found.values()})
        caption = f"{TITLES[metric]}; mean [95 % interval], n = {' to '.join(map(str, {n[0]: 0, n[-1]: 0}))}"
        yield Table(caption, ("method", *tasks), tuple(rows))
    printed = [each for each in inside if each.metric == "psnr" and each.published is not None]
    if printed:
        yield Paragraph(WRAPPED)
        wrapped = {each.place: each for each in inside if each.metric == "psnr_uint8_wrap"}
        rows = [
            (
                Text(f"{each.place.method}, {each.place.task}"),
                Text(f"{each.mean:.2f}"),
                Text(str(each.published)),
                Text(f"{wrapped[each.place].mean:.2f}" if each.place in wrapped else "–"),
            )
            for each in printed
        ]
        yield Table(TITLES["psnr_uint8_wrap"], ("method, task", "PSNR", "published", "wrapped"), tuple(rows))


def _cell(each: Score | None, cells: Cells) -> Text:
    if each is None:
        return Text("–")
    digits = 2 if each.metric.startswith("psnr") else 3
    remark = f"[{each.low:.{digits}f}, {each.high:.{digits}f}]"
    if each.n < cells.expected[each.place]:
        remark += f" n = {each.n} of {cells.expected[each.place]}"
    if each.published is not None:
        remark += f" · paper {each.published}"
    return Text(f"{each.mean:.{digits}f}", each.rank, remark)


def _ceiling(store: Store, suite: Suite, block: str, cells: Cells) -> Iterator[Piece]:
    """What the CLIP of an editing suite says of real pictures."""
    if suite.edit is None:
        return
    if not any(cell.has("clip_accuracy") for place, cell in cells.cells.items() if place.block == block):
        called = suite.edit.clip or "faces-clip"
        yield Paragraph(
            f"No CLIP accuracy: the CLIP of this table, {called}, was not here. `stsl bench run` says more."
        )
        return
    yield Paragraph(JUDGED)
    found = store.all(
        "select metric, value from sets where suite = ? and block = ? and method = ?", suite.name, block, CEILING
    )
    values = {row["metric"]: row["value"] for row in found}
    if values:
        said = "; ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in sorted(values.items()))
        yield Paragraph(f"Ceiling, of real pictures of both kinds: {said}.")
    else:
        yield Paragraph(
            "No ceiling: it needs a CLIP, and --data with pictures that show the target beside those of the source."
        )


def _distances(store: Store, suite: Suite, block: str, inside: Sequence[Place], taken: list[Score]) -> Iterator[Piece]:
    """FID and KID between the restored set and the truths of the same pictures; the numbers are added to `taken`."""
    from stsl.bench.scores import backbone, features
    from stsl.distances import frechet, kid

    chosen = backbone()
    if chosen is None:
        yield Paragraph("No FID or KID: neither Inception's nor VGG-16's weights are here (`stsl fetch lpips`).")
        return
    network_name, network = chosen
    printed = {(f.task, f.method): f for f in figures(suite.published) if f.metric == "fid"}
    published = {method.name: method.published for method in suite.methods}
    rows = []
    for place in _ordered(suite, inside):
        found = store.all(
            "select u.key, u.attempts, u.png, u.image, u.side from members m join units u on u.key = m.key where "
            "m.suite = ? and m.block = ? and m.task = ? and m.method = ? and u.status = 'done' order by u.image",
            suite.name,
            *place,
        )
        paths = [store.folder / row["png"] for row in found]
        truths = [truth_path(store.folder, row["side"], row["image"]) for row in found]
        if len(found) < 3 or not all(path.is_file() for path in paths + truths):
            continue
        keys = digest([[row["key"], row["attempts"]] for row in found])  # a unit that is done again has a new picture
        names = [f"{what}_{network_name}_n{len(found)}" for what in ("fid", "kid")]
        known = store.all(
            "select metric, value, error from sets where suite = ? and block = ? and task = ? and method = ? "
            "and keys = ?",
            suite.name,
            *place,
            keys,
        )
        values = {row["metric"]: (row["value"], row["error"]) for row in known}
        if set(names) - set(values):
            a, b = features(paths, network), features(truths, network)
            estimate = kid(a, b)
            values = {names[0]: (frechet(a, b), None), names[1]: (estimate.value, estimate.error)}
            with store.together():
                for metric, (value, error) in values.items():
                    row = {"suite": suite.name, **place._asdict(), "metric": metric, "value": value, "error": error}
                    store.put("sets", row | {"keys": keys})
        figure = printed.get((_printed_task(suite, place), published.get(place.method) or ""))
        fid, (distance, error) = values[names[0]][0], values[names[1]]
        n, none = len(found), math.nan  # the bootstrap over pictures is none of a set
        taken += [
            Score(place, names[0], n, fid, none, none, 0, figure),
            Score(place, names[1], n, distance, none, none, 0, None),
        ]
        rows.append(
            (
                Text(f"{place.method}, {place.task}"),
                Text(names[0].partition("_")[2]),
                Text(f"{fid:.3g}", 0, f"paper {figure}" if figure else ""),
                Text(f"{distance:.3g}", 0, f"± {error:.2g}"),
            )
        )
    if rows:
        caption = "Distances of the restored set from the truths. Only FID at the same n and network compares"
        if network_name != "inception":
            caption += "; VGG-16's features are not those of the published FID"
        yield Table(caption, ("method, task", "network, n", "FID", "KID"), tuple(rows))


def _pairs(suite: Suite, block: str, cells: Cells) -> Iterator[Piece]:
    """The reference against every other method of its block, on the same pictures."""
    rows = []
    for place in _ordered(suite, [place for place in cells.cells if place.block == block]):
        cell, reference = cells.cells[place], cells.cells.get(Place(block, place.task, suite.reference))
        if place.method == suite.reference or reference is None:
            continue
        for metric in shown(suite):
            if not (reference.has(metric) and cell.has(metric)):
                continue
            first, second = common(reference, cell, metric)
            result = paired(first, second, lower_is_better=metric in LOWER_IS_BETTER)
            if result is not None:
                rows.append(
                    (
                        Text(f"{place.method}, {place.task}"),
                        Text(metric),
                        Text(str(result.n)),
                        Text(f"{100 * result.win_rate:.0f} %"),
                        Text(f"{result.difference:+.3f}", 0, f"[{result.low:+.3f}, {result.high:+.3f}]"),
                        Text(f"{result.p:.2g}"),
                    )
                )
    if rows:
        yield Table(
            f"{suite.reference} against each method, picture by picture: share of pictures it wins, mean difference, "
            "p of the two-sided sign test",
            ("against", "metric", "n", "wins", "difference", "p"),
            tuple(rows),
        )


def _costs(suite: Suite, block: str, cells: Cells) -> Iterator[Piece]:
    printed = {(f.task, f.method, f.metric): f for f in figures(suite.published)}
    published = {method.name: method.published or "" for method in suite.methods}
    rows = []
    for place in _ordered(suite, [place for place in cells.cells if place.block == block]):
        cell = cells.cells[place]
        row = [Text(f"{place.method}, {place.task}")]
        for column in COSTS:
            figure = printed.get((_printed_task(suite, place), published.get(place.method, ""), column))
            value = float(np.nanmean(cell.column(column))) if not np.isnan(cell.column(column)).all() else math.nan
            shown = "–" if math.isnan(value) else f"{value:.1f}" if column == "seconds" else f"{value:.0f}"
            row.append(Text(shown, 0, f"paper {figure}" if figure else ""))
        rows.append(tuple(row))
    if rows:
        yield Table("Cost of a picture", ("method, task", *COSTS.values()), tuple(rows))


def _curves(suite: Suite, block: str, cells: Cells) -> Iterator[Piece]:
    """Quality against network evaluations, a drawing per task."""
    for task in suite.tasks:
        points = []
        for place, cell in cells.cells.items():
            if (place.block, place.task) != (block, task) or not cell.has("unet_samples"):
                continue
            metric = _headline(suite, cell)
            evaluations = float(cell.column("unet_samples").mean())
            if evaluations > 0 and metric is not None:
                points.append((place.method, evaluations, float(cell.column(metric).mean()), metric))
        if len(points) > 1:
            yield Drawing(f"{task}: {TITLES[points[0][3]]}, against network evaluations a picture", _scatter(points))


def _scatter(points: Sequence[tuple[str, float, float, str]]) -> str:
    """Points with their names, evaluations on a logarithmic axis."""
    wide, high, edge = 640, 320, 48
    xs, ys = [math.log10(point[1]) for point in points], [point[2] for point in points]
    left, right = min(xs) - 0.1, max(xs) + 0.35
    gap = 0.1 * (max(ys) - min(ys)) or 0.1 * abs(ys[0]) or 1.0
    bottom, top = min(ys) - gap, max(ys) + gap

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            edge + (x - left) / (right - left) * (wide - 2 * edge),
            high - edge - (y - bottom) / (top - bottom) * (high - 2 * edge),
        )

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">',
        f'<path d="M{edge} {edge / 2} V{high - edge} H{wide - edge / 2}" fill="none" stroke="#888"/>',
        f'<text x="{wide / 2}" y="{high - 8}" text-anchor="middle" fill="#555">network evaluations</text>',
    ]
    for value in sorted({round(10**x) for x in xs}):
        x, _ = at(math.log10(value), bottom)
        lines.append(f'<text x="{x:.1f}" y="{high - edge + 16}" text-anchor="middle" fill="#555">{value}</text>')
    for end in (min(ys), max(ys)):
        _, y = at(left, end)
        lines.append(f'<text x="{edge - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{end:.3g}</text>')
    for place, ((name, *_), x, y) in enumerate(zip(points, xs, ys, strict=True)):
        px, py = at(x, y)
        colour = COLOURS[place % len(COLOURS)]
        escaped = name.replace("&", "&amp;").replace("<", "&lt;")
        lines.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{px + 8:.1f}" y="{py + 4:.1f}" fill="{colour}">{escaped}</text>')
    return "".join([*lines, "</svg>"])


def _strips(store: Store, suite: Suite, block: str, cells: Cells, folder: Path) -> Iterator[Piece]:
    """The best, median and worst picture of each task by the reference's score, with all methods beside it."""
    for task in suite.tasks:
        here = {place: cell for place, cell in cells.cells.items() if (place.block, place.task) == (block, task)}
        if not here:
            continue
        judge = next((place for place in here if place.method == suite.reference), next(iter(here)))
        metric = _headline(suite, here[judge])
        if metric is None:
            continue
        chosen = _best_median_worst(here[judge], metric)
        order = _ordered(suite, list(here))
        rows = []
        for word, number in chosen.items():
            row = _strip(store, suite, cells.images[number], order)
            if row:
                rows.append([(f"{word}: {row[0][0]}", row[0][1]), *row[1:]])
        if rows:
            path = folder / f"{images.safe_stem(suite.name)}-{block}-{images.safe_stem(task)}.jpg"
            images.write(path, images.comparison(rows))
            yield Pictures(f"{task}: {', '.join(chosen)} by {judge.method}'s {metric}, with a detail of each", path)


def _best_median_worst(cell: Cell, metric: str) -> dict[str, int]:
    """Numbers of pictures; of one or two pictures, those there are."""
    order = np.argsort(cell.column(metric), kind="stable")
    order = order if metric in LOWER_IS_BETTER else order[::-1]
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    taken: dict[int, str] = {}
    for word, place in places.items():
        taken.setdefault(int(cell.images[order[place]]), word)
    return {word: number for number, word in taken.items()}


def _strip(store: Store, suite: Suite, image: str, places: Sequence[Place]) -> list[tuple[str, Image]]:
    """Truth, measurement and restored pictures of one image, with labels; nothing where a file is gone."""
    row: list[tuple[str, Image]] = []
    for place in places:
        unit = store.one(
            "select u.* from members m join units u on u.key = m.key where m.suite = ? and m.block = ? and m.task = ? "
            "and m.method = ? and m.image = ? and u.status = 'done'",
            suite.name,
            *place,
            image,
        )
        if unit is None or not (store.folder / unit["png"]).is_file():
            continue
        if not row:
            truth = truth_path(store.folder, unit["side"], image)
            stem = store.folder / "measurements" / str(unit["side"]) / f"{place.task}-seed{unit['seed']}"
            y_path = stem / f"{images.safe_stem(image)}.safetensors"
            if not (truth.is_file() and y_path.is_file()):
                return []
            x = images.read(truth).x
            y, _ = load_measurement(y_path)
            physics, _ = load_operator(stem / f"{images.safe_stem(image)}_operator.safetensors")
            row += [(image, x), (place.task, operators.as_picture(y, physics, x.shape[1:]))]
        row.append((place.method, images.read(store.folder / unit["png"]).x))
    return row


def _failures(cells: Cells) -> Iterator[Piece]:
    if cells.failed:
        rows = [
            (Text(f"{place.block}, {place.task}, {place.method}"), Text(str(count)), Text((error or "")[:200]))
            for place, (count, error) in cells.failed.items()
        ]
        yield Heading("What failed")
        yield Table("Units without a result, and one of their errors", ("where", "units", "error"), tuple(rows))


def _write_csv(path: Path, scores: Sequence[Score]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["block", "task", "method", "metric", "n", "mean", "low", "high", "rank", "published", "evidence"]
        )
        for each in scores:
            printed = each.published
            value = [printed.value, printed.evidence] if printed else ["", ""]
            ends = ["" if math.isnan(end) else end for end in (each.low, each.high)]
            numbers = [each.n, each.mean, *ends, each.rank or ""]
            writer.writerow([*each.place, each.metric, *numbers, *value])
