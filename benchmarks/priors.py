"""How good the priors are, on faces that they have not seen: every figure of docs/priors.md.

    python benchmarks/priors.py FOLDER... --data TEST.parquet [--train TRAIN.parquet]

What a folder holds is seen from its files: a latent or a pixel prior (diffusers), a ViT or a CLIP pair (transformers).
Rows go to a CSV file as they are measured and samples to --work as they are drawn, so that a second run continues. A
row belongs to the weights in the folder, not to its name. Without --train the figures that need it are left out.
"""

import argparse
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss, normalize
from torchvision.utils import make_grid, save_image

from stsl import LPIPS, Prior, Problem, Rng, files, iterate, load_prior, metrics
from stsl.bench.faces import Unconditional
from stsl.distances import frechet, kid
from stsl.perceptual import PooledVGG, load_contrastive
from stsl.perceptual.clip import load_clip
from stsl.priors.load import builtin_folder
from stsl.priors.precision import pick_precision
from stsl.rng import generator

FIGURES = ("autoencoder", "noise", "samples", "copies", "sheets", "probe", "correspondence", "zero_shot")
PROMPTS = [
    f"a {colour} photo of a {face} face" for colour in ("color", "black and white") for face in ("smiling", "neutral")
]
ASKED = ("a neutral face", "a smiling face")  # of CLIP; the captions of faces-clip
GUIDANCE = 3.0
BANDS = 5  # of the timesteps, each measured at two levels
FLOORS = 5  # draws of training faces whose distance from the test faces is the best a prior can be expected to reach
COLOURFUL = (
    0.04  # mean spread of the channels: below 0.001 in 99 % of the grey faces, above it in 99 % of the colour ones
)
Row = tuple[str, str, float, float | None, int]  # figure, split, value, its standard error, how many


class Faces:
    """A Parquet file with columns `image` (bytes), `color` and `emotion`, scaled to a side and read batch by batch."""

    def __init__(self, path: Path, size: int, limit: int | None = None) -> None:
        table = parquet.read_table(path, columns=["image", "color", "emotion"])
        table = table if limit is None else table.slice(0, limit)
        self.path, self.size, self._images = path, size, table["image"]
        self.colour = torch.tensor(table["color"].to_pylist())
        self.emotion = np.array(table["emotion"].to_pylist())

    def __len__(self) -> int:
        return len(self.colour)

    def batches(self, batch: int, rows: np.ndarray | None = None) -> Iterator[Tensor]:
        """Pictures in [0, 1], all of them or some rows."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch):
            yield torch.stack([self._read(int(row)) for row in rows[start : start + batch]])

    def _read(self, row: int) -> Tensor:
        picture = np.array(Image.open(io.BytesIO(self._images[row].as_py()["bytes"])).convert("RGB"))
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        if x.shape[-1] != self.size:
            x = interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return x[0]


class Table:
    """Rows of figures in a CSV file, each written as soon as it is known."""

    columns = ("prior", "weights", "figure", "split", "value", "error", "n", "setting")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = list(csv.DictReader(path.open(newline=""))) if path.exists() else []

    def has(self, **key: str) -> bool:
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows)

    def add(self, rows: list[Row], **key: str) -> None:
        """Write the rows of a group of figures together: a group is there or it is not."""
        new = [
            key | {"figure": figure, "split": split, "value": f"{value:.5g}", "n": str(n)}
            | {"error": "" if error is None else f"{error:.2g}"}
            for figure, split, value, error, n in rows
        ]  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if is_new:
                writer.writeheader()
            writer.writerows(new)
        self.rows += new
        for row in new:
            print(
                *(row[column] for column in ("prior", "figure", "split", "value", "error", "n")), sep="  ", flush=True
            )

    def markdown(self) -> str:
        """Figures down, priors across; all / colour / grey in a cell, a dash for one that has none."""
        priors = list(dict.fromkeys((row["prior"], row["weights"]) for row in self.rows))
        lines = ["| figure | " + " | ".join(f"{name} ({weights})" for name, weights in priors) + " |"]
        lines.append("|---" * (len(priors) + 1) + "|")
        kinds = list(dict.fromkeys((row["figure"], row["setting"]) for row in self.rows))
        for figure, setting in kinds:
            cells = []
            for prior in priors:
                of = {"prior": prior[0], "weights": prior[1], "figure": figure, "setting": setting}
                rows = [row for row in self.rows if of.items() <= row.items()]
                found = {r["split"]: f"{r['value']}{' ± ' + r['error'] if r['error'] else ''}" for r in rows}
                splits = ("all", "colour", "grey") if found.keys() - {"all"} else tuple(found)
                cells.append(" / ".join(found.get(split, "–") for split in splits))
            several = sum(figure == other for other, _ in kinds) > 1
            lines.append(f"| {figure}{f' ({setting})' if several else ''} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


@dataclass
class Bench:
    """One folder, the faces, and where things are kept."""

    folder: Path
    args: argparse.Namespace

    @cached_property
    def kind(self) -> str:
        """latent, pixel, vit or clip."""
        for config in (self.folder / "unet" / "config.json", self.folder / "config.json"):
            if config.is_file():
                facts = json.loads(config.read_text(encoding="utf-8"))
                name = facts.get("_class_name") or (facts.get("architectures") or ["?"])[0]
                kinds = {
                    "UNet2DConditionModel": "latent",
                    "UNet2DModel": "pixel",
                    "ViTModel": "vit",
                    "CLIPModel": "clip",
                }
                if name in kinds:
                    return kinds[name]
        raise SystemExit(f"{self.folder} holds no diffusers prior, transformers ViTModel or CLIPModel")

    @cached_property
    def weights(self) -> str:
        """The first digits of a hash over all weights; the checkpoint of a training is none of them."""
        digest = hashlib.sha256()
        for file in sorted(self.folder.rglob("*.safetensors")):
            if "training" not in file.relative_to(self.folder).parts:
                digest.update(files.sha256(file).encode())
        return digest.hexdigest()[:8]

    @cached_property
    def work(self) -> Path:
        return self.args.work / f"{self.folder.name}-{self.weights}"

    @cached_property
    def prior(self) -> Prior:
        return load_prior(self.folder, device=self.args.device, precision=self.args.precision)

    @cached_property
    def size(self) -> int:
        if self.kind in ("latent", "pixel"):
            return self.prior.image_shape[-1]
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int((config if self.kind == "vit" else config["vision_config"])["image_size"])

    @cached_property
    def test(self) -> Faces:
        return Faces(self.args.data, self.size, self.args.faces)

    @cached_property
    def train(self) -> Faces:
        return Faces(self.args.train, self.size, self.args.train_faces)

    def by_split(self, figure: str, values: Tensor) -> list[Row]:
        """The mean of one value per test face, with its standard error."""
        colour = self.test.colour
        parts = {"all": values, "colour": values[colour], "grey": values[~colour]}
        return [
            (figure, s, float(v.mean()), float(v.std()) / len(v) ** 0.5 if len(v) > 1 else None, len(v))
            for s, v in parts.items()
            if len(v)
        ]

    # ---- priors

    def autoencoder(self) -> list[Row]:
        """PSNR and LPIPS of decode(encode(x))."""
        lpips = LPIPS("alex").to(self.prior.device)
        found: dict[str, list[Tensor]] = {"autoencoder PSNR": [], "autoencoder LPIPS-Alex": []}
        for x in self.test.batches(self.args.batch):
            x = x.to(self.prior.device)
            again = self.prior.decode(self.prior.encode(x)).clamp(0, 1)
            found["autoencoder PSNR"].append(metrics.psnr(again, x).cpu())
            found["autoencoder LPIPS-Alex"].append(lpips(again, x).cpu())
        return [row for figure, values in found.items() for row in self.by_split(figure, torch.cat(values))]

    def noise(self) -> list[Row]:
        """Mean squared error of the predicted noise, without a prompt; a face meets the same noise in every run."""
        levels = self.prior.schedule.levels
        at = [levels * (2 * i + 1) // (4 * BANDS) for i in range(2 * BANDS)]  # the middles of half bands: 50, 150, ...
        errors: list[list[Tensor]] = [[] for _ in at]
        start = 0
        for x in self.test.batches(self.args.batch):
            z0 = self.prior.encode(x.to(self.prior.device))
            ids = tuple(f"{self.args.data.stem}-{start + i}" for i in range(len(x)))
            for found, t in zip(errors, at, strict=True):
                noise = Rng(0, ids, stage="benchmark", step=t).normal(z0)
                eps = self.prior.epsilon(self.prior.schedule.diffuse(z0, noise, t), t)
                found.append(mse_loss(eps, noise, reduction="none").flatten(1).mean(1).cpu())
            start += len(x)
        per_level = torch.stack([torch.cat(found) for found in errors])
        per_band = per_level.view(BANDS, 2, -1).mean(1)
        rows = self.by_split("noise error, all levels", per_level.mean(0))
        for band, values in enumerate(per_band):
            low, high = (levels * (band + k) // BANDS for k in (0, 1))
            rows += self.by_split(f"noise error, t in [{low}, {high})", values)
        return rows

    def drawn(self, n: int, prompt: str | None = None) -> Tensor:
        """Samples, 8 bits, drawn in batches that are kept; sample i is the same however many are drawn."""
        name = "unconditional" if prompt is None else prompt.replace(" ", "-")
        given, usual = (pick_precision(p, torch.device(self.args.device)) for p in (self.args.precision, "auto"))
        kind = f"{self.args.batch}" if given == usual else f"{self.args.batch}-{given}"
        kept = []
        for start in range(0, n, self.args.batch):
            file = self.work / "samples" / f"{name}-{self.args.steps}-{start:05d}-{kind}.safetensors"
            if not file.is_file():
                with files.atomic(file) as path:
                    save_file({"x": self._draw(range(start, start + self.args.batch), prompt, name)}, path)
                print(f"{self.folder.name}: {name}, {start + self.args.batch} samples", flush=True)
            kept.append(load_file(file)["x"])
        return torch.cat(kept)[:n]

    def _draw(self, numbers: range, prompt: str | None, name: str) -> Tensor:
        y = torch.zeros(
            len(numbers), 1, device=self.prior.device
        )  # nothing is measured: only the number of images counts
        condition = None if prompt is None else self.prior.condition([prompt] * len(numbers), scale=GUIDANCE)
        problem = Problem(y, None, self.prior, condition)
        *_, last = iterate(problem, Unconditional(self.args.steps), Rng(0, tuple(f"{name}-{i}" for i in numbers)))
        with torch.no_grad():
            x = self.prior.decode(last.state.z).clamp(0, 1)
        return (255 * x).round().to(torch.uint8).cpu().contiguous()

    def samples(self) -> list[Row]:
        """Fréchet and kernel distance of samples from the test faces, and of as many training faces from them."""
        x = self.drawn(self.args.samples)
        mine, theirs = self.features(part.float() / 255 for part in x.split(self.args.batch)), self.test_features
        colour = spread_of_channels(x) > COLOURFUL
        rows: list[Row] = [("samples in colour, share", "all", float(colour.float().mean()), None, len(x))]
        for split, own, other in (
            ("all", torch.ones(len(x), dtype=torch.bool), torch.ones(len(theirs), dtype=torch.bool)),
            ("colour", colour, self.test.colour),
            ("grey", ~colour, ~self.test.colour),
        ):
            n = int(own.sum())
            if n < 3 or int(other.sum()) < 3:
                continue
            rows.append(("Fréchet distance", split, frechet(mine[own], theirs[other]), None, n))
            rows.append(("KID", split, *kid(mine[own], theirs[other]), n))
            if self.args.train is None:
                continue
            pool = self.train_features[
                {"all": slice(None), "colour": self.train.colour, "grey": ~self.train.colour}[split]
            ]
            floors, kernels = [], []
            for draw in range(FLOORS):
                some = pool[torch.randperm(len(pool), generator=generator("floor", split, draw))[:n]]
                floors.append(frechet(some, theirs[other]))
                kernels.append(kid(some, theirs[other]))
            spread = float(np.std(floors, ddof=1)) / FLOORS**0.5
            rows.append(
                ("Fréchet distance of training faces", split, float(np.mean(floors)), spread, min(n, len(pool)))
            )
            rows.append(("KID of training faces", split, *kernels[0], min(n, len(pool))))
        return rows

    def copies(self) -> list[Row]:
        """Distance to the nearest training face: of samples, and of test faces, than which copies would be nearer."""
        x = self.drawn(self.args.samples)
        mine = self.features(part.float() / 255 for part in x.split(self.args.batch))
        colour = spread_of_channels(x) > COLOURFUL
        rows: list[Row] = []
        for name, features, coloured in (
            ("samples", mine, colour),
            ("test faces", self.test_features, self.test.colour),
        ):
            nearest = torch.cat([torch.cdist(part, self.train_features).amin(1) for part in features.split(64)])
            for split, some in (("all", nearest), ("colour", nearest[coloured]), ("grey", nearest[~coloured])):
                if len(some):
                    rows.append(
                        (f"nearest training face of {name}, median", split, float(some.median()), None, len(some))
                    )
                    low = float(some.double().quantile(0.01))
                    rows.append((f"nearest training face of {name}, 1 % quantile", split, low, None, len(some)))
        of_faces = {(figure, split): value for figure, split, value, *_ in rows if "test faces" in figure}
        for figure, split, value, _, n in rows[:]:
            other = of_faces.get((figure.replace("of samples", "of test faces"), split))
            if "of samples" in figure and other:
                rows.append((figure.replace("of samples", "of samples over test faces"), split, value / other, None, n))
        return rows

    def sheets(self) -> list[Row]:
        """Pictures of 8 x 8 samples: without a prompt, and of each prompt where there are prompts."""
        for prompt in (None, *PROMPTS) if self.kind == "latent" else (None,):
            x = self.drawn(64, prompt)
            name = "unconditional" if prompt is None else prompt.replace(" ", "-")
            path = self.work / "sheets" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(make_grid(x.float() / 255, nrow=8, padding=2), path)
            print(path, flush=True)
        return []

    def features(self, batches: Iterator[Tensor]) -> Tensor:
        return torch.cat([self.vgg(x.to(self.args.device)).cpu() for x in batches])

    @cached_property
    def vgg(self) -> PooledVGG:
        return PooledVGG().to(self.args.device)

    @cached_property
    def test_features(self) -> Tensor:
        return self._kept_features(self.test)

    @cached_property
    def train_features(self) -> Tensor:
        return self._kept_features(self.train)

    def _kept_features(self, faces: Faces) -> Tensor:
        """Features of a file's faces, which any prior of this size can use again."""
        key = hashlib.sha256(f"{files.sha256(faces.path)} {len(faces)} {faces.size}".encode()).hexdigest()[:16]
        file = self.args.work / "features" / f"{faces.path.stem}-{faces.size}-{key}.safetensors"
        if not file.is_file():
            with files.atomic(file) as path:
                save_file({"features": self.features(faces.batches(self.args.batch))}, path)
        return load_file(file)["features"]

    # ---- ViT

    def probe(self) -> list[Row]:
        """Balanced accuracy on test of a linear classifier of the mean key, neutral or happy, learnt on train."""
        vit = load_contrastive(self.folder, device=self.args.device)

        def mean_keys(faces: Faces, rows: np.ndarray) -> Tensor:
            return torch.cat([vit.keys(x.to(self.args.device))[:, 1:].mean(1).cpu() for x in faces.batches(64, rows)])

        rows = [np.flatnonzero(self.train.emotion == emotion) for emotion in ("neutral", "happiness")]
        least = min(map(len, rows))
        chosen = np.concatenate([each[:least] for each in rows])
        weight, shift = logistic_regression(mean_keys(self.train, chosen), torch.arange(2).repeat_interleave(least))
        asked, happy = self.neutral_or_happy()
        said = mean_keys(self.test, asked) @ weight + shift > 0
        return self.balanced("linear probe, balanced accuracy", said, happy, self.test.colour[asked])

    def correspondence(self) -> list[Row]:
        """Whether a patch's nearest key in the picture's mirror image, or in a larger view of it, is the same place."""
        vit = load_contrastive(self.folder, device=self.args.device)
        patch = int(vit.vit.config.patch_size)
        side = self.size // patch
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        centres = (torch.stack([row, column], -1).view(-1, 2) + 0.5) * patch  # in pixels
        mirrored = (row * side + side - 1 - column).flatten()
        flipped, cropped, by_position, start = [], [], [], 0
        for x in self.test.batches(64):
            x = x.to(self.args.device)
            keys = normalize(vit.keys(x)[:, 1:], dim=-1)
            found = (normalize(vit.keys(x.flip(-1))[:, 1:], dim=-1) @ keys.transpose(1, 2)).argmax(-1).cpu()
            flipped.append((found == mirrored).float().mean(1))
            part = 3 * self.size // 4  # a corner of three quarters of the side, the four corners in turn
            for i in range(len(x)):
                top, left = ((start + i) // 2 % 2 * (self.size - part), (start + i) % 2 * (self.size - part))
                view = interpolate(
                    x[i : i + 1, :, top : top + part, left : left + part],
                    size=self.size,
                    mode="bicubic",
                    antialias=True,
                )
                found = (normalize(vit.keys(view)[0, 1:], dim=-1) @ keys[i].T).argmax(-1).cpu()
                place = centres * part / self.size + torch.tensor([top, left])
                cropped.append(near(centres[found], place, patch))
                by_position.append(near(centres, place, patch))
            start += len(x)
        chance = near(centres[None], centres[:, None], patch)
        return [
            *self.by_split("patches found in the mirror image", torch.cat(flipped)),
            *self.by_split("patches found in a corner, to one patch", torch.stack(cropped)),
            *self.by_split("the same by position alone", torch.stack(by_position)),
            ("the same by chance", "all", float(chance), None, len(self.test)),
        ]

    # ---- CLIP

    def zero_shot(self) -> list[Row]:
        """Balanced accuracy of "smiling" against "neutral" on the happy and neutral test faces."""
        clip = load_clip(self.folder, device=self.args.device)
        asked, happy = self.neutral_or_happy()
        faces = self.test.batches(64, asked)
        said = torch.cat([clip.accuracy(x.to(self.args.device), *ASKED).cpu() for x in faces]) > 0.5
        return self.balanced("zero-shot, balanced accuracy", said, happy, self.test.colour[asked])

    # ---- shared

    def neutral_or_happy(self) -> tuple[np.ndarray, Tensor]:
        """Rows of the test faces that are either, and which are happy."""
        asked = np.flatnonzero(np.isin(self.test.emotion, ("neutral", "happiness")))
        return asked, torch.from_numpy(self.test.emotion[asked] == "happiness")

    def balanced(self, figure: str, said: Tensor, true: Tensor, colour: Tensor) -> list[Row]:
        """Mean of the two classes' shares of right answers."""
        rows: list[Row] = []
        for split, some in (("all", colour | ~colour), ("colour", colour), ("grey", ~colour)):
            right = [(said == true)[some & (true == answer)].double() for answer in (False, True)]
            if min(map(len, right)):
                value = float(sum(r.mean() for r in right)) / 2
                error = float(sum(r.mean() * (1 - r.mean()) / len(r) for r in right)) ** 0.5 / 2
                rows.append((figure, split, value, error, sum(map(len, right))))
        return rows


def spread_of_channels(x: Tensor) -> Tensor:
    """How colourful 8-bit pictures are: the largest channel less the smallest, averaged over pixels, in [0, 1]."""
    x = x.float() / 255
    return (x.amax(1) - x.amin(1)).mean((1, 2))


def near(found: Tensor, place: Tensor, patch: int) -> Tensor:
    """Share of places that were found to within one patch in both directions."""
    return ((found - place).abs() <= patch).all(-1).float().mean()


def logistic_regression(x: Tensor, y: Tensor, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weights and shift for standardised features, by L-BFGS with weight decay."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-8)
    parameters = torch.zeros(x.shape[1] + 1, requires_grad=True)
    search = torch.optim.LBFGS([parameters], max_iter=300, line_search_fn="strong_wolfe")
    features, sign = (x - mean) / std, 2.0 * y - 1

    def loss() -> Tensor:
        search.zero_grad()
        scores = features @ parameters[:-1] + parameters[-1]
        value = torch.nn.functional.softplus(-sign * scores).mean() + decay * parameters[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)
    weight = parameters[:-1].detach() / std
    return weight, parameters[-1].detach() - weight @ mean


BY_KIND = {
    "latent": ("autoencoder", "noise", "samples", "copies", "sheets"),
    "pixel": ("noise", "samples", "copies", "sheets"),
    "vit": ("probe", "correspondence"),
    "clip": ("zero_shot",),
}
NEED_TRAIN = ("copies", "probe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="built-in names or folders")
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with columns image, color and emotion")
    parser.add_argument("--train", type=Path, help="the same, of the faces that the priors have learnt from")
    parser.add_argument("--out", type=Path, default=Path("priors.csv"))
    parser.add_argument("--work", type=Path, default=Path("priors-work"), help="folder of samples, features and sheets")
    parser.add_argument("--figures", default=",".join(FIGURES), help="which ones, separated by commas")
    parser.add_argument("--faces", type=int, help="use the first so many test faces")
    parser.add_argument("--train-faces", type=int, help="use the first so many training faces")
    parser.add_argument("--samples", type=int, default=763)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parser.parse_args()
    wanted = args.figures.split(",")
    if unknown := set(wanted) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")

    table = Table(args.out)
    for name in args.folders:
        built_in = builtin_folder() / name
        bench = Bench(built_in if built_in.is_dir() else Path(name), args)
        for figure in BY_KIND[bench.kind]:
            if figure not in wanted:
                continue
            if args.train is None and figure in NEED_TRAIN:
                print(f"{bench.folder.name}: {figure} needs --train, left out", flush=True)
                continue
            key = {"prior": bench.folder.name, "weights": bench.weights, "setting": setting_of(figure, args)}
            if not table.has(**key):
                measure: Callable[[], list[Row]] = getattr(bench, figure)
                with torch.no_grad():
                    table.add(measure(), **key)
    if table.rows:
        print(table.markdown())


def setting_of(figure: str, args: argparse.Namespace) -> str:
    """What a group of figures was measured with; another setting is another row."""
    parts = [figure, args.data.stem, f"{args.faces or 'all'} faces"]
    if figure in ("samples", "copies", "sheets"):
        parts += [f"{args.samples} samples", f"{args.steps} steps"]
    if figure in ("samples", "copies", "probe") and args.train is not None:
        parts += [args.train.stem, f"{args.train_faces or 'all'} faces"]
    return ", ".join([*parts, pick_precision(args.precision, torch.device(args.device))])


if __name__ == "__main__":
    main()
