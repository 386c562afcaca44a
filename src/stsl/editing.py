"""A prior and an editor, joined: photos in, edited photos out, with the inversion kept for the next edit."""

import hashlib
import json
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stsl import images
from stsl.cost import Cost
from stsl.editors.base import Edit, Editor, Inversion, prepared
from stsl.loop import Diverged, Frame, finite
from stsl.memory import OutOfMemory, once_it_fits, until_it_fits
from stsl.priors.attention import Words, text_prior, word_maps
from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.result import versions, write_json
from stsl.rng import Rng, generator
from stsl.shapes import Image, Latent, Measurement

log = logging.getLogger("stsl")

# Numbers of each tensor that tell one model from another; all of them would take seconds to read.
SAMPLED = 64
WORD_MAP = 128  # pixels of a word's map in a picture


class Editing:
    """Edits what measurements show: restored where they are corrupted, and changed as a text says.

    >>> editing = Editing(load_prior("faces-128"), STSLCAT())
    >>> result = editing.solve(y, physics, Edit(source="a neutral face", target="a smiling face"))

    Args:
        prior: a text-conditional latent prior.
        editor: the method.
        cache: folder for inversions. A second edit of the same photo with the same model, source prompt and settings
            restores and inverts nothing again. None keeps none.
    """

    def __init__(self, prior: Prior, editor: Editor, *, cache: Path | None = None) -> None:
        self.prior, self.editor, self.cache = prior, editor, cache

    def solve(
        self, y: Measurement, physics: Any, edit: Edit, *, seed: int = 0, ids: Sequence[str] | None = None
    ) -> "Edited":
        """Edit, and keep what happened on the way. Arguments as for `frames`."""
        return self.frames(y, physics, edit, seed=seed, ids=ids).result()

    def frames(
        self, y: Measurement, physics: Any, edit: Edit, *, seed: int = 0, ids: Sequence[str] | None = None
    ) -> "EditRun":
        """An iterator over the steps of all stages, which knows the result when it is through.

        Args:
            y: measurement of B images on the scale of [0, 1] images; of a clean photo, the photo.
            physics: a deepinv physics, y = A(x) + noise; of a clean photo the identity (`tasks.make("denoise", ...)`).
            edit: what to change in all of them.
            seed: of all noise.
            ids: a name per image, as for `Restorer.frames`.

        Raises:
            TypeError: a prior without text; an operator that lacks what a stage needs.
            ValueError: shapes, prompts or words that do not fit.
        """
        text_prior(self.prior)
        # The checks of a restoration, of which nothing is run.
        run = Restorer(self.prior, self.editor.stages()[0]).frames(y, physics, seed=seed, ids=ids)
        self.editor.check(run.problem, edit)
        key = None if self.cache is None else self._key(run.problem, edit.source, seed, run.ids)
        kept = None if self.cache is None or key is None else self.cache / f"{key}.safetensors"
        return EditRun(run.problem, self.editor, edit, seed, run.ids, run.cost, kept)

    def _key(self, problem: Problem, source: str, seed: int, ids: tuple[str, ...]) -> str:
        """What an inversion depends on, in one number."""
        shape = (problem.batch, *self.prior.image_shape)
        probe = torch.rand(shape, generator=generator("probe"), dtype=torch.float32).to(problem.y)
        with torch.inference_mode(False), torch.no_grad():
            tensors = [problem.y, problem.physics.A(probe), *_fingerprint(self.prior)]
        facts = [self.editor.inversion_settings(), self.prior.describe(), source, seed, ids, problem.sigma_y]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for tensor in tensors:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


@dataclass(eq=False)
class EditRun(Iterator[Frame]):
    """An edit under way: iterate over its frames, then ask for the result.

    Each stage counts its own steps. When memory runs out, the next thing that saves some is done and said, and the
    frames start again.
    """

    problem: Problem
    editor: Editor
    edit: Edit
    seed: int
    ids: tuple[str, ...]
    cost: Cost
    kept: Path | None

    def __post_init__(self) -> None:
        self._logs: list[dict[str, Any]] = []
        self._last: Frame | None = None
        self._inversion: Inversion | None = None
        self.was_kept = self.kept is not None and self.kept.is_file()
        self._frames = until_it_fits(self._attempt, self._save_memory, self.problem.prior.device)

    def __next__(self) -> Frame:
        began = time.perf_counter()
        try:
            return next(self._frames)
        finally:
            self.cost.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Stop here; there will be no result."""
        self._frames.close()

    def _attempt(self) -> Generator[Frame, None, None]:
        self._logs.clear()
        self._last = None
        problem, rng = prepared(self.problem), Rng(self.seed, self.ids)
        if self._inversion is None and self.kept is not None and self.kept.is_file():
            self._inversion = Inversion.load(self.kept, problem.y.device)
            log.info("the inversion of an earlier edit is used again: %s", self.kept)
        if self._inversion is None:
            self._inversion = yield from self._noted(self.editor.inverting(problem, self.edit.source, rng))
            if self.kept is not None:
                self._inversion.save(self.kept)
        yield from self._noted(self.editor.editing(problem, self.edit, self._inversion, rng))

    def _noted(self, frames: Any) -> Any:
        """The same frames, with their numbers written down; returns what they return."""
        while True:
            try:
                frame: Frame = next(frames)
            except StopIteration as end:
                return end.value
            self._last = frame
            numbers = {key: value.tolist() for key, value in frame.state.log.items()}
            self._logs.append({"stage": frame.stage, "step": frame.index, "t": frame.t} | numbers)
            yield frame

    def _save_memory(self, said: str, then: str = "the edit starts again with the same seed") -> None:
        """Do the next thing that takes less memory, and say what comes then.

        Raises:
            OutOfMemory: nothing is left to do.
        """
        if len(self.ids) > 1:
            raise OutOfMemory(f"{len(self.ids)} images at once are too many for the memory: give fewer ({said})")
        change = self.problem.prior.lighten()
        if change is None:
            raise OutOfMemory(
                f"out of memory with every saving made, on {self.problem.prior.device}. What would help next: --editor "
                "p2p, which takes no gradients through the network, a restorer with --set nu=0, a smaller prior, or "
                f"--device cpu ({said})"
            )
        log.warning("out of memory: %s, and %s", change, then)

    def preview(self, frame: Frame) -> Image:
        """The current estimate as an image, clamped to [0, 1]."""
        with torch.inference_mode(False), torch.no_grad():
            return text_prior(self.problem.prior).decode(frame.state.clean).clamp(0, 1)

    def result(self) -> "Edited":
        """The edited images; runs whatever steps are left.

        Raises:
            Diverged: a decoded value is not finite.
            OutOfMemory: the result cannot be decoded with every saving made.
            RuntimeError: the run was stopped before its end.
        """
        for _ in self:
            pass
        last, inversion, prior = self._last, self._inversion, self.problem.prior
        if last is None or inversion is None or last.stage != "edit" or last.index + 1 < last.total:
            raise RuntimeError("this edit was stopped before its end and has no result")
        with torch.inference_mode(False), torch.no_grad():
            edited, again = self._decoded(last.state.z), self._decoded(last.state.memory.z)
            if not edited.isfinite().all():
                raise Diverged(f"{type(self.editor).__name__}: the decoded image is not finite")
            residual = self.problem.rms(self.problem.misfit(inversion.image))
        return Edited(
            restored=inversion.image,
            edited=edited.clamp(0, 1),
            again=again.clamp(0, 1),
            maps=last.state.memory.maps / last.total,
            words=self.edit.words(prior),
            residual_rms=residual,
            cost=self.cost,
            log=tuple(self._logs),
            settings={
                "editor": type(self.editor).__name__,
                "editor_settings": self.editor.settings(),
                "source": self.editor.source,
                "edit": self.edit.settings(),
                "prior": prior.describe(),
                "physics": type(self.problem.physics).__name__,
                "sigma_y_minus1_1": self.problem.sigma_y,
                "seed": self.seed,
                "ids": list(self.ids),
                "inversion_was_kept": self.was_kept,
            },
        )

    def _decoded(self, z: Latent) -> Image:
        prior, save = self.problem.prior, partial(self._save_memory, then="the result is decoded again")
        return once_it_fits(
            lambda: finite(prior, lambda: prior.decode(z), lambda x: x, "the decoded image"), save, prior.device
        )


@dataclass(frozen=True, eq=False)
class Edited:
    """Edited images, and everything needed to make them again.

    Args:
        restored: what was edited, (B, 3, H, W) in [0, 1].
        edited: the result.
        again: the source prompt's branch: how well the model retells what was edited.
        maps: cross-attention averaged over steps, heads and layers, sources then targets, (2 B, L, h/4, w/4).
        words: source and target prompt, word by word.
        residual_rms: rms of y − A(restored), (B,), on [0, 1].
        cost: counts of the whole run.
        log: numbers of every step.
        settings: editor, edit, prior, operator, seed, ids.
    """

    restored: Image
    edited: Image
    again: Image
    maps: Tensor
    words: tuple[Words, Words]
    residual_rms: Tensor
    cost: Cost
    log: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {
            **self.settings,
            "residual_rms": self.residual_rms.tolist(),
            "unet_samples": self.cost.unet_samples / len(self.edited),
            "cost_per_image": self.cost.per_image(len(self.edited)),
            "seconds": self.cost.seconds,
            "versions": versions(),
            "log": [dict(entry) for entry in self.log],
        }

    def side_by_side(self, index: int = 0) -> Image:
        """Restored and edited, with labels, (1, 3, H, W)."""
        one = slice(index, index + 1)
        edit = self.settings["edit"]
        row = [(edit["source"] or "photo", self.restored[one].cpu()), (edit["target"], self.edited[one].cpu())]
        return images.comparison([row], inset=None)

    def map_pictures(self, index: int = 0) -> Image:
        """What each word of both prompts looked at, one prompt per row, (1, 3, H, W)."""
        rows = [
            word_maps(part[index : index + 1].cpu(), words, WORD_MAP)
            for part, words in zip(self.maps.chunk(2), self.words, strict=True)
        ]
        return images.comparison([row for row in rows if row], inset=None)

    def save(self, folder: str | Path, *, maps: bool = False) -> Path:
        """Write `run.json` and, per image, NAME_restored.png, NAME_edited.png and NAME_side_by_side.png.

        Args:
            folder: where to.
            maps: write NAME_attention.png too.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        for b, name in enumerate(map(images.safe_stem, self.settings["ids"])):
            pictures = {"restored": self.restored[b : b + 1], "edited": self.edited[b : b + 1]}
            pictures["side_by_side"] = self.side_by_side(b)
            if maps:
                pictures["attention"] = self.map_pictures(b)
            for what, x in pictures.items():
                images.write(folder / f"{name}_{what}.png", x)
        write_json(folder / "run.json", self.record())
        return folder


def _fingerprint(prior: Prior) -> list[Tensor]:
    """Some numbers of every tensor of a model: another model has others, even where it is called the same."""
    found = []
    for tensor in [*prior.parameters(), *prior.buffers()]:
        flat = tensor.detach().flatten()
        found.append(flat[:: max(1, flat.numel() // SAMPLED)])
    return found
