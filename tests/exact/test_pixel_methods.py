"""A step of DPS, MCG, ScoreSDE, DMPS, DDRM and DiffPIR is its paper's equation, with dense matrices in float64."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import Blur, Denoising
from dense import Dense, Mixture, MixturePrior, Tape, apply, ddpm, level
from torch import Tensor
from torch.testing import assert_close

from stsl import operators
from stsl.loop import iterate
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.samplers import DDRM, DMPS, DPS, MCG, DiffPIR, ScoreSDE, State
from stsl.schedule import VariancePreserving

IMAGE, P = (3, 4, 4), 48
SIGMA_Y = 0.06  # on [−1, 1]
# float64, matrices of 48 rows, values of order 1.
EXACT = {"rtol": 0, "atol": 1e-10}
# Conjugate gradients stop at a residual of 4e-11 of the right-hand side.
SOLVED = {"rtol": 0, "atol": 1e-7}
LEVELS = ((981, 961), (481, 461), (21, 1), (1, -1))

Pixels = Callable[..., tuple[Problem, Dense]]


def circular() -> tuple[Blur, Tensor, None]:
    """A lopsided kernel on a torus: out[row, column] = Σ k[i, j] in[row − i + 1, column − j + 1]."""
    kernel = torch.tensor([[1, 2, 0], [3, 5, 1], [1, 1, 2]], dtype=torch.float64) / 16
    matrix = torch.zeros(16, 16, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            for i in range(3):
                for j in range(3):
                    matrix[4 * row + column, 4 * ((row - i + 1) % 4) + (column - j + 1) % 4] += kernel[i, j]
    whole = torch.kron(torch.eye(3, dtype=torch.float64), matrix)
    return Blur(kernel[None, None], padding="circular"), whole, torch.eye(P, dtype=torch.float64)


def denoising() -> tuple[Denoising, Tensor, Tensor]:
    return Denoising(), torch.eye(P, dtype=torch.float64), torch.eye(P, dtype=torch.float64)


def separable() -> tuple[operators.Separable, Tensor, None]:
    """Two lopsided matrices; the small singular values of the first meet the cutoff."""
    draws = torch.Generator().manual_seed(12)
    down, across = (torch.randn(shape, generator=draws, dtype=torch.float64).float() for shape in ((4, 4), (3, 4)))
    down = torch.linalg.svd(down)[0] @ torch.diag(torch.tensor([0.9, 0.5, 0.2, 0.001])) @ torch.linalg.svd(down)[2]
    matrix = torch.kron(torch.eye(3, dtype=torch.float64), torch.kron(down.double(), across.double()))
    return operators.Separable(down, across), matrix, None


@pytest.fixture
def pixels(make) -> Pixels:
    """pixels(operator, components=1): a problem whose latents are images, and the same one as dense matrices."""

    def build(operator: str = "inpainting", components: int = 1) -> tuple[Problem, Dense]:
        mine = {"circular": circular, "denoising": denoising, "separable": separable}
        if operator in mine:
            physics, matrix, papers = mine[operator]()
            matrix = matrix.expand(2, -1, -1) if operator == "denoising" else matrix
        else:
            problem, dense = make(operator)
            physics, matrix, papers = problem.physics, dense.operator, dense.lift
        draws = torch.Generator().manual_seed(3)
        roots = torch.randn(components, P, P, generator=draws, dtype=torch.float64) / P**0.5
        eye = torch.eye(P, dtype=torch.float64)
        mixture = Mixture(
            torch.tensor([1.0] if components == 1 else [0.4, 0.6], dtype=torch.float64),
            0.4 * torch.randn(components, P, generator=draws, dtype=torch.float64),
            roots @ roots.mT / 3 + 0.1 * eye,
        )
        if components == 1:
            prior = GaussianPrior(mixture.means.reshape(IMAGE), mixture.covariances[0])
        else:
            prior = MixturePrior(mixture, eye, eye, IMAGE, IMAGE)
            prior.family = "pixel"
        assert prior.family == "pixel"
        x = (1 + 0.6 * torch.randn(2, P, generator=draws, dtype=torch.float64)) / 2
        clean = apply(matrix, x)
        y = clean + SIGMA_Y / 2 * torch.randn(clean.shape, generator=draws, dtype=torch.float64)
        if operator == "inpainting":
            y = apply(matrix, y)
        shaped = y.reshape(physics.A(torch.zeros(2, *IMAGE, dtype=torch.float64)).shape)
        seen = torch.ones(2, P, dtype=torch.bool)
        lift = matrix.mT if papers is None else papers
        return (
            Problem(shaped, physics, prior, sigma_y=SIGMA_Y),
            Dense(mixture, eye, eye, matrix, lift, lift, seen, y),
        )

    return build


def begin() -> State:
    z = torch.randn(2, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return State(z, clean=z)


def measured(dense: Dense) -> Tensor:
    """The measurement of images on [−1, 1]: A z + noise = 2 y − A 1."""
    return 2 * dense.y - apply(dense.operator, torch.ones(2, P, dtype=torch.float64))


def ancestral(dense: Dense, z: Tensor, t: int, t_next: int, noise: Tensor) -> Tensor:
    """The DDPM sample x'."""
    mean, std = ddpm(z, dense.clean(z, t), t, t_next)
    return mean + std * noise


def step(sampler, problem, t, t_next, memory=None):
    """One step of the library, and the noise it drew."""
    state, tape = begin(), Tape()
    if memory is not None:
        state = State(state.z, state.z, memory)
    ours = sampler.step(problem, state, t, t_next, tape)
    assert_close(problem.prior.decode(ours.z), (1 + ours.z) / 2)
    return ours, list(tape.replay()), state.z.flatten(1)


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "blur", "anything"])
def test_a_dps_step_is_the_papers_equation(pixels, operator, components):
    problem, dense = pixels(operator, components)
    for t, t_next in LEVELS:
        ours, (noise,), z = step(DPS(zeta=0.7), problem, t, t_next)
        expected = ancestral(dense, z, t, t_next, noise) - 0.7 * dense.data_gradient(z, t)
        assert_close(ours.z.flatten(1), expected, **EXACT)
        assert_close(ours.clean.flatten(1), dense.clean(z, t), **EXACT)


def test_the_clip_is_inside_the_gradient_of_dps(pixels):
    """Where the estimate leaves [−1, 1] the gradient is 0, and the DDPM mean is built from the clipped estimate."""
    problem, dense = pixels("denoising")
    problem.prior.clip = lambda z0: z0.clamp(-0.3, 0.3)
    t, t_next = 481, 461
    ours, (noise,), z = step(DPS(zeta=0.7), problem, t, t_next)
    estimate = dense.clean(z, t)
    clipped = estimate.clamp(-0.3, 0.3)
    assert (estimate != clipped).any()
    assert (estimate == clipped).any()
    r = measured(dense) - clipped
    inside = torch.diag_embed((estimate == clipped).double())
    gradient = -apply((inside @ dense.slope(z, t)).mT, r) / r.norm(dim=1, keepdim=True)
    mean, std = ddpm(z, clipped, t, t_next)
    assert_close(ours.z.flatten(1), mean + std * noise - 0.7 * gradient, **EXACT)


def put_in(dense: Dense, z: Tensor, t: int, noise: Tensor, lift: Tensor) -> Tensor:
    scale, sigma = level(t)
    fresh = scale * measured(dense) + sigma * noise
    return z - apply(lift, apply(dense.operator, z)) + apply(lift, fresh)


@pytest.mark.parametrize("level_of", ["next", "current"])
@pytest.mark.parametrize("adjoint", ["paper", "exact"])
@pytest.mark.parametrize("operator", ["superresolution", "blur", "denoising"])
def test_a_step_of_mcg_and_of_score_sde_is_the_papers_equation(pixels, make, operator, adjoint, level_of):
    problem, dense = pixels(operator)
    lift = dense.lift
    if adjoint == "exact":
        lift = make(operator, "exact")[1].lift if operator != "denoising" else lift
    for t, t_next in LEVELS:
        where = t_next if level_of == "next" else t
        ours, (noise, fresh), z = step(MCG(alpha=0.7, adjoint=adjoint, level=level_of), problem, t, t_next)
        moved = ancestral(dense, z, t, t_next, noise) - 0.7 * dense.data_gradient(z, t)
        assert_close(ours.z.flatten(1), put_in(dense, moved, where, fresh, lift), **EXACT)

        ours, (noise, fresh), z = step(ScoreSDE(adjoint=adjoint, level=level_of), problem, t, t_next)
        moved = ancestral(dense, z, t, t_next, noise)
        assert_close(ours.z.flatten(1), put_in(dense, moved, where, fresh, lift), **EXACT)


def test_for_a_mask_mcg_and_score_sde_replace_the_known_pixels_and_leave_the_holes(pixels):
    problem, dense = pixels("inpainting")
    known = torch.diagonal(dense.operator, dim1=1, dim2=2)
    for t, t_next in LEVELS:
        scale, sigma = level(t_next)
        for sampler, weight in ((MCG(alpha=0.7), 0.7), (ScoreSDE(), 0.0)):
            ours, (noise, fresh), z = step(sampler, problem, t, t_next)
            moved = ancestral(dense, z, t, t_next, noise) - weight * dense.data_gradient(z, t)
            expected = (1 - known) * moved + known * (scale * measured(dense) + sigma * fresh)
            assert_close(ours.z.flatten(1), expected, **EXACT)


@pytest.mark.parametrize("at", ["new", "current"])
@pytest.mark.parametrize(
    ("operator", "tolerance"),
    [
        ("inpainting", EXACT),
        ("superresolution", EXACT),
        ("denoising", EXACT),
        ("circular", EXACT),
        ("blur", SOLVED),
        ("anything", SOLVED),
    ],
)
def test_a_dmps_step_is_the_papers_equation(pixels, operator, tolerance, at):
    problem, dense = pixels(operator)
    sampler = DMPS(lam=1.75, at=at, cutoff=0.0)
    memory = sampler.begin(problem, Tape()).memory
    assert (memory is None) == (operator in ("blur", "anything"))
    for t, t_next in LEVELS:
        ours, (noise,), z = step(sampler, problem, t, t_next, memory)
        moved = ancestral(dense, z, t, t_next, noise)
        a, a_next = level(t)[0] ** 2, level(t_next)[0] ** 2
        alpha = a / a_next
        where = moved if at == "new" else z
        eye = torch.eye(dense.operator.shape[-2], dtype=torch.float64)
        spread = SIGMA_Y**2 * eye + (1 - a) / a * dense.operator @ dense.operator.mT
        r = measured(dense) - apply(dense.operator, where / a**0.5)
        score = apply(dense.operator.mT @ torch.linalg.inv(spread), r) / a**0.5
        assert_close(ours.z.flatten(1), moved + 1.75 * (1 - alpha) / alpha**0.5 * score, **tolerance)


def bases(dense: Dense, cutoff: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Uᵀ padded with zeros, all p singular values, all of V: (B, p, m), (B, p), (B, p, p)."""
    operator = dense.operator.expand(2, -1, -1)
    left, s, right = torch.linalg.svd(operator, full_matrices=True)
    missing = P - s.shape[1]
    ut = torch.nn.functional.pad(left.mT[:, : s.shape[1]], (0, 0, 0, missing))
    s = torch.nn.functional.pad(torch.where(s < max(cutoff, 1e-12), 0.0, s), (0, missing))
    return ut, s, right.mT


@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "denoising", "circular", "separable"])
@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.4, 0.7), (0.0, 1.0)])
def test_a_ddrm_step_is_the_papers_equation(pixels, operator, eta, eta_b):
    problem, dense = pixels(operator)
    sampler = DDRM(eta=eta, eta_b=eta_b)
    memory = sampler.begin(problem, Tape()).memory
    ut, s, v = bases(dense, cutoff=0.03)
    cases = set()
    for t, t_next in (*LEVELS, (1, 0), (61, 41)):
        ours, (xi,), z = step(sampler, problem, t, t_next, memory)
        scale, sigma = level(t_next)
        sigma = sigma / scale
        z0, eps = dense.clean(z, t), dense.eps(z, t)
        x0, e, n, yb = apply(v.mT, z0), apply(v.mT, eps), apply(v.mT, xi), apply(ut, measured(dense))
        expected = torch.empty_like(x0)
        for b in range(2):
            for j in range(P):
                keep = (1 - eta**2) ** 0.5
                if s[b, j] == 0:
                    expected[b, j] = x0[b, j] + keep * sigma * e[b, j] + eta * sigma * n[b, j]
                elif s[b, j] * sigma < SIGMA_Y:
                    pull = (yb[b, j] - s[b, j] * x0[b, j]) / SIGMA_Y
                    expected[b, j] = x0[b, j] + keep * sigma * pull + eta * sigma * n[b, j]
                    cases.add("prior")
                else:
                    left = (sigma**2 - eta_b**2 * SIGMA_Y**2 / s[b, j] ** 2) ** 0.5
                    expected[b, j] = (1 - eta_b) * x0[b, j] + eta_b * yb[b, j] / s[b, j] + left * n[b, j]
                    cases.add("measurement")
        assert_close(ours.z.flatten(1), scale * apply(v, expected), **SOLVED)
        assert_close(ours.clean.flatten(1), z0, **EXACT)
    assert cases == {"prior", "measurement"}


@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "circular", "separable"])
def test_ddrm_begins_at_the_measurement_with_as_much_noise_as_is_missing(pixels, operator):
    problem, dense = pixels(operator)
    tape = Tape()
    ours = DDRM().begin(problem, tape).z
    (xi,) = tape.replay()
    ut, s, v = bases(dense, cutoff=0.03)
    scale, sigma = level(951)
    sigma = sigma / scale
    y, n = apply(ut, measured(dense)), apply(v.mT, xi)
    safe = torch.where(s > 0, s, 1.0)
    told = y / safe + (sigma**2 - SIGMA_Y**2 / safe**2) ** 0.5 * n
    expected = torch.where(s * sigma > SIGMA_Y, told, sigma * n)
    assert_close(ours.flatten(1), scale * apply(v, expected), **SOLVED)


def test_ddrm_without_noise_ends_on_the_measurement(pixels):
    """σ_y = 0 divides by nothing, and the last step leaves no residual where the operator sees."""
    for operator in ("inpainting", "superresolution", "denoising"):
        problem, dense = pixels(operator)
        exact = Problem(problem.y, problem.physics, problem.prior, sigma_y=0.0)
        *_, last = iterate(exact, DDRM(steps=20, cutoff=0.0), Tape())
        r = measured(dense) - apply(dense.operator, last.state.z.flatten(1))
        # No singular value is below 0.1, so that rounding of 1e-13 stays below 1e-11.
        assert r.abs().max() < 1e-10


@pytest.mark.parametrize(
    ("operator", "tolerance"),
    [
        ("inpainting", EXACT),
        ("superresolution", EXACT),
        ("denoising", EXACT),
        ("circular", EXACT),
        ("separable", EXACT),
        ("blur", SOLVED),
        ("anything", SOLVED),
    ],
)
def test_a_diffpir_step_is_the_papers_equation(pixels, operator, tolerance):
    problem, dense = pixels(operator)
    sampler = DiffPIR(lam=7.0, zeta=0.3)
    memory = sampler.begin(problem, Tape()).memory
    for t, t_next in LEVELS[:-1]:
        ours, (xi,), z = step(sampler, problem, t, t_next, memory)
        (scale, sigma), (scale_next, sigma_next) = level(t), level(t_next)
        rho = 7.0 * (SIGMA_Y / 2) ** 2 / (sigma / scale) ** 2  # σ_y on [0, 1], σ on [−1, 1]
        gram = dense.operator.mT @ dense.operator + rho * torch.eye(P, dtype=torch.float64)
        x = apply(torch.linalg.inv(gram), apply(dense.operator.mT, measured(dense)) + rho * dense.clean(z, t))
        e = (z - scale * x) / sigma
        expected = scale_next * x + sigma_next * (0.7**0.5 * e + 0.3**0.5 * xi)
        assert_close(ours.z.flatten(1), expected, **tolerance)
    ours, drawn, z = step(DiffPIR(paste=False), problem, 1, -1, memory)
    assert not drawn
    assert_close(ours.z.flatten(1), dense.clean(z, 1), **EXACT)


def test_diffpir_begins_at_the_noised_measurement_and_pastes_the_known_pixels_last(pixels):
    problem, dense = pixels("inpainting")
    tape = Tape()
    state = DiffPIR().begin(problem, tape)
    (xi,) = tape.replay()
    scale, sigma = level(999)
    known = torch.diagonal(dense.operator, dim1=1, dim2=2)
    assert_close(state.z.flatten(1), scale * known * (2 * dense.y - 1) + sigma * xi, **EXACT)
    ours, _, z = step(DiffPIR(), problem, 1, -1)
    expected = known * (2 * dense.y - 1) + (1 - known) * dense.clean(z, 1)
    assert_close(ours.z.flatten(1), expected, **EXACT)


def test_diffpir_reckons_with_a_thousandth_of_noise_where_there_is_less(pixels):
    problem, _ = pixels("superresolution")
    z = [
        DiffPIR(paste=False)
        .step(Problem(problem.y, problem.physics, problem.prior, None, noise), begin(), 481, 461, Tape())
        .z
        for noise in (0.0, 0.002, 0.004)
    ]
    assert torch.equal(z[0], z[1])
    assert (z[1] - z[2]).abs().max() > 1e-6


def test_the_levels_of_diffpir_are_dense_at_low_noise():
    """s_j = ⌊1000 √(j/(n − 1))⌋ from the noisy end, the last one reduced by 1: 0, 500, 707, 866, 999 for n = 5."""
    plan = DiffPIR(steps=5).plan(VariancePreserving.from_config({}))
    assert plan == [(999, 499), (499, 292), (292, 133), (133, 0), (0, -1)]


@pytest.mark.parametrize("method", [DPS, MCG, ScoreSDE, DMPS, DiffPIR])
def test_the_residual_that_is_logged_is_that_of_the_estimate(pixels, method):
    problem, dense = pixels("inpainting")
    ours, _, z = step(method(), problem, 481, 461)
    r = (measured(dense) - apply(dense.operator, dense.clean(z, 481))) / 2
    known = torch.diagonal(dense.operator, dim1=1, dim2=2).sum(1)
    assert_close(ours.log["residual"], (r.square().sum(1) / known).sqrt(), **EXACT)
