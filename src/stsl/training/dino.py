"""Self-supervision by self-distillation."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stsl.shapes import Image
from stsl.training.data import Pictures
from stsl.training.task import Inputs, Task
from stsl.training.vit import backbone, coloured, crops, head, momentum, normalised, save_vit

STUDENT, TEACHER = 0.1, 0.04  # temperatures
CENTRE = 0.9  # memory of the teacher's mean
NARROW = 64  # length of the vectors that are compared with prototypes


class DINO(Task):
    """A student that sees small crops agrees with a teacher that sees large ones; the teacher follows the student.

    Loss: cross-entropy −Σ P_teacher log P_student over all pairs of different crops, the teacher's scores centred by
    their running mean and sharpened.

    Source: Caron et al. 2021, arXiv:2104.14294, Equation 3 and Algorithm 1.

    Args:
        size: side of the images and of the two large crops; small crops have half of it.
        steps: of the training, over which the teacher slows down.
        small: small crops per image.
        prototypes: length of the distributions.
        slow: the teacher's momentum in the beginning.
        patch, width, depth, heads: of the ViT.
    """

    def __init__(
        self,
        size: int,
        steps: int,
        *,
        small: int = 4,
        prototypes: int = 1024,
        slow: float = 0.99,
        patch: int = 8,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
    ) -> None:
        super().__init__()
        self.vit = backbone(size, patch, width, depth, heads)
        self.head = head(width, 512, NARROW)
        self.prototypes = nn.utils.parametrizations.weight_norm(nn.Linear(NARROW, prototypes, bias=False))
        self.prototypes.parametrizations.weight.original0.requires_grad_(False).fill_(1.0)
        self.teacher = nn.ModuleDict({"vit": deepcopy(self.vit), "head": deepcopy(self.head)})
        self.teacher["prototypes"] = deepcopy(self.prototypes)
        self.teacher.requires_grad_(False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(prototypes))
        self.size, self.steps, self.small, self.slow = size, steps, small, slow

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        return {"vit": self.vit, "head": self.head, "prototypes": self.prototypes}

    def kept(self) -> dict[str, Tensor]:
        return {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()} | {"centre": self.centre}

    def draw(self, data: Pictures, rows: Tensor, source: torch.Generator) -> Inputs:
        x = data.at(rows)
        large = [coloured(crops(x, (0.4, 1.0), self.size, source), 0.4, source) for _ in range(2)]
        small = [coloured(crops(x, (0.1, 0.4), self.size // 2, source), 0.4, source) for _ in range(self.small)]
        return {"large": torch.cat(large)} | ({"small": torch.cat(small)} if small else {})

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        large = normalised(inputs["large"])
        with torch.no_grad():
            scores = self._scores(dict(self.teacher.items()), large)
            targets = ((scores - self.centre) / TEACHER).softmax(-1).chunk(2)
            if self.training:
                self.centre.mul_(CENTRE).add_(scores.mean(0), alpha=1 - CENTRE)
        networks = self.parts(turn)
        seen = list(self._scores(networks, large).chunk(2))
        if "small" in inputs:
            seen += self._scores(networks, normalised(inputs["small"])).chunk(self.small)
        losses = [
            -(target * F.log_softmax(view / STUDENT, -1)).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, view in enumerate(seen)
            if i != j
        ]
        return {"loss": torch.stack(losses).mean(), "entropy": -(targets[0] * (targets[0] + 1e-9).log()).sum(-1).mean()}

    def _scores(self, networks: Mapping[str, nn.Module], x: Tensor) -> Tensor:
        tokens = networks["vit"](x, interpolate_pos_encoding=x.shape[-1] != self.size).last_hidden_state[:, 0]
        return networks["prototypes"](F.normalize(networks["head"](tokens).float(), dim=-1)).float()

    def moved(self, step: int) -> None:
        rate = momentum(step, self.steps, self.slow)
        mine = {f"{part}.{name}": p for part, net in self.parts("main").items() for name, p in net.named_parameters()}
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.lerp_(mine[name], 1 - rate)

    def sheet(self, data: Any) -> Image | None:
        return None

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        save_vit(self.vit, folder, dtype)
