"""A prior for images larger than its network: overlapping tiles, fused at every step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stsl.priors.base import Condition, Prior, Wrapped
from stsl.shapes import Image, Latent

# Share of a tile's side that its neighbour covers too, at least.
OVERLAP = 1 / 4


@dataclass(frozen=True)
class Cover:
    """Overlapping tiles of one length that cover a line, spread evenly.

    Args:
        length: of the line.
        side: of a tile, at most the length.
        overlap: neighbours share at least so many places, fewer than a tile has.
    """

    length: int
    side: int
    overlap: int

    @property
    def starts(self) -> list[int]:
        """Where the tiles begin; the first at 0, the last so that it ends with the line."""
        free = self.length - self.side
        gaps = -(-free // (self.side - self.overlap))
        return [round(i * free / gaps) for i in range(gaps + 1)] if gaps else [0]

    def weights(self, factor: int = 1) -> list[Tensor]:
        """Weights of each tile, (side · factor,), on a line `factor` times as long; at every place they sum to 1.

        They rise over the overlap from the tile's ends, but not from an end of the line.
        """
        side, ramp = self.side * factor, max(self.overlap * factor, 1)
        place = torch.arange(side) + 0.5
        rising, falling = (place / ramp).clamp(max=1), ((side - place) / ramp).clamp(max=1)
        raw, total = [], torch.zeros(self.length * factor)
        for start in self.starts:
            weight = torch.ones(side)
            if start > 0:
                weight = torch.minimum(weight, rising)
            if start + self.side < self.length:
                weight = torch.minimum(weight, falling)
            raw.append(weight)
            total[start * factor : start * factor + side] += weight
        return [w / total[s * factor : s * factor + side] for w, s in zip(raw, self.starts, strict=True)]


class Tiled(Wrapped):
    """A prior of larger images than its network's: noise, encoder and decoder are weighted means over tiles.

    ε(z) = Σ_i w_i ε_i(z_i), with Σ_i w_i = 1 at every place, and likewise for encoder and decoder. The tiles are fused
    at every step, so that neighbours agree where they overlap; the operator sees the whole image. When a gradient is
    wanted each tile is recomputed in the backward pass, so that one tile's activations are in memory at a time.

    Args:
        prior: of images of the tile's size.
        image_shape: (3, H, W) of the whole images.
        overlap: share of a tile's side that its neighbour covers too, at least.

    Raises:
        ValueError: sides that the latents do not divide, or that are smaller than a tile; an overlap outside [0, 1).

    Source: Bar-Tal et al. 2023, arXiv:2302.08113 (MultiDiffusion), section 3.1, with weights that fall towards a tile's
    border; the tiled autoencoder is ours.
    """

    def __init__(self, prior: Prior, image_shape: tuple[int, int, int], *, overlap: float = OVERLAP) -> None:
        super().__init__(prior)
        self.factor = prior.image_shape[1] // prior.latent_shape[1]
        sides = image_shape[1:]
        if any(side % self.factor or side < least for side, least in zip(sides, prior.image_shape[1:], strict=True)):
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} cannot be tiled for prior {prior.name!r}: sides must be multiples "
                f"of {self.factor}, and at least {prior.image_shape[1]} x {prior.image_shape[2]}"
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"the overlap of tiles is a share of their side in [0, 1), got {overlap}")
        self.overlap, self.image_shape = overlap, image_shape
        channels, *tile = prior.latent_shape
        self.latent_shape = (channels, sides[0] // self.factor, sides[1] // self.factor)
        self.rows, self.columns = (
            Cover(length, side, min(int(side * overlap), side - 1))
            for length, side in zip(self.latent_shape[1:], tile, strict=True)
        )
        self.tiles = prior.tiles * len(self.rows.starts) * len(self.columns.starts)

    def for_step(self, left: int) -> Prior:
        chosen = self.prior.for_step(left)
        return self if chosen is self.prior else Tiled(chosen, self.image_shape, overlap=self.overlap)

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        return self._fused(partial(self.prior.epsilon, t=t, condition=condition), z, 1, 1)

    def encode(self, x: Image) -> Latent:
        return self._fused(self.prior.encode, x, self.factor, 1)

    def decode(self, z: Latent) -> Image:
        return self._fused(self.prior.decode, z, 1, self.factor)

    def _fused(self, function: Callable[[Tensor], Tensor], x: Tensor, into: int, out: int) -> Tensor:
        """The weighted mean of `function` of the tiles of `x`; `into` and `out` are pixels per latent place."""
        whole: Tensor | None = None
        for top, down in zip(self.rows.starts, self.rows.weights(out), strict=True):
            for left, across in zip(self.columns.starts, self.columns.weights(out), strict=True):
                tile = _cut(x, top * into, left * into, self.rows.side * into, self.columns.side * into)
                if torch.is_grad_enabled():
                    part = checkpoint(function, tile, use_reentrant=False, preserve_rng_state=False)
                else:
                    part = function(tile)
                if whole is None:
                    size = (self.rows.length * out, self.columns.length * out)
                    whole = part.new_zeros(*part.shape[:2], *size)
                weight = (down[:, None] * across).to(part)
                _cut(whole, top * out, left * out, *part.shape[2:]).add_(weight * part)
        assert whole is not None
        return whole

    def describe(self) -> dict[str, Any]:
        shapes = {"image_shape": list(self.image_shape), "latent_shape": list(self.latent_shape)}
        return self.prior.describe() | shapes | {"tiles": self.tiles, "tile_overlap": self.overlap}


def _cut(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return x[..., top : top + height, left : left + width]
