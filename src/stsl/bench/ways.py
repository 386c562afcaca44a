"""From a measurement to a picture: restore it, edit it, or hand it to a pipeline of diffusers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stsl.bench.identity import PriorChoice
from stsl.bench.inpainting import Inpainter, InpaintPipeline, load_inpainter
from stsl.editing import Editing
from stsl.editors import Edit, Editor
from stsl.perceptual.contrastive import VIT
from stsl.perceptual.find import find
from stsl.priors.base import Prior
from stsl.priors.load import builtin_folder, load_prior
from stsl.restorer import Restorer
from stsl.samplers import Sampler
from stsl.shapes import Image, Measurement


@dataclass(frozen=True, eq=False)
class Solved:
    """Pictures of a batch, and what they cost.

    Args:
        image: (B, 3, H, W) in [0, 1].
        residual: rms of y − A(x), (B,).
        facts: of each picture alike: costs, device, prior.
    """

    image: Image
    residual: torch.Tensor
    facts: dict[str, Any]


class Way(ABC):
    """A value that can go to another process: a method with all of its settings."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the method, as a unit's key has it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the result depends on beside the measurement, the seed and the weights, fit for JSON."""

    def load(self, choice: PriorChoice) -> Any:
        """The networks, which `solve` is given and which other ways that load the same may share."""
        return load_prior(
            choice.name,
            device=choice.device,
            precision=choice.precision,  # type: ignore[arg-type]
            offline=choice.offline,
        )

    @abstractmethod
    def solve(self, loaded: Any, y: Measurement, physics: Any, *, seed: int, ids: Sequence[str]) -> Solved:
        """Pictures of the measurements."""

    def lacks(self) -> str | None:
        """Why this cannot be run here, beside the prior: weights of a loss that are not here. None: it can."""
        return _lacking_vit(self.settings())


@dataclass(frozen=True)
class Restored(Way):
    """What a sampler or reconstructor makes of the measurement."""

    sampler: Sampler

    @property
    def name(self) -> str:
        return type(self.sampler).__name__

    def settings(self) -> dict[str, Any]:
        return self.sampler.settings()

    def solve(self, loaded: Prior, y: Measurement, physics: Any, *, seed: int, ids: Sequence[str]) -> Solved:
        result = Restorer(loaded, self.sampler).solve(y, physics.to(loaded.device), seed=seed, ids=ids)
        facts = _facts(loaded, result.cost.per_image(len(ids))) | {"nfe_paper": result.nfe_paper}
        return Solved(result.image, result.residual_rms, facts)


@dataclass(frozen=True)
class EditedBy(Way):
    """What an editor makes of it. Its residual is that of what was edited."""

    editor: Editor
    edit: Edit

    @property
    def name(self) -> str:
        return type(self.editor).__name__

    def settings(self) -> dict[str, Any]:
        return self.editor.settings() | {"edit": self.edit.settings()}

    def solve(self, loaded: Prior, y: Measurement, physics: Any, *, seed: int, ids: Sequence[str]) -> Solved:
        result = Editing(loaded, self.editor).solve(y, physics.to(loaded.device), self.edit, seed=seed, ids=ids)
        return Solved(result.edited, result.residual_rms, _facts(loaded, result.cost.per_image(len(ids))))


@dataclass(frozen=True)
class Inpainted(Way):
    """What a Stable Diffusion that was trained to fill holes makes of it."""

    pipeline: InpaintPipeline

    @property
    def name(self) -> str:
        return type(self.pipeline).__name__

    def settings(self) -> dict[str, Any]:
        return self.pipeline.settings()

    def load(self, choice: PriorChoice) -> Inpainter:
        return load_inpainter(choice)

    def solve(self, loaded: Inpainter, y: Measurement, physics: Any, *, seed: int, ids: Sequence[str]) -> Solved:
        image, cost = self.pipeline.solve(loaded, y, physics, seed=seed, ids=ids)
        misfit = torch.where(physics.mask > 0, image - y, 0.0).flatten(1)
        seen = (physics.mask > 0).expand_as(image).flatten(1).sum(1)
        said = json.dumps({"name": loaded.name, "precision": loaded.precision}, sort_keys=True)
        facts = {"prior": said, "device": _device(loaded.device), "nfe_paper": self.pipeline.steps, **cost}
        return Solved(image, (misfit.square().sum(1) / seen).sqrt(), facts)


def _facts(prior: Prior, costs: Mapping[str, float]) -> dict[str, Any]:
    return {
        **{key: value for key, value in costs.items() if key != "unet_calls"},
        "device": _device(prior.device),
        "prior": json.dumps(prior.describe(), sort_keys=True),
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _lacking_vit(settings: Mapping[str, Any]) -> str | None:
    """Why a contrastive term, the method's or its restorer's, cannot be taken here."""
    if settings.get("nu") and "vit" in settings:
        try:
            find(settings["vit"], VIT, builtin_folder(), offline=True)
        except (OSError, ValueError) as error:
            return f"nu = {settings['nu']:g} needs a ViT, and {error}"
    restorer = settings.get("restorer")
    return _lacking_vit(restorer) if isinstance(restorer, Mapping) else None
