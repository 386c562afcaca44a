"""Scores of restored pictures, from their 8-bit files alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stsl import files, images, metrics
from stsl.bench.measuring import truth_path
from stsl.bench.store import SCORES, Store
from stsl.perceptual import LPIPS, PooledVGG
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
        read: list[Pair] = []
        for row in part:
            try:
                pair = (images.read(store.folder / row["png"]).x, images.read(_truth(store.folder, row)).x)
                if pair[0].shape != pair[1].shape:
                    raise ValueError(f"{row['png']} is not of the truth's size")
                read.append((row["key"], *pair))
            except (ValueError, OSError) as error:
                store.db.execute(
                    "update units set status = 'failed', error = ? where key = ?", (str(error), row["key"])
                )
        for same in _same_size(read):
            x = torch.cat([x for _, x, _ in same]).to(device)
            truth = torch.cat([truth for _, _, truth in same]).to(device)
            with torch.no_grad():
                found = {name: take(x, truth).cpu().double().tolist() for name, take in takes.items()}
            marks = ", ".join(f"{name} = ?" for name in found)
            values = [(*(found[name][i] for name in found), row[0]) for i, row in enumerate(same)]
            with store.together():
                store.db.executemany(f"update units set {marks} where key = ?", values)
        yield len(part)


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
