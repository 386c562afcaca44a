"""Randomness as a value: noise is a function of what it is for, never of what was drawn before."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key`: equal keys give equal streams, on any machine, in any order.

    The seed is a BLAKE2b hash of the key's parts, so neighbouring seeds or ids have nothing in common.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Rng:
    """Noise for a batch of images as a function of (seed, image id, sample, stage, step, draw).

    An image meets the same noise on any device, in any batch and after a resume. Nothing is read from or
    written to a global generator, and drawing changes nothing: the same call gives the same noise.

    Args:
        seed: seed of the run.
        ids: name of each image of the batch.
        samples: which posterior sample of its image each row is; all 0 when left out.
        stage: name of the stage of an editor or sampler.
        step: index of the step within the stage.
    """

    seed: int
    ids: tuple[str, ...]
    samples: tuple[int, ...] = ()
    stage: str = "init"
    step: int = 0

    def __post_init__(self) -> None:
        if self.samples and len(self.samples) != len(self.ids):
            raise ValueError(f"{len(self.samples)} sample numbers for {len(self.ids)} ids")

    def at(self, stage: str, step: int) -> "Rng":
        """The noise of another step."""
        return replace(self, stage=stage, step=step)

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        """Standard normal noise with the shape, dtype and device of `like`, drawn image by image on the CPU.

        Args:
            like: tensor whose first dimension is the batch.
            draw: which of the step's draws this is; two draws of one step are independent.

        Raises:
            ValueError: the batch of `like` is not the number of ids.
        """
        if like.shape[0] != len(self.ids):
            raise ValueError(f"noise for {like.shape[0]} images, but there are {len(self.ids)} ids")
        rows = []
        for name, sample in zip(self.ids, self.samples or (0,) * len(self.ids), strict=True):
            source = generator(self.seed, name, sample, self.stage, self.step, draw)
            # Type and device by name: the caller's defaults for either are global state too.
            rows.append(torch.randn(like.shape[1:], generator=source, dtype=torch.float32, device="cpu"))
        return torch.stack(rows).to(like)
