"""How well photos are edited, clean and corrupted: does the text arrive, and does the rest stay?

    python benchmarks/editing.py --data TEST.parquet --out benchmarks/results/editing
    python benchmarks/editing.py --data VAL.parquet --out benchmarks/results/editing --sweep lam

Neutral faces the models have not seen, half of them in colour, from "a neutral face" to "a smiling face". A row per
setting and face goes to OUT/faces.csv (OUT/lam.csv for the sweep) as soon as it is measured, the most telling settings
first, and the same command goes on from there. The pictures and inversions stay in --keep, never in OUT: they show
people. Scores that could not be taken, because a CLIP or a ViT was not there yet, are taken by the next run; --rescore
takes all of them again. Per row:

- accuracy: 1 where the edited face is nearer to the target text than to the source text, the paper's metric (section
  5.1), by a CLIP that is nobody's loss. called_neutral: 1 where the true photo is nearer to the source text; the mean
  of both is the balanced accuracy, 0.5 for a CLIP that always says the same. OUT/ceiling.csv has it for real photos of
  both kinds: what edits can reach. gain: how much nearer, as a difference of cosines.
- lpips_outside, psnr_outside: distance to the true photo outside mouth and cheeks, which the paper's metric misses.
- vit: 1 − mean cosine of the keys of a ViT between edited and true photo, place by place.
- seconds, network rows a face, with those of an inversion that was kept.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from faces import read_faces
from torch import Tensor

from stsl import LPIPS, NTI, NTICAT, P2L, PSLD, STSL, STSLCAT, Edit, Editing, Editor, images, load_prior, tasks
from stsl.files import atomic
from stsl.perceptual.clip import CLIP, load_clip
from stsl.perceptual.contrastive import ContrastiveLoss, load_contrastive
from stsl.perceptual.edits import Region, key_distance, lpips_outside, psnr_outside

EDIT = Edit("a neutral face", "a smiling face")
SHOWN = {"neutral": EDIT.source, "happiness": EDIT.target}  # labels of the data, and what they are in words
TASKS = ("clean", "sr8", "sr4", "gaussian_blur")
NOISE = 0.005
# Mouth and cheeks in a face framed as the built-in prior's.
MOUTH = Region(0.5, 0.2, 0.42, 0.6)
GUIDANCE = 3.0  # at which the built-in prior's prompts were found to change the picture as they should
LAMBDAS = (0.03, 0.1, 0.2, 0.3, 1.0)

EDITORS: dict[str, Callable[[int], Editor]] = {
    "NTI": lambda steps: NTI(steps, GUIDANCE),
    "NTI-CAT": lambda steps: NTICAT(steps, GUIDANCE),
    "STSL-CAT": lambda steps: STSLCAT(steps, GUIDANCE),
    "STSL-CAT, zref": lambda steps: STSLCAT(
        steps, GUIDANCE, pivot="zref", restorer=STSL(steps, eta=0.0, probes=0, lr=0.03)
    ),
    "STSL then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=STSL.preset("balanced")),
    "PSLD then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=PSLD.preset("balanced")),
    "P2L then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=P2L.preset("fast")),
}
# The paper's setting first, and clean photos; the costly restorers last. NTI and NTI-CAT share their inversion, and so
# do STSL-CAT and NTI behind STSL: the second of each costs its last stage only.
FIRST = ("NTI", "NTI-CAT", "STSL-CAT", "STSL then NTI")
ORDER = [
    *(("sr8", editor) for editor in FIRST),
    *(("clean", editor) for editor in ("NTI", "NTI-CAT")),
    *(("sr4", editor) for editor in FIRST),
    *(("gaussian_blur", editor) for editor in FIRST),
    *((task, editor) for task in ("sr8", "sr4", "gaussian_blur") for editor in ("P2L then NTI", "PSLD then NTI")),
    ("clean", "STSL-CAT"),
]
COLUMNS = (
    "task",
    "editor",
    "lam",
    "steps",
    "guidance",
    "face",
    "colour",
    "seconds",
    "unet_rows",
    "accuracy",
    "called_neutral",
    "gain",
    "lpips_outside",
    "psnr_outside",
    "vit",
)
KEY = COLUMNS[:6]
Row = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """One row of the table: a task and an editor, with what else makes it what it is."""

    task: str
    name: str
    editor: Editor

    def key(self, face: str) -> tuple[str, ...]:
        """What names its row of a face."""
        lam = self.editor.settings().get("lam")
        numbers = ("" if lam is None else f"{lam:g}", str(self.editor.steps), f"{self.editor.guidance:g}")
        return (self.task, self.name, *numbers, face)

    @property
    def most(self) -> int:
        """Network rows a face, when no null-text optimisation ends before its last step."""
        editor, t = self.editor.settings(), self.editor.steps
        pulled = round(editor["measured"] * t) * (1 + editor["probes"]) if "measured" in editor else 0
        restored = self.editor.restorer.nfe if self.editor.restorer else 0
        return restored + t * (1 + 2 + editor["null_steps"] + 4) + pulled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with columns image, color and emotion")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/editing"))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "stsl-editing")
    parser.add_argument("--clip", default="", help="CLIPModel: built-in name, folder or hub id; empty is faces-clip")
    parser.add_argument("--vit", default="", help="ViTModel: built-in name, folder or hub id; empty is faces-vit")
    parser.add_argument("--faces", type=int, default=8, help="how many, half of them in colour")
    parser.add_argument("--batch", type=int, default=4, help="faces edited together")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--full", action="store_true", help="50 steps")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--editors", default=";".join(EDITORS), help="separated by semicolons")
    parser.add_argument("--lam", type=float, help="weight of the measurement in NTI-CAT and STSL-CAT, for their own")
    parser.add_argument("--sweep", choices=["lam"], help="STSL-CAT on sr8 at several weights of the measurement")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; seconds are of so many")
    parser.add_argument("--rescore", action="store_true", help="take every score again from the kept pictures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = 50 if args.full else args.steps

    chosen = list(settings(steps, args.tasks.split(","), args.editors.split(";"), args.lam))
    if args.sweep:
        chosen = [Setting("sr8", "STSL-CAT", replace(STSLCAT(steps, GUIDANCE), lam=lam)) for lam in LAMBDAS]
    x, ids, colour = read_faces(args.data, args.faces - args.faces // 2, args.faces // 2, "neutral")
    table = Table(args.out / ("lam.csv" if args.sweep else "faces.csv"))
    left = [each for each in chosen if any(each.key(face) not in table.rows for face in ids)]
    print(f"{len(left)} of {len(chosen)} settings are left; network rows a face, at most, before sharing inversions:")
    for each in left:
        print(f"  {each.most:5}  {each.task}, {each.name}", flush=True)

    judges = Judges.found(args.clip, args.vit)
    if judges.clip is not None:
        ceiling(judges.clip, args.clip or "faces-clip", args.data, args.out / "ceiling.csv")
    truths = dict(zip(ids, x.split(1), strict=True))
    judges.fill(table, truths, args.keep, again=args.rescore)
    prior = load_prior("faces-128")
    for each in left:
        for first in range(0, len(ids), args.batch):
            part = slice(first, first + args.batch)
            if all(each.key(face) in table.rows for face in ids[part]):
                continue
            edited, seconds, rows = edit(prior, each, x[part], ids[part], args.keep / "inversions")
            for place, face in enumerate(ids[part]):
                images.write(picture(args.keep, each.key(face)), edited[place : place + 1])
                costs = {"colour": str(colour[first + place]), "seconds": f"{seconds:.4g}", "unet_rows": f"{rows:.0f}"}
                table.rows[each.key(face)] = dict(zip(KEY, each.key(face), strict=True)) | costs
            judges.fill(table, truths, args.keep)
    print(table.summary())


def settings(steps: int, tasks_: Sequence[str], editors: Sequence[str], lam: float | None) -> Iterator[Setting]:
    """Those that were asked for, in the order of `ORDER`; others behind."""
    wanted = [(task, editor) for task in tasks_ for editor in editors]
    for task, name in [*(pair for pair in ORDER if pair in wanted), *(pair for pair in wanted if pair not in ORDER)]:
        if (task, name) not in ORDER and name != "STSL-CAT, zref":
            continue  # a clean photo is not restored before NTI
        editor = EDITORS[name](steps)
        if lam is not None and "lam" in editor.settings():
            editor = replace(editor, lam=lam)  # type: ignore[type-var]
        yield Setting(task, name, editor)


def edit(prior: Any, each: Setting, x: Tensor, ids: Sequence[str], cache: Path) -> tuple[Tensor, float, float]:
    """Edited faces; seconds and network rows a face, those of the inversion included."""
    spec, noise = ("denoise", 0.0) if each.task == "clean" else (each.task, NOISE)
    y, physics = tasks.measure(spec, x, noise=noise, ids=ids)
    run = Editing(prior, each.editor, cache=cache).frames(y, physics.to(prior.device), EDIT, ids=ids)
    assert run.kept is not None
    spent, note = (0.0, 0), run.kept.with_suffix(".json")
    for frame in run:
        if frame.stage != "edit":
            spent = (run.cost.seconds, run.cost.unet_samples)
    if spent[1]:
        with atomic(note) as temporary:
            temporary.write_text(json.dumps(spent))
    before = (0.0, 0) if spent[1] else json.loads(note.read_text())
    edited, n = run.result().edited, len(ids)
    return edited, (before[0] + run.cost.seconds) / n, (before[1] + run.cost.unet_samples) / n


def picture(keep: Path, key: tuple[str, ...]) -> Path:
    """Where an edited face is kept."""
    return keep / "pictures" / f"{images.safe_stem('-'.join(part or 'none' for part in key))}.png"


class Table:
    """Rows by what names them, in a CSV file that is always whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        self.rows: dict[tuple[str, ...], Row] = {tuple(row[name] for name in KEY): row for row in known}

    def write(self) -> None:
        with atomic(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows.values())

    def summary(self) -> str:
        """Means over faces as Markdown, task by task; what is outside the mouth for colour and grey faces apart."""
        heads = ["photos", "editor", "lam", "accepted", "unedited neutral", "gain", "LPIPS outside", "PSNR outside, dB"]
        heads += ["key distance", "rows per face", "seconds per face"]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for key, row in self.rows.items():
            groups.setdefault(key[:5], []).append(row)
        place = {task: number for number, task in enumerate(TASKS)}
        for (task, editor, lam, *_), rows in sorted(groups.items(), key=lambda item: place[item[0][0]]):
            kinds = [[row for row in rows if row["colour"] == kind] for kind in ("True", "False")]
            cells = [f"{shown(total(rows, name))} of {len(rows)}" for name in ("accuracy", "called_neutral")]
            cells += [shown(mean(rows, "gain"), 3)]
            for name, digits in (("lpips_outside", 3), ("psnr_outside", 1)):
                cells.append(" / ".join(shown(mean(kind, name), digits) for kind in kinds))
            cells += [shown(mean(rows, "vit"), 3), shown(mean(rows, "unet_rows")), shown(mean(rows, "seconds"))]
            lines.append("| " + " | ".join([task, editor, lam, *cells]) + " |")
        return "\n".join(lines)


def shown(value: float | None, digits: int = 0) -> str:
    """A number of a table, a dash where it is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def total(rows: Sequence[Row], name: str) -> float | None:
    """The sum of a column, None where a row lacks it."""
    values = [float(row[name]) for row in rows if row.get(name)]
    return sum(values) if len(values) == len(rows) else None


def mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a column, None where a row lacks it."""
    whole = total(rows, name)
    return None if whole is None or not rows else whole / len(rows)


@dataclass(frozen=True)
class Judges:
    """Everything that edited faces are asked."""

    clip: CLIP | None
    vit: ContrastiveLoss | None
    lpips: LPIPS | None

    @classmethod
    def found(cls, clip: str, vit: str) -> "Judges":
        """Those whose weights are here; the others are named, and their columns stay empty."""
        kinds: tuple[Callable[[], Any], ...] = (
            lambda: load_clip(clip, offline=True),
            lambda: load_contrastive(vit, offline=True),
            lambda: LPIPS("alex"),
        )
        loaded = []
        for load, columns in zip(kinds, ("accuracy", "vit", "lpips_outside"), strict=True):
            try:
                loaded.append(load())
            except FileNotFoundError as error:
                print(f"without {columns}: {error}", flush=True)
                loaded.append(None)
        return cls(*loaded)

    def fill(self, table: Table, truths: dict[str, Tensor], keep: Path, *, again: bool = False) -> None:
        """Take the scores that rows lack, from the 8-bit pictures, and write the table."""
        for key, row in table.rows.items():
            path, face = picture(keep, key), row["face"]
            if face not in truths or not path.is_file():
                continue
            asked = {"accuracy": self.clip, "vit": self.vit, "lpips_outside": self.lpips, "psnr_outside": True}
            if again or any(judge is not None and not row.get(name) for name, judge in asked.items()):
                found = self.scores(images.read(path).x, truths[face])
                row |= {name: f"{value:.4g}" for name, value in found.items()}
                print(*(row.get(name, "") for name in COLUMNS), sep="  ", flush=True)
        table.write()

    @torch.no_grad()
    def scores(self, x: Tensor, truth: Tensor) -> dict[str, float]:
        """All that can be said of one edited face, (1, 3, H, W)."""
        found = {"psnr_outside": float(psnr_outside(x, truth, MOUTH))}
        if self.clip is not None:
            found["accuracy"] = float(self.clip.accuracy(x, EDIT.source, EDIT.target))
            found["called_neutral"] = float(self.clip.accuracy(truth, EDIT.target, EDIT.source))
            found["gain"] = float(self.clip.gain(x, EDIT.source, EDIT.target))
        if self.lpips is not None:
            found["lpips_outside"] = float(lpips_outside(self.lpips, x, truth, MOUTH))
        if self.vit is not None:
            found["vit"] = float(key_distance(self.vit, x, truth))
        return found


def ceiling(clip: CLIP, name: str, data: Path, out: Path) -> None:
    """Write how well the CLIP tells real photos of both kinds apart."""
    (neutral, *_), (smiling, *_) = (read_faces(data, None, None, emotion) for emotion in SHOWN)
    row = {
        "clip": name,
        "data": data.name,
        "neutral": len(neutral),
        "smiling": len(smiling),
        "neutral_right": f"{float(clip.accuracy(neutral, EDIT.target, EDIT.source).mean()):.4g}",
        "smiling_right": f"{float(clip.accuracy(smiling, EDIT.source, EDIT.target).mean()):.4g}",
        "balanced": f"{clip.balanced_accuracy(neutral, smiling, EDIT.source, EDIT.target):.4g}",
    }
    known = list(csv.DictReader(out.open(newline=""))) if out.exists() else []
    rows = [each for each in known if (each["clip"], each["data"]) != (name, data.name)]
    with atomic(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([*rows, row])
    print("real faces:", *(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
