"""The papers' own figures, as they were printed, with how sure each is."""

import csv
from dataclasses import dataclass
from pathlib import Path

from stsl.bench.suite import Published

# What ours are called in the published tables, and by what a printed number is divided.
METRICS = {
    "LPIPS": ("lpips_vgg", 1.0),
    "PSNR": ("psnr", 1.0),
    "SSIMx100": ("ssim", 100.0),
    "FID": ("fid", 1.0),
    "NFE": ("nfe_paper", 1.0),
    "runtime_s": ("seconds", 1.0),
    "CLIP_acc_pct": ("clip_accuracy", 100.0),
}


@dataclass(frozen=True)
class Figure:
    """A printed number.

    Args:
        task, method: as the paper calls them.
        metric: what ours is called.
        value: on our scale; None where it is not available.
        evidence: "paper" (read in the paper), "secondary" (told by somebody else) or "missing".
        family, resolution, note: what to mind when comparing.
    """

    task: str
    method: str
    metric: str
    value: float | None
    evidence: str
    family: str
    resolution: str
    note: str

    @property
    def counts(self) -> bool:
        """Whether it may be compared with: it is there, and it was read in the paper."""
        return self.value is not None and self.evidence == "paper"

    def __str__(self) -> str:
        return "not available" if self.value is None else f"{self.value:g}{'' if self.counts else ' (unverified)'}"


def published_folder() -> Path:
    """Where the figures are that come with the package."""
    return Path(__file__).parent / "published"


def figures(published: Published) -> list[Figure]:
    """The printed figures of a suite's table.

    Raises:
        FileNotFoundError: the package has no such file.
    """
    if not published.file:
        return []
    path = published_folder() / published.file
    if not path.is_file():
        raise FileNotFoundError(f"there are no published figures {path}")
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] not in published.tables or published.dataset not in (None, row["dataset"]):
                continue
            metric, scale = METRICS.get(row["metric"], (row["metric"], 1.0))
            value = float(row["value"]) / scale if row["value"] else None
            found.append(
                Figure(
                    row["task"],
                    row["method"],
                    metric,
                    value,
                    row["evidence"],
                    row["family"],
                    row["resolution"],
                    row["note"],
                )
            )
    return found
