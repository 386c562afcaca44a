"""What an editor is: stages on the one loop, up a photo's trajectory and down it again under another text."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stsl.editors.control import Branches
from stsl.editors.inversion import DDIMInversion
from stsl.files import atomic
from stsl.loop import Frame, iterate
from stsl.options import nearest
from stsl.priors.attention import Control, Words, following, refinement, replacement, split, text_prior
from stsl.priors.base import Prior, Wrapped
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State
from stsl.schedule import VariancePreserving
from stsl.shapes import Image, Latent

MODES = ("auto", "replace", "refine")


@dataclass(frozen=True)
class Edit:
    """What to change: the photo shows `source` and shall show `target`.

    >>> Edit("a neutral face", "a smiling face")
    >>> Edit("a dog", "a cat", blend=("dog", "cat"), weights={"cat": 2.0})

    Args:
        source, target: prompts.
        mode: replace (word for word), refine (keep the words that both have), auto (replace where the prompts have
            equally many words).
        cross: share of the steps in which the target's cross-attention follows the source's.
        self_attention: the same of self-attention, in layers of at most half the latent's sides. More keeps more of the
            photo's shapes.
        blend: a word of the source and one of the target; what shows neither of them stays as it was.
        weights: word of the target -> factor of its attention; 2 shows more of it.
        gates: word of the target -> a share of its own in place of `cross`; with 0 a word never follows.

    Raises:
        ValueError: an empty target, an unknown mode, a share outside [0, 1], a number of blend words that is not two.
    """

    source: str
    target: str
    mode: str = "auto"
    cross: float = 0.8
    self_attention: float = 0.5
    blend: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.target.split():
            raise ValueError("an edit needs a target prompt, such as 'a smiling face'")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}{nearest(self.mode, MODES)}; choose one of {', '.join(MODES)}")
        shares = {"cross": self.cross, "self_attention": self.self_attention} | dict(self.gates)
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} = {share} is a share of the steps: give a number in [0, 1]")
        if bad := [word for word, factor in self.weights.items() if not 0 <= factor < float("inf")]:
            raise ValueError(f"the weight {self.weights[bad[0]]} of {bad[0]!r} must be a finite number from 0")
        if len(self.blend) not in (0, 2):
            raise ValueError(
                f"blend = {','.join(self.blend)}: give two words, one of the source prompt and one of the target "
                "prompt, such as dog,cat"
            )

    def words(self, prior: Prior) -> tuple[Words, Words]:
        """Both prompts, word by word, as a prior reads them."""
        return split(prior, self.source), split(prior, self.target)

    def control(self, prior: Prior) -> Control:
        """The control of attention that this edit asks for.

        Raises:
            TypeError: the prior has no text encoder.
            ValueError: prompts that do not fit the mode, words that are not there.
        """
        source, target = self.words(prior)
        as_replacement = self.mode == "replace" or (self.mode == "auto" and len(source.words) == len(target.words))
        return following(
            (replacement if as_replacement else refinement)(source, target),
            target,
            prior.latent_shape,
            cross=self.cross,
            self_attention=self.self_attention,
            weights=self.weights,
            gates=self.gates,
        )

    def blend_tokens(self, prior: Prior) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Tokens of the blend words in the source and in the target.

        Raises:
            ValueError: a word that its prompt does not have.
        """
        if not self.blend:
            return None
        source, target = self.words(prior)
        return source.tokens(self.blend[0]), target.tokens(self.blend[1])

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, fit for JSON."""
        more = {"blend": list(self.blend), "weights": dict(self.weights), "gates": dict(self.gates)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | more


@dataclass(frozen=True, eq=False)
class Inversion:
    """Photos as the model would draw them under their source prompts: what edits of them share.

    Args:
        image: what is edited, (B, 3, H, W) in [0, 1].
        start: latents at the noisiest level, (B, C, h, w).
        nulls: the negative embedding of every step, (T, B, L, D).
    """

    image: Image
    start: Latent
    nulls: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        tensors = {f.name: getattr(self, f.name).cpu().contiguous() for f in dataclasses.fields(self)}
        with atomic(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Inversion":
        """Read what `save` wrote."""
        return cls(**load_file(path, str(device)))


class Editor(ABC):
    """A method as a value, as a sampler is: a frozen dataclass whose repr is the reproducible setting.

    Attributes:
        source: paper, arXiv id.
        edits_only: names of the fields that the inversion does not depend on.
    """

    source: ClassVar[str]
    edits_only: ClassVar[frozenset[str]] = frozenset()

    steps: int
    guidance: float
    restorer: Sampler | None

    @abstractmethod
    def stages(self) -> list[Sampler]:
        """The stages after the restoration, in their order; the last one edits."""

    @abstractmethod
    def inverting(self, problem: Problem, source: str, rng: Rng) -> Generator[Frame, None, Inversion]:
        """Run the stages up to the inversion, which the generator returns.

        Args:
            problem: as `prepared` gives it.
            source: prompt of all images.
            rng: where the noise comes from.
        """

    def guide(self, problem: Problem, inversion: Inversion) -> Problem:
        """The problem that the last stage sees."""
        return problem

    def editing(self, problem: Problem, edit: Edit, inversion: Inversion, rng: Rng) -> Iterator[Frame]:
        """Run the last stage: the frames' states hold the edited latents, and `Branches` with the source's."""
        with torch.inference_mode(False), torch.no_grad():
            stage, problem, z = self.stages()[-1], self.guide(problem, inversion), inversion.start
            source, target = (problem.prior.condition([text] * problem.batch) for text in (edit.source, edit.target))
            branches = Branches(
                z,
                source.positive,
                target.positive,
                inversion.nulls,
                edit.control(problem.prior),
                edit.blend_tokens(problem.prior),
            )
        yield from iterate(problem, stage, rng, start=State(z, z, branches), stage="edit")

    def frames(self, problem: Problem, edit: Edit, rng: Rng) -> Iterator[Frame]:
        """All stages, one after another.

        Raises:
            TypeError, ValueError: see `check`.
        """
        self.check(problem, edit)
        problem = prepared(problem)
        inversion = yield from self.inverting(problem, edit.source, rng)
        yield from self.editing(problem, edit, inversion, rng)

    def check(self, problem: Problem, edit: Edit) -> None:
        """Refuse what this editor cannot serve, before the first network call.

        Raises:
            TypeError: the prior has no text, the operator lacks what a stage needs, the restorer works elsewhere.
            ValueError: prompts or words that do not fit; more steps than the prior has levels.
        """
        prior = problem.prior
        text_prior(prior)
        if prior.tiles > 1:
            raise ValueError("attention is controlled over a whole image: edit a photo of the prior's size, not tiles")
        prepared(problem).schedule.descend(self.steps)
        edit.control(prior)
        edit.blend_tokens(prior)
        for stage in self.stages():
            stage.check(problem)
        if self.restorer is not None:
            self.restorer.check(problem)
            if self.restorer.space(prior) is not prior:
                raise TypeError(
                    f"{type(self.restorer).__name__} works on images, and {type(self).__name__} goes on with latents: "
                    "give a restorer for latent priors, such as STSL, PSLD or P2L"
                )

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, fit for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self))}
        if (restorer := values["restorer"]) is not None:
            values["restorer"] = {"sampler": type(restorer).__name__} | restorer.settings()
        return values

    def inversion_settings(self) -> dict[str, Any]:
        """The settings that an inversion depends on."""
        return {name: value for name, value in self.settings().items() if name not in self.edits_only}

    def __post_init__(self) -> None:
        self.stages()  # every field belongs to a stage, which knows its range


class FirstLevel(Wrapped):
    """A prior whose clean end is the first training level, so that ways up and down share their last step.

    Raises:
        TypeError: a schedule without such a level.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        if not isinstance(prior.schedule, VariancePreserving):
            raise TypeError(f"an editor needs a variance-preserving schedule, not {type(prior.schedule).__name__}")
        self.schedule = replace(prior.schedule, final="first")

    def for_step(self, left: int) -> Prior:
        chosen = self.prior.for_step(left)
        return self if chosen is self.prior else FirstLevel(chosen)


def prepared(problem: Problem) -> Problem:
    """The problem as all stages of an editor see it: with the first training level as the clean end, and no prompt."""
    prior = problem.prior if isinstance(problem.prior, FirstLevel) else FirstLevel(problem.prior)
    return replace(problem, prior=prior, condition=None)


Trajectory = dict[int, Latent]


def restoring(problem: Problem, restorer: Sampler | None, rng: Rng) -> Generator[Frame, None, tuple[Image, Trajectory]]:
    """The image to edit and, where it was restored, the clean reverse trajectory that led to it: level -> latents.

    Without a restorer the image is the lifted measurement.

    The latent of a level is the one from which the deterministic move to the next level starts, which for STSL is the
    one after its refinements: z_t = s_t ẑ₀ + σ_t (z_next − s_next ẑ₀)/σ_next.
    """
    if restorer is None:
        with torch.inference_mode(False), torch.no_grad():
            return problem.start().clamp(0, 1), {}
    schedule, trajectory = problem.schedule, dict[int, Latent]()
    plan, z = restorer.plan(schedule), problem.y
    empty = replace(problem, condition=problem.prior.condition([""] * problem.batch))
    for frame in iterate(empty, restorer, rng, stage="restore"):
        yield frame
        (t, t_next), z = plan[frame.index], frame.state.z
        if t_next < t:
            eps = schedule.noise(z, frame.state.clean, t_next)
            trajectory |= {t: schedule.diffuse(frame.state.clean, eps, t), t_next: z}
    with torch.inference_mode(False), torch.no_grad():
        return problem.prior.decode(z).clamp(0, 1), trajectory


def inverting(problem: Problem, image: Image, source: str, steps: int, rng: Rng) -> Generator[Frame, None, Trajectory]:
    """DDIM inversion of an image under a prompt: level -> latents, from -1 up."""
    stage = DDIMInversion(steps)
    with torch.inference_mode(False), torch.no_grad():
        z0 = problem.prior.encode(image)
        prompted = replace(problem, condition=problem.prior.condition([source] * problem.batch))
    trajectory, plan = {-1: z0}, stage.plan(problem.schedule)
    for frame in iterate(prompted, stage, rng, start=State(z0, z0), stage="invert"):
        yield frame
        trajectory[plan[frame.index][1]] = frame.state.z
    return trajectory
