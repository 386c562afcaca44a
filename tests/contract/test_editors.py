"""The same questions to every registered editor, on 16 and on 77 tokens, on either autoencoder."""

import dataclasses
import inspect
import json
import re

import pytest
import torch
from torch.testing import assert_close

from models import prior_named, sd15_folder
from stsl import STSL, images, tasks
from stsl.editing import Editing
from stsl.editors import EDITORS, Edit
from stsl.memory import OutOfMemory
from stsl.priors.attention import text_prior
from stsl.priors.gaussian import GaussianPrior
from stsl.priors.load import load_prior
from stsl.problem import Problem
from stsl.samplers import PSLD

PRIORS = ("faces-128", "kl fp16 files")
SMILE = Edit("a neutral face", "a smiling face")
SAME = Edit("a neutral face", "a neutral face")

every_editor = pytest.mark.parametrize("method", EDITORS.values(), ids=EDITORS)
every_knob = pytest.mark.parametrize(
    ("method", "knob"),
    [
        pytest.param(m, f, id=f"{name}.{f.name}")
        for name, m in EDITORS.items()
        for f in dataclasses.fields(m)
        if f.name != "restorer"
    ],
)


def quick(method, **more):
    """Few steps: these tests ask whether things work, not how well."""
    fields = {f.name for f in dataclasses.fields(method)}
    few = {"steps": 2, "null_steps": 1, "measured": 0.5}
    if method.__name__ == "STSLCAT":
        more = {"restorer": STSL(steps=2, inner_steps=1, eta=0.0, probes=0)} | more
    return method(**{key: value for key, value in few.items() if key in fields} | more)


def untuned(method):
    """Tuning moves the target alone: the settings without it."""
    return {"measured": 0.0} if "measured" in {f.name for f in dataclasses.fields(method)} else {}


@pytest.fixture(scope="module", params=PRIORS)
def prior(request, tmp_path_factory):
    return prior_named(request.param, tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prior_named("kl", tmp_path_factory.mktemp("sd"))


def measured(prior, task="sr4"):
    return tasks.measure(task, images.astronaut_face(prior.image_shape[-1]), noise=0.005, ids=["a"])


@pytest.fixture(scope="module")
def edited(prior, tmp_path_factory):
    """Results of every editor, each made once, and each inversion once: edited(method, edit, **settings)."""
    known, cache = {}, tmp_path_factory.mktemp("inversions")

    def result(method, edit, **more):
        key = (method, str(edit), str(more))
        if key not in known:
            known[key] = Editing(prior, quick(method, **more), cache=cache).solve(*measured(prior), edit, ids=["a"])
        return known[key]

    return result


# --- what comes out


@every_editor
def test_images_are_finite_in_range_and_another_text_is_another_image(method, prior, edited):
    result = edited(method, SMILE)
    for x in (result.restored, result.edited, result.again):
        assert x.shape == (1, *prior.image_shape)
        assert 0 <= x.min() <= x.max() <= 1
    assert not torch.allclose(result.edited, edited(method, SAME).edited)


@every_editor
def test_the_source_is_bit_by_bit_the_same_whatever_the_target(method, edited):
    assert torch.equal(edited(method, SMILE).again, edited(method, SAME).again)
    assert torch.equal(edited(method, SMILE).restored, edited(method, SAME).restored)


@every_editor
def test_identical_prompts_give_identical_branches(method, edited):
    result = edited(method, SAME, **untuned(method))
    assert torch.equal(result.edited, result.again)
    sources, targets = result.maps.chunk(2)
    assert torch.equal(sources, targets)


@every_editor
def test_maps_of_words_that_are_the_same_follow_the_source(method, edited):
    """Weights change the map of the named word, averaged over all steps and layers, and no other."""
    edit = Edit("a neutral face", "a neutral face", cross=1.0, weights={"face": 3.0})
    result = edited(method, edit, **untuned(method))
    named = list(result.words[1].tokens("face"))
    rest = [place for place in range(result.maps.shape[1]) if place not in named]
    source, target = result.maps.chunk(2)
    assert torch.equal(target[:, rest], source[:, rest])
    assert_close(target[:, named], 3 * source[:, named])


@every_editor
def test_frames_go_stage_by_stage_and_the_last_one_holds_the_result(method, tiny):
    run = Editing(tiny, quick(method)).frames(*measured(tiny), SMILE, ids=["a"])
    frames = list(run)
    stages = list(dict.fromkeys(frame.stage for frame in frames))
    expected = {"STSLCAT": ["restore", "invert", "null", "edit"], "PromptToPrompt": ["invert", "edit"]}
    assert stages == expected.get(method.__name__, ["invert", "null", "edit"])
    for stage in stages:
        own = [frame for frame in frames if frame.stage == stage]
        assert [frame.index for frame in own] == list(range(own[0].total))
        for frame in own:
            assert 0 <= run.preview(frame).min() <= run.preview(frame).max() <= 1
    assert_close(run.result().edited, tiny.decode(frames[-1].state.z).clamp(0, 1))
    json.dumps(run.result().record(), allow_nan=False)


@every_editor
def test_runs_are_reproducible_and_leave_global_state_alone(method, tiny):
    y, physics = measured(tiny)
    y0 = y.clone()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Editing(tiny, quick(method)).solve(y, physics, SMILE, ids=["a"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(y, y0)
    torch.manual_seed(2)
    with torch.inference_mode():
        again = Editing(tiny, quick(method)).solve(*measured(tiny), SMILE, ids=["a"])
    assert torch.equal(first.edited, again.edited)


@every_editor
def test_the_network_is_free_between_frames_and_after_a_closed_run(method, tiny):
    before = tiny.unet.attn_processors
    run = Editing(tiny, quick(method)).frames(*measured(tiny), SMILE, ids=["a"])
    for frame in run:
        assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before.values(), strict=True))
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        if frame.stage == "edit":
            break
    run.close()
    assert all(now is then for now, then in zip(tiny.unet.attn_processors.values(), before.values(), strict=True))
    with pytest.raises(RuntimeError, match="stopped before its end"):
        run.result()


def test_an_image_does_not_depend_on_its_batch():
    # A trained network: random ones with a norm over two numbers turn a last bit into another image.
    prior = load_prior("faces-128", device="cpu", precision="fp32")
    x = torch.cat([images.astronaut_face(128), images.astronaut_face(128).flip(3)])
    y, physics = tasks.measure("sr4", x, noise=0.005, ids=["a", "b"])
    editing = Editing(
        prior, quick(EDITORS["stsl-cat"], null_steps=0, probes=0)
    )  # tests/exact has null-text optimisation
    both = editing.solve(y, physics, SMILE, ids=["a", "b"]).edited
    alone = editing.solve(y[1:], physics, SMILE, ids=["b"]).edited
    # float32 networks whose batches differ; the restorer's Adam and guidance enlarge their last bits.
    assert_close(both[1:], alone, rtol=0, atol=1e-3)
    assert (both[0] - both[1]).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_networks_tune_an_embedding_in_float32(precision, tmp_path):
    prior = load_prior(sd15_folder(tmp_path / "sd", dtype=torch.float16), device="cpu", precision=precision)
    errors = []
    for null_steps in (0, 5):
        run = Editing(prior, quick(EDITORS["nti"], null_steps=null_steps)).frames(*measured(prior), SMILE, ids=["a"])
        logs = [(frame.state.log["null_error"], frame.state.memory.null) for frame in run if frame.stage == "null"]
        assert all(null.dtype == torch.float32 for _, null in logs)
        errors.append(logs[-1][0])
        assert run.result().edited.isfinite().all()
    assert errors[1] < errors[0]


# --- an inversion is kept


@every_editor
def test_a_second_edit_pays_no_second_inversion(method, tiny, tmp_path):
    editing = Editing(tiny, quick(method), cache=tmp_path)
    first = editing.solve(*measured(tiny), SMILE, ids=["a"])
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".safetensors"
    other = Edit("a neutral face", "a sad face", self_attention=0.2)
    run = editing.frames(*measured(tiny), other, ids=["a"])
    assert {frame.stage for frame in run} == {"edit"}
    result = run.result()
    fresh = Editing(tiny, quick(method)).solve(*measured(tiny), other, ids=["a"])
    assert torch.equal(result.edited, fresh.edited)
    assert torch.equal(result.restored, first.restored)
    assert result.settings["inversion_was_kept"]
    assert not first.settings["inversion_was_kept"]
    assert result.cost.unet_samples < fresh.cost.unet_samples
    assert list(tmp_path.iterdir()) == [file]


def test_what_an_inversion_depends_on_makes_another_one(tiny, tmp_path, tmp_path_factory):
    method = EDITORS["nti-cat"]
    y, physics = measured(tiny)
    edit = Edit("a face", "a dog")

    def keys(prior=tiny, editor=None, y=y, physics=physics, edit=edit, **more):
        editing = Editing(prior, editor or quick(method), cache=tmp_path)
        return editing.frames(y, physics, edit, ids=more.pop("ids", ["a"]), **more).kept.name

    known = keys()
    assert keys() == known
    assert keys(edit=Edit("a face", "a cat")) == known
    assert keys(editor=quick(method, lam=0.3, measured=0.1)) == known
    another = load_prior(sd15_folder(tmp_path_factory.mktemp("sd"), seed=1), device="cpu", precision="fp32")
    another.name = tiny.name
    changed = [
        keys(prior=another),
        keys(editor=quick(method, guidance=3.0)),
        keys(editor=quick(method, restorer=PSLD(steps=3))),
        keys(edit=Edit("a photo", "a dog")),
        keys(y=y + 1e-3),
        keys(physics=_scaled(physics)),
        keys(seed=1),
        keys(ids=["b"]),
    ]
    assert len({known, *changed}) == 1 + len(changed)


def _scaled(physics):
    """The same class of operator, a little darker."""
    from deepinv.physics import LinearPhysics

    return LinearPhysics(
        A=lambda x: 0.99 * physics.A(x),
        A_adjoint=lambda v: 0.99 * physics.A_adjoint(v),
        noise_model=physics.noise_model,
    )


# --- hyper-parameters


@every_editor
def test_an_editor_is_a_frozen_value_whose_settings_survive_json(method):
    assert method() == method()
    assert hash(method()) == hash(method())
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().steps = 7
    settings = json.loads(json.dumps(method(steps=7).settings()))
    restorer = settings.pop("restorer")
    assert restorer is None or restorer["sampler"] == "STSL"
    again = {} if restorer is None else {"restorer": method().restorer}
    assert method(**settings, **again) == method(steps=7)


@every_knob
def test_a_knob_has_a_meaning_a_range_and_refuses_what_is_outside(method, knob):
    meta = knob.metadata
    assert meta["help"].strip()
    assert type(knob.default) is knob.type
    if knob.type in (int, float):
        assert meta["low"] <= knob.default <= meta["high"]
        for value in (meta["low"] - 1, meta["high"] + 1):
            with pytest.raises(ValueError, match=r"must be a finite number in"):
                method(**{knob.name: value})
    if meta["choices"]:
        assert knob.default in meta["choices"]
        with pytest.raises(ValueError, match="choose one of"):
            method(**{knob.name: "no such choice"})


@every_editor
def test_the_source_is_cited(method):
    cited = re.findall(r"arXiv:\d{4}\.\d{4,5}", method.source)
    assert cited
    assert all(paper in inspect.getdoc(method) for paper in cited)


# --- refusals, before any network is called


@pytest.fixture
def unasked(tiny, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the network was called")

    for name in ("epsilon", "encode", "decode"):
        monkeypatch.setattr(tiny, name, fail)
    return tiny


@every_editor
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"mode": "replace", "target": "a very happy face"},
            r"3 and 4 words \(a, neutral, face \| a, very, happy, face\)",
        ),
        ({"blend": ("nose", "face")}, r"'a neutral face' has no word 'nose'.*it has a, neutral, face"),
        ({"blend": ("face", "nose")}, r"'a smiling face' has no word 'nose'"),
        ({"weights": {"nose": 2.0}}, r"'a smiling face' has no word 'nose'"),
        ({"gates": {"neutral": 0.5}}, r"'a smiling face' has no word 'neutral'"),
        ({"source": "face " * 90}, r"92 tokens with start and end"),
    ],
    ids=["length", "blend source", "blend target", "weight", "gate", "long"],
)
def test_prompts_and_words_that_do_not_fit_are_refused(method, edit, message, unasked):
    edit = Edit(**{"source": "a neutral face", "target": "a smiling face"} | edit)
    with pytest.raises(ValueError, match=message):
        Editing(unasked, quick(method)).frames(*measured(unasked), edit)


@every_editor
def test_a_prior_without_text_is_refused(method):
    prior = GaussianPrior(torch.zeros(3, 8, 8), torch.eye(192))
    y, physics = tasks.measure("sr4", torch.rand(1, 3, 8, 8), noise=0.005, ids=["a"])
    with pytest.raises(TypeError, match="'gaussian' is no text-conditional UNet, so a text cannot edit its images"):
        Editing(prior, quick(method)).frames(y, physics, SMILE)


def test_an_edit_that_makes_no_sense_is_refused():
    for wrong, message in [
        ({"target": "  "}, "needs a target prompt"),
        ({"mode": "replase"}, "did you mean 'replace'"),
        ({"cross": 1.2}, r"cross = 1.2 is a share"),
        ({"gates": {"face": -1.0}}, r"face = -1.0 is a share"),
        ({"weights": {"face": float("inf")}}, r"weight inf of 'face'"),
        ({"blend": ("face",)}, "give two words"),
    ]:
        with pytest.raises(ValueError, match=message):
            Edit(**{"source": "a face", "target": "a face"} | wrong)


def test_stages_that_do_not_fit_are_refused(unasked):
    y, physics = measured(unasked)
    editor = EDITORS["stsl-cat"](steps=20, pivot="zref", restorer=STSL.preset("balanced"))
    with pytest.raises(ValueError, match=r'pivot="zref".*of 30 levels where the edit has 20'):
        Editing(unasked, editor).frames(y, physics, SMILE)
    with pytest.raises(ValueError, match=r"nu = 0.02 needs a ViT.*Without one set nu to 0"):
        Editing(unasked, EDITORS["stsl-cat"](nu=0.02, vit="no/such/folder")).frames(y, physics, SMILE)


def test_editors_are_refused_a_problem_they_cannot_run(tiny):
    from deepinv.physics import Physics

    problem = Problem(torch.rand(1, 3, 64, 64), Physics(A=lambda x: x**2), tiny)
    for method in EDITORS.values():
        with pytest.raises(TypeError, match="linear"):
            quick(method).check(problem, SMILE)


# --- memory


def test_a_run_that_is_out_of_memory_saves_some_and_starts_again(tmp_path, monkeypatch):
    prior = load_prior(sd15_folder(tmp_path / "sd"), device="cpu", precision="fp32")
    whole = Editing(prior, quick(EDITORS["nti"])).solve(*measured(prior), SMILE, ids=["a"])
    calls, epsilon = [], prior.epsilon

    def scarce(*arguments):
        calls.append(prior.checkpointing)
        if not prior.checkpointing and len(calls) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return epsilon(*arguments)

    monkeypatch.setattr(prior, "epsilon", scarce)
    result = Editing(prior, quick(EDITORS["nti"])).solve(*measured(prior), SMILE, ids=["a"])
    assert prior.checkpointing
    assert_close(result.edited, whole.edited)

    def none(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(prior, "epsilon", none)
    with pytest.raises(OutOfMemory, match="--editor p2p"):
        Editing(prior, quick(EDITORS["nti"])).solve(*measured(prior), SMILE, ids=["a"])


def test_the_network_is_found_under_wrappers(tiny):
    from stsl.cost import Metered
    from stsl.editors.base import FirstLevel

    assert text_prior(FirstLevel(Metered(tiny))) is tiny
