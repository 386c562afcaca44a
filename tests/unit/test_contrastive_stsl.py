"""The contrastive term of STSL: its equation, its place in the loop, and its refusals."""

from dataclasses import replace

import huggingface_hub
import pytest
import torch
from deepinv.physics import LinearPhysics
from torch.testing import assert_close

from models import vit_folder
from stsl.loop import iterate
from stsl.perceptual import ContrastiveLoss, contrastive, load_contrastive
from stsl.problem import Problem
from stsl.restorer import Restorer
from stsl.rng import Rng
from stsl.samplers import STSL

# float64; Adam enlarges the rounding of a small gradient, as in the contract tests.
SAME = {"rtol": 0, "atol": 1e-10}
D = 4 * 8 * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(vit_folder(tmp_path_factory.mktemp("models") / "vit", size=16, patch=4))


@pytest.fixture
def plain(folder):
    """One plain gradient step per level and no trace: what is left is the data term and the contrastive one."""
    return STSL(steps=3, inner_steps=1, eta=0.0, nu=500.0, lr=0.02, init="gaussian", adam_state="none", vit=folder)


def problem_of(world, task):
    y, physics = world.measure(task)
    return Problem(y, physics, world.prior)


@pytest.mark.parametrize("task", ["sr4", "gaussian_blur"])
def test_a_step_descends_on_the_loss_of_the_paper(task, plain, world):
    problem = problem_of(world, task)
    (frame, *_) = iterate(problem, plain, Rng(0, world.ids))
    start = plain.begin(problem, Rng(0, world.ids).at("restore/begin", 0)).z
    t, t_next = frame.t, plain.plan(problem.schedule)[1][0]

    z = start.clone().requires_grad_()
    z0 = problem.schedule.clean(z, world.prior.epsilon(z, t), t)
    picture = problem.physics.A(world.prior.decode(z0))
    data = (2 * (problem.y - picture)).flatten(1).norm(dim=1)
    vit = load_contrastive(plain.vit, dtype=torch.float64)
    slopes = [torch.autograd.grad(term.sum(), z, retain_graph=True)[0] for term in (data, vit(picture, problem.y))]

    def moved(nu):
        z = start - plain.lr * (slopes[0] + nu / D * slopes[1])
        eps = world.prior.epsilon(z, t)
        return problem.schedule.move(problem.schedule.clean(z, eps, t), eps, t, t_next)

    assert_close(frame.state.z, moved(500.0), **SAME)
    for wrong in (0.0, -500.0, 1000.0):
        assert (frame.state.z - moved(wrong)).abs().max() > 1e-5
    ratio = 500.0 / D * slopes[1].flatten(1).norm(dim=1) / slopes[0].flatten(1).norm(dim=1)
    # The library has 1e-12 under the root of the measurement's norm, whose square is above 1e-5 here.
    assert_close(frame.state.log["rV"], ratio, rtol=1e-7, atol=0)


def test_an_image_does_not_depend_on_its_batch(folder, world):
    restore = Restorer(world.prior, STSL(steps=3, nu=500.0, vit=folder))
    both = restore(*world.measure("sr4"), ids=["a", "b"])
    alone = restore(*world.measure("sr4", ("b",)), ids=["b"])
    assert_close(both[1:], alone, **SAME)


def test_the_term_changes_the_result_and_an_unused_vit_does_not(folder, world):
    y, physics = world.measure("sr4")
    without, unused, used = (
        Restorer(world.prior, STSL(steps=3, nu=nu, vit=vit))(y, physics)
        for nu, vit in ((0.0, ""), (0.0, "nowhere"), (500.0, folder))
    )
    assert torch.equal(without, unused)
    assert (used - without).abs().max() > 1e-4


@pytest.mark.parametrize("init", ["auto", "ddim", "argmin"])
def test_the_papers_preset_works_in_full_given_a_vit(init, folder, world):
    sampler = replace(STSL.preset("paper"), steps=3, init=init, vit=folder)
    assert sampler.nu == 2.0
    result = Restorer(world.prior, sampler).solve(*world.measure("sr4"))
    assert result.image.isfinite().all()
    first = next(entry for entry in result.log if "rV" in entry)
    assert {"r2", "rV", "residual"} <= first.keys()
    assert min(first["rV"]) > 0


def test_the_vit_is_read_once_and_the_measurement_looked_at_once(folder, world, monkeypatch):
    contrastive._loaded.cache_clear()
    seen, keys = [], ContrastiveLoss.keys
    monkeypatch.setattr(ContrastiveLoss, "keys", lambda self, x: seen.append(x.detach()) or keys(self, x))
    y, physics = world.measure("sr4")
    Restorer(world.prior, STSL(steps=3, inner_steps=2, nu=2.0, vit=folder))(y, physics)
    assert contrastive._loaded.cache_info().misses == 1
    assert len(seen) == 1 + 3 * 2
    assert torch.equal(seen[0], y)
    assert not any(torch.allclose(x, y) for x in seen[1:])


def test_the_holes_of_an_inpainting_are_mid_grey_on_both_sides(folder, world, monkeypatch):
    seen, keys = [], ContrastiveLoss.keys
    monkeypatch.setattr(ContrastiveLoss, "keys", lambda self, x: seen.append(x.detach()) or keys(self, x))
    y, physics = world.measure("random_inpaint")
    Restorer(world.prior, STSL(steps=2, inner_steps=1, nu=2.0, vit=folder))(y, physics)
    hole = (physics.mask == 0).expand_as(y)
    for x in seen:
        assert (x[hole] == 0.5).all()
    assert torch.equal(seen[0][~hole], y[~hole])


# ---- refusals, before the network is called


def test_without_a_vit_nu_is_refused_with_the_ways_out(world, unasked, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "builtin_folder", lambda: tmp_path)
    ways = r"nu = 2.0 needs a ViT.*ships none; give the folder.*hub id.*set nu to 0.*balanced.*fast"
    for sampler in (STSL(nu=2.0), STSL.preset("paper")):
        with pytest.raises(ValueError, match=ways):
            Restorer(unasked, sampler).frames(*world.measure())


def test_a_hub_id_is_looked_for_in_the_cache_alone_and_fetched_on_its_own(world, unasked, tmp_path, monkeypatch):
    def refuse(name, *, revision, allow_patterns, local_files_only=False):
        assert local_files_only
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"facebook/dino-vitb8 is not in the cache.*`stsl fetch facebook/dino-vitb8`"):
        Restorer(unasked, STSL(nu=2.0, vit="facebook/dino-vitb8")).frames(*world.measure())


def test_a_measurement_that_is_no_picture_is_refused(folder, world, unasked):
    physics = LinearPhysics(A=lambda x: x.flatten(1)[:, :7], A_adjoint=lambda y: y)
    y = physics.A(world.x.double())
    with pytest.raises(ValueError, match=r"nu = 2.0 compares pictures.*\(2, 7\).*set nu to 0"):
        Restorer(unasked, STSL(nu=2.0, vit=folder)).frames(y, physics)
