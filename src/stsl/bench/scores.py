"""Scores of restored and edited pictures, from their 8-bit files alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stsl import files, images, metrics
from stsl.bench.data import Picture, find_pictures
from stsl.bench.identity import digest
from stsl.bench.measuring import truth_path
from stsl.bench.store import EDIT_SCORES, SCORES, Store
from stsl.bench.suite import Changed, Suite
from stsl.perceptual import LPIPS, PooledVGG
from stsl.perceptual.clip import CLIP, CLIP_MODEL, load_clip
from stsl.perceptual.contrastive import VIT, ContrastiveLoss, load_contrastive
from stsl.perceptual.edits import key_distance, lpips_outside, psnr_outside
from stsl.perceptual.find import Kind, find
from stsl.priors.folder import Folder
from stsl.priors.load import builtin_folder
from stsl.shapes import Image, PerImage

# The network of the published FID, as torchmetrics loads it, where the user has put its weights.
# A unit's key, its picture and the truth.
Pair = tuple[str, Image, Image]

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"


def psnr_uint8_wrap(x: Image, truth: Image) -> PerImage:
    """PSNR with the squared error of 8-bit values taken in 8-bit arithmetic, where it wraps at 256: a diagnostic.

    −10 log₁₀ (mean ((b − a)² mod 256) / 255²), a and b the rounded grey levels

    It is wrong: two unrelated pictures have 27.9 dB. The published STSL tables lie in the range that it reproduces;
    nobody has confirmed that they were made this way.
    """
    a, b = ((255 * image.clamp(0, 1)).round().to(torch.int64) for image in (truth, x))
    wrapped = (b - a).square().remainder(256).double().flatten(1).mean(1)
    return (-10 * (wrapped / 255**2).log10()).to(x.dtype)


def measures(device: torch.device | str = "cpu") -> dict[str, Callable[[Image, Image], PerImage]]:
    """The scores that can be taken here, by name; LPIPS needs its weights (`stsl fetch lpips`)."""
    known: dict[str, Callable[[Image, Image], PerImage]] = {
        "psnr": metrics.psnr,
        "ssim": metrics.ssim,
        "psnr_uint8_wrap": psnr_uint8_wrap,
    }
    for net in ("vgg", "alex"):
        if LPIPS.available(net):
            known[f"lpips_{net}"] = LPIPS(net).to(device)
    return {name: known[name] for name in SCORES if name in known}


def score_missing(store: Store, *, batch: int = 16, device: torch.device | str = "cpu") -> Iterator[int]:
    """Score every restored picture that has none of a score that can be taken here; yields how many at a time.

    A picture that cannot be read any more makes its unit fail, so that the next run makes it again.
    """
    takes = measures(device)
    lacking = " or ".join(f"{name} is null" for name in takes)
    rows = store.all(
        f"select key, png, image, side from units where status = 'done' and ({lacking}) order by side, task, key"
    )
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        for same in _same_size(_read(store, part)):
            x, truth = _stacked(same, device)
            with torch.no_grad():
                found = {name: take(x, truth).cpu().double() for name, take in takes.items()}
            _write(store, same, found, {})
        yield len(part)


@dataclass(frozen=True, eq=False)
class EditJudge:
    """Everything that edited pictures of a suite are asked.

    Args:
        changed: texts and region.
        clip, vit, lpips: None where the weights are not here.
        key: of texts, region and weights; pictures that were scored by another key are scored again.
        lacking: what is not here, and what would work.
    """

    changed: Changed
    clip: CLIP | None
    vit: ContrastiveLoss | None
    lpips: LPIPS | None
    key: str
    lacking: tuple[str, ...]

    @classmethod
    def of(cls, changed: Changed, device: torch.device | str = "cpu") -> "EditJudge":
        """With the weights that are here; none are fetched."""
        facts: dict[str, object] = {"source": changed.source, "target": changed.target, "region": changed.region}
        lacking = []
        for kind, name in ((CLIP_MODEL, changed.clip), (VIT, changed.vit)):
            try:
                facts[kind.part] = _weights_hash(kind, name)
            except (OSError, ValueError) as error:
                lacking.append(f"no {'CLIP accuracy' if kind is CLIP_MODEL else 'distance of keys'}: {error}")
        lpips = LPIPS("alex").to(device) if LPIPS.available("alex") else None
        return cls(
            changed,
            load_clip(changed.clip, device=device, offline=True) if "clip" in facts else None,
            load_contrastive(changed.vit, device=device, offline=True) if "vit" in facts else None,
            lpips,
            digest(facts | {"lpips": lpips is not None})[:16],
            tuple(lacking),
        )

    def scores(self, x: Image, truth: Image) -> dict[str, PerImage]:
        """The scores that can be taken, by name; NaN is never among them."""
        found = dict[str, PerImage]()
        source, target = self.changed.source, self.changed.target
        if self.clip is not None:
            found["clip_accuracy"] = self.clip.accuracy(x, source, target)
            found["clip_balanced"] = (found["clip_accuracy"] + self.clip.accuracy(truth, target, source)) / 2
            found["clip_similarity"] = self.clip.similarity(x, [target])[:, 0]
        if (box := self.changed.box) is not None:
            found["psnr_outside"] = psnr_outside(x, truth, box)
            if self.lpips is not None:
                found["lpips_outside"] = lpips_outside(self.lpips, x, truth, box)
        if self.vit is not None:
            found["key_distance"] = key_distance(self.vit, x, truth)
        return found


def score_edits(store: Store, suite: Suite, judge: EditJudge, *, batch: int = 16) -> Iterator[int]:
    """Score every picture of an editing suite that this judge has not scored; yields how many at a time."""
    rows = store.all(
        "select distinct u.key, u.png, u.image, u.side from members m join units u on u.key = m.key where m.suite = ? "
        "and u.status = 'done' and u.judge is not ? order by u.side, u.task, u.key",
        suite.name,
        judge.key,
    )
    device = next((part.mean.device for part in (judge.clip, judge.vit) if part is not None), torch.device("cpu"))
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        for same in _same_size(_read(store, part)):
            with torch.no_grad():
                taken = judge.scores(*_stacked(same, device))
            found = {name: taken[name].cpu().double() for name in EDIT_SCORES if name in taken}
            _write(store, same, found, {"judge": judge.key})
        yield len(part)


CEILING = "real pictures"


def take_ceiling(store: Store, suite: Suite, judge: EditJudge, data: Path, sides: dict[str, int]) -> None:
    """How often the CLIP is right about real pictures of the source and of the target, kept for the report.

    Args:
        store, suite, judge: as for `score_edits`.
        data: the user's pictures.
        sides: the side of each block.
    """
    if judge.clip is None or judge.changed.ceiling is None:
        return
    parts = (suite.data.only, judge.changed.ceiling)
    try:
        kinds = [
            find_pictures(data, suite.data.model_copy(update={"only": part}), limit=suite.data.images) for part in parts
        ]
    except FileNotFoundError:  # there are none of a kind
        return
    if {picture.source for picture in kinds[0]} & {picture.source for picture in kinds[1]}:
        return  # data that do not say which are which
    texts = ((judge.changed.target, judge.changed.source), (judge.changed.source, judge.changed.target))
    for block, side in sides.items():
        right = [_share(judge.clip, pictures, side, *pair) for pictures, pair in zip(kinds, texts, strict=True)]
        values = {f"source_right_n{len(kinds[0])}": right[0], f"target_right_n{len(kinds[1])}": right[1]}
        with store.together():
            store.db.execute(
                "delete from sets where suite = ? and block = ? and method = ?", (suite.name, block, CEILING)
            )
            for name, value in (values | {"clip_balanced": sum(right) / 2}).items():
                place = {"suite": suite.name, "block": block, "task": "", "method": CEILING, "metric": name}
                store.put("sets", place | {"value": value, "error": None, "keys": judge.key})


def _share(clip: CLIP, pictures: Sequence[Picture], side: int, wrong: str, right: str, batch: int = 16) -> float:
    """The share of pictures that are nearer to the right text."""
    hits = 0.0
    for first in range(0, len(pictures), batch):
        x = torch.cat([images.square(picture.load(), side) for picture in pictures[first : first + batch]])
        hits += float(clip.accuracy(x.to(clip.mean.device), wrong, right).sum())
    return hits / len(pictures)


def _weights_hash(kind: Kind, name: str) -> str:
    weights = Folder(find(name, kind, builtin_folder(), offline=True)).weights(kind.part)
    if weights is None:
        raise FileNotFoundError(f"{name} has no weights in safetensors format")
    return files.sha256(weights)


def _read(store: Store, rows: Sequence[object]) -> list[Pair]:
    """Pictures with their truths; one that cannot be read any more makes its unit fail."""
    read: list[Pair] = []
    for row in rows:
        key, png = row["key"], row["png"]  # type: ignore[index]
        try:
            pair = (images.read(store.folder / png).x, images.read(_truth(store.folder, row)).x)
            if pair[0].shape != pair[1].shape:
                raise ValueError(f"{png} is not of the truth's size")
            read.append((key, *pair))
        except (ValueError, OSError) as error:
            store.db.execute("update units set status = 'failed', error = ? where key = ?", (str(error), key))
    return read


def _stacked(same: Sequence[Pair], device: torch.device | str) -> tuple[Image, Image]:
    return torch.cat([x for _, x, _ in same]).to(device), torch.cat([truth for *_, truth in same]).to(device)


def _write(store: Store, same: Sequence[Pair], found: dict[str, Tensor], more: dict[str, str]) -> None:
    """Columns of units: a number of each, and what is the same for all."""
    numbers = {name: values.tolist() for name, values in found.items()}
    marks = ", ".join(f"{name} = ?" for name in (*numbers, *more))
    rows = [(*(numbers[name][i] for name in numbers), *more.values(), pair[0]) for i, pair in enumerate(same)]
    with store.together():
        store.db.executemany(f"update units set {marks} where key = ?", rows)


def _truth(folder: Path, row: object) -> Path:
    return truth_path(folder, row["side"], row["image"])  # type: ignore[index]


def _same_size(rows: Sequence[Pair]) -> list[list[Pair]]:
    sizes: dict[tuple[int, ...], list[Pair]] = {}
    for row in rows:
        sizes.setdefault(tuple(row[1].shape), []).append(row)
    return list(sizes.values())


def backbone() -> tuple[str, Callable[[Image], Tensor]] | None:
    """The network whose features FID and KID compare here: Inception's, else VGG-16's, else none; with its name."""
    weights = files.cache() / "inception" / INCEPTION
    if weights.is_file():
        try:
            return "inception", _inception(weights)
        except ModuleNotFoundError:  # torchmetrics leaves the network to torch-fidelity
            pass
    if LPIPS.available("vgg"):
        return "vgg16", _vgg()
    return None


@cache
def _vgg() -> PooledVGG:
    return PooledVGG()


@cache
def _inception(weights: Path) -> Callable[[Image], Tensor]:
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    return lambda x: network((255 * x).round().byte())


def features(paths: Sequence[Path], network: Callable[[Image], Tensor], batch: int = 16) -> Tensor:
    """Features of pictures, (n, d)."""
    found = []
    for first in range(0, len(paths), batch):
        x = torch.cat([images.read(path).x for path in paths[first : first + batch]])
        with torch.no_grad():
            found.append(network(x).cpu())
    return torch.cat(found)
