"""Two folders of results against each other, cell by cell and picture by picture."""

import math
from typing import Any

import numpy as np

from stsl.bench.cells import LOWER_IS_BETTER, Cells, load_cells
from stsl.bench.stats import paired
from stsl.bench.store import EDIT_SCORES, Store

METRICS = ("lpips_vgg", "lpips_alex", "psnr", "ssim", *EDIT_SCORES)


def compare(first: Store, second: Store) -> list[dict[str, Any]]:
    """A row per cell that both have and per score: how often the first is better, by how much, how surely."""
    rows = []
    for suite in sorted(set(first.suites()) & set(second.suites())):
        ours, theirs = load_cells(first, suite), load_cells(second, suite)
        for place in ours.cells:
            if place not in theirs.cells:
                continue
            for metric in METRICS:
                a, b = _on_common_pictures(ours, theirs, place, metric)
                result = paired(a, b, lower_is_better=metric in LOWER_IS_BETTER)
                if result is not None:
                    rows.append(
                        {
                            "suite": suite,
                            **place._asdict(),
                            "metric": metric,
                            "n": result.n,
                            "wins": round(result.win_rate, 3),
                            "difference": round(result.difference, 5),
                            "low": round(result.low, 5),
                            "high": round(result.high, 5),
                            "p": float(f"{result.p:.3g}"),
                        }
                    )
    return rows


def _on_common_pictures(ours: Cells, theirs: Cells, place: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Those that have the score in both. Pictures have other numbers in other folders: they are matched by name."""
    columns = []
    for cells in (ours, theirs):
        cell = cells.cells[place]
        names = [cells.images[number] for number in cell.images]
        scores = zip(names, cell.column(metric).tolist(), strict=True)
        columns.append({name: score for name, score in scores if not math.isnan(score)})
    both = [name for name in columns[0] if name in columns[1]]
    return np.array([columns[0][name] for name in both]), np.array([columns[1][name] for name in both])
