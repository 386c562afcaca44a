"""The contrastive ViT loss between a measurement and what an estimate would have measured."""

from collections.abc import Callable
from functools import partial

import torch
from deepinv.physics import Inpainting

from stsl.perceptual.contrastive import ContrastiveLoss, load_contrastive
from stsl.problem import Problem
from stsl.shapes import Measurement, PerImage

# L_ViT(y, ·) per image.
Contrast = Callable[[Measurement], PerImage]


def contrast(problem: Problem, vit: str, what: str) -> Contrast:
    """L_ViT(y, A x) as a function of A x; the keys of y are computed here and never again.

    Args:
        problem: whose measurement is compared.
        vit: name, folder or hub id of the ViT.
        what: the weight that asks for it, as an error calls it.

    Raises:
        ValueError: as `load_vit`.
    """
    loss = load_vit(problem, vit, what)
    against = partial(loss.against, loss.keys(_picture(problem, problem.y)))
    return lambda v: against(_picture(problem, v))


def load_vit(problem: Problem, vit: str, what: str) -> ContrastiveLoss:
    """The ViT of the loss; the second time it is the one of the first.

    Raises:
        ValueError: the measurement is no picture, or the ViT does not load.
    """
    if problem.y.ndim != 4 or problem.y.shape[1] != 3:
        raise ValueError(
            f"{what} compares pictures, and this measurement has shape {tuple(problem.y.shape)}, not (B, 3, h, w): set "
            "nu to 0"
        )
    try:
        # Offline: a hub id is fetched when somebody says so, never in the middle of a restoration.
        return load_contrastive(vit, device=problem.y.device, dtype=problem.prior.dtype, offline=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{what} needs a ViT for the contrastive loss, and {error}. Without one set nu to 0"
        ) from error


def _picture(problem: Problem, v: Measurement) -> Measurement:
    """A measurement as the ViT sees it: the holes of an inpainting are mid-grey, the zero of the papers' scale."""
    return torch.where(problem.physics.mask > 0, v, 0.5) if isinstance(problem.physics, Inpainting) else v
