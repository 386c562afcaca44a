"""How well photos are edited, clean and corrupted: does the text arrive, and does the rest stay?

    python benchmarks/editing.py --data TEST.parquet [--clip FOLDER] [--vit FOLDER] [--full]

Neutral faces the models have not seen, half of them in colour, from "a neutral face" to "a smiling face". Rows go to a
CSV file as they are measured, and a second run continues. Per row:

- accuracy: share of the edited faces that a CLIP pair finds nearer to the target prompt than to the source prompt, the
  paper's metric (section 5.1), and gain: how much nearer, as a difference of cosines. They need --clip, a transformers
  CLIPModel that no editor had as a loss. The row "real faces" is its ceiling: the mean of the share of smiling test
  faces it calls smiling and of neutral ones it calls neutral.
- lpips_outside, psnr_outside: distance to the true photo outside the mouth and cheeks, which the paper's metric misses.
- vit: one minus the mean cosine of the keys of a ViT between edited and true photo, place by place. Needs --vit.
- seconds per face, network evaluations per face.
"""

import argparse
import csv
import io
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from torchvision.transforms.functional import pil_to_tensor

from stsl import LPIPS, NTI, NTICAT, P2L, PSLD, STSL, STSLCAT, Edit, Editing, Editor, load_prior, tasks
from stsl.metrics import psnr
from stsl.perceptual import load_contrastive

SOURCE, TARGET = "a neutral face", "a smiling face"
NOISE = 0.005
TASKS = ("clean", "sr8", "sr4", "gaussian_blur")
# Mouth and cheeks in a face framed as the built-in prior's: top, left, height, width, as parts of the sides.
MOUTH = (0.5, 0.2, 0.42, 0.6)
GUIDANCE = 3.0  # at which the built-in prior's prompts were found to change the picture as they should

EDITORS: dict[str, Callable[[int], Editor]] = {
    "NTI": lambda steps: NTI(steps, GUIDANCE),
    "NTI-CAT": lambda steps: NTICAT(steps, GUIDANCE),
    "STSL-CAT": lambda steps: STSLCAT(steps, GUIDANCE),
    "STSL-CAT, zref": lambda steps: STSLCAT(
        steps, GUIDANCE, pivot="zref", restorer=STSL(steps, eta=0.0, probes=0, lr=0.03)
    ),
    "STSL, then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=STSL.preset("balanced")),
    "PSLD, then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=PSLD.preset("balanced")),
    "P2L, then NTI": lambda steps: NTI(steps, GUIDANCE, restorer=P2L.preset("fast")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with columns image, color and emotion")
    parser.add_argument("--clip", type=Path, help="folder of a transformers CLIPModel")
    parser.add_argument("--vit", default="", help="folder of a transformers ViTModel")
    parser.add_argument("--out", type=Path, default=Path("editing.csv"))
    parser.add_argument("--faces", type=int, default=8, help="how many, half of them in colour")
    parser.add_argument("--full", action="store_true", help="50 steps instead of 25")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--editors", default=";".join(EDITORS), help="separated by semicolons")
    args = parser.parse_args()

    judge = Judge(args.clip, args.vit)
    rows: list[dict[str, Any]] = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    steps = 50 if args.full else 25

    def wanted(task: str, editor: str) -> bool:
        return not any((row["task"], row["editor"], row["steps"]) == (task, editor, str(steps)) for row in rows)

    def add(**row: Any) -> None:
        rows.append({key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()})
        columns = list(dict.fromkeys(column for each in rows for column in each))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        print(*rows[-1].values(), sep="  ", flush=True)

    if args.clip and wanted("clean", "real faces"):
        neutral, _ = faces(args.data, "neutral", 50)
        smiling, _ = faces(args.data, "happiness", 50)
        right = (judge.gain(smiling) > 0).float().mean() + (judge.gain(neutral) < 0).float().mean()
        add(task="clean", editor="real faces", steps=steps, accuracy=float(right / 2))
    x, ids = faces(args.data, "neutral", args.faces // 2)
    prior = load_prior("faces-128")
    for task in args.tasks.split(","):
        spec, noise = ("denoise", 0.0) if task == "clean" else (task, NOISE)
        y, physics = tasks.measure(spec, x, noise=noise, ids=ids)
        for name in args.editors.split(";"):
            if not wanted(task, name):
                continue
            began = time.perf_counter()
            result = Editing(prior, EDITORS[name](steps)).solve(y, physics, Edit(SOURCE, TARGET), ids=ids)
            seconds = (time.perf_counter() - began) / len(x)
            evaluations = round(result.cost.unet_samples / len(x))
            scores = judge.scores(result.edited, x) | {"seconds": seconds, "unet_samples": evaluations}
            add(task=task, editor=name, steps=steps, **scores)
    print(markdown(rows))


def faces(path: Path, emotion: str, each: int) -> tuple[Tensor, tuple[str, ...]]:
    """The first `each` colour and the first `each` grey faces of an emotion, (2 each, 3, H, W), and their ids."""
    table = parquet.read_table(path, columns=["image", "color", "emotion"])
    found: dict[bool, list[tuple[int, bytes]]] = {True: [], False: []}
    columns = (table[name].to_pylist() for name in ("image", "color", "emotion"))
    for index, (image, color, shown) in enumerate(zip(*columns, strict=True)):
        if shown == emotion and len(found[color]) < each:
            found[color].append((index, image["bytes"]))
    rows = found[True] + found[False]
    if not rows:
        raise SystemExit(f"{path} has no face labelled {emotion}")
    pictures = [pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255 for _, data in rows]
    return torch.stack(pictures), tuple(f"{path.stem}-{index}" for index, _ in rows)


class Judge:
    """Everything that edited faces are asked."""

    def __init__(self, clip: Path | None, vit: str) -> None:
        self.clip, self.vit, self.lpips = clip, vit, LPIPS("alex")

    @torch.no_grad()
    def scores(self, x: Tensor, truth: Tensor) -> dict[str, float]:
        found = {}
        if self.clip is not None:
            gain = self.gain(x)
            found = {"accuracy": float((gain > 0).float().mean()), "gain": float(gain.mean())}
        outside = torch.ones_like(truth, dtype=torch.bool)
        h, w = truth.shape[2:]
        top, left, height, width = (round(part * side) for part, side in zip(MOUTH, (h, w, h, w), strict=True))
        outside[:, :, top : top + height, left : left + width] = False
        # Inside the box both are the true photo: what differs lies outside.
        kept = torch.where(outside, x, truth)
        share = float(outside.float().mean())
        found["lpips_outside"] = float(
            torch.cat([self.lpips(a[None], b[None]) for a, b in zip(kept, truth, strict=True)]).mean()
        )
        found["psnr_outside"] = float(psnr(kept, truth).mean()) + 10 * torch.tensor(share).log10().item()
        if self.vit:
            vit = load_contrastive(self.vit)
            found["vit"] = float(1 - cosine_similarity(vit.keys(x), vit.keys(truth), dim=-1).mean())
        return found

    @torch.no_grad()
    def gain(self, x: Tensor) -> Tensor:
        """cos(image, target prompt) − cos(image, source prompt), (B,)."""
        from transformers import CLIPImageProcessor

        model, tokenizer, steps = self._pair
        assert isinstance(steps, CLIPImageProcessor)
        size = steps.size.get("height") or steps.size["shortest_edge"]
        x = interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.image_mean, steps.image_std))
        text = tokenizer([TARGET, SOURCE], padding="max_length", truncation=True, return_tensors="pt")
        length = model.config.text_config.max_position_embeddings
        out = model(input_ids=text.input_ids[:, :length], pixel_values=(x - mean) / std)
        cosines = out.image_embeds @ out.text_embeds.T  # both come normalised
        return cosines[:, 0] - cosines[:, 1]

    @cached_property
    def _pair(self) -> tuple[Any, Any, Any]:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        local = {"local_files_only": True}
        return (
            CLIPModel.from_pretrained(self.clip, dtype=torch.float32, use_safetensors=True, **local).eval(),
            CLIPTokenizer.from_pretrained(self.clip, **local),
            CLIPImageProcessor.from_pretrained(self.clip, **local),
        )


def markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row.get(column) or "" for column in columns) + " |" for row in rows])


if __name__ == "__main__":
    main()
