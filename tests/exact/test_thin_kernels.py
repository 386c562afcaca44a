"""Blur kernels one tap thick, whose adjoint deepinv's Blur does not manage by itself."""

import pytest
import torch
from torch.testing import assert_close

from stsl import tasks


@pytest.mark.parametrize("side", [(1, 1), (1, 5), (5, 1)])
def test_a_kernel_one_tap_thick_has_an_exact_adjoint(side):
    draws = torch.Generator().manual_seed(0)
    physics = tasks.from_kernel(torch.rand(side, generator=draws), (3, 8, 9)).double()
    x, u = (torch.rand(2, 3, 8, 9, dtype=torch.float64, generator=draws) for _ in range(2))
    # 432 products of numbers below 1, summed in float64.
    assert_close((physics.A(x) * u).sum(), (x * physics.A_adjoint(u)).sum(), rtol=0, atol=1e-12)


def test_a_kernel_of_one_tap_is_the_identity():
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    physics = tasks.from_kernel(torch.ones(1, 1), (3, 8, 9)).double()
    assert_close(physics.A(x), x, rtol=0, atol=1e-14)  # there and back by FFT
