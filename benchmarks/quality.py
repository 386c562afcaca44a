"""Quality of every method on faces it has not seen: LPIPS, PSNR, SSIM, residual, seconds.

    python benchmarks/quality.py --data FILE.parquet

Sixteen faces (eight colour, eight grey), three tasks, noise 0.005 on [0, 1]. Rows go to a CSV file as they are
measured, and a second run continues. The table of docs/methods.md comes from here.
"""

import argparse
import time
from pathlib import Path

import torch
from faces import read_faces
from scores import Scores

from stsl import GMLDPS, LDPS, PSLD, STSL, Restorer, Sampler, load_prior, operators, tasks

NOISE = 0.005
METHODS: dict[str, Sampler] = {
    "STSL()": STSL(),
    "PSLD, 250 steps": PSLD(steps=250),
    "STSL balanced": STSL.preset("balanced"),
    "STSL fast": STSL.preset("fast"),
    "PSLD fast": PSLD.preset("fast"),
    "LDPS, 250 steps": LDPS(steps=250),
    "GML-DPS, 250 steps": GMLDPS(steps=250),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with columns image and color")
    parser.add_argument("--out", type=Path, default=Path("quality.csv"))
    parser.add_argument("--faces", type=int, default=16, help="how many, half of them in colour")
    parser.add_argument("--batch", type=int, default=8, help="faces restored together")
    parser.add_argument("--tasks", default="sr4,gaussian_blur,random_inpaint")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--precision", default="auto", help="of the networks; give each one an --out of its own")
    args = parser.parse_args()

    x, ids, colour = read_faces(args.data, args.faces // 2, args.faces // 2)
    prior = load_prior("faces-128", precision=args.precision)
    scores = Scores(args.out, ("task", "method"))
    for task in args.tasks.split(","):
        y, physics = tasks.measure(task, x, noise=NOISE, ids=ids)
        if not scores.has(task=task, method="degraded"):
            scores.add(
                operators.as_picture(y, physics, x.shape[1:]),
                x,
                colour,
                {"residual": NOISE},
                task=task,
                method="degraded",
            )
    for method in args.methods.split(";"):
        for task in args.tasks.split(","):
            if not scores.has(task=task, method=method):
                restore(scores, method, task, prior, x, ids, colour, args.batch)
    wanted = args.tasks.split(",")
    for columns in (("lpips_alex", "psnr", "residual"), ("lpips_vgg", "ssim", "seconds")):
        print(scores.markdown("method", wanted, columns), end="\n\n")


def restore(scores, method, task, prior, x, ids, colour, batch) -> None:  # type: ignore[no-untyped-def]
    images, residuals, evaluations = [], [], 0.0
    began = time.perf_counter()
    for part, names in zip(x.split(batch), batched(ids, batch), strict=True):
        y, physics = tasks.measure(task, part, noise=NOISE, ids=names)
        result = Restorer(prior, METHODS[method]).solve(y, physics, ids=names)
        images.append(result.image)
        residuals.append(result.residual_rms)
        evaluations += result.cost.unet_samples
    more = {
        "residual": float(torch.cat(residuals).mean()),
        "unet_samples": round(evaluations / len(x)),
        "seconds": (time.perf_counter() - began) / len(x),
    }
    scores.add(torch.cat(images), x, colour, more, task=task, method=method)


def batched(names: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


if __name__ == "__main__":
    main()
