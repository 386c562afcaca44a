"""The same questions to every registered sampler. A new one is asked them without a line here."""

import dataclasses
import inspect
import json
import random
import re
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from deepinv.physics import Physics
from torch.testing import assert_close

from stsl.loop import iterate
from stsl.priors.base import Prior
from stsl.priors.gaussian import GaussianPrior
from stsl.problem import Problem
from stsl.reconstructors import RECONSTRUCTORS
from stsl.restorer import Restorer
from stsl.rng import Rng
from stsl.samplers import SAMPLERS
from stsl.samplers.base import capabilities
from stsl.schedule import Schedule

# Sums of a batch and of a single image are taken in another order: 1e-16 in float64, enlarged by some steps of Adam.
SAME = {"rtol": 0, "atol": 1e-10}
METHODS = SAMPLERS | RECONSTRUCTORS
every_sampler = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_knob = pytest.mark.parametrize(
    ("method", "knob"),
    [pytest.param(m, f, id=f"{name}.{f.name}") for name, m in METHODS.items() for f in dataclasses.fields(m)],
)


@pytest.fixture
def world(request, world):
    """Methods that work on pixels meet a prior whose latents are pixels."""
    method = request.node.callspec.params["method"]
    if method.family != "pixel" and method not in RECONSTRUCTORS.values():
        return world
    draws = torch.Generator().manual_seed(1)
    root, mean, z = (
        torch.randn(shape, dtype=torch.float64, generator=draws) for shape in ((192, 192), (3, 8, 8), (2, 3, 8, 8))
    )
    prior = GaussianPrior(0.3 * mean, root @ root.T / (4 * 192) + 0.02 * torch.eye(192, dtype=torch.float64))
    return dataclasses.replace(world, prior=prior, x=prior.decode(0.5 * z).clamp(0, 1))


def serves(method, world, task):
    """Whether a method takes the operator of a task."""
    y, physics = world.measure(task)
    return method.needs() <= capabilities(Problem(y, physics, world.prior, sigma_y=0.02))


@every_sampler
@pytest.mark.parametrize("task", ["random_inpaint", "sr4", "motion_blur", "motion_blur:match=stsl512"])
def test_an_image_does_not_depend_on_its_batch(method, task, world):
    if not serves(method, world, task):
        pytest.skip(f"{method.__name__} does not take {task}")
    restore = Restorer(world.prior, method(steps=5))
    both = restore(*world.measure(task), ids=["a", "b"])
    turned = restore(*world.measure(task, ("b", "a")), ids=["b", "a"])
    alone = restore(*world.measure(task, ("b",)), ids=["b"])
    assert_close(both[1:], alone, **SAME)
    assert_close(turned[:1], alone, **SAME)
    assert not torch.allclose(both[0], both[1])


@every_sampler
def test_equal_seeds_give_equal_images_and_other_seeds_others(method, world, monkeypatch):
    draws, normal = [], Rng.normal
    monkeypatch.setattr(Rng, "normal", lambda self, like, draw=0: draws.append(draw) or normal(self, like, draw))
    restore = Restorer(world.prior, method(steps=5))
    first, again, other = (restore(*world.measure(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    # A method that draws nothing cannot differ.
    assert torch.equal(first, other) == (not draws)


@every_sampler
def test_another_name_is_another_noise(method, world, monkeypatch):
    draws, drawn = [], Rng.normal
    monkeypatch.setattr(Rng, "normal", lambda self, like, draw=0: draws.append(draw) or drawn(self, like, draw))
    restore = Restorer(world.prior, method(steps=5))
    y, physics = world.measure()
    y = y[:1].repeat(2, 1, 1, 1)
    physics.update(mask=physics.mask[:1].repeat(2, 1, 1, 1))
    x = restore(y, physics, ids=["a", "b"])
    twins = restore(y, physics, ids=["a", "a"])
    assert_close(twins[0], twins[1], **SAME)
    assert torch.allclose(x[0], x[1]) == (not draws)


@every_sampler
def test_images_are_finite_and_in_range(method, world):
    x = Restorer(world.prior, method(steps=5))(*world.measure())
    assert x.shape == (2, *world.prior.image_shape)
    assert x.isfinite().all()
    assert x.min() >= 0
    assert x.max() <= 1


@every_sampler
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(method, mode, world):
    y, physics = world.measure()
    expected = Restorer(world.prior, method(steps=5))(y, physics)
    with mode():
        y, physics = world.measure()  # under inference_mode y and the mask cannot be differentiated through as they are
        x = Restorer(world.prior, method(steps=5))(y, physics)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(x, expected)
    assert not x.requires_grad


@every_sampler
def test_the_modes_of_the_caller_are_its_own_between_two_frames(method, world):
    frames = Restorer(world.prior, method(steps=5)).frames(*world.measure())
    for _ in frames:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@every_sampler
def test_global_random_state_is_neither_read_nor_written(method, world):
    def state():
        return torch.random.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state(legacy=False))  # noqa: NPY002

    y, physics = world.measure()
    torch.manual_seed(1)
    before = state()
    x = Restorer(world.prior, method(steps=5))(y, physics)
    assert state() == before
    torch.manual_seed(2)
    random.seed(2)
    assert torch.equal(Restorer(world.prior, method(steps=5))(y, physics), x)


@every_sampler
def test_the_measurement_and_the_operator_are_left_as_they_were(method, world):
    y, physics = world.measure()
    y0, state = y.clone(), {name: tensor.clone() for name, tensor in physics.named_buffers()}
    Restorer(world.prior, method(steps=5))(y, physics)
    assert torch.equal(y, y0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in physics.named_buffers())


@every_sampler
def test_k_samples_equal_k_single_runs(method, world):
    y, physics = world.measure()
    sampler = method(steps=5)
    three = Restorer(world.prior, sampler).solve(y, physics, samples=3, seed=7).samples
    assert_close(three[:1], Restorer(world.prior, sampler).solve(y, physics, seed=7).samples, **SAME)
    problem = Problem(y, physics, world.prior, sigma_y=0.02)
    for k in range(3):
        *_, last = iterate(problem, sampler, Rng(7, ("0", "1"), (k, k)))
        assert_close(three[k], world.prior.decode(last.state.z).clamp(0, 1), **SAME)


@every_sampler
def test_the_last_frame_holds_the_result(method, world):
    run = Restorer(world.prior, method(steps=5)).frames(*world.measure())
    frames = list(run)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert all(frame.total == len(frames) for frame in frames)
    assert torch.equal(run.result().image, world.prior.decode(frames[-1].state.z).clamp(0, 1))


@every_sampler
def test_previews_are_images_and_cost_nothing(method, world):
    y, physics = world.measure()
    run = Restorer(world.prior, method(steps=5)).frames(y, physics)
    for frame in run:
        preview = run.preview(frame)
        assert preview.shape == (2, *world.prior.image_shape)
        assert preview.min() >= 0
        assert preview.max() <= 1
    watched, unwatched = run.result().cost, Restorer(world.prior, method(steps=5)).solve(y, physics).cost
    assert dataclasses.replace(watched, seconds=0.0) == dataclasses.replace(unwatched, seconds=0.0)


@every_sampler
def test_logs_are_finite_numbers_per_image(method, world):
    result = Restorer(world.prior, method(steps=5)).solve(*world.measure())
    assert any("residual" in entry for entry in result.log)
    for entry in result.log:
        for name, values in entry.items():
            if name not in ("step", "t"):
                assert len(values) == 2
                assert np.isfinite(values).all()
    json.dumps(result.record(), allow_nan=False)


# --- hyper-parameters


@every_sampler
def test_settings_survive_json(method):
    for sampler in [method(), *map(method.preset, method.presets)]:
        assert method(**json.loads(json.dumps(sampler.settings()))) == sampler
        assert eval(repr(sampler), {method.__name__: method}) == sampler


@every_sampler
def test_a_sampler_is_a_frozen_hashable_value(method):
    assert method() == method()
    assert hash(method()) == hash(method())
    assert method(steps=7) != method()
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().steps = 7


@every_knob
def test_a_knob_has_a_meaning_a_range_and_a_default_inside_it(method, knob):
    meta = knob.metadata
    assert meta["help"].strip()
    assert knob.type in (int, float, bool, str)
    assert type(knob.default) is knob.type
    if knob.type in (int, float):
        assert meta["low"] <= knob.default <= meta["high"]
    if meta["choices"]:
        assert knob.default in meta["choices"]


@every_knob
def test_a_value_out_of_range_or_of_the_wrong_type_is_refused(method, knob):
    meta = knob.metadata
    wrong_type = {int: ["3", 2.5, True, None], float: ["0.5", True, None], bool: [1, "yes"], str: [1, None]}[knob.type]
    for value in wrong_type:
        with pytest.raises(TypeError, match=f"{method.__name__}: {knob.name}"):
            method(**{knob.name: value})
    beyond = [meta["low"] - 1, meta["high"] + 1] if knob.type in (int, float) else []
    beyond += [float("nan"), float("inf")] if knob.type is float else []
    beyond += ["no such choice"] if meta["choices"] else []
    for value in beyond:
        with pytest.raises(ValueError, match=f"{method.__name__}: {knob.name}"):
            method(**{knob.name: value})


@every_sampler
def test_the_source_is_cited(method):
    cited = re.findall(r"arXiv:\d{4}\.\d{4,5}", method.source)
    assert cited
    assert all(paper in inspect.getdoc(method) for paper in cited)
    assert "Source:" in inspect.getdoc(method)


# --- refusals


@every_sampler
def test_a_nonlinear_operator_is_refused_before_the_network_is_called_or_it_works(method, world, unasked):
    y, square = world.x.double() ** 2, Physics(A=lambda x: x**2)
    if "linear" not in method.requires:
        assert Restorer(world.prior, method(steps=5))(y, square).isfinite().all()
        return
    with pytest.raises(TypeError, match="linear") as refusal:
        Restorer(unasked, method(steps=5)).frames(y, square)
    named = str(refusal.value).partition("These methods take both: ")[2]
    works = [other for other in SAMPLERS.values() if re.search(rf"\b{other.__name__}\b", named)]
    assert works, "the message names no method that would work"
    for other in works:
        assert Restorer(world.prior, other(steps=5))(y, square).isfinite().all()


# --- shapes: the annotations of stsl.shapes hold at run time


def dims(hint):
    """("B", "C", "h", "w") of an annotated alias of stsl.shapes; None for anything else."""
    if get_origin(hint) is not Annotated:
        return None
    shape = re.match(r"\(([^)]*)\)", get_args(hint)[1])
    return [part.strip() for part in shape[1].split(",") if part.strip()] if shape else None


def check_shape(tensor, hint, prior, where):
    names = dims(hint)
    if names is None or not isinstance(tensor, torch.Tensor):
        return
    assert tensor.is_floating_point(), where
    assert tensor.ndim == len(names), where
    if len(names) == 4:
        expected = prior.latent_shape if "h" in names else prior.image_shape
        assert tuple(tensor.shape[1:]) == tuple(expected), where


def watch(monkeypatch, owner, prior, seen):
    """Check every annotated argument and result of a class's own methods, at every call."""
    for name, function in inspect.getmembers(owner, inspect.isfunction):
        hints = get_type_hints(function, include_extras=True)
        if not any(dims(hint) for hint in hints.values()):
            continue

        def checked(*args, _function=function, _hints=hints, _name=f"{owner.__name__}.{name}", **kwargs):
            bound = inspect.signature(_function).bind(*args, **kwargs).arguments
            for key, value in bound.items():
                check_shape(value, _hints.get(key), prior, f"{_name}({key})")
            out = _function(*args, **kwargs)
            check_shape(out, _hints.get("return"), prior, f"{_name} -> ")
            seen.add(_name)
            return out

        monkeypatch.setattr(owner, name, checked)


@every_sampler
@pytest.mark.parametrize("task", ["random_inpaint", "sr4"])
def test_annotated_shapes_hold_at_run_time(method, task, world, monkeypatch):
    seen: set[str] = set()
    for owner in (type(world.prior), Problem, Schedule):
        watch(monkeypatch, owner, world.prior, seen)
    run = Restorer(world.prior, method(steps=5)).frames(*world.measure(task))
    for frame in run:
        for value in (frame.state.z, frame.state.clean):
            assert value.shape == (2, *world.prior.latent_shape)
            assert value.dtype == torch.float64
        assert all(number.shape == (2,) for number in frame.state.log.values())
    run.result()
    assert {"GaussianPrior.decode", "Problem.misfit", "Problem.rms"} <= seen
    assert ("GaussianPrior.epsilon" in seen) == (method().nfe > 0)
    assert isinstance(world.prior, Prior)
