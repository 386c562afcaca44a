"""Every method on the same measurements: LPIPS, PSNR, SSIM, evaluations, decoder passes, seconds.

    python benchmarks/baselines.py --data FILE.parquet
    python benchmarks/baselines.py --data FILE.parquet --full        # the published settings: hours

Four colour and four grey faces, five tasks, noise 0.005 on [0, 1]; at most 128 network evaluations and 256 decoder
passes per image and method. Latent methods run at their prior's side, pixel methods at theirs, on faces reduced to it:
two blocks with a table each. A method of one is not to be ranked against a method of the other: an image of half the
side is another, easier problem. Rows go to one CSV file per block as they are measured, and a second run continues.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from faces import read_faces
from scores import Scores
from torch.nn.functional import interpolate

from stsl import Prior, Restorer, Sampler, load_prior, operators, tasks
from stsl.priors.load import builtin_names
from stsl.problem import Problem
from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers import (
    DDRM,
    DMPS,
    DPS,
    GMLDPS,
    LDIR,
    LDPS,
    MCG,
    P2L,
    PSLD,
    SAMPLERS,
    STSL,
    DiffPIR,
    LatentDAPS,
    ReSample,
    ScoreSDE,
)
from stsl.samplers.base import capabilities

NOISE = 0.005
TASKS = "sr4,gaussian_blur,motion_blur,random_inpaint,box_inpaint"
EVALUATIONS, DECODER_PASSES = 128, 256
BETTER = {"lpips_alex": -1, "lpips_vgg": -1, "psnr": 1, "ssim": 1}  # which way

Setting = Callable[[str], Sampler]


def same(sampler: Sampler) -> Setting:
    """One setting for all tasks."""
    return lambda task: sampler


def preset(method: type[Sampler], name: str, **changes: float) -> Setting:
    """A preset for each task."""
    return lambda task: dataclasses.replace(method.preset(name, task), **changes)


NO_DIFFUSION = {
    name: preset(method, "balanced" if name == "admm_tv" else "fast") for name, method in RECONSTRUCTORS.items()
}
# Within the budget. Where fewer steps than published need longer ones, that is so here: `fast` presets say how long.
BUDGETED: dict[str, dict[str, Setting]] = {
    "latent": {
        "stsl": same(STSL(steps=25, inner_steps=5, probes=0, eta=0.0, lr=0.03, reuse_last=True)),
        "psld": same(PSLD(steps=120, omega=2.0, gamma=0.2)),
        "gml_dps": same(GMLDPS(steps=120, omega=2.0, gamma=0.2)),
        "ldps": same(LDPS(steps=120, omega=1.0)),  # with 2, blurred colour faces come out worse than they went in
        "p2l": preset(P2L, "fast"),
        "ldir": preset(LDIR, "fast", steps=120),
        "resample": preset(ReSample, "fast"),
        "latent_daps": preset(LatentDAPS, "fast"),
        "admm_tv": NO_DIFFUSION["admm_tv"],
    },
    "pixel": {
        "dps": preset(DPS, "balanced", steps=120),
        "mcg": preset(MCG, "balanced", steps=120),
        "dmps": preset(DMPS, "balanced", steps=120),
        "ddrm": same(DDRM(steps=20)),
        "diffpir": preset(DiffPIR, "balanced", steps=100),
        "score_sde": preset(ScoreSDE, "balanced", steps=120),
        **NO_DIFFUSION,
    },
}
PUBLISHED: dict[str, dict[str, Setting]] = {
    "latent": {
        "stsl": same(STSL()),
        "psld": preset(PSLD, "sd15"),
        "gml_dps": preset(GMLDPS, "sd15"),
        "ldps": preset(LDPS, "sd15"),
        "p2l": preset(P2L, "best"),
        "ldir": same(LDIR()),
        "resample": preset(ReSample, "ldm-ffhq"),
        "latent_daps": preset(LatentDAPS, "ldm-ffhq"),
        "admm_tv": preset(RECONSTRUCTORS["admm_tv"], "published"),
    },
    "pixel": {
        **{name: preset(SAMPLERS[name], "ffhq-256") for name in ("dps", "mcg", "dmps", "ddrm", "diffpir", "score_sde")},
        **{name: preset(method, "published") for name, method in RECONSTRUCTORS.items()},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with columns image and color")
    parser.add_argument("--out", type=Path, default=Path("baselines"), help="folder for latent.csv and pixel.csv")
    parser.add_argument("--limit", type=int, default=4, help="colour faces, and as many grey ones")
    parser.add_argument("--batch", type=int, default=8, help="faces restored together")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--methods", default="", help="names with commas between them; all when left out")
    parser.add_argument("--latent", default="faces-128", help="prior of the latent block; empty for none")
    parser.add_argument("--pixel", default="faces-64-pixel", help="prior of the pixel block; empty for none")
    parser.add_argument("--full", action="store_true", help="published settings, whatever they cost")
    args = parser.parse_args()

    x, ids, colour = read_faces(args.data, args.limit, args.limit)
    for block, name in (("latent", args.latent), ("pixel", args.pixel)):
        if not name:
            continue
        if name not in builtin_names() and not Path(name).is_dir():
            print(f"No {block} block: there is no prior {name}; give another one by --{block}.\n")
            continue
        prior = load_prior(name)
        side = prior.image_shape[-1]
        truth = x if x.shape[-1] == side else interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        settings = (PUBLISHED if args.full else BUDGETED)[block]
        chosen = [method for method in args.methods.split(",") if method in settings] or list(settings)
        scores = Scores(args.out / f"{block}{'-full' if args.full else ''}.csv", ("task", "method"))
        for task in args.tasks.split(","):
            degraded(scores, task, truth, ids, colour)
        for method in chosen:
            for task in args.tasks.split(","):
                if not scores.has(task=task, method=method):
                    restore(scores, method, settings[method](task), task, prior, truth, ids, colour, args.batch)
        report(scores, block, side, args.tasks.split(","), args.full)


def degraded(scores, task, x, ids, colour) -> None:  # type: ignore[no-untyped-def]
    """The row of the measurement itself, as a picture."""
    if not scores.has(task=task, method="degraded"):
        y, physics = tasks.measure(task, x, noise=NOISE, ids=ids)
        picture = operators.as_picture(y, physics, x.shape[1:])
        scores.add(picture, x, colour, {"residual": NOISE}, task=task, method="degraded")


def restore(  # type: ignore[no-untyped-def]
    scores, method: str, sampler: Sampler, task: str, prior: Prior, x, ids, colour, batch: int
) -> None:
    """Restore all faces and write a row; nothing where the method does not take the task's operator."""
    y, physics = tasks.measure(task, x[:1], noise=NOISE, ids=ids[:1])
    if not sampler.needs() <= capabilities(Problem(y, physics, sampler.space(prior), sigma_y=2 * NOISE)):
        print(f"{method} does not take {task}")
        return
    images, residuals, evaluations, decoded = [], [], 0.0, 0.0
    began = time.perf_counter()
    for first in range(0, len(x), batch):
        part, names = x[first : first + batch], ids[first : first + batch]
        y, physics = tasks.measure(task, part, noise=NOISE, ids=names)
        result = Restorer(prior, sampler).solve(y, physics, ids=names)
        images.append(result.image.cpu())
        residuals.append(result.residual_rms.cpu())
        evaluations += result.cost.unet_samples
        decoded += result.cost.decoder_samples if prior.family == "latent" and sampler.nfe else 0
    more = {
        "residual": float(torch.cat(residuals).mean()),
        "unet_samples": round(evaluations / len(x)),
        "decoder_samples": round(decoded / len(x)),
        "seconds": (time.perf_counter() - began) / len(x),
        "setting": str(sampler),
    }
    scores.add(torch.cat(images), x, colour, more, task=task, method=method)


def report(scores: Scores, block: str, side: int, wanted: list[str], full: bool) -> None:
    """Print the tables of a block, what went over the budget, and what is worse than what it was given."""
    print(
        f"\n{block.capitalize()} methods at {side} pixels, colour / grey; not to be ranked against the other block.\n"
    )
    for columns in (("lpips_alex", "psnr"), ("lpips_vgg", "ssim")):
        print(scores.markdown("method", wanted, columns), end="\n\n")
    print(costs(scores.rows), end="\n\n")
    before = {row["task"]: row for row in scores.rows if row["method"] == "degraded"}
    for row in scores.rows:
        if row["method"] == "degraded":
            continue
        where = f"{row['method']} on {row['task']}"
        if not full and (int(row["unet_samples"]) > EVALUATIONS or int(row["decoder_samples"]) > DECODER_PASSES):
            print(f"Over the budget: {where}, {row['unet_samples']} and {row['decoder_samples']}")
        for score, better in BETTER.items():
            for name in (f"{score}_colour", f"{score}_grey"):
                if better * float(row[name]) < better * float(before[row["task"]][name]):
                    print(f"Worse than degraded by {name}: {where}")


def costs(rows: list[dict[str, str]]) -> str:
    """Evaluations, decoder passes and seconds of each method over its tasks, as Markdown."""
    lines = ["| method | evaluations | decoder passes | seconds per face |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows if row["unet_samples"]):
        mine = [row for row in rows if row["method"] == method]
        columns = ([float(row[name]) for row in mine] for name in ("unet_samples", "decoder_samples", "seconds"))
        spans = (dict.fromkeys(f"{value:.0f}" for value in (min(column), max(column))) for column in columns)
        lines.append("| " + " | ".join([method, *(" to ".join(span) for span in spans)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
