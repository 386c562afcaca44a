"""`stsl train`: priors, autoencoders and vision transformers from a folder of pictures."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from stsl.cli.console import bar, say

if TYPE_CHECKING:
    from stsl.training.captions import Captions
    from stsl.training.data import Pictures
    from stsl.training.latents import Latents
    from stsl.training.run import Settings
    from stsl.training.task import Task

train = typer.Typer(
    help="Train priors on a folder of pictures. Run the same command again to go on where it was stopped.",
    no_args_is_help=True,
)

LOCK = "lock"

Data: TypeAlias = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of pictures, .parquet file, or hub id of a data set.")
]
Out: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of the result; what the training needs is in its training/.")
]
Steps: TypeAlias = Annotated[int, typer.Option(help="Steps of the optimiser in all.", min=1)]
Batch: TypeAlias = Annotated[int, typer.Option(help="Pictures per step.", min=1)]
Rate: TypeAlias = Annotated[float, typer.Option("--lr", help="Learning rate of AdamW.", min=0.0)]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of weights, order and noise.", min=0)]
Precision: TypeAlias = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
HeldOut: TypeAlias = Annotated[str | None, typer.Option(help="Data that is not learnt from, for the column held_out.")]
Sets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: warmup, cooldown, decay, clip, ema, every, log_every, sheet_every."),
]
Half: TypeAlias = Annotated[bool, typer.Option("--half", help="Write float16 weights, half the size.")]
Compile: TypeAlias = Annotated[
    bool, typer.Option("--compile", help="Compile the step: minutes at the start, then faster on most machines.")
]
Restart: TypeAlias = Annotated[bool, typer.Option("--restart", help="Forget the training that --out holds.")]
Size: TypeAlias = Annotated[int, typer.Option(help="Side of the pictures in pixels.", min=8, max=1024)]
Channels: TypeAlias = Annotated[str, typer.Option(help="Channels of the stages, separated by commas.")]
Caption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="A column, or a template such as 'a {photo|picture} of a {label}'; several: one is drawn."),
]
Words: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="What to say for a column's values: 'column: value=word|word, value=word'.")
]


@train.command()
def autoencoder(
    data: Data,
    out: Out,
    size: Size = 128,
    kind: Annotated[str, typer.Option(help="tiny (AutoencoderTiny) or kl (AutoencoderKL).")] = "tiny",
    channels: Channels = "48,48,48",
    latent: Annotated[int, typer.Option(help="Latent channels.", min=1, max=64)] = 4,
    lpips: Annotated[float, typer.Option(help="Weight of LPIPS; 0 needs no `stsl fetch lpips`.", min=0)] = 0.5,
    critic: Annotated[float, typer.Option(help="Weight of a patch critic; 0 for none.", min=0)] = 0.0,
    steps: Steps = 20_000,
    batch: Batch = 16,
    lr: Rate = 5e-4,
    seed: Seed = 0,
    precision: Precision = "auto",
    held_out: HeldOut = None,
    sets: Sets = None,
    half: Half = False,
    compile: Compile = False,
    restart: Restart = False,
) -> None:
    """Train an autoencoder: every stage but the last halves the side. Writes OUT/vae."""
    settings = _settings(steps, batch, lr, seed, precision, sets, half, compile)
    stages = _numbers(channels)
    pictures, tested = _begin(data, out, size, held_out, restart, settings)
    from stsl.training.autoencoder import Autoencoder
    from stsl.training.task import weights_from

    with weights_from(seed):
        task = Autoencoder(size, kind=kind, channels=stages, latent=latent, lpips=lpips, critic=critic)
    facts = {"kind": kind, "channels": stages, "latent": latent, "lpips": lpips, "critic": critic}
    _run(task, pictures, settings, out, facts, tested)


@train.command()
def prior(
    data: Data,
    out: Out,
    vae: Annotated[
        str | None, typer.Option(help="Folder with vae/, or a built-in prior; that of --init when left out.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Go on from the networks of this prior: a folder or a built-in name.")
    ] = None,
    caption: Caption = None,
    words: Words = None,
    empty: Annotated[float, typer.Option(help="Share of captions that are left out.", min=0, max=1)] = 0.12,
    size: Size = 128,
    channels: Channels = "64,128,192,192",
    layers: Annotated[int, typer.Option(help="Residual blocks per stage.", min=1)] = 1,
    text_width: Annotated[int, typer.Option(help="Width of the text encoder.", min=8)] = 192,
    prediction: Annotated[str, typer.Option(help="epsilon or v_prediction.")] = "epsilon",
    gamma: Annotated[float, typer.Option(help="Limit of min-SNR weighting; 0 for none.", min=0)] = 5.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = True,
    steps: Steps = 100_000,
    batch: Batch = 32,
    lr: Rate = 5e-4,
    seed: Seed = 0,
    precision: Precision = "auto",
    held_out: HeldOut = None,
    sets: Sets = None,
    half: Half = False,
    compile: Compile = False,
    restart: Restart = False,
) -> None:
    """Train a latent prior that listens to text, on the latents of an autoencoder. Writes a diffusers folder."""
    settings = _settings(steps, batch, lr, seed, precision, sets, half, compile)
    stages = _numbers(channels)
    if vae is None and init is None:
        raise ValueError("a prior needs an autoencoder: give --vae FOLDER (see `stsl train autoencoder`), or --init")
    said = _captions(caption, words)
    pictures, tested = _begin(data, out, size, held_out, restart, settings)
    import torch

    from stsl.files import sha256
    from stsl.priors.folder import Folder
    from stsl.priors.latent import LatentPrior
    from stsl.priors.load import builtin_folder, builtin_names, load_prior
    from stsl.training.captions import make_text_encoder, make_tokenizer
    from stsl.training.latents import encode, load_vae
    from stsl.training.prior import LatentDiffusion, make_unet
    from stsl.training.task import weights_from

    source = str(vae or init)
    folder = builtin_folder() / source if source in builtin_names() else Path(source)
    autoencoder = load_vae(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    files = sorted(set(Folder(folder).tensors("vae").values()))
    key = "-".join(sha256(file) for file in files)
    said = _checked(said, pictures, tested)

    def encoded(part: "Pictures", place: Path) -> "Latents":
        return _shown(encode(part, autoencoder, place, key), "encoding")

    latents = encoded(pictures, out / "training")
    tested_latents = encoded(tested, out / "training" / "held_out") if tested is not None else None
    shape = latents.values.shape
    facts = {"channels": stages, "layers": layers, "init": init, "captions": list(said.templates), "empty": empty}
    facts |= {"prediction": prediction, "gamma": gamma, "flip": flip, "text_width": text_width}
    with weights_from(seed):
        if init is None:
            tokenizer = make_tokenizer(said.all(_distinct(pictures)), TOKENS)
            unet = make_unet(shape[-1], shape[2], text_width, stages, layers)
            parts = (unet, make_text_encoder(tokenizer, TOKENS, text_width), tokenizer)
        else:
            begun = load_prior(init, device="cpu", precision="fp32")
            if not isinstance(begun, LatentPrior) or begun.latent_shape != shape[2:]:
                raise ValueError(
                    f"--init {init} works on {begun.latent_shape} latents, and these pictures give {shape[2:]}: "
                    "give a latent prior of the same --size and autoencoder"
                )
            parts = (begun.unet, begun.text_encoder, begun.tokenizer)
        task = LatentDiffusion(
            autoencoder.cpu(), *parts, said, prediction=prediction, empty=empty, flip=flip, gamma=gamma
        )
    _run(task, latents, settings, out, facts, tested_latents)


@train.command()
def pixel(
    data: Data,
    out: Out,
    size: Size = 64,
    channels: Channels = "32,64,128,160",
    layers: Annotated[int, typer.Option(help="Residual blocks per stage.", min=1)] = 1,
    attention: Annotated[str, typer.Option(help="Sides at which the UNet attends, separated by commas.")] = "16,8",
    init: Annotated[
        str | None, typer.Option(help="Go on from the network of this prior: a folder or a built-in name.")
    ] = None,
    gamma: Annotated[float, typer.Option(help="Limit of min-SNR weighting; 0 for none.", min=0)] = 5.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = True,
    steps: Steps = 100_000,
    batch: Batch = 32,
    lr: Rate = 5e-4,
    seed: Seed = 0,
    precision: Precision = "auto",
    held_out: HeldOut = None,
    sets: Sets = None,
    half: Half = False,
    compile: Compile = False,
    restart: Restart = False,
) -> None:
    """Train a prior on pixels, for the methods that work on them. Writes a diffusers folder."""
    settings = _settings(steps, batch, lr, seed, precision, sets, half, compile)
    stages, sides = _numbers(channels), _numbers(attention)
    pictures, tested = _begin(data, out, size, held_out, restart, settings)
    from stsl.priors.load import load_prior
    from stsl.priors.pixel import PixelPrior
    from stsl.schedule import VariancePreserving
    from stsl.training.pixel import Pixel
    from stsl.training.task import weights_from

    begun = None if init is None else load_prior(init, device="cpu", precision="fp32")
    if begun is not None and not (isinstance(begun, PixelPrior) and begun.image_shape == (3, size, size)):
        raise ValueError(
            f"--init {init} is a {begun.family} prior of {begun.image_shape} images: give one on pixels of --size"
        )
    with weights_from(seed):
        unet = begun.unet if isinstance(begun, PixelPrior) else None
        task = Pixel(size, stages, layers=layers, attention=sides, unet=unet, flip=flip, gamma=gamma)
    if begun is not None and begun.schedule != VariancePreserving.from_config(task.scheduler.config):
        raise ValueError(f"--init {init} has another schedule than DDPM's linear one, which is trained here")
    facts = {"init": init, "channels": stages, "layers": layers, "attention": sides, "flip": flip, "gamma": gamma}
    _run(task, pictures, settings, out, facts, tested)


@train.command()
def vit(
    data: Data,
    out: Out,
    clip: Annotated[
        bool, typer.Option("--clip", help="A pair of image and text encoder instead, to judge edits by.")
    ] = False,
    objective: Annotated[str, typer.Option(help="masked (reconstruction) or dino (self-distillation).")] = "masked",
    caption: Caption = None,
    words: Words = None,
    size: Size = 128,
    patch: Annotated[int, typer.Option(help="Side of the patches.", min=2)] = 8,
    width: Annotated[int, typer.Option(help="Width of the transformer.", min=8)] = 192,
    depth: Annotated[int, typer.Option(help="Blocks of the transformer.", min=1)] = 6,
    heads: Annotated[int, typer.Option(help="Attention heads.", min=1)] = 3,
    steps: Steps = 50_000,
    batch: Batch = 64,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    precision: Precision = "auto",
    held_out: HeldOut = None,
    sets: Sets = None,
    half: Half = False,
    compile: Compile = False,
    restart: Restart = False,
) -> None:
    """Train a vision transformer without labels, for the contrastive loss. Writes a transformers folder."""
    settings = _settings(steps, batch, lr, seed, precision, sets, half, compile)
    if objective not in ("masked", "dino"):
        raise ValueError(f"--objective {objective!r} is not known: masked or dino")
    said = _captions(caption, words) if clip else None
    pictures, tested = _begin(data, out, size, held_out, restart, settings)
    from stsl.training.task import weights_from

    shape = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    task: Task
    with weights_from(seed):
        if said is not None:
            from stsl.training.captions import make_tokenizer
            from stsl.training.clip import CLIP

            said = _checked(said, pictures, tested)
            tokenizer = make_tokenizer(said.all(_distinct(pictures)), TOKENS)
            task = CLIP(size, tokenizer, said, **shape)
        elif objective == "masked":
            from stsl.training.masked import Masked

            task = Masked(size, **shape)
        else:
            from stsl.training.dino import DINO

            task = DINO(size, steps, **shape)
    facts = shape | {"objective": "clip" if clip else objective, "captions": list(said.templates) if said else []}
    _run(task, pictures, settings, out, facts, tested)


TOKENS = 16  # per caption


def _settings(
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    precision: str,
    sets: list[str] | None,
    half: bool,
    compile: bool,
) -> "Settings":
    import dataclasses

    from stsl.cli.choose import changes
    from stsl.priors.precision import pick_device, pick_precision
    from stsl.training.run import Settings

    for item in sets or ():
        if (key := item.partition("=")[0]) in ("steps", "batch", "lr", "seed", "precision", "half", "compile"):
            raise ValueError(f"--set {item}: {key} has an option of its own, --{key}")
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"--precision {precision!r} is not known: auto, fp32 or bf16")
    exact = pick_precision(precision, pick_device())  # type: ignore[arg-type]
    base = Settings(steps, batch=batch, lr=lr, seed=seed, precision=exact, half=half, compile=compile)
    return dataclasses.replace(base, **changes(base, sets or ()))


def _captions(caption: list[str] | None, words: list[str] | None) -> "Captions":
    from stsl.training.captions import Captions, read_words

    return Captions(tuple(caption or ()), read_words(words or ()))


def _checked(said: "Captions", pictures: "Pictures", tested: "Pictures | None") -> "Captions":
    """Captions whose columns the pictures have, and those that are held out, too."""
    said = said.check(pictures.columns)
    if tested is not None:
        try:
            said.check(tested.columns)
        except ValueError as error:
            raise ValueError(f"--held-out: {error}") from error
    return said


def _numbers(text: str) -> list[int]:
    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers such as 32,64,128") from None


def _distinct(pictures: "Pictures") -> list[dict[str, str]]:
    """What is known about the pictures, each kind of row once."""
    rows = zip(*pictures.columns.values(), strict=True) if pictures.columns else iter([()])
    return [dict(zip(pictures.columns, row, strict=True)) for row in dict.fromkeys(rows)]


def _begin(
    data: str, out: Path, size: int, held_out: str | None, restart: bool, settings: "Settings"
) -> tuple["Pictures", "Pictures | None"]:
    """The pictures to learn from and to test on, read with a progress bar."""
    import torch

    from stsl.training.data import prepare

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if restart:
        with _alone(out / "training"):
            for old in (out / "training").iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
                elif old.name != LOCK:
                    old.unlink()
    torch.set_float32_matmul_precision("high" if settings.precision == "bf16" else "highest")
    pictures = _shown(prepare(data, size, out / "training"), "reading")
    tested = _shown(prepare(held_out, size, out / "training" / "held_out"), "reading") if held_out else None
    return pictures, tested


def _shown(parts: "Iterator[tuple[int, int | None] | Any]", label: str) -> Any:
    """The last thing a generator gives, after a progress bar for the pairs before it."""
    part: Any = None
    with bar() as progress:
        task = progress.add_task(label, total=None, said="")
        for part in parts:
            if isinstance(part, tuple):
                progress.update(task, completed=part[0], total=part[1])
    return part


def _run(task: "Task", data: Any, settings: "Settings", out: Path, facts: dict[str, Any], held_out: Any = None) -> None:
    """Train with a progress bar, and say where the result is."""
    from stsl.training.run import train as run

    with _alone(out / "training"), bar() as progress, _asked_to_stop() as stopping:
        shown = progress.add_task("training", total=settings.steps, said="")
        with contextlib.closing(run(task, data, settings, out, facts=facts, held_out=held_out)) as steps:
            for done in steps:
                if stopping() and done.step < done.total:
                    say(f"step {done.step} of {done.total} is kept; the same command goes on from there")
                    raise KeyboardInterrupt
                progress.update(shown, completed=done.step)
                losses = [f"{key} {done.numbers[key]:.4f}" for key in ("loss", "held_out") if key in done.numbers]
                if losses:
                    progress.update(shown, said="  ".join(losses))
    say(f"{out} is ready; how it went is in {out / 'training' / 'metrics.csv'}")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Nobody else trains in this folder; of a training's processes the first one sees to it.

    Raises:
        ValueError: somebody does.
    """
    from filelock import FileLock, Timeout

    place.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        with FileLock(place / LOCK, timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another training writes to {place} now: wait for it, or give another --out") from None


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or SIGTERM came: both let the step end, so that it is kept. A second one does not."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        for number in heard:
            signal.signal(number, before[number])
