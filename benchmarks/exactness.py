"""The papers' theory in numbers, on priors where every term is known. Prints the tables of docs/exactness.md.

    python benchmarks/exactness.py [--images docs/images] [--only traces,bound]

    stsl exact --n 2000 --seed 1; python benchmarks/exactness.py --rows exact/results.csv

The second line prints the tables of samplers. The theory takes some minutes on one core.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stsl import operators, tasks
from stsl.exact import make, observe, posterior
from stsl.exact.plots import figure, save
from stsl.exact.problems import picture_prior
from stsl.exact.rivals import Unguided
from stsl.exact.theory import (
    centred,
    divergence,
    forward_mode,
    full_trace,
    jensen_gap,
    joint_draws,
    lower_bound,
    uncentred,
)
from stsl.loop import iterate
from stsl.priors.gaussian import GaussianPrior
from stsl.priors.mixture import GaussianMixturePrior, Mixture
from stsl.problem import Problem
from stsl.rng import Rng, generator
from stsl.samplers import GMLDPS, LDPS, PSLD, Sampler, State

LEVELS = (1, 21, 101, 301, 601, 901)
SIGMAS = (0.02, 0.1, 0.6, 2.0)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A markdown table on stdout."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def traces(images: Path) -> None:
    """Bias and standard deviation of one probe, in per cent of the exact trace; four points a level."""
    prior, n = picture_prior(), 1000
    rows = []
    for t in LEVELS:
        z, _ = joint_draws(prior, observe(make("inpainting", 0.1)), t, 4, generator("traces", t))
        exact = prior.hessian_trace(z, t)
        sigma = prior.schedule.at(t)[1]

        def score(v: Tensor, t: int = t) -> Tensor:
            return prior.score(v, t)

        estimates: dict[str, list[Tensor]] = {}
        for point in z:
            probe = torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=generator("probes", t))
            here = point.expand(n, 1, 8, 8)
            for name, value in {
                "unit, centred": centred(score, here, probe),
                "unit, not centred": uncentred(score, here, probe),
                "σ_t, centred": centred(score, here, probe, sigma),
                "σ_t, not centred": uncentred(score, here, probe, sigma),
                "forward mode": forward_mode(score, here, probe),
            }.items():
                estimates.setdefault(name, []).append(value)
        row: list[object] = [t, float(sigma), float(exact.mean())]
        for values in estimates.values():
            error = torch.stack(values) - exact[:, None]
            bias, std = (100 * float(part / exact.abs().mean()) for part in (error.mean(), error.std(1).mean()))
            row.append(f"{bias:+.2g} ± {std:.2g}")
        rows.append(row)
    table(
        "Trace of the Hessian by one probe: bias ± standard deviation in per cent of the exact trace, d = 64",
        ["t", "σ_t", "exact", *estimates],
        rows,
    )
    made, axes = figure(2, 1, (4.0, 3.0))
    for index, name in enumerate(estimates):
        pairs = [[abs(float(part)) for part in str(row[3 + index]).split(" ± ")] for row in rows]
        for axis, column, label in zip(axes[0], (0, 1), ("|bias|", "standard deviation"), strict=True):
            axis.loglog([row[1] for row in rows], [max(pair[column], 1e-3) for pair in pairs], "o-", label=name)
            axis.set(xlabel="σ_t", title=f"{label}, per cent of the trace")
    axes[0][0].legend(fontsize=7)
    save(made, images / "exact_traces.png")


def cost(images: Path) -> None:
    """Seconds of processor time and network rows for one image: two probes against the full trace."""
    rows = []
    for side in (8, 16, 32):
        d = side * side
        axes = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator("axes", d)))[0]
        spectra = torch.stack([1 / torch.arange(1, d + 1).double(), 1 / torch.arange(1, d + 1).double().sqrt()])
        means = torch.stack([torch.full((1, side, side), value, dtype=torch.float64) for value in (-0.3, 0.3)])
        covariances = axes @ torch.diag_embed(spectra) @ axes.T
        prior = GaussianMixturePrior(torch.ones(2), means, (covariances + covariances.mT) / 2)
        z = torch.randn(1, 1, side, side, dtype=torch.float64, generator=generator("z"))
        probe = torch.randn(2, 1, side, side, dtype=torch.float64, generator=generator("probe"))

        def score(v: Tensor, prior: GaussianMixturePrior = prior) -> Tensor:
            return prior.score(v, 300)

        began = time.process_time()
        for _ in range(20):
            centred(score, z.expand(2, 1, side, side), probe)
        two = (time.process_time() - began) / 20
        began = time.process_time()
        full_trace(score, z)
        full = time.process_time() - began
        rows.append([d, 3, d, 1000 * two, 1000 * full, full / two])
    table(
        "Cost of the trace for one image",
        ["d", "rows, two probes", "rows, full trace", "ms, two probes", "ms, full trace", "ratio"],
        rows,
    )


def bound(images: Path) -> None:
    """Theorem 4.4 at 400 points of each kind."""
    n, rows = 400, []
    total = [0, 0, 0, 0, 0]
    for name in ("bimodal", "degenerate", "sr4"):
        for sigma_y in SIGMAS:
            for t in (0, 20, 100, 300, 600):
                problem = make(name, sigma_y)
                source = generator("bound", name, sigma_y, t)
                z, seen = joint_draws(problem.prior, observe(problem), t, n, source)
                made = lower_bound(problem.prior, seen, z, t)
                here, there = ~made.corrected.isnan(), ~made.printed.isnan()
                wrong = int((made.corrected[here] > made.truth[here] + 1e-9).sum())
                printed = int((made.printed[there] > made.truth[there] + 1e-9).sum())
                counts = [n, int(here.sum()), wrong, int(there.sum()), printed]
                total = [a + b for a, b in zip(total, counts, strict=True)]
                if counts[1] or counts[3]:
                    gap = float((made.truth - made.corrected)[here].median()) if here.any() else float("nan")
                    rows.append(
                        [name, sigma_y, t, f"{1 - counts[1] / n:.0%}", wrong, gap, f"{1 - counts[3] / n:.0%}", printed]
                    )
    table(
        "Theorem 4.4 at 400 points a row (rows without a defined point left out)",
        ["problem", "σ_y", "t", "undefined", "violated", "median gap", "undefined, printed", "violated, printed"],
        rows,
    )
    print(
        f"{total[0]} points; corrected: {total[1]} defined, {total[2]} violated; "
        f"printed: {total[3]} defined, {total[4]} violated"
    )


def jensen(images: Path) -> None:
    """Theorem A.2 for one number, mean over 300 points (z_t, y)."""
    rows = []
    for sigma_y in (0.02, 0.1, 0.3, 0.6, 1.0, 2.0):
        problem = make("bimodal", sigma_y)
        for t in (21, 301, 601):
            gap = jensen_gap(problem.prior, observe(problem), t, 300, generator("jensen", sigma_y, t), samples=200)
            rows.append([sigma_y, t, gap.gap, gap.bound, f"{gap.violated:.0%}", gap.log_gap])
    table(
        "Jensen gap of the first-order estimate, one number",
        ["σ_y", "t", "gap", "Theorem A.2", "gap above it", "gap of the logarithms"],
        rows,
    )


def beginnings(images: Path) -> None:
    """How far the two beginnings are from the exact law of z_t given y, by the level that the process starts from."""
    rows = []
    for name in ("degenerate", "sr4"):
        problem = make(name, 0.1)
        exact, d = posterior(problem), problem.prior.means.shape[1]
        eye = torch.eye(d, dtype=torch.float64)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, d, dtype=torch.float64)
        lifted = problem.prior.encode(problem.start()).flatten(1)
        for t in (299, 499, 699, 799, 899, 999):
            scale, sigma = problem.schedule.at(t)
            there = exact.through(scale * eye, sigma)
            source = generator("beginnings", name, t)
            noise = divergence(there, Mixture(one, zero, eye[None]), 20_000, source)
            forward = divergence(there, Mixture(one, scale * lifted, sigma**2 * eye[None]), 20_000, source)
            rows.append([name, t, scale, noise, forward])
    table(
        "Initialisation: divergence KL(p_t(z | y) ‖ ·) in nats of N(0, I) and of the forward latent, σ_y = 0.1",
        ["problem", "t", "√ᾱ", "N(0, I)", "forward latent"],
        rows,
    )


def autoencoder(images: Path) -> None:
    """PSLD's theory: pictures on a subspace of 3 dimensions, 8 latents, a measurement that determines the picture."""
    source = generator("autoencoder")
    left = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64, generator=source))[0]
    right = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64, generator=source))[0]
    prior = GaussianPrior(torch.zeros(1, 2, 4), torch.eye(8), decoder=2 * left @ right.T, image_shape=(1, 4, 4))
    truth = torch.randn(40, 1, 2, 4, dtype=torch.float64, generator=source)
    x = prior.decode(truth)
    mask = (torch.rand(4, 4, generator=source) < 0.6).float()
    masked, small = tasks.from_mask(mask, (1, 4, 4)).double(), operators.bicubic((1, 4, 4), 2)
    gammas = (0.01, 0.1, 1.0, 3.0, 10.0)

    def error(sampler: Sampler, physics: torch.nn.Module) -> float:
        problem = Problem(physics.A(x), physics, prior, sigma_y=0.0)
        state: State | None = None
        for frame in iterate(problem, sampler, Rng(0, tuple(map(str, range(40))))):
            state = frame.state
        assert state is not None
        away = (prior.decode(state.z) - x).flatten(1).norm(dim=1) / (x - 0.5).flatten(1).norm(dim=1)
        return float(away.median())

    rows = []
    for name, physics in {"mask, A Aᵀ = I": masked, "×2 bicubic, A Aᵀ ≠ I": small}.items():
        base = error(LDPS(steps=100), physics)
        for gamma in gammas:
            rows.append(
                [
                    name,
                    gamma,
                    base,
                    error(GMLDPS(steps=100, gamma=gamma), physics),
                    error(PSLD(steps=100, gamma=gamma, adjoint="exact"), physics),
                    error(PSLD(steps=100, gamma=gamma, adjoint="paper"), physics),
                ]
            )
    table(
        "Linear many-to-one autoencoder, no noise: median relative error of the recovered picture, 100 steps",
        ["operator", "γ", "LDPS", "GML-DPS", "PSLD, exact Aᵀ", "PSLD, the paper's lift"],
        rows,
    )


def order(images: Path) -> None:
    """DDIM from the last level against the exact flow of a Gaussian."""
    mean, variance = 0.4, 0.3
    prior = GaussianPrior(torch.full((1, 1, 1), mean), torch.tensor([[variance]]))
    scale, sigma = prior.schedule.at(999)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    exact = mean + (variance / (scale**2 * variance + sigma**2)) ** 0.5 * (start - scale * mean)
    rows: list[list[object]] = []
    before = None
    for steps in (10, 20, 40, 100, 200, 500, 1000):
        sampler = Unguided(steps=steps, noise=0.0, spacing="trailing")
        problem = Problem(torch.zeros(9, 1, 1, 1, dtype=torch.float64), None, prior)
        z = start
        for frame in iterate(problem, sampler, Rng(0, ("a",) * 9), start=State(start, clean=start)):
            z = frame.state.z
        error = (z - exact).abs().max()
        rate = (
            "–" if before is None else f"{float((before[1] / error).log() / torch.tensor(steps / before[0]).log()):.2f}"
        )
        rows.append([steps, float(error), rate])
        before = (steps, error)
    table("Order of the deterministic reverse process", ["steps", "largest error", "order"], rows)


def samplers(path: Path) -> None:
    """The rows of `stsl exact`, a table for each problem."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def short(row: dict[str, str]) -> str:
        values = [float(row[key]) for key in ("mean_error", "spread", "sliced_w2", "weight_error")]
        return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values)

    sigmas = sorted({float(row["sigma_y"]) for row in rows})
    for problem in dict.fromkeys(row["problem"] for row in rows):
        print(f"\n**{problem}**\n\n| sampler | steps | evaluations |", *(f"σ_y = {s:g} |" for s in sigmas))
        print("|---|" + "---:|" * (2 + len(sigmas)))
        for name in dict.fromkeys(row["sampler"] for row in rows):
            mine = [row for row in rows if (row["problem"], row["sampler"]) == (problem, name)]
            cells = {float(row["sigma_y"]): short(row) for row in mine}
            steps, evaluations = mine[-1]["steps"] or "–", float(mine[-1]["evaluations"])
            print(f"| {name} | {steps} | {evaluations:.0f} |", *(f"{cells.get(s, '–')} |" for s in sigmas))


PARTS = {
    "traces": traces,
    "cost": cost,
    "bound": bound,
    "jensen": jensen,
    "beginnings": beginnings,
    "autoencoder": autoencoder,
    "order": order,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rows", type=Path, help="results.csv of `stsl exact`: print its tables and stop")
    args = parser.parse_args()
    if args.rows:
        samplers(args.rows)
        return
    torch.set_num_threads(1)
    for name in args.only.split(","):
        PARTS[name](args.images)


if __name__ == "__main__":
    main()
