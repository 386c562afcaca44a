"""LDIR is its equations, with a history that reaches over all levels."""

import pytest
from dense import HandAdam, Tape
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.samplers import LDIR, LDPS

# float64 and values of order 1. Adam divides by |g| + 1e-8, which turns a rounding error of 1e-17 in a gradient of the
# smallest size met here, 1e-5, into ρ · 1e-12.
EXACT = {"rtol": 0, "atol": 1e-10}


class Momentum:
    """m ← 0.9 m + 0.1 g, and m itself is the step."""

    m = 0.0

    def step(self, g):
        self.m = 0.9 * self.m + 0.1 * g
        return self.m


@pytest.mark.parametrize("components", [1, 2], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("operator", ["inpainting", "superresolution", "anything"])
@pytest.mark.parametrize("meas_loss", ["sqnorm", "norm"])
@pytest.mark.parametrize("update", ["adam", "momentum"])
def test_every_iterate_of_a_run_is_the_equations(make, update, meas_loss, operator, components):
    problem, dense = make(operator, components=components)
    sampler = LDIR(steps=10, rho=0.05, update=update, meas_loss=meas_loss)
    tape = Tape()
    ours = [frame.state for frame in iterate(problem, sampler, tape)]
    (z,) = tape.replay()  # N(0, I) at the noisiest level, and nothing random after
    history = HandAdam() if update == "adam" else Momentum()
    for state, (t, t_next) in zip(ours, sampler.plan(problem.schedule), strict=True):
        assert_close(state.clean.flatten(1), dense.clean(z, t), **EXACT)
        z = dense.ddim(z, t, t_next) - 0.05 * history.step(dense.data_gradient(z, t, meas_loss))
        assert_close(state.z.flatten(1), z, **EXACT)


def test_the_two_memories_are_the_two_betas(make):
    problem, dense = make("superresolution")
    sampler, tape, m, v = LDIR(steps=10, beta1=0.5, beta2=0.75), Tape(), 0.0, 0.0
    *_, last = iterate(problem, sampler, tape)
    (z,) = tape.replay()
    for n, (t, t_next) in enumerate(sampler.plan(problem.schedule), start=1):
        g = dense.data_gradient(z, t, "sqnorm")
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
        step = (m / (1 - 0.5**n)) / ((v / (1 - 0.75**n)) ** 0.5 + 1e-8)
        z = dense.ddim(z, t, t_next) - 0.01 * step
    assert_close(last.state.z.flatten(1), z, **EXACT)


def test_without_a_memory_it_is_ldps(make):
    """β₁ = 0 and momentum: m is the gradient itself."""
    problem, _ = make("blur")
    plain = LDIR(steps=10, rho=0.3, beta1=0.0, update="momentum", meas_loss="norm")
    ours, theirs = (list(iterate(problem, each, Tape()))[-1].state.z for each in (plain, LDPS(steps=10, omega=0.3)))
    assert_close(ours, theirs, **EXACT)
