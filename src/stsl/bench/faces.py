"""Pictures that come with the package: the astronaut's face, and samples of the built-in prior."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from stsl import images, tasks
from stsl.bench.data import Picture
from stsl.bench.identity import PriorChoice
from stsl.images import Photo
from stsl.loop import iterate
from stsl.priors.load import load_prior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers import Sampler, State, knob
from stsl.shapes import Image

SIDE, SEED = 128, 0


@dataclass(frozen=True)
class Unconditional(Sampler):
    """Samples of the prior, with no measurement: z ← DDIM(z_t). Source: Song et al. 2021, arXiv:2010.02502, eq. 12.

    With a prompt, samples of what it says.
    """

    source = "Song et al. 2021, arXiv:2010.02502, equation 12"
    requires = frozenset[str]()

    steps: int = knob(50, "denoising steps", low=1, high=1000)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        eps = problem.epsilon(state.z, t)
        z0 = problem.prior.clip(problem.schedule.clean(state.z, eps, t))
        return State(problem.schedule.move(z0, eps, t, t_next), clean=z0)


def builtin_faces(prior: PriorChoice, count: int, prompt: str = "") -> list[Picture]:
    """The astronaut, then samples of a prior; methods that use this prior have it easier with its own samples.

    Args:
        prior: what the samples are drawn from, sample k from its own seed.
        count: pictures in all.
        prompt: what the samples shall show; there is no astronaut then, since nobody knows whether she does.
    """
    if prompt:
        names = [f"sample-{k:02}-{images.safe_stem(prompt.replace(' ', '-'))}" for k in range(1, count + 1)]
        return [_sample(prior, name, prompt) for name in names]
    astronaut = Picture("astronaut", "astronaut (NASA, public domain)", lambda: _photo(images.astronaut_face(SIDE)))
    names = [f"sample-{k:02}" for k in range(1, count)]
    return [astronaut, *(_sample(prior, name) for name in names)]


def _sample(prior: PriorChoice, name: str, prompt: str = "") -> Picture:
    return Picture(name, f"{name} of {prior.name}", lambda: _photo(_draw(prior, name, prompt)))


@cache
def _draw(choice: PriorChoice, name: str, prompt: str) -> Image:
    prior = _prior(choice)
    with torch.no_grad():
        y = torch.full((1, *prior.image_shape), 0.5, device=prior.device)
        problem = Problem(y, tasks.make("denoise", prior.image_shape).to(prior.device), prior)
        if prior.has_text:
            problem = Problem(y, problem.physics, prior, prior.condition([prompt]))
        for frame in iterate(problem, Unconditional(), Rng(SEED, (name,)), stage="unconditional"):
            z = frame.state.z
        return prior.decode(z).clamp(0, 1).cpu()


@cache
def _prior(choice: PriorChoice):  # type: ignore[no-untyped-def]
    return load_prior(
        choice.name,
        device=choice.device,
        precision=choice.precision,  # type: ignore[arg-type]
        offline=choice.offline,
    )


def _photo(x: Image) -> Photo:
    """A picture as if it had been read from a PNG file."""
    return images.decode(images.encode_png(x), Path("builtin.png"))
