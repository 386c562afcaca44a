"""Self-supervision by masked reconstruction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stsl.shapes import Image
from stsl.training.data import Pictures
from stsl.training.task import Inputs, Task
from stsl.training.vit import backbone, coloured, crops, lay_out, normalised, patches, save_vit

DECODER_DEPTH, DECODER_HEADS = 2, 4


class Masked(Task):
    """Hide most patches of an image from the ViT, and let a small decoder draw them from the others.

    Loss: mean square of the hidden patches' pixels, each patch with mean 0 and variance 1.

    Source: He et al. 2022, arXiv:2111.06377, section 3.

    Args:
        size: side of the images.
        share: part of the patches that is hidden.
        patch, width, depth, heads: of the ViT.
    """

    def __init__(
        self, size: int, *, share: float = 0.75, patch: int = 8, width: int = 192, depth: int = 6, heads: int = 3
    ) -> None:
        super().__init__()
        self.vit = backbone(size, patch, width, depth, heads)
        self.n, self.patch = (size // patch) ** 2, patch
        self.seen = max(1, round((1 - share) * self.n))
        inner = width // 2
        self.narrow = nn.Linear(width, inner)
        self.hidden = nn.Parameter(0.02 * torch.ones(1, 1, inner))
        self.places = nn.Parameter(torch.zeros(1, self.n, inner))
        lay_out(self.places[0])
        layer = nn.TransformerEncoderLayer(
            inner, DECODER_HEADS, 4 * inner, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerEncoder(layer, DECODER_DEPTH, nn.LayerNorm(inner), enable_nested_tensor=False)
        self.draws = nn.Linear(inner, 3 * patch**2)

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        return {"task": self}

    def draw(self, data: Pictures, rows: Tensor, source: torch.Generator) -> Inputs:
        x = coloured(crops(data.at(rows), (0.5, 1.0), self.vit.config.image_size, source), 0.2, source)
        return {"x": x, "order": torch.rand(len(x), self.n, generator=source).argsort(1)}

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        x = normalised(inputs["x"])
        seen, hidden = inputs["order"].split([self.seen, self.n - self.seen], dim=1)
        tokens = self.vit.embeddings(x)
        shown = tokens[:, 1:].gather(1, seen[..., None].expand(-1, -1, tokens.shape[-1]))
        read = torch.cat([tokens[:, :1], shown], 1)
        for layer in self.vit.layers:
            read = layer(read)
        read = self.vit.layernorm(read)
        narrow = self.narrow(read[:, 1:]).float()
        places = self.places.expand(len(x), -1, -1)
        index = seen[..., None].expand(-1, -1, narrow.shape[-1])
        board = (self.hidden + places).scatter(1, index, narrow + places.gather(1, index))
        drawn = self.draws(self.decoder(board))
        target = patches(x, self.patch)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-4).sqrt()
        error = (drawn.float() - target).square().mean(-1)
        return {"loss": error.gather(1, hidden).mean()}

    def sheet(self, data: Any) -> Image | None:
        return None

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        save_vit(self.vit, folder, dtype)
