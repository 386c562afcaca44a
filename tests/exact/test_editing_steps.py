"""One step of an edit is the papers' equation: guided DDIM for both prompts, a blend, and the tuning of Algorithm 2."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models import sd15_folder, vit_folder
from stsl import images, tasks
from stsl.editors.base import Edit, Inversion, prepared
from stsl.editors.control import Branches, CrossAttentionControl
from stsl.editors.tuning import CrossAttentionTuning
from stsl.perceptual import load_contrastive
from stsl.priors.attention import controlled, present
from stsl.priors.base import Condition
from stsl.priors.load import load_prior
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import State

# float32; the same network calls in another order.
SAME = {"rtol": 1e-4, "atol": 1e-5}
T, T_NEXT, STEPS, GUIDANCE = 501, 401, 10, 4.0
RNG = Rng(0, ("a",)).at("edit", 0)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    prior = load_prior(sd15_folder(tmp_path_factory.mktemp("sd")), device="cpu", precision="fp32")
    y, physics = tasks.measure("sr4", images.astronaut_face(64), noise=0.005, ids=["a"])
    return prepared(Problem(y, physics, prior))


def branches_of(problem, edit, *, index=0):
    draws = torch.Generator().manual_seed(2)
    z, z_target = (torch.randn(1, 4, 8, 8, generator=draws) for _ in range(2))
    condition = problem.prior.condition
    texts = [condition(text).positive for text in (edit.source, edit.target)]
    nulls = condition("").positive[None].repeat(STEPS, 1, 1, 1) + torch.arange(STEPS).view(-1, 1, 1, 1) / 100
    control = edit.control(problem.prior)
    return State(z_target, z_target, Branches(z, *texts, nulls, control, edit.blend_tokens(problem.prior), None, index))


def guided(problem, z, null, text):
    """ε under guidance, from single calls of the network."""
    with torch.no_grad():
        negative, positive = (problem.prior.epsilon(z, T, Condition(c, c)) for c in (null, text))
    return negative + GUIDANCE * (positive - negative)


def moved(problem, z, eps):
    return problem.schedule.move(problem.schedule.clean(z, eps, T), eps, T, T_NEXT)


def step(stage, problem, state):
    with torch.no_grad():
        return stage.step(problem, state, T, T_NEXT, RNG)


@pytest.mark.parametrize("index", [0, 3])
def test_without_control_both_prompts_take_their_own_guided_step(problem, index):
    state = branches_of(problem, Edit("a photo", "a face", cross=0.0, self_attention=0.0), index=index)
    after = step(CrossAttentionControl(STEPS, GUIDANCE), problem, state)
    memory, null = state.memory, state.memory.nulls[index]
    assert_close(after.z, moved(problem, state.z, guided(problem, state.z, null, memory.target)), **SAME)
    assert_close(after.memory.z, moved(problem, memory.z, guided(problem, memory.z, null, memory.source)), **SAME)
    assert after.memory.index == index + 1


def test_control_ends_after_its_share_of_the_steps(problem):
    """cross 0.8 and self-attention 0.5 of ten steps: the steps 0 to 7 and 0 to 4."""
    edit, none = (Edit("a photo", "a face", cross=c, self_attention=s) for c, s in ((0.8, 0.5), (0.0, 0.0)))
    stage = CrossAttentionControl(STEPS, GUIDANCE)
    for index, same in ((4, False), (7, False), (8, True)):
        ours, free = (step(stage, problem, branches_of(problem, each, index=index)) for each in (edit, none))
        assert torch.equal(ours.z, free.z) == same
        assert torch.equal(ours.memory.z, free.memory.z)


def test_a_blend_keeps_what_shows_neither_word(problem):
    edit = Edit("a photo", "a face", blend=("photo", "face"))
    stage = CrossAttentionControl(STEPS, GUIDANCE)
    state = branches_of(problem, edit, index=2)
    tokens = state.memory.blend
    free = step(stage, problem, replace(state, memory=replace(state.memory, blend=None)))
    # Maps of earlier steps that show the words in one corner only.
    before = torch.zeros_like(free.memory.maps)
    before[0, list(tokens[0]), 0, 0] = before[1, list(tokens[1]), 0, 1] = 1e6
    state = replace(state, memory=replace(state.memory, maps=before))
    after = step(stage, problem, state)
    assert_close(after.memory.maps, before + free.memory.maps)
    parts = after.memory.maps.chunk(2)
    mask = present(parts[0], tokens[0], (8, 8)) | present(parts[1], tokens[1], (8, 8))
    assert torch.equal(after.z, torch.where(mask, free.z, free.memory.z))
    early = replace(state, memory=replace(state.memory, index=0))
    assert not torch.equal(step(stage, problem, early).z, step(stage, problem, early).memory.z)


def test_a_blend_waits_for_a_fifth_of_the_steps(problem):
    edit = Edit("a photo", "a face", blend=("photo", "face"))
    stage = CrossAttentionControl(STEPS, GUIDANCE)
    shape = (2, 77, 2, 2)
    for index, blends in ((1, False), (2, True)):
        state = branches_of(problem, edit, index=index)
        nowhere = torch.zeros(shape)
        nowhere[:, :, 0, 0] = 1e6
        state = replace(state, memory=replace(state.memory, maps=nowhere))
        free = step(stage, problem, replace(state, memory=replace(state.memory, blend=None)))
        monkey = step(stage, problem, state)
        mask = present(nowhere[:1], state.memory.blend[0], (8, 8))
        expected = torch.where(mask, free.z, free.memory.z) if blends else free.z
        assert torch.equal(monkey.z, expected)


@pytest.mark.parametrize("eta", [0.0, 500.0])
def test_the_early_steps_descend_on_measurement_and_trace(problem, eta):
    edit = Edit("a photo", "a face")
    state = branches_of(problem, edit, index=5)
    stage = CrossAttentionTuning(STEPS, GUIDANCE, lam=0.7, eta=eta, probes=2, measured=0.6)
    free = step(CrossAttentionControl(STEPS, GUIDANCE), problem, state)
    after = step(stage, problem, state)

    text, schedule = state.memory.target, problem.schedule
    probes = [RNG.normal(state.z, draw=n) for n in range(2)]
    z = state.z.clone().requires_grad_()
    # One call, as in the library: a random network with norms over two numbers is another one in another batch.
    all_text = text.repeat(3, 1, 1)
    eps, *others = problem.prior.epsilon(
        torch.cat([z, *(z + p for p in probes)]), T, Condition(all_text, all_text)
    ).split(1)
    scale, sigma = schedule.at(T)
    r = 2 * (problem.y - problem.physics.A(problem.prior.decode((z - sigma * eps) / scale)))
    trace = sum((probe * (eps - other) / sigma).sum() for probe, other in zip(probes, others, strict=True))
    parts = 0.7 * r.square().sum().sqrt(), eta / 256 * trace / 2
    data, second = (torch.autograd.grad(part, z, retain_graph=True)[0] for part in parts)
    assert_close(free.z - after.z, data + second, rtol=0, atol=1e-3 * float((data + second).abs().max()))
    assert second.abs().max() == 0 if eta == 0 else second.abs().max() > 0.05 * data.abs().max()
    assert torch.equal(after.memory.z, free.memory.z)  # the source is drawn as it was
    assert_close(after.log["residual"], (r / 2).square().mean().sqrt().detach()[None])


def test_the_late_steps_descend_on_what_a_vit_sees(problem, tmp_path):
    folder = str(vit_folder(tmp_path / "vit", size=16, patch=4))
    state = branches_of(problem, Edit("a photo", "a face"), index=6)
    stage = CrossAttentionTuning(STEPS, GUIDANCE, measured=0.6, nu=0.3, vit=folder)
    free = step(CrossAttentionControl(STEPS, GUIDANCE), problem, state)
    after = step(stage, problem, state)
    text, z = state.memory.target, state.z.clone().requires_grad_()
    z0 = problem.schedule.clean(z, problem.prior.epsilon(z, T, Condition(text, text)), T)
    loss = 0.3 * load_contrastive(folder)(problem.physics.A(problem.prior.decode(z0)), problem.y)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert_close(free.z - after.z, grad, rtol=2e-3, atol=1e-4 * float(grad.abs().max()))
    plain = step(replace(stage, nu=0.0), problem, state)
    assert torch.equal(plain.z, free.z)


def test_recording_has_one_map_per_layer_and_step(problem):
    """What a step adds to the maps is what one call of the network looked at."""
    state = branches_of(problem, Edit("a photo", "a face"), index=0)
    after = step(CrossAttentionTuning(STEPS, GUIDANCE), problem, state)
    null, memory = state.memory.nulls[0], state.memory
    text = torch.cat([null, null, memory.source, memory.target])
    z = torch.cat([memory.z, state.z] * 2)
    network = problem.prior.prior.unet
    with torch.no_grad(), controlled(network, 1, memory.control, 0.0) as maps:
        problem.prior.epsilon(z, T, Condition(text, text))
    assert_close(after.memory.maps, maps.coarse(problem.prior.latent_shape))


def test_an_inversion_survives_its_file(tmp_path):
    parts = [torch.rand(shape) for shape in ((1, 3, 8, 8), (1, 4, 2, 2), (3, 1, 5, 6))]
    Inversion(*parts).save(tmp_path / "a.safetensors")
    again = Inversion.load(tmp_path / "a.safetensors", torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(parts, (again.image, again.start, again.nulls), strict=True))
