"""The training loop: batches in a fixed order, optimisers, a moving average, checkpoints, a table, pictures."""

import csv
import json
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from stsl import images
from stsl.files import atomic
from stsl.loop import Diverged
from stsl.rng import generator
from stsl.training import checkpoint
from stsl.training.export import sign
from stsl.training.task import Task

log = logging.getLogger("stsl")


class Data(Protocol):
    """Pictures, or what was made of them."""

    key: str

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Settings:
    """How to train. All but `steps`, `compile` and the last four decide what the weights become.

    The learning rate rises over `warmup` steps, stays, and falls linearly to 0 over the last `cooldown` of the steps:
    until then a training may be given more steps without any harm.

    Args:
        steps: steps of the optimiser, in all.
        batch: pictures per step, over all devices.
        lr: learning rate of AdamW.
        warmup: steps over which the learning rate rises.
        cooldown: share of the steps over which it falls.
        decay: weight decay.
        clip: largest norm of a gradient.
        ema: decay of the moving average of the weights, which is what is saved.
        seed: of the order of the data and of every random number.
        precision: fp32, bf16 or fp16.
        compile: compile the step.
        every: seconds between checkpoints.
        log_every: steps between rows of the table.
        sheet_every: steps between sheets of pictures; 0 for none.
        half: write float16 weights.
    """

    steps: int
    batch: int = 32
    lr: float = 5e-4
    warmup: int = 200
    cooldown: float = 0.3
    decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "fp32"
    compile: bool = False
    every: float = 300.0
    log_every: int = 20
    sheet_every: int = 1000
    half: bool = False

    def __post_init__(self) -> None:
        for name, low in {"steps": 1, "batch": 1, "lr": 0, "warmup": 0, "log_every": 1, "sheet_every": 0}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)} is too small: at least {low}")
        for name in ("cooldown", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not between 0 and 1")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1), left)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to go on from it."""
        free = ("steps", "compile", "every", "log_every", "sheet_every", "half")
        return {key: value for key, value in asdict(self).items() if key not in free}


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Args:
        step: steps done.
        total: steps in all.
        numbers: losses and rates, where this step logged them.
    """

    step: int
    total: int
    numbers: Mapping[str, float]


def train(
    task: Task, data: Data, settings: Settings, out: Path, *, facts: Mapping[str, Any], held_out: Data | None = None
) -> Generator[Progress, None, None]:
    """Train a task, and write its networks to `out` at the end.

    What belongs to the training alone is in `out/training`: the checkpoint, `metrics.csv` and sheets of pictures. If
    there is a checkpoint the training goes on from it, and comes to the weights, bit for bit, of one that was never
    stopped (on one machine, with one thread or deterministic kernels).

    Args:
        task: networks and loss.
        data: what `task.draw` draws from.
        settings: how to train.
        out: folder of the result.
        facts: what else decides the weights: data, architecture.
        held_out: data for the column `held_out` of the table, the loss of the averaged weights on its first pictures.

    Yields:
        The progress, after each step.

    Raises:
        ValueError: the checkpoint there was made with other settings.
        Diverged: the loss is not finite; the last checkpoint stays.
    """
    place = out / "training"
    place.mkdir(parents=True, exist_ok=True)
    identity = settings.identity | dict(facts) | {"data": data.key}
    accelerator = Accelerator(
        mixed_precision="no" if settings.precision == "fp32" else settings.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=len(task.turns) > 1)],
    )
    task.to(accelerator.device).to(memory_format=torch.channels_last)
    state = _State(task, settings)
    began = state.resume(place / "checkpoint.safetensors", identity)
    _cut(place / "metrics.csv", began)
    if settings.compile:
        task.compile()
    model = accelerator.prepare(task)
    steppers = {turn: accelerator.prepare(optimizer) for turn, optimizer in state.optimizers.items()}
    main = accelerator.is_main_process
    saved = clock = time.monotonic()
    since, sums = began, dict[str, Tensor]()
    for step in range(began, settings.steps):
        rate, done = settings.rate(step), step + 1
        rows = batch_rows(len(data), step, settings.batch, settings.seed)
        rows = rows[accelerator.process_index :: accelerator.num_processes]
        source = generator(settings.seed, "step", step, accelerator.process_index)
        inputs = {key: value.to(accelerator.device) for key, value in task.draw(data, rows, source).items()}
        model.train()
        for turn, optimizer in steppers.items():
            losses = model(inputs, turn)
            optimizer.zero_grad()
            accelerator.backward(losses["loss"])
            if settings.clip:
                accelerator.clip_grad_norm_([parameter for _, parameter in task.trained(turn)], settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            for key, value in losses.items():
                name = key if turn == task.turns[0] else f"{turn}_{key}"
                sums[name] = sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        task.moved(step)
        state.follow(step)
        last = done == settings.steps
        numbers: dict[str, float] = {}
        if done % settings.log_every == 0 or last:
            numbers = {key: float(value) / (done - since) for key, value in sums.items()}
            if not all(map(math.isfinite, numbers.values())):
                raise Diverged(
                    f"the loss is not finite at step {done} ({numbers}); the last checkpoint is kept: try a smaller "
                    "--lr, or --precision fp32"
                )
            speed = (done - since) * settings.batch / (time.monotonic() - clock)
            numbers |= {"lr": rate, "pictures_per_second": speed}
            sums, since, clock = {}, done, time.monotonic()
        if main and settings.sheet_every and (done % settings.sheet_every == 0 or last):
            with state.averaged():
                if held_out is not None:
                    numbers["held_out"] = _held_out(task, held_out, settings)
                if (sheet := task.sheet(data)) is not None:
                    images.write(place / f"sheet-{done:07d}.png", sheet)
            clock = time.monotonic()
        if main and numbers:
            _append(place / "metrics.csv", {"step": done} | numbers)
        if main and (last or time.monotonic() - saved > settings.every):
            state.save(place / "checkpoint.safetensors", identity, done)
            saved = time.monotonic()
        try:
            yield Progress(done, settings.steps, numbers)
        except GeneratorExit:
            if main:
                state.save(place / "checkpoint.safetensors", identity, done)
            raise
    with state.averaged():
        if main:
            task.save(out, data, torch.float16 if settings.half else torch.float32)
            sign(out)


def batch_rows(n: int, step: int, batch: int, seed: int) -> Tensor:
    """Which pictures a step sees: every picture once per pass, each pass in an order of its own."""
    places = torch.arange(step * batch, (step + 1) * batch)
    passes = places // n
    orders = {
        int(index): torch.randperm(n, generator=generator(seed, "order", int(index))) for index in passes.unique()
    }
    return torch.stack([orders[int(index)][place] for index, place in zip(passes, places % n, strict=True)])


class _State:
    """Everything of a training that changes: weights, their moving average, the optimisers' moments."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task, self.ema = task, settings.ema
        self.names = {turn: [name for name, _ in task.trained(turn)] for turn in task.turns}
        self.weights = {name: parameter for turn in task.turns for name, parameter in task.trained(turn)}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.optimizers = {
            turn: torch.optim.AdamW([p for _, p in task.trained(turn)], settings.lr, weight_decay=settings.decay)
            for turn in task.turns
        }

    def follow(self, step: int) -> None:
        """Move the average towards the weights; faster in the beginning, when they are still far from anything."""
        decay = min(self.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The task with the averaged weights, in evaluation mode."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(self.average)
        self.task.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._put(own)
            self.task.train()

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.weights[name].copy_(value)

    def save(self, path: Path, identity: Mapping[str, Any], step: int) -> None:
        """Write the checkpoint.

        Raises:
            Diverged: a weight is not finite; what was written before stays.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.weights.values()):
            raise Diverged(
                f"the weights are not finite at step {step}; the last checkpoint is kept: try a smaller --lr, or "
                "--precision fp32"
            )
        tensors: dict[str, Tensor] = {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"kept/{name}": value for name, value in self.task.kept().items()}
        for turn, optimizer in self.optimizers.items():
            moments = checkpoint.optimizer_state(optimizer, self.names[turn])
            tensors |= {f"{turn}/{name}": value for name, value in moments.items()}
        checkpoint.save(path, tensors, {"step": step, "identity": identity})

    def resume(self, path: Path, identity: Mapping[str, Any]) -> int:
        """Take up the checkpoint, if there is one; the steps it has seen."""
        if not path.is_file():
            return 0
        tensors, facts = checkpoint.load(path)
        now = json.loads(json.dumps(identity))
        if facts["identity"] != now:
            old = facts["identity"]
            changed = [key for key in {**old, **now} if old.get(key) != now.get(key)]
            given = "; ".join(f"{key} was {old.get(key)} and is now {now.get(key)}" for key in changed)
            raise ValueError(f"{path.parent.parent} was begun otherwise: {given}. Choose another --out, or --restart")

        def group(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}

        self._put(group("weights"))
        for target, source in ((self.average, group("average")), (self.task.kept(), group("kept"))):
            for name, value in source.items():
                target[name].copy_(value)
        for turn, optimizer in self.optimizers.items():
            checkpoint.load_optimizer_state(optimizer, self.names[turn], group(turn))
        log.info("going on from step %d", facts["step"])
        return int(facts["step"])


def _held_out(task: Task, data: Data, settings: Settings) -> float:
    """Mean loss of the first turn on at most 256 pictures that were not learnt from, with noise that never changes."""
    n, losses, sizes = min(len(data), 256), [], []
    for index, rows in enumerate(torch.arange(n).split(settings.batch)):
        inputs = task.draw(data, rows, generator("held out", index))
        device = next(task.parameters()).device
        loss = task({key: value.to(device) for key, value in inputs.items()}, task.turns[0])["loss"]
        losses.append(float(loss) * len(rows))
        sizes.append(len(rows))
    return sum(losses) / sum(sizes)


def _cut(path: Path, step: int) -> None:
    """Forget rows of a table that lie behind the checkpoint."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    with atomic(path) as target, target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row and row[0].isdigit() and int(row[0]) <= step)])


def _append(path: Path, row: Mapping[str, float]) -> None:
    """Add a row; a column that is new gets its place at the end, and the rows before have it empty."""
    old = list[str]()
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            old = next(csv.reader(file), [])
    header = old + [name for name in row if name not in old]
    if header != old:
        rows = list[list[str]]()
        if old:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [cells + [""] * (len(header) - len(cells)) for cells in list(csv.reader(file))[1:]]
        with atomic(path) as target, target.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([row.get(name, "") for name in header])
