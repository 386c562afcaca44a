"""deepinv's DDRM, DiffPIR, DPS and ADMM do what ours do, where both should.

deepinv divides the noise of its DDRM by √2 and returns the estimate of the last level; its DiffPIR takes half of λ and
skips the last denoising; its DPS steps along another path, but its gradient is ours. Noise is handed to both.
"""

from collections.abc import Iterator

import pytest
import torch
from deepinv.optim import ADMM, L2, PnP
from deepinv.physics import GaussianNoise, Inpainting
from deepinv.sampling import DDRM as TheirDDRM
from deepinv.sampling import DiffPIR as TheirDiffPIR
from deepinv.sampling import DPSDataFidelity
from dense import Tape
from torch import Tensor
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.reconstructors import PnPADMM, PriorDenoiser
from stsl.samplers import DDRM, DPS, DiffPIR, State
from stsl.schedule import VariancePreserving

NOISE = 0.03  # on [0, 1]
DDPM = VariancePreserving.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2})


@pytest.fixture
def problem(one_thread) -> Problem:
    draws = torch.Generator().manual_seed(0)
    root = torch.randn(48, 48, generator=draws, dtype=torch.float64) / 48**0.5
    covariance = root @ root.T / 4 + 0.02 * torch.eye(48, dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(3, 4, 4), covariance, schedule=DDPM)
    mask = (torch.rand(1, 3, 4, 4, generator=draws) > 0.4).double()
    physics = Inpainting((3, 4, 4), mask=mask, noise_model=GaussianNoise(NOISE)).double()
    x = 0.5 + 0.2 * torch.randn(1, 3, 4, 4, generator=draws, dtype=torch.float64)
    return Problem(mask * (x + NOISE * torch.randn(x.shape, generator=draws)), physics, prior, sigma_y=2 * NOISE)


def hand_out(monkeypatch, noises: Iterator[Tensor], factor: float = 1.0) -> None:
    """deepinv's next draws are these."""
    monkeypatch.setattr(torch, "randn_like", lambda like: factor * next(noises).reshape(like.shape).to(like))


def run(problem, sampler):
    """The frames of a run, and the noise it drew, in order."""
    tape = Tape()
    frames = list(iterate(problem, sampler, tape))
    return frames, tape.drawn


@pytest.mark.parametrize("eta_b", [1.0, 0.8])
def test_ddrm_is_deepinvs(problem, monkeypatch, eta_b):
    frames, drawn = run(problem, DDRM(steps=20, eta=0.85, eta_b=eta_b))
    sigmas = [DDPM.at(t)[1] / DDPM.at(t)[0] / 2 for t in range(950, -1, -50)] + [0.0]
    noises = iter(drawn)
    hand_out(monkeypatch, noises, 2**0.5)

    class Denoise(PriorDenoiser):
        """At noise 0 the network is not asked."""

        def forward(self, x, sigma, **unused):
            return x if sigma == 0 else super().forward(x, sigma)

    theirs = TheirDDRM(Denoise(problem.prior), sigmas=sigmas, eta=0.85, etab=eta_b, eps=0.0)
    # float64 throughout but for the noise level, which deepinv keeps in float32.
    assert_close(theirs(problem.y, problem.physics), problem.prior.decode(frames[-1].state.z), rtol=0, atol=1e-6)
    assert next(noises, None) is None


def test_diffpir_is_deepinvs_until_its_last_step(problem, monkeypatch):
    frames, drawn = run(problem, DiffPIR(steps=10, lam=7.0, zeta=0.3))
    hand_out(monkeypatch, iter(drawn))
    theirs = TheirDiffPIR(PriorDenoiser(problem.prior), L2(), sigma=0.0, max_iter=10, zeta=0.3, lambda_=3.5)
    x = theirs(problem.y, problem.physics, x_init=problem.start())
    # Its tables of ᾱ are float32, and so are its weights.
    assert_close(x, problem.prior.decode(frames[-2].state.z), rtol=0, atol=2e-4)
    assert (x - problem.prior.decode(frames[-1].state.z)).abs().max() > 2e-3


@pytest.mark.parametrize("t", [900, 500, 100])
def test_the_gradient_of_dps_is_deepinvs(problem, t):
    """‖A D(x; σ) − y‖ on [0, 1], differentiated by the image with noise σ/2: ours by z_t, on [−1, 1], is 1/√ᾱ of it."""
    z = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with_step, without = (DPS(zeta=zeta).step(problem, State(z, z), t, t - 20, Tape()).z for zeta in (1.0, 0.0))
    scale, sigma = DDPM.at(t)
    noisy = problem.prior.decode(z / scale)
    fidelity = DPSDataFidelity(denoiser=PriorDenoiser(problem.prior))
    theirs = fidelity.grad(noisy, problem.y, problem.physics, sigma / scale / 2)
    # deepinv casts the image to float32 before it is denoised.
    assert_close(without - with_step, (theirs / scale).double(), rtol=1e-4, atol=1e-5)


def test_pnp_admm_is_deepinvs(problem):
    """deepinv's ADMM in one go, with its own proximal step and the same denoiser."""
    frames, drawn = run(problem, PnPADMM(steps=12, rho=0.2, denoise=0.05))
    assert not drawn
    model = ADMM(L2(), PnP(PriorDenoiser(problem.prior)), stepsize=5.0, sigma_denoiser=0.05, max_iter=12)
    start = problem.start()
    x = model(problem.y, problem.physics, init=(start, torch.zeros_like(start)))
    assert_close(x, problem.prior.decode(frames[-1].state.z), rtol=0, atol=1e-10)
