"""A prior and a sampler, joined into a deepinv Reconstructor."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from stsl.cost import Cost, Metered
from stsl.loop import Diverged, Frame, finite, iterate
from stsl.memory import OutOfMemory, once_it_fits, until_it_fits
from stsl.priors.base import Prior
from stsl.problem import Problem
from stsl.result import Result
from stsl.rng import Rng
from stsl.samplers.base import Sampler
from stsl.shapes import Image, Latent, Measurement

log = logging.getLogger("stsl")


class Restorer(Reconstructor):
    """Restores images from measurements: x ~ p(x | y), or as near to that as the sampler comes.

    >>> restorer = Restorer(load_prior("faces-128"), STSL())
    >>> x = restorer(y, physics)

    Args:
        prior: where images come from.
        sampler: the method.
    """

    def __init__(self, prior: Prior, sampler: Sampler) -> None:
        super().__init__()
        self.prior, self.sampler = prior, sampler

    def forward(
        self,
        y: Measurement,
        physics: Any,
        *,
        prompt: str | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Image:
        """The restored images, (B, 3, H, W) in [0, 1]. Arguments as for `frames`."""
        return self.solve(y, physics, prompt=prompt, seed=seed, ids=ids).image

    def solve(
        self,
        y: Measurement,
        physics: Any,
        *,
        prompt: str | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
        samples: int = 1,
        batch: int = 1,
        keep_every: int = 0,
    ) -> Result:
        """Restore, and keep what happened on the way. Arguments as for `frames`."""
        run = self.frames(
            y, physics, prompt=prompt, seed=seed, ids=ids, samples=samples, batch=batch, keep_every=keep_every
        )
        for _ in run:
            pass
        return run.result()

    def frames(
        self,
        y: Measurement,
        physics: Any,
        *,
        prompt: str | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
        samples: int = 1,
        batch: int = 1,
        keep_every: int = 0,
    ) -> "Run":
        """An iterator over the steps, which knows the result when it is through.

        Args:
            y: measurement of B images on the scale of [0, 1] images.
            physics: a deepinv physics, y = A(x) + noise; the `sigma` of its noise model, if any, is the noise level.
            prompt: a text for all images; None is the empty one.
            seed: of all noise the sampler draws.
            ids: a name per image. The noise of an image depends on its name, never on its place in the batch.
            samples: number of posterior samples per image; sample k is the same however many are drawn.
            batch: samples of one image that are drawn together. Of several images they are drawn one after another.
            keep_every: keep every n-th frame in the result; 0 keeps none.

        Raises:
            TypeError: the operator or the prior lacks something the sampler requires; a prompt without text encoder.
            ValueError: shapes that do not fit, a measurement that is not finite.
        """
        if min(samples, batch) < 1 or keep_every < 0:
            raise ValueError(
                f"samples = {samples} and batch = {batch} must be at least 1, keep_every = {keep_every} at least 0"
            )
        names = tuple(ids) if ids is not None else tuple(str(i) for i in range(y.shape[0]))
        if isinstance(ids, str) or len(names) != y.shape[0]:
            raise ValueError(f"ids are one name for each of the {y.shape[0]} images, got {ids!r}")
        prior = Metered(self.sampler.space(self.prior))
        with torch.inference_mode(False), torch.no_grad():
            if any(tensor.is_inference() for tensor in [*physics.parameters(), *physics.buffers()]):
                physics = copy.deepcopy(physics)  # a mask made under inference_mode cannot be differentiated through
            y = y.detach().to(self.prior.device, self.prior.dtype, copy=True)
            _check_measurement(y, physics, prior)
            problem = Problem(y, physics, prior, sigma_y=_noise_level(physics))
            self.sampler.check(problem)
            if prompt is not None or prior.has_text:
                condition = prior.condition([prompt or ""] * y.shape[0])
                problem = Problem(y, physics, prior, condition, problem.sigma_y)
            together = min(batch, samples) if y.shape[0] == 1 and _takes(min(batch, samples), y, physics, prior) else 1
        return Run(problem, self.sampler, seed, names, samples, together, keep_every, prior.cost, prompt)


@dataclass(eq=False)
class Run(Iterator[Frame]):
    """A restoration under way: iterate over its frames, then ask for the result.

    The frames of samples that are not drawn together follow one another, counted through. When memory runs out, the
    next thing that saves some is done and said, and the frames start again from 0, with the same noise.
    """

    problem: Problem
    sampler: Sampler
    seed: int
    ids: tuple[str, ...]
    samples: int
    batch: int
    keep_every: int
    cost: Cost
    prompt: str | None

    def __post_init__(self) -> None:
        self._latents: list[Latent] = []
        self._logs: list[dict[str, Any]] = []
        self._kept: list[Frame] = []
        self._frames = until_it_fits(self._attempt, self._save_memory, self.problem.prior.device)

    def __next__(self) -> Frame:
        began = time.perf_counter()
        try:
            return next(self._frames)
        finally:
            self.cost.seconds += time.perf_counter() - began

    def _attempt(self) -> Iterator[Frame]:
        for results in (self._latents, self._logs, self._kept):
            results.clear()
        groups = [range(first, min(first + self.batch, self.samples)) for first in range(0, self.samples, self.batch)]
        for number, group in enumerate(groups):
            rng = Rng(self.seed, self.ids * len(group), tuple(k for k in group for _ in self.ids))
            latent = None
            for frame in iterate(_repeated(self.problem, len(group)), self.sampler, rng):
                index, total = number * frame.total + frame.index, len(groups) * frame.total
                frame = Frame(index, total, frame.t, frame.state, frame.stage)
                latent = frame.state.z
                self._logs.append(
                    {"step": index, "t": frame.t} | {key: value.tolist() for key, value in frame.state.log.items()}
                )
                if self.keep_every and index % self.keep_every == 0:
                    self._kept.append(frame)
                yield frame
            assert latent is not None
            self._latents.extend(latent.chunk(len(group)))

    def _save_memory(self, said: str) -> None:
        """Do the next thing that takes less memory.

        Raises:
            OutOfMemory: nothing is left to do.
        """
        if self.batch > 1:
            self.batch = -(-self.batch // 2)
            change = f"{self.batch} samples are drawn together"
        else:
            change = self._lightened(said)
        log.warning("out of memory: %s, and the image starts again with the same seed", change)

    def _lightened(self, said: str) -> str:
        if len(self.ids) > 1:
            raise OutOfMemory(f"{len(self.ids)} images at once are too many for the memory: give fewer ({said})")
        change = self.problem.prior.lighten()
        if change is None:
            raise OutOfMemory(
                f"out of memory with every saving made, at {self.problem.prior.image_shape[-1]} x "
                f"{self.problem.prior.image_shape[-2]} pixels on {self.problem.prior.device}. What would help: "
                "--decoder tiny, a smaller prior, --crop in place of the whole photo, --device cpu, or closing what "
                f"else uses the device; `stsl estimate` says what is needed ({said})"
            )
        return change

    def preview(self, frame: Frame) -> Image:
        """The current estimate as an image, clamped to [0, 1]. Not counted as cost."""
        with torch.inference_mode(False), torch.no_grad():
            prior = self.problem.prior.prior if isinstance(self.problem.prior, Metered) else self.problem.prior
            return prior.for_step(frame.total).decode(frame.state.clean).clamp(0, 1)

    def _decoded(self) -> Tensor:
        """The samples, not clamped: (K, B, 3, H, W). One after another, since memory may be short."""
        prior = self.problem.prior

        def decode() -> Tensor:
            return torch.stack([prior.decode(z) for z in self._latents])

        def save(said: str) -> None:
            log.warning("out of memory: %s, and the result is decoded again", self._lightened(said))

        return once_it_fits(lambda: finite(prior, decode, lambda x: x, "the decoded image"), save, prior.device)

    def result(self) -> Result:
        """The restored images; runs whatever steps are left.

        Raises:
            Diverged: a decoded value is not finite.
            OutOfMemory: the result cannot be decoded with every saving made.
            RuntimeError: an error stopped the run before.
        """
        for _ in self:
            pass
        if len(self._latents) < self.samples:
            raise RuntimeError("this run was stopped by an error and has no result")
        with torch.inference_mode(False), torch.no_grad():
            began = time.perf_counter()
            raw = self._decoded()
            self.cost.seconds += time.perf_counter() - began
            if not raw.isfinite().all():
                raise Diverged(f"{type(self.sampler).__name__}: the decoded image is not finite")
            samples = raw.clamp(0, 1)  # once, on the way out
            residual = self.problem.rms(self.problem.misfit(samples[0]))
        noise = self.problem.sigma_y
        return Result(
            samples=samples,
            y=self.problem.y,
            residual_rms=residual,
            expected_noise_rms=None if noise is None else noise / 2,
            cost=self.cost,
            nfe_paper=self.sampler.nfe,
            log=tuple(self._logs),
            frames=tuple(self._kept),
            settings={
                "sampler": type(self.sampler).__name__,
                "sampler_settings": self.sampler.settings(),
                "source": self.sampler.source,
                "prior": self.problem.prior.describe(),
                "physics": type(self.problem.physics).__name__,
                "sigma_y_minus1_1": noise,
                "prompt": self.prompt,
                "seed": self.seed,
                "ids": list(self.ids),
            },
        )


def _repeated(problem: Problem, n: int) -> Problem:
    """The problem of n samples of every image; an operator of one image takes any number."""
    if n == 1:
        return problem
    y, condition = problem.y, problem.condition
    return replace(problem, y=y.repeat(n, *[1] * (y.ndim - 1)), condition=condition and condition.repeat(n))


def _takes(n: int, y: Tensor, physics: Any, prior: Prior) -> bool:
    """Whether an operator of one image can be given n."""
    try:
        return physics.A(y.new_full((n, *prior.image_shape), 0.5)).shape == (n, *y.shape[1:])
    except (RuntimeError, ValueError):
        return False


def _check_measurement(y: Tensor, physics: Any, prior: Prior) -> None:
    if not y.isfinite().all():
        raise ValueError("the measurement has values that are not finite")
    with torch.no_grad():
        try:
            expected = physics.A(y.new_full((y.shape[0], *prior.image_shape), 0.5))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(physics).__name__} does not take {y.shape[0]} images of {prior.image_shape}, the size of prior "
                f"{prior.name!r}: {error}"
            ) from error
    if expected.shape != y.shape:
        raise ValueError(
            f"the measurement has shape {tuple(y.shape)}, but {type(physics).__name__} makes {tuple(expected.shape)} "
            f"of the {prior.image_shape} images of prior {prior.name!r}"
        )


def _noise_level(physics: Any) -> float | None:
    """Noise level of a physics on the papers' scale, None where it does not say."""
    sigma = getattr(physics.noise_model, "sigma", None)
    return None if sigma is None else 2 * float(torch.as_tensor(sigma).max())
