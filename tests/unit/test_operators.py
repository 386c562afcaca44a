"""Operators: taps, phase, borders, adjoints, and the way back to an image."""

import pytest
import torch
from deepinv.physics import (
    Blur,
    Demosaicing,
    Denoising,
    DownsamplingMatlab,
    Inpainting,
    LinearPhysics,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stsl import operators, tasks
from stsl.operators import GaussianImpulseNoise, Separable, glue, lift, seen

# Taps from the centre outwards, as printed by the resizer and the blur of DPS.
TAPS = {
    4: [0.24097, 0.18188, 0.09741, 0.02271, -0.01196, -0.01831, -0.01099, -0.00171],
    8: [
        *(0.12383, 0.11525, 0.10020, 0.08089, 0.05949, 0.03822, 0.01927, 0.00484),
        *(-0.00343, -0.00774, -0.00923, -0.00865, -0.00673, -0.00420, -0.00179, -0.00023),
    ],
}
# exp(-k²/18) for k = 0..12, over its sum with k = -12..12; the peak of the square kernel is 0.01768.
GAUSSIAN = [0.132984, 0.125798, 0.106486, 0.080658, 0.054671, 0.033161, 0.017998, 0.008741, 0.003799, 0.001477]
GAUSSIAN += [0.000514, 0.000160, 0.000045]


def fixed(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def adjoint_error(physics: LinearPhysics, x: torch.Tensor) -> float:
    """|⟨Ax, u⟩ − ⟨x, Aᵀu⟩| as a share of ‖Ax‖ ‖u‖."""
    y = physics.A(x)
    u = fixed(*y.shape, seed=1)
    return float(((y * u).sum() - (x * physics.A_adjoint(u)).sum()).abs() / (y.norm() * u.norm()))


def ramp(side: int) -> torch.Tensor:
    return torch.arange(side, dtype=torch.float64).expand(1, 1, side, side).contiguous()


@pytest.mark.parametrize("factor", [4, 8])
def test_bicubic_taps_are_the_published_ones(factor):
    row = operators.bicubic((3, 16 * factor, 16 * factor), factor).horizontal[8]
    support = row.nonzero().flatten()
    assert support.tolist() == list(range(8 * factor + factor // 2 - 2 * factor, 8 * factor + factor // 2 + 2 * factor))
    right = row[8 * factor + factor // 2 :][: 2 * factor]
    left = row[: 8 * factor + factor // 2].flip(0)[: 2 * factor]
    assert_close(right, torch.tensor(TAPS[factor]), rtol=0, atol=1e-5)
    assert_close(left, torch.tensor(TAPS[factor]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("factor", "low", "high"), [(4, 0.35, 0.50), (8, 0.25, 0.36)])
def test_bicubic_singular_values_lie_in_their_bands(factor, low, high):
    values = torch.linalg.svdvals(operators.bicubic((3, 256, 256), factor).vertical)
    assert low - 0.005 < values.min() < values.max() < high + 0.005  # the bounds are printed with two digits


@pytest.mark.parametrize("factor", [4, 8])
def test_bicubic_outputs_are_centred_half_a_pixel_before_the_middle_of_their_block(factor):
    y = operators.bicubic((1, 16 * factor, 16 * factor), factor).A(ramp(16 * factor))[0, 0]
    j = torch.arange(16, dtype=torch.float64)
    # Away from the border (2 outputs on each side) symmetric taps give a ramp back at their centre.
    assert_close(y[5, 2:-2], (factor * j + factor / 2 - 0.5)[2:-2], rtol=0, atol=1e-4)  # float32 taps, values to 128


@pytest.mark.parametrize(("factor", "height", "width"), [(4, 32, 48), (8, 64, 40), (4, 8, 16)])
def test_bicubic_is_matlabs_imresize_up_to_the_border(factor, height, width):
    x = fixed(2, 3, height, width)
    ours, theirs = operators.bicubic((3, height, width), factor).A(x), DownsamplingMatlab(factor=factor).A(x)
    assert_close(ours, theirs, rtol=0, atol=1e-6)  # float32 taps


def test_bicubic_border_repeats_the_edge_pixel():
    side, factor = 32, 4
    row = operators.bicubic((1, side, side), factor).horizontal[0].double()
    taps = torch.tensor(TAPS[factor], dtype=torch.float64)
    # Output 0 is centred at 1.5: taps fall on pixels -6..9, and pixel -1-i is folded onto i.
    by_hand = torch.zeros(side, dtype=torch.float64)
    for k, weight in enumerate(torch.cat([taps.flip(0), taps]).tolist()):
        pixel = k - 6
        by_hand[pixel if pixel >= 0 else -1 - pixel] += weight
    assert_close(row, by_hand, rtol=0, atol=2e-5)  # two printed taps, 5 digits each, may add up


def test_gaussian_taps_are_the_published_ones():
    row = operators.gaussian_blur((3, 256, 256), 3.0).horizontal[100]
    assert row.nonzero().flatten().tolist() == list(range(88, 113))
    assert_close(row[100:113], torch.tensor(GAUSSIAN), rtol=0, atol=1e-5)
    assert row[100].square() == pytest.approx(0.01768, abs=1e-5)


def test_gaussian_blur_mirrors_without_repeating_the_edge_as_a_padded_convolution_does():
    x = fixed(2, 3, 21, 34)
    k = torch.exp(-torch.arange(-6, 7, dtype=torch.float64).square() / (2 * 1.5**2))
    kernel = torch.outer(k, k) / k.sum() ** 2
    padded = torch.nn.functional.pad(x, (6, 6, 6, 6), mode="reflect").reshape(6, 1, 33, 46)
    expected = torch.nn.functional.conv2d(padded, kernel[None, None]).reshape(2, 3, 21, 34)
    assert_close(operators.gaussian_blur((3, 21, 34), 1.5).A(x), expected, rtol=0, atol=1e-6)  # float32 taps


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 5), width=st.integers(1, 5), factor=st.sampled_from([1, 2, 3, 4, 8]), batch=st.integers(1, 3)
)
def test_bicubic_adjoint_is_exact(height, width, factor, batch):
    shape = (1, height * factor, width * factor)
    assert adjoint_error(operators.bicubic(shape, factor), fixed(batch, *shape)) < 1e-14


@settings(max_examples=25, deadline=None)
@given(height=st.integers(7, 24), width=st.integers(7, 24), std=st.floats(0.1, 1.6), batch=st.integers(1, 3))
def test_gaussian_adjoint_is_exact_at_odd_sizes(height, width, std, batch):
    shape = (3, height, width)
    assert adjoint_error(operators.gaussian_blur(shape, std), fixed(batch, *shape)) < 1e-14


@pytest.mark.parametrize("channels", [1, 3])
def test_deepinvs_blur_and_inpainting_have_exact_adjoints_with_one_kernel_or_mask_per_image(channels):
    shape = (channels, 17, 22)
    x = fixed(3, *shape)
    kernels = fixed(3, 1, 9, 5).abs()
    masks = (fixed(3, 1, 17, 22) > 0).double()
    assert adjoint_error(tasks.from_kernel(kernels, shape), x) < 1e-10
    assert adjoint_error(tasks.from_mask(masks, shape), x) < 1e-14


def test_deepinvs_blur_is_a_mirrored_convolution_with_each_images_own_kernel():
    kernels = fixed(2, 1, 5, 3).abs()
    kernels = kernels / kernels.sum((2, 3), keepdim=True)
    x = fixed(2, 3, 12, 11)
    padded = torch.nn.functional.pad(x, (1, 1, 2, 2), mode="reflect")
    by_hand = torch.zeros_like(x)
    for a in range(5):
        for b in range(3):  # (k * x)(i) = Σ k(d) x(i − d): tap (a, b) is d = (a − 2, b − 1)
            by_hand += kernels[:, :, a : a + 1, b : b + 1] * padded[:, :, 4 - a : 16 - a, 2 - b : 13 - b]
    assert_close(tasks.from_kernel(kernels, (3, 12, 11)).A(x), by_hand, rtol=0, atol=1e-6)  # float32 kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_keep_the_images_type(dtype):
    x = fixed(1, 3, 16, 16).to(dtype)
    for physics in (operators.bicubic((3, 16, 16), 4), tasks.from_kernel(torch.ones(3, 3), (3, 16, 16))):
        y = physics.A(x)
        assert y.dtype == dtype
        assert physics.A_adjoint(y).dtype == dtype


def test_sides_that_the_factor_does_not_divide_are_refused_with_a_size_that_works():
    with pytest.raises(ValueError, match="30×35 pixels cannot be divided by 4; crop the image to 28×32"):
        operators.bicubic((3, 30, 35), 4)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        operators.bicubic((3, 30, 35), 0)


def test_a_kernel_that_reaches_past_the_mirror_is_refused():
    with pytest.raises(ValueError, match="25 taps needs an image of at least 13 pixels on each side, got 64×12"):
        operators.gaussian_blur((3, 64, 12), 3.0)
    operators.gaussian_blur((3, 64, 13), 3.0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        operators.gaussian_blur((3, 64, 64), 0.0)


def test_an_image_of_another_size_is_refused():
    physics = operators.bicubic((3, 32, 32), 4)
    with pytest.raises(ValueError, match="takes an image of 32×32 pixels, got 16×32"):
        physics.A(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="takes a measurement of 8×8 pixels, got 32×32"):
        physics.A_adjoint(torch.zeros(1, 3, 32, 32))


def test_impulse_noise_hits_its_share_of_pixels_on_all_channels_after_the_gaussian():
    noise = GaussianImpulseNoise(0.05, 0.1, rng=torch.Generator().manual_seed(0))
    y = noise(torch.full((2, 3, 200, 200), 0.5))
    black, white = (y == 0).all(1), (y == 1).all(1)
    # 80,000 pixels: four standard deviations of a binomial share of 5 % are 0.003. Gaussian noise of 0.05 around 0.5
    # never meets 0 or 1 exactly.
    assert black.float().mean() == pytest.approx(0.05, abs=0.003)
    assert white.float().mean() == pytest.approx(0.05, abs=0.003)
    assert torch.equal((y == 0).any(1) | (y == 1).any(1), black | white)
    rest = y.movedim(1, -1)[~(black | white)]
    assert rest.std() == pytest.approx(0.05, abs=0.001)
    assert float(noise.sigma) == pytest.approx(0.05)


def every_physics(shape: tuple[int, int, int]) -> dict[str, LinearPhysics]:
    """One operator of each kind for a batch of two."""
    flip = LinearPhysics(A=lambda x: 0.5 * x.flip(-1), A_adjoint=lambda y: 0.5 * y.flip(-1))
    return {name: tasks.make(name, shape, ids=("a", "b")) for name in tasks.TASKS} | {"a user's own": flip}


@pytest.mark.parametrize("adjoint", ["paper", "exact"])
@pytest.mark.parametrize("task", [*tasks.TASKS, "a user's own"])
def test_lift_is_linear_and_keeps_a_constant_where_it_is_seen(task, adjoint):
    shape = (3, 64, 64)
    physics = every_physics(shape)[task]
    v, w = physics.A(fixed(2, *shape)), physics.A(fixed(2, *shape, seed=1))
    both = lift(2 * v - 3 * w, physics, shape, adjoint)
    apart = 2 * lift(v, physics, shape, adjoint) - 3 * lift(w, physics, shape, adjoint)
    assert both.shape == (2, *shape)
    assert_close(both, apart, rtol=1e-10, atol=1e-10)
    y = physics.A(torch.full((2, *shape), 0.7, dtype=torch.float64))
    known = seen(physics, shape, y)
    # Taps are float32 (1e-7), and a pixel of a thousandth of the weight amplifies that a thousandfold.
    assert_close(lift(y, physics, shape, adjoint), 0.7 * known.double().expand(2, *shape), rtol=0, atol=1e-4)


def test_the_papers_lift_is_the_identity_or_the_nearest_pixel():
    v = fixed(2, 3, 16, 16)
    for name in ("random_inpaint", "gaussian_blur", "motion_blur", "salt_pepper"):
        assert torch.equal(lift(v, tasks.make(name, (3, 16, 16), ids=("a", "b")), (3, 16, 16)), v)
    bigger = lift(v, tasks.make("sr4", (3, 64, 64)), (3, 64, 64))
    assert torch.equal(bigger, v.repeat_interleave(4, -1).repeat_interleave(4, -2))


def test_an_operator_without_a_papers_choice_is_lifted_exactly():
    shape = (3, 16, 16)
    y = fixed(1, *shape)
    mosaic = Demosaicing(img_size=shape)  # a subclass of Inpainting
    assert_close(lift(y, mosaic, shape), mosaic.A(y))
    narrow = Blur(torch.ones(1, 1, 3, 3) / 9, padding="valid").double()  # its measurement is smaller than the image
    assert lift(narrow.A(y), narrow, shape).shape == (1, *shape)


def test_gluing_takes_the_transpose_itself_where_lifting_divides_by_the_weight():
    shape = (3, 32, 32)
    physics = tasks.make("sr4", shape)
    r = fixed(2, 3, 8, 8)
    assert torch.equal(glue(r, physics, shape, "paper"), lift(r, physics, shape, "paper"))
    assert torch.equal(glue(r, physics, shape, "exact"), physics.A_adjoint(r))
    assert_close(16 * glue(r, physics, shape, "exact"), lift(r, physics, shape, "exact"), rtol=0, atol=1e-5)
    own = LinearPhysics(A=lambda x: 0.5 * x, A_adjoint=lambda y: 0.5 * y)
    image = fixed(1, *shape)
    assert torch.equal(glue(image, own, shape, "paper"), 0.5 * image)
    assert_close(lift(image, own, shape, "paper"), 2 * image)


def test_gradients_pass_through_lift():
    physics = tasks.make("motion_blur", (3, 16, 16))
    y = fixed(1, 3, 16, 16).requires_grad_(True)
    (gradient,) = torch.autograd.grad(lift(y, physics, (3, 16, 16), "exact").sum(), y)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_seen_is_the_mask_of_each_image():
    masks = (fixed(2, 1, 9, 12) > 0).float()
    physics = tasks.from_mask(masks, (3, 9, 12))
    assert torch.equal(seen(physics, (3, 9, 12), torch.zeros(2, 3, 9, 12)), masks.bool())
    nothing = Inpainting((3, 9, 12), mask=torch.zeros(1, 1, 9, 12))
    assert not seen(nothing, (3, 9, 12), torch.zeros(1, 3, 9, 12)).any()
    assert torch.equal(lift(torch.ones(1, 3, 9, 12), nothing, (3, 9, 12), "exact"), torch.zeros(1, 3, 9, 12))
    assert seen(Denoising(), (3, 9, 12), torch.zeros(1, 3, 9, 12)).all()


def test_an_unknown_adjoint_is_refused():
    with pytest.raises(ValueError, match='"paper" or "exact", got \'transpose\''):
        lift(torch.zeros(1, 3, 8, 8), Denoising(), (3, 8, 8), "transpose")


def test_a_separable_operators_matrices_follow_the_device_and_are_saved():
    physics = Separable(torch.eye(4), torch.eye(4))
    assert set(physics.state_dict()) == {"vertical", "horizontal"}
