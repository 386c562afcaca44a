"""Restore corrupted photos and edit them by text, with latent diffusion models as priors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public names and where they live. Nothing is imported before it is used: `import stsl` costs milliseconds.
_HOMES = {
    "Restorer": "stsl.restorer",
    "Result": "stsl.result",
    "Problem": "stsl.problem",
    "Rng": "stsl.rng",
    "Diverged": "stsl.loop",
    "Frame": "stsl.loop",
    "iterate": "stsl.loop",
    "load_prior": "stsl.priors.load",
    "Prior": "stsl.priors.base",
    "Condition": "stsl.priors.base",
    "LatentPrior": "stsl.priors.latent",
    "PixelPrior": "stsl.priors.pixel",
    "GaussianPrior": "stsl.priors.gaussian",
    "GaussianMixturePrior": "stsl.priors.mixture",
    "Schedule": "stsl.schedule",
    "VariancePreserving": "stsl.schedule",
    "Sampler": "stsl.samplers",
    "State": "stsl.samplers",
    "knob": "stsl.samplers",
    "SAMPLERS": "stsl.samplers",
    "STSL": "stsl.samplers",
    "PSLD": "stsl.samplers",
    "GMLDPS": "stsl.samplers",
    "LDPS": "stsl.samplers",
    "P2L": "stsl.samplers",
    "LDIR": "stsl.samplers",
    "ReSample": "stsl.samplers",
    "LatentDAPS": "stsl.samplers",
    "DPS": "stsl.samplers",
    "MCG": "stsl.samplers",
    "DMPS": "stsl.samplers",
    "DDRM": "stsl.samplers",
    "DiffPIR": "stsl.samplers",
    "ScoreSDE": "stsl.samplers",
    "LPIPS": "stsl.perceptual",
    "Edit": "stsl.editors",
    "Editor": "stsl.editors",
    "EDITORS": "stsl.editors",
    "STSLCAT": "stsl.editors",
    "NTICAT": "stsl.editors",
    "NTI": "stsl.editors",
    "PromptToPrompt": "stsl.editors",
    "Editing": "stsl.editing",
    "Edited": "stsl.editing",
}
_MODULES = ("exact", "images", "metrics", "operators", "tasks")

__all__ = [*_HOMES, *_MODULES]

if TYPE_CHECKING:
    from stsl import exact, images, metrics, operators, tasks
    from stsl.editing import Edited, Editing
    from stsl.editors import EDITORS, NTI, NTICAT, STSLCAT, Edit, Editor, PromptToPrompt
    from stsl.loop import Diverged, Frame, iterate
    from stsl.perceptual import LPIPS
    from stsl.priors.base import Condition, Prior
    from stsl.priors.gaussian import GaussianPrior
    from stsl.priors.latent import LatentPrior
    from stsl.priors.load import load_prior
    from stsl.priors.mixture import GaussianMixturePrior
    from stsl.priors.pixel import PixelPrior
    from stsl.problem import Problem
    from stsl.restorer import Restorer
    from stsl.result import Result
    from stsl.rng import Rng
    from stsl.samplers import (
        DDRM,
        DMPS,
        DPS,
        GMLDPS,
        LDIR,
        LDPS,
        MCG,
        P2L,
        PSLD,
        SAMPLERS,
        STSL,
        DiffPIR,
        LatentDAPS,
        ReSample,
        Sampler,
        ScoreSDE,
        State,
        knob,
    )
    from stsl.schedule import Schedule, VariancePreserving


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"stsl.{name}")
    raise AttributeError(f"module 'stsl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
