"""Whether a photo larger than the prior shows where its tiles meet.

    python benchmarks/seams.py [--side 256] [--task gaussian_blur]

Restores the astronaut's face at a size beyond the prior's in overlapping tiles that are fused at every step, and, for
comparison, in tiles that do not overlap and are restored one by one and put side by side. Prints the gradient energy
across the tiles' borders over that of all other places: 1 where nothing shows.
"""

import argparse

import torch
from torch import Tensor

from stsl import STSL, Restorer, images, load_prior, tasks
from stsl.metrics import psnr
from stsl.priors.tiled import Tiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="of the photo; a multiple of 128")
    parser.add_argument("--task", default="gaussian_blur", help="whose measurement is as large as the photo")
    args = parser.parse_args()

    prior, sampler = load_prior("faces-128"), STSL.preset("fast")
    tile = prior.image_shape[1]
    x = images.astronaut_face(args.side)
    y, physics = tasks.measure(args.task, x, noise=0.005, ids=("astronaut",))
    tiled = Tiled(prior, (3, args.side, args.side))
    fused = Restorer(tiled, sampler).solve(y, physics, ids=("astronaut",)).image

    starts = range(0, args.side, tile)
    apart = torch.zeros_like(x)
    for top in starts:
        for left in starts:
            here = (..., slice(top, top + tile), slice(left, left + tile))
            own = tasks.make(args.task, prior.image_shape, noise=0.005)
            apart[here] = Restorer(prior, sampler).solve(y[here], own, ids=(f"{top}-{left}",)).image

    factor = tiled.factor
    ends = {s * factor for s in tiled.rows.starts[1:]} | {s * factor + tile for s in tiled.rows.starts[:-1]}
    print(f"{'picture':34} {'energy ratio':>12} {'PSNR':>6}")
    for name, picture, borders in (
        ("truth, at the fused tiles' borders", x, ends),
        ("fused at every step", fused, ends),
        ("truth, at the separate borders", x, {*starts[1:]}),
        ("restored apart, side by side", apart, {*starts[1:]}),
    ):
        print(f"{name:34} {energy_ratio(picture, borders):12.2f} {float(psnr(picture, x)):6.2f}")


def energy_ratio(x: Tensor, borders: set[int]) -> float:
    """Mean squared difference of neighbours across borders, rows and columns alike, over that of all others."""
    at, elsewhere = [], []
    for picture in (x, x.transpose(-1, -2)):
        steps = (picture[..., 1:] - picture[..., :-1]).square().mean((0, 1, 2))
        chosen = torch.zeros(len(steps), dtype=torch.bool)
        chosen[[place - 1 for place in borders]] = True
        at.append(steps[chosen])
        elsewhere.append(steps[~chosen])
    return float(torch.cat(at).mean() / torch.cat(elsewhere).mean())


if __name__ == "__main__":
    main()
