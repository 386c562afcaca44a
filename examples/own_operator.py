"""Restore through an operator of one's own: any deepinv physics, here a photo of which only every second row is left.

On the command line: stsl restore photo.png --operator examples/own_operator.py:every_second_row
"""

import sys

import torch
from deepinv.physics import LinearPhysics

from stsl import STSL, Restorer, images, load_prior


class EverySecondRow(LinearPhysics):
    """y = the even rows of x; the adjoint puts them back and leaves the others 0."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., ::2, :]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([y, torch.zeros_like(y)], dim=-2).flatten(-3, -2)


def every_second_row(shape: tuple[int, int, int]) -> EverySecondRow:
    """What --operator calls: (3, H, W) -> physics."""
    return EverySecondRow(img_size=shape)


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "restored"
    physics = every_second_row((3, 128, 128))
    y = physics.A(images.astronaut_face())
    result = Restorer(load_prior("faces-128"), STSL.preset("fast")).solve(y, physics, ids=["rows"])
    print("written to", result.save(out))
