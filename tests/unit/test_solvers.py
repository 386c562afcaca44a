"""Singular values and the way back from a residual to an image."""

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Decolorize, Denoising, Inpainting, LinearPhysics
from torch.testing import assert_close

from stsl import operators, tasks
from stsl.solvers import backproject, conjugate_gradient, has_spectrum, spectrum

SHAPE = (3, 12, 16)
EXACT = {"rtol": 0, "atol": 1e-12}


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel(batch=1):
    return numbers(batch, 1, 5, 3, seed=4).abs()


OPERATORS = {
    "bicubic": lambda: operators.bicubic(SHAPE, 4),
    "gaussian": lambda: operators.gaussian_blur(SHAPE, 1.0),
    "mask": lambda: Inpainting(SHAPE, mask=(numbers(2, 1, 12, 16) > 0).double()),
    "weights of both signs": lambda: Inpainting(SHAPE, mask=numbers(2, 3, 12, 16)),
    "denoising": Denoising,
    "circular blur": lambda: Blur(kernel(2), padding="circular"),
    "circular blur by FFT": lambda: BlurFFT(SHAPE, kernel()),
    "grey": Decolorize,
}
known_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)


@known_operator
def test_the_singular_values_and_vectors_are_those_of_the_operator(make, one_thread):
    """Uᵀ A x = S Vᵀ x, s >= 0, and V Vᵀ is a projection that A does not notice."""
    physics, x = make(), numbers(2, *SHAPE, seed=1)
    assert has_spectrum(physics)
    known = spectrum(physics, SHAPE, x)
    assert (known.values >= 0).all()
    assert known.values.dtype == torch.float64
    y, c = physics.A(x), known.from_image(x)
    # deepinv keeps some of its tables in float32.
    assert_close(known.from_measurement(y), known.values * c, rtol=0, atol=1e-5)
    seen = known.to_image(c)
    assert_close(known.to_image(known.from_image(seen)), seen, rtol=0, atol=1e-5)
    assert_close(physics.A(seen), y, rtol=0, atol=1e-5)


@known_operator
def test_the_closed_form_is_what_conjugate_gradients_find(make, one_thread):
    physics, x = make(), numbers(2, *SHAPE, seed=1)
    r = numbers(*physics.A(x).shape, seed=2)
    closed = backproject(r, physics, 0.3, 0.7, spectrum(physics, SHAPE, x))
    assert_close(closed, backproject(r, physics, 0.3, 0.7, steps=400), rtol=0, atol=1e-5)


def test_the_singular_values_of_a_separable_operator_are_those_of_its_dense_matrix(one_thread):
    physics = operators.bicubic((1, 6, 8), 2)
    dense = torch.kron(physics.vertical.double(), physics.horizontal.double())
    expected = torch.linalg.svdvals(dense)
    found = spectrum(physics, (1, 6, 8), dense).values.flatten().sort(descending=True).values
    assert_close(found, expected, **EXACT)


def test_super_resolution_is_well_conditioned():
    """The antialiased bicubic by 4 has singular values from 0.35 to 0.5 along each axis."""
    values = spectrum(operators.bicubic((3, 64, 64), 4), (3, 64, 64), torch.zeros(1)).values.sqrt().diagonal()
    assert values.max() <= 0.5 + 1e-4
    assert values.min() >= 0.35 - 5e-3


def test_singular_values_below_the_cutoff_count_as_zero(one_thread):
    physics, x = operators.gaussian_blur(SHAPE, 1.0), numbers(2, *SHAPE)
    whole, cut = spectrum(physics, SHAPE, x), spectrum(physics, SHAPE, x, cutoff=0.03)
    small = whole.values < 0.03
    assert small.any()
    assert (cut.values[small] == 0).all()
    assert torch.equal(cut.values[~small], whole.values[~small])


def test_operators_without_known_singular_values_say_so():
    generic = LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y)
    for physics in (Blur(kernel(), padding="reflect"), tasks.make("motion_blur", (3, 32, 32)), generic):
        assert not has_spectrum(physics)
        with pytest.raises(TypeError, match=f"singular values of {type(physics).__name__} are not known"):
            spectrum(physics, SHAPE, torch.zeros(1))


def test_a_proximal_step_is_the_minimiser(one_thread):
    """The gradient Aᵀ(A x − y) + ρ (x − x₀) is 0 at x₀ + Aᵀ(ρ I + A Aᵀ)⁻¹(y − A x₀)."""
    physics = tasks.make("motion_blur", (3, 32, 32), ids=("a", "b"))
    x0, y, rho = numbers(2, 3, 32, 32), numbers(2, 3, 32, 32, seed=1), 0.2
    x = x0 + backproject(y - physics.A(x0), physics, rho, 1.0)
    slope = physics.A_adjoint(physics.A(x) - y) + rho * (x - x0)
    # The kernel is float32, its adjoint is exact to that.
    assert slope.abs().max() < 1e-5


def test_conjugate_gradients_solve_each_image_alone(one_thread):
    """An image that is easy stops early, and is the same beside a hard one."""
    root = numbers(2, 30, 30)
    matrices = root @ root.mT
    matrices[0] = torch.eye(30, dtype=torch.float64) * 2
    b = numbers(2, 30, seed=1)
    both = conjugate_gradient(lambda u: torch.einsum("bij,bj->bi", matrices, u), b, steps=500)
    alone = [conjugate_gradient(lambda u, m=m: u @ m, b[i : i + 1], steps=500) for i, m in enumerate(matrices)]
    assert_close(both, torch.cat(alone), rtol=0, atol=1e-9)
    assert_close(both[0], b[0] / 2, **EXACT)
    # The residual is 4e-11 of b; the hard matrix's smallest eigenvalue is 1e-2 or more.
    assert_close(both[1], torch.linalg.solve(matrices[1], b[1]), rtol=0, atol=1e-6)


def test_conjugate_gradients_of_nothing_are_nothing():
    assert torch.equal(conjugate_gradient(lambda u: 0 * u, torch.zeros(2, 3)), torch.zeros(2, 3))
