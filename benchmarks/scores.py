"""A table that grows row by row in a CSV file, so that a stopped measurement goes on where it was."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stsl.metrics import psnr, ssim
from stsl.perceptual import LPIPS


class Scores:
    """Quality of images against the truth, colour and grey apart, one CSV row per call.

    Args:
        path: the CSV file; rows that are already there are not computed again.
        key: columns that name a row.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.rows: list[dict[str, str]] = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        self.lpips = {net: LPIPS(net) for net in ("alex", "vgg")}

    def has(self, **key: str) -> bool:
        """Whether this row was measured before."""
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows)

    @torch.no_grad()
    def add(self, x: Tensor, truth: Tensor, colour: list[bool], more: Mapping[str, object], **key: str) -> None:
        """Score a batch and write the row."""
        per_image = {
            "lpips_alex": torch.cat([self.lpips["alex"](a[None], b[None]) for a, b in zip(x, truth, strict=True)]),
            "lpips_vgg": torch.cat([self.lpips["vgg"](a[None], b[None]) for a, b in zip(x, truth, strict=True)]),
            "psnr": psnr(x, truth),
            "ssim": ssim(x, truth),
        }
        is_colour = torch.tensor(colour)
        row: dict[str, str] = dict(key)
        for name, values in per_image.items():
            digits = 2 if name == "psnr" else 4
            row[f"{name}_colour"] = f"{values[is_colour].mean():.{digits}f}"
            row[f"{name}_grey"] = f"{values[~is_colour].mean():.{digits}f}"
            row[f"{name}_se"] = f"{values.std() / len(values) ** 0.5:.{digits}f}"
        row |= {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in more.items()}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            columns = list(dict.fromkeys(column for r in self.rows for column in r))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        print(*row.values(), sep="  ", flush=True)

    def markdown(self, name: str, tasks: Sequence[str], columns: Sequence[str]) -> str:
        """A Markdown table with one row per `name` and the columns of each task side by side; colour / grey."""
        heads = [name, "evaluations", *(f"{task}: {SHORT[column]}" for task in tasks for column in columns)]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for label in dict.fromkeys(row[name] for row in self.rows):
            rows = {row["task"]: row for row in self.rows if row[name] == label}
            cells = [_cell(rows[task], column) if task in rows else "" for task in tasks for column in columns]
            evaluations = next(iter(rows.values())).get("unet_samples", "")
            lines.append("| " + " | ".join([label, evaluations, *cells]) + " |")
        return "\n".join(lines)


SHORT = {
    "lpips_alex": "LPIPS-Alex",
    "lpips_vgg": "LPIPS-VGG",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "residual": "residual",
    "seconds": "seconds",
    "decoder_samples": "decoder passes",
}


def _cell(row: Mapping[str, str], column: str) -> str:
    digits = {"psnr": 1, "residual": 4, "seconds": 0, "decoder_samples": 0}.get(column, 3)
    keys = [f"{column}_colour", f"{column}_grey"] if f"{column}_colour" in row else [column]
    values = [row[key] for key in keys if row.get(key)]
    return " / ".join(f"{float(value):.{digits}f}" for value in values)
