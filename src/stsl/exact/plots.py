"""Pictures of the table of `stsl exact`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stsl.exact import problems
from stsl.exact.bench import Row
from stsl.exact.posterior import posterior
from stsl.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(columns: int, lines: int, size: tuple[float, float]) -> tuple["Figure", Any]:
    """A figure and its axes, shape (lines, columns), of `size` inches each, drawn without a screen.

    Raises:
        ImportError: matplotlib is not installed; says which extra brings it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need the extra "bench": pip install "stsl[bench]"') from error
    made = Figure(figsize=(size[0] * columns, size[1] * lines), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(lines, columns, squeeze=False)


def save(made: "Figure", path: Path) -> Path:
    """Write a figure; the file appears whole or not at all."""
    with atomic(path) as temporary:
        made.savefig(temporary, dpi=110)
    return path


def draw_all(folder: Path, rows: Sequence[Row], seed: int) -> list[Path]:
    """distances.png, spread.png, and bimodal.png and degenerate.png where these problems were run.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    files = [
        save(_dots(rows, "sliced_w2", "sliced W2 in posterior standard deviations"), folder / "distances.png"),
        save(_dots(rows, "spread", "trace of the covariance over the exact one"), folder / "spread.png"),
    ]
    for name, draw in {"bimodal": _densities, "degenerate": _clouds}.items():
        there = [row for row in rows if row.problem == name and row.samples is not None]
        if there:
            files.append(save(draw(there, seed), folder / f"{name}.png"))
    return files


def _dots(rows: Sequence[Row], measure: str, label: str) -> "Figure":
    """One panel a problem, one line a sampler, one dot a noise level."""
    names = list(dict.fromkeys(row.problem for row in rows))
    samplers = list(dict.fromkeys(row.sampler for row in rows))
    made, axes = figure(len(names), 1, (3.0, 0.6 + 0.26 * len(samplers)))
    sigmas = sorted({row.sigma_y for row in rows})
    for name, axis in zip(names, axes[0], strict=True):
        for index, sigma_y in enumerate(sigmas):
            here = [row for row in rows if row.problem == name and row.sigma_y == sigma_y]
            points = [(getattr(row, measure), samplers.index(row.sampler)) for row in here]
            points = [point for point in points if point[0] is not None]
            if points:
                axis.scatter(*zip(*points, strict=True), s=26, color=f"C{index}", label=f"σ_y = {sigma_y:g}")
        axis.set(xscale="log", title=name, ylim=(len(samplers) - 0.5, -0.5))
        axis.set_yticks(range(len(samplers)), [_short(name) if axis is axes[0][0] else "" for name in samplers])
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.grid(alpha=0.3)
        if measure == "spread":
            axis.axvline(1.0, color="black", lw=0.8)
    axes[0][-1].legend(fontsize=8)
    made.supxlabel(label)
    return made


def _densities(rows: Sequence[Row], seed: int) -> "Figure":
    """Histograms of one number, and the exact density."""
    sigmas = sorted({row.sigma_y for row in rows})
    samplers = list(dict.fromkeys(row.sampler for row in rows))
    made, axes = figure(len(sigmas), len(samplers), (3.2, 1.1))
    for column, sigma_y in enumerate(sigmas):
        exact = posterior(problems.make("bimodal", sigma_y, seed=seed))
        half = 5 * float(exact.spread) ** 0.5
        grid = torch.linspace(float(exact.mean) - half, float(exact.mean) + half, 400, dtype=torch.float64)
        density, ends = exact.log_prob(grid[:, None]).exp(), (float(grid[0]), float(grid[-1]))
        for line, sampler in enumerate(samplers):
            axis = axes[line][column]
            axis.fill_between(grid, density, color="0.85")
            for row in rows:
                if row.sampler == sampler and row.sigma_y == sigma_y and row.samples is not None:
                    axis.hist(row.samples[:, 0], bins=60, range=ends, density=True, histtype="step")
            axis.set(yticks=[], ylim=(0, 1.6 * float(density.max())))
            if column == 0:
                axis.set_ylabel(_short(sampler), rotation=0, ha="right", va="center", fontsize=8)
            if line == 0:
                axis.set_title(f"σ_y = {sigma_y:g}")
            if line < len(samplers) - 1:
                axis.set_xticklabels([])
    return made


def _clouds(rows: Sequence[Row], seed: int) -> "Figure":
    """Points of two numbers, beside exact ones."""
    sigmas = sorted({row.sigma_y for row in rows})
    samplers = list(dict.fromkeys(row.sampler for row in rows))
    made, axes = figure(len(samplers), len(sigmas), (1.5, 1.7))
    for line, sigma_y in enumerate(sigmas):
        for column, sampler in enumerate(samplers):
            axis = axes[line][column]
            for row in rows:
                if row.sampler == sampler and row.sigma_y == sigma_y and row.samples is not None:
                    axis.scatter(row.samples[:1000, 0], row.samples[:1000, 1], s=2, lw=0)
            axis.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[])
            if line == 0:
                axis.set_title(_short(sampler).replace(", ", "\n"), fontsize=8)
            if column == 0:
                axis.set_ylabel(f"σ_y = {sigma_y:g}")
    return made


def _short(name: str) -> str:
    """The end of a long name, such as that of a file."""
    return name if len(name) <= 30 else f"…{name[-29:]}"
