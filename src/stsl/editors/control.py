"""Cross-attention control: two prompts from one latent, the second looking where the first looked."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stsl.priors.attention import Control, controlled, present, text_prior
from stsl.priors.base import Condition
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, State, knob
from stsl.shapes import Latent

# Share of the steps before a local blend begins: until then the maps are too few to say where a word is.
BLEND_AFTER = 0.2


@dataclass(frozen=True, eq=False)
class Branches:
    """What an edit carries from step to step beside the target's latents, which are the state's own.

    Args:
        z: the source's latents.
        source, target: embeddings of the prompts, (B, L, D).
        nulls: the negative embedding of every step, (T, B, L, D).
        control: how the target's attention follows the source's.
        blend: tokens of a word of the source and of one of the target; what shows neither stays the source's.
        maps: sum over the steps of the coarse cross-attention, sources then targets, (2 B, L, h/4, w/4).
        index: number of steps taken.
    """

    z: Latent
    source: Tensor
    target: Tensor
    nulls: Tensor
    control: Control | None
    blend: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    maps: Tensor | None = None
    index: int = 0


@dataclass(frozen=True)
class CrossAttentionControl(Sampler):
    """One guided DDIM step of the source and the target together, the target's attention controlled by the source's.

    ε = ε(z, φ) + w (ε(z, c) − ε(z, φ)) for both, with one negative embedding φ per step. The source is drawn as without
    a target. With blend words, z_target ← z_source + m (z_target − z_source) after every step from a fifth of them on,
    where m is 1 where the maps so far show one of the words.

    Source: Hertz et al. 2022, arXiv:2208.01626, Algorithm 1 and section 3.2; the blend as its code has it.
    """

    source = "Hertz et al. 2022, arXiv:2208.01626, Algorithm 1"
    requires = frozenset({"text"})

    steps: int = knob(50, "T: steps down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)

    def step(self, problem: Problem, state: State, t: int, t_next: int, rng: Rng) -> State:
        schedule, branches, images = problem.schedule, state.memory, problem.batch
        z = torch.cat([branches.z, state.z])
        null = branches.nulls[branches.index]
        # Guidance by hand: whatever the prompts are, every row is there, and the rows that are controlled come last.
        text = torch.cat([null, null, branches.source, branches.target])
        network = text_prior(problem.prior).unet
        with controlled(network, images, branches.control, branches.index / self.steps) as maps:
            negative, positive = problem.prior.epsilon(torch.cat([z, z]), t, Condition(text, text)).chunk(2)
        eps = negative + self.guidance * (positive - negative)
        clean = schedule.clean(z, eps, t)
        z_source, z_target = schedule.move(clean, eps, t, t_next).chunk(2)
        coarse = maps.coarse(problem.prior.latent_shape)
        coarse = coarse if branches.maps is None else branches.maps + coarse
        if branches.blend is not None and branches.index + 1 > BLEND_AFTER * self.steps:
            there = [
                present(part, tokens, (z.shape[2], z.shape[3]))
                for part, tokens in zip(coarse.chunk(2), branches.blend, strict=True)
            ]
            z_target = torch.where(there[0] | there[1], z_target, z_source)
        changed = (z_target - z_source).flatten(1).square().mean(1).sqrt()
        memory = replace(branches, z=z_source, maps=coarse, index=branches.index + 1)
        return State(z_target, clean.chunk(2)[1], memory=memory, log={"changed": changed})
