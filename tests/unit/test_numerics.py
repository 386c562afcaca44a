"""Calculus that samplers share."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from stsl.numerics import Adam, gradient, norm_per_image, trace_estimate


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# A handful of float64 operations on numbers of order 1.
ROUNDING = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_gradient_is_taken_in_any_mode_of_the_caller(mode):
    with mode():
        z = normal(2, 3)
        grad, other = gradient(lambda z: (z.square().sum(1), 3 * z), z)
    assert_close(grad, 2 * z, **ROUNDING)
    assert_close(other, 3 * z, **ROUNDING)
    for tensor in (grad, other):
        assert not tensor.requires_grad
        assert not tensor.is_inference()
    assert not z.requires_grad


def test_the_gradient_of_an_image_does_not_depend_on_its_batch():
    z = normal(4, 3)
    (all_of_them,) = gradient(lambda z: z.pow(3).sum(1), z)
    (one,) = gradient(lambda z: z.pow(3).sum(1), z[2:3])
    assert torch.equal(all_of_them[2:3], one)


def test_several_terms_give_their_gradients_apart():
    z = normal(2, 3)
    grad, other = gradient(lambda z: ([z.square().sum(1), z.sin().sum(1)], z), z)
    assert grad.shape == (2, 2, 3)
    assert_close(grad[0], 2 * z, **ROUNDING)
    assert_close(grad[1], z.cos(), **ROUNDING)
    assert torch.equal(other, z)


def test_a_list_of_one_term_keeps_its_dimension():
    (grad,) = gradient(lambda z: ([z.sum(1)],), normal(2, 3))
    assert grad.shape == (1, 2, 3)


def test_a_term_is_differentiated_through_its_own_part_of_the_graph_only():
    passes = []

    def expensive(z):
        out = z.exp()
        out.register_hook(lambda _: passes.append("expensive"))
        return out

    gradient(lambda z: ([expensive(z).sum(1), z.sum(1), z.sin().sum(1)],), normal(2, 3))
    assert passes == ["expensive"]


def test_a_norm_is_per_image():
    r = torch.tensor([[[3.0, 4.0]], [[6.0, 8.0]]], dtype=torch.float64)
    # 1e-12 under the root of 25 is 1e-13.
    assert_close(norm_per_image(r), torch.tensor([5.0, 10.0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_norm_at_zero_has_a_finite_gradient():
    (grad,) = gradient(norm_per_image, torch.zeros(2, 3))
    assert torch.equal(grad, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_taken_in_float32(dtype):
    r = torch.full((1, 100_000), 1.0, dtype=dtype)  # its sum overflows float16 and stalls at 256 in bfloat16
    assert norm_per_image(r).dtype == torch.float32
    assert norm_per_image(r).item() == pytest.approx(100_000**0.5, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_trace_estimate_is_unbiased(scale):
    """Its mean over probes with E[ε εᵀ] = I is the trace: over all 64 corners of a cube exactly, without statistics."""
    hessian = normal(2, 6, 6)
    z, offset = normal(2, 6, seed=1), normal(2, 6, seed=2)

    def score(z):
        return torch.einsum("bij,bj->bi", hessian, z) + offset

    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    probes = corners[:, None].repeat(1, 2, 1)
    moved = torch.stack([score(z + scale * e) for e in probes])
    exact = torch.diagonal(hessian, dim1=1, dim2=2).sum(1)
    # The difference quotient divides rounding errors by its step.
    assert_close(trace_estimate(probes, moved, score(z), scale), exact, rtol=0, atol=1e-12 / scale)


def test_a_single_probe_estimates_its_own_quadratic_form():
    hessian, probe = normal(6, 6), normal(1, 1, 6, seed=1)
    estimate = trace_estimate(probe, probe @ hessian.T, torch.zeros(1, 6, dtype=torch.float64))
    assert_close(estimate, (probe[0] @ hessian @ probe[0].T)[0], **ROUNDING)


def test_adam_is_torchs_adam():
    start, gradients = normal(2, 3), [normal(2, 3, seed=k) * 10.0**-k for k in range(8)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    adam, z = Adam(), start
    for grad in gradients:
        parameter.grad = grad
        optimizer.step()
        adam, direction = adam.update(grad)
        z = z - 0.01 * direction
    assert_close(z, parameter.detach(), **ROUNDING)
    assert adam.count == 8


def test_adam_is_a_value():
    adam = Adam()
    adam.update(normal(2, 3))
    assert adam.count == 0
    assert adam.first == 0.0


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    _, direction = Adam().update(torch.tensor([3.0, -2.0], dtype=torch.float64))
    # 1e-8 beside gradients above 1.
    assert_close(direction, torch.tensor([1.0, -1.0], dtype=torch.float64), rtol=0, atol=1e-8)
