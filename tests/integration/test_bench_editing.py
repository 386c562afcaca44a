"""Editing methods and a pipeline of diffusers as rows of a benchmark: the same engine, store and report."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from models import clip_folder, sd15_folder, vit_folder
from stsl import NTI, STSL, STSLCAT, Edit, Editing, images, tasks
from stsl.bench.data import find_pictures
from stsl.bench.drive import Driver, Plan, choose_blocks, choose_rows
from stsl.bench.engine import Local
from stsl.bench.identity import PriorChoice
from stsl.bench.inpainting import InpaintPipeline, load_inpainter
from stsl.bench.report import write_report
from stsl.bench.scores import EditJudge, score_edits, score_missing, take_ceiling
from stsl.bench.store import EDIT_SCORES, Store
from stsl.bench.suite import Data, Suite, load_suite
from stsl.bench.ways import Inpainted
from stsl.cli import main
from stsl.perceptual.clip import load_clip
from stsl.priors import load
from stsl.rng import generator

QUICK = {"steps": 2, "guidance": 3.0, "null_steps": 1}
SUITE = {
    "name": "edits",
    "title": "A table of edits",
    "source": "nowhere",
    "data": {"layout": "faces", "images": 3, "only": "neutral"},
    "edit": {"source": "a photo", "target": "a face", "region": [0.5, 0.25, 0.25, 0.5], "ceiling": "smiling"},
    "blocks": {"latent": {"side": 64}},
    "tasks": {
        "clean": {"spec": "denoise", "noise": 0.0, "published": "edit dog->cat, clean input"},
        "sr4": {"spec": "sr4", "noise": 0.005},
    },
    "methods": [
        {"name": "NTI", "editor": "nti", "block": "latent", "set": QUICK, "published": "NTI"},
        {"name": "NTI-CAT", "editor": "nti-cat", "block": "latent", "set": QUICK | {"lam": 0.1}},
        {
            "name": "LDPS then NTI",
            "editor": "nti",
            "block": "latent",
            "set": QUICK,
            "restorer": {"sampler": "ldps", "set": {"steps": 2}},
            "tasks": ["sr4"],
        },
        {
            "name": "STSL-CAT",
            "editor": "stsl-cat",
            "block": "latent",
            "set": QUICK,
            "restorer": {"sampler": "stsl", "set": {"steps": 2, "inner_steps": 1, "eta": 0.0, "probes": 0}},
            "tasks": ["sr4"],
        },
    ],
    "reference": "NTI",
    "published": {"file": "stsl_table4_ablation.csv", "tables": ["4f"], "comparable": False},
}
UNITS = 3 * (2 + 4)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Batches of equal pictures give equal bits on one thread."""


@pytest.fixture(scope="session")
def latent(tmp_path_factory) -> Path:
    return sd15_folder(tmp_path_factory.mktemp("prior") / "sd", size=64)


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """A Parquet file with three neutral faces and two that smile."""
    import pyarrow
    import pyarrow.parquet as parquet

    draws = torch.Generator().manual_seed(0)
    pngs = [images.encode_png(torch.rand(1, 3, 64, 64, generator=draws)) for _ in range(5)]
    columns = {"image": [{"bytes": png, "path": ""} for png in pngs], "color": [True] * 5}
    path = tmp_path_factory.mktemp("faces") / "faces.parquet"
    parquet.write_table(pyarrow.table(columns | {"emotion": ["neutral", "happiness"] * 2 + ["neutral"]}), path)
    return path


def plan(latent, faces, suite=None, **options):
    table = Suite.model_validate(suite or SUITE)
    blocks, _ = choose_blocks(table, {"latent": str(latent)}, "cpu", "fp32", True)
    return Plan(table, blocks, find_pictures(faces, table.data), batch=3, threads=1, **options)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, latent, faces) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("edited") / "out"
    with Store(out, create=True) as store:
        done = list(Driver(store, plan(latent, faces)).run(Local()))
    torch.set_num_threads(before)
    assert [error for _, error in done if error] == []
    assert len(done) == UNITS
    return out


@pytest.fixture
def finished(tmp_path, finished_once) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished_once, tmp_path / "out"))


@pytest.fixture
def judged(tmp_path) -> Suite:
    """The suite with a CLIP and a ViT."""
    weights = {"clip": str(clip_folder(tmp_path / "clip", length=77)), "vit": str(vit_folder(tmp_path / "vit"))}
    return Suite.model_validate(SUITE | {"edit": SUITE["edit"] | weights})


def rows(out, query="select * from units order by key"):
    with Store(out) as store:
        return [dict(row) for row in store.all(query)]


def test_an_edit_is_a_unit_with_all_of_its_settings(finished_once, latent, faces):
    found = rows(finished_once)
    assert {row["sampler"] for row in found} == {"NTI", "NTICAT", "STSLCAT"}
    settings = [json.loads(row["settings"]) for row in found]
    assert {each["edit"]["target"] for each in settings} == {"a face"}
    assert {(each["restorer"] or {}).get("sampler") for each in settings} == {None, "LDPS", "STSL"}
    by_picture: dict[tuple[str, str], set[str]] = {}
    for row in found:
        by_picture.setdefault((row["image"], row["task"]), set()).add(row["measurement"])
    assert all(len(hashes) == 1 for hashes in by_picture.values())  # one measurement for all editors
    with Store(finished_once) as store:
        assert list(Driver(store, plan(latent, faces)).run(Local())) == []  # nothing twice


def test_another_target_is_another_unit(finished, latent, faces):
    other = SUITE | {"edit": SUITE["edit"] | {"target": "a photo of a face", "mode": "refine"}}
    part = Suite.model_validate(other).only("NTI", "clean").model_dump()
    with Store(finished) as store:
        assert len(list(Driver(store, plan(latent, faces, part)).run(Local()))) == 3
    assert len(rows(finished)) == UNITS + 3


def test_without_weights_it_is_said_what_to_do_and_they_are_used_once_they_are_there(
    finished, judged, tmp_path, monkeypatch
):
    empty = tmp_path / "shelf"
    monkeypatch.setattr("stsl.bench.scores.builtin_folder", lambda: empty)
    without = EditJudge.of(Suite.model_validate(SUITE).edit)
    assert [said.partition(":")[0] for said in without.lacking] == ["no CLIP accuracy", "no distance of keys"]
    assert "CLIPModel" in without.lacking[0]
    with Store(finished) as store:
        assert sum(score_edits(store, judged, without)) == UNITS
        assert sum(score_edits(store, judged, without)) == 0
        assert {row["clip_accuracy"] for row in rows(finished)} == {None}
        assert None not in {row["psnr_outside"] for row in rows(finished)}
        judge = EditJudge.of(judged.edit)
        assert judge.lacking == ()
        assert sum(score_edits(store, judged, judge)) == UNITS
    found = rows(finished)
    assert {row["clip_accuracy"] for row in found} <= {0.0, 1.0}
    assert {row["clip_balanced"] for row in found} <= {0.0, 0.5, 1.0}
    assert all(row["key_distance"] > 0 for row in found)


def test_accuracy_is_what_the_clip_says_of_the_saved_pictures(finished, judged):
    with Store(finished) as store:
        list(score_edits(store, judged, EditJudge.of(judged.edit)))
    clip = load_clip(judged.edit.clip)
    for row in rows(finished)[::5]:
        x = images.read(finished / row["png"]).x
        truth = images.read(finished / "truth" / "64" / f"{row['image']}.png").x
        source, target = clip.similarity(x, ["a photo", "a face"])[0].tolist()
        assert row["clip_accuracy"] == float(target > source)
        assert row["clip_similarity"] == pytest.approx(target, abs=1e-6)
        unedited = clip.similarity(truth, ["a photo", "a face"])[0].tolist()
        assert row["clip_balanced"] == (float(target > source) + float(unedited[0] > unedited[1])) / 2


def test_the_report_has_the_accuracy_its_ceiling_and_the_published_figure(finished, judged, faces):
    with Store(finished) as store:
        judge = EditJudge.of(judged.edit)
        list(score_missing(store))
        list(score_edits(store, judged, judge))
        take_ceiling(store, judged, judge, faces, {"latent": 64})
        write_report(store, judged)
        kept = {row["metric"]: row["value"] for row in store.all("select metric, value from sets")}
    clip = load_clip(judged.edit.clip)
    kinds = [
        find_pictures(faces, judged.data.model_copy(update={"only": only}), limit=9) for only in ("neutral", "smiling")
    ]
    shown = [torch.cat([picture.load().x for picture in pictures]) for pictures in kinds]
    assert kept["clip_balanced"] == pytest.approx(clip.balanced_accuracy(*shown, "a photo", "a face"))
    assert {"source_right_n3", "target_right_n2"} < set(kept)
    text = (finished / "report" / "edits.md").read_text(encoding="utf-8")
    assert "CLIP accuracy: share nearer to the target text" in text
    assert "Ceiling, of real pictures of both kinds: clip balanced" in text
    assert "LPIPS (VGG)" not in text  # the distance to the truth is no quality of an edit
    assert "NTI-CAT, clean | clip_accuracy | 3" in text  # paired with the reference
    assert "not available" in text  # the published accuracy of NTI on clean photos
    assert "Cost of a picture" in text


def test_data_that_do_not_say_who_smiles_give_no_ceiling(finished, judged, faces, tmp_path):
    """A folder has no column of emotions: the same pictures would be those of the source and of the target."""
    import pyarrow.parquet as parquet

    whole = parquet.read_table(faces)
    parquet.write_table(whole.drop(["emotion"]), tmp_path / "unsaid.parquet")
    parquet.write_table(whole.slice(0, 1), tmp_path / "neutral.parquet")
    images.write(tmp_path / "photos" / "a.png", torch.zeros(1, 3, 64, 64))
    judge = EditJudge.of(judged.edit)
    with Store(finished) as store:
        for data in ("photos", "unsaid.parquet", "neutral.parquet"):
            take_ceiling(store, judged, judge, tmp_path / data, {"latent": 64})
            assert store.all("select * from sets") == [], data


def test_an_older_database_gets_the_new_columns(finished):
    with Store(finished) as store:
        for name in (*EDIT_SCORES, "judge"):
            store.db.execute(f"alter table units drop column {name}")
    found = rows(finished)
    assert all(row[name] is None for row in found for name in EDIT_SCORES)


def command(*arguments):
    return main(["bench", "run", *map(str, arguments), "--device", "cpu", "--precision", "fp32", "--offline", "--json"])


def test_the_mini_table_runs_from_the_command_line_without_data(tmp_path, latent, capsys, monkeypatch):
    monkeypatch.setattr("stsl.bench.scores.builtin_folder", lambda: tmp_path / "none")
    given = ("mini-table4f", "--prior", f"latent={latent}", "--tasks", "clean", "--methods", "nti", "--fast")
    assert command(*given, "--limit", 1, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "samples of" in said.err
    (row,) = json.loads(said.out)["rows"]
    assert (row["method"], row["n"]) == ("NTI", 1)
    assert main(["bench", "report", str(tmp_path / "out")]) == 0
    assert "No CLIP accuracy: the CLIP of this table, faces-clip, was not here" in (
        tmp_path / "out" / "report" / "mini-table4f.md"
    ).read_text(encoding="utf-8")


def test_rows_whose_vit_is_not_here_are_left_out_with_the_reason_and_run_when_it_is(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    monkeypatch.setattr("stsl.bench.ways.builtin_folder", lambda: shelf)
    suite = load_suite("mini-table4")
    blocks, _ = choose_blocks(suite, {}, "cpu", "fp32", True)
    kept, _, left_out = choose_rows(suite, blocks, {}, "cpu", "fp32", True)
    assert set(left_out) == {f"STSL[nu={nu}]" for nu in ("0.5", "1", "2", "5", "10")}
    assert "needs a ViT, and this version ships none" in left_out["STSL[nu=2]"]
    assert len(kept.methods) == len(suite.methods) - 5
    vit_folder(shelf / "faces-vit")
    (shelf / "faces-vit" / "SHA256SUMS").write_text("")
    kept, _, left_out = choose_rows(suite, blocks, {}, "cpu", "fp32", True)
    assert left_out == {}
    assert kept.methods == suite.methods


def test_what_is_left_out_stands_in_the_report(tmp_path, latent, faces):
    part = plan(
        latent, faces, Suite.model_validate(SUITE).only("NTI", "clean").model_dump(), left_out={"X": "no X here"}
    )
    with Store(tmp_path / "out", create=True) as store:
        list(Driver(store, part).run(Local()))
        write_report(store, part.suite, pictures=False, distances=False)
    assert "X was not run: no X here" in (tmp_path / "out" / "report" / "edits.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def inpainter(tmp_path_factory, latent) -> Path:
    """A model in the layout of stable-diffusion-inpainting: a UNet with 9 input channels, random weights."""
    folder = Path(shutil.copytree(latent, tmp_path_factory.mktemp("inpainting") / "sd"))
    settings = json.loads((folder / "unet" / "config.json").read_text())
    before = torch.get_rng_state()
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(settings | {"in_channels": 9})
    torch.set_rng_state(before)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"}))
    return folder


@pytest.fixture
def holes():
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    return tasks.measure("box_inpaint", x, noise=0.0, ids=("a", "b"))


def test_a_pipeline_of_ours_is_diffusers_own(inpainter, holes):
    """The reference is loaded by diffusers, which builds networks, tokenizer and prompt by itself."""
    y, physics = holes
    pipeline = InpaintPipeline(steps=2, guidance=3.0, prompt="a photo of a face")
    image, cost = pipeline.solve(
        load_inpainter(PriorChoice(str(inpainter), "cpu", "fp32", True)), y, physics, seed=3, ids=("a", "b")
    )
    theirs = StableDiffusionInpaintPipeline.from_pretrained(inpainter, safety_checker=None, feature_extractor=None)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    expected = theirs(
        prompt=["a photo of a face"] * 2,
        image=y,
        mask_image=1 - physics.mask[:, :1].expand(2, -1, -1, -1),
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[generator(3, "inpaint", name) for name in ("a", "b")],
        output_type="pt",
    ).images
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
    assert cost["unet_samples"] == 2 * 2  # two steps, with and without the prompt


def test_a_hole_is_filled_the_same_in_any_batch_and_with_other_noise_by_another_seed(inpainter, holes):
    y, physics = holes
    loaded, way = load_inpainter(PriorChoice(str(inpainter), "cpu", "fp32", True)), Inpainted(InpaintPipeline(steps=2))
    both = way.solve(loaded, y, physics, seed=0, ids=("a", "b"))
    one = tasks.measure("box_inpaint", torch.zeros(1, 3, 64, 64), noise=0.0, ids=("b",))[1]
    alone = way.solve(loaded, y[1:], one, seed=0, ids=("b",))
    torch.testing.assert_close(both.image[1:], alone.image, rtol=0, atol=1e-5)
    assert not torch.allclose(both.image, way.solve(loaded, y, physics, seed=1, ids=("a", "b")).image, atol=1e-3)
    assert both.facts["unet_samples"] == 2  # nothing to guide by
    known = (physics.mask > 0).expand_as(y)
    expected = torch.stack([(x - v)[k].square().mean().sqrt() for x, v, k in zip(both.image, y, known, strict=True)])
    torch.testing.assert_close(both.residual, expected)


def inpainting_suite(**changes):
    method = {"name": "SD-Inpaint", "pipeline": "inpaint", "block": "latent", "prior": "nobody/nothing"}
    ldps = {"name": "LDPS", "sampler": "ldps", "block": "latent", "set": {"steps": 2}}
    return {
        "name": "holes",
        "title": "Holes",
        "source": "nowhere",
        "data": {"layout": "faces", "images": 2},
        "blocks": {"latent": {"side": 64}},
        "tasks": {"box_inpaint": {"spec": "box_inpaint", "noise": 0.01}, "sr4": {"spec": "sr4", "noise": 0.01}},
        "methods": [ldps, method | {"set": {"steps": 2}, "tasks": ["box_inpaint"]} | changes],
        "reference": "LDPS",
    }


def chosen(suite, latent, **given):
    table = Suite.model_validate(suite)
    blocks, _ = choose_blocks(table, {"latent": str(latent)} | given, "cpu", "fp32", True)
    return table, blocks, choose_rows(table, blocks, given, "cpu", "fp32", True)


def test_a_pipelines_row_has_weights_of_its_own_beside_its_block(tmp_path, latent, inpainter, faces):
    _, blocks, (table, own, left_out) = chosen(inpainting_suite(), latent, **{"SD-Inpaint": str(inpainter)})
    assert left_out == {}
    pictures = find_pictures(faces, Data(layout="faces", images=2))
    with Store(tmp_path / "out", create=True) as store:
        done = list(Driver(store, Plan(table, blocks, pictures, batch=2, threads=1, own=own)).run(Local()))
        assert [error for _, error in done if error] == []
        write_report(store, table, pictures=False)
    found = [row for row in rows(tmp_path / "out") if row["task"] == "box_inpaint"]
    assert {row["sampler"] for row in found} == {"LDPS", "InpaintPipeline"}
    assert len({row["prior_hash"] for row in found}) == 2
    assert len({row["measurement"] for row in found}) == 2  # one of each picture, for both methods
    (filled,) = {row["png"] for row in found if row["sampler"] == "InpaintPipeline" and row["image"] == "faces-0"}
    assert images.read(tmp_path / "out" / filled).x.shape == (1, 3, 64, 64)
    assert "SD-Inpaint, box_inpaint" in (tmp_path / "out" / "report" / "holes.md").read_text(encoding="utf-8")


def test_a_pipeline_without_its_weights_is_left_out_with_what_is_needed(latent, inpainter, tmp_path):
    _, _, (table, own, left_out) = chosen(inpainting_suite(), latent)
    assert [method.name for method in table.methods] == ["LDPS"]
    assert own == {}
    assert "nobody/nothing is not in the cache" in left_out["SD-Inpaint"]
    assert "--prior BLOCK=FOLDER; BLOCK is SD-Inpaint here" in left_out["SD-Inpaint"]
    with pytest.raises(ValueError, match="UNet has 4 input channels, and an inpainting one 9"):
        chosen(inpainting_suite(), latent, **{"SD-Inpaint": str(latent)})
    torn = Path(shutil.copytree(inpainter, tmp_path / "torn"))
    (torn / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vae.*is missing"):
        load_inpainter(PriorChoice(str(torn), "cpu", "fp32", True))


def test_a_pipeline_refuses_what_is_no_hole(inpainter):
    y, physics = tasks.measure("sr4", torch.zeros(1, 3, 64, 64), noise=0.0, ids=("a",))
    loaded = load_inpainter(PriorChoice(str(inpainter), "cpu", "fp32", True))
    with pytest.raises(TypeError, match="fills holes, and"):
        InpaintPipeline(steps=2).solve(loaded, y, physics, seed=0, ids=("a",))
    with pytest.raises(ValueError, match="at least 1 step"):
        InpaintPipeline(steps=0)
    assert load_file(inpainter / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].shape[1] == 9


def test_the_published_suite_declares_the_pipeline_and_the_table_of_edits():
    (row,) = [method for method in load_suite("psld-ffhq256").methods if method.pipeline]
    assert (row.prior, row.tasks) == (
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        ("random_inpaint", "box_inpaint"),
    )
    edits = load_suite("stsl-table4f-editing")
    assert edits.edit is not None
    assert (edits.data.only, edits.edit.ceiling) == ("dogs", "cats")
    assert {load.is_hub_id(name) for name in (edits.edit.clip, edits.edit.vit)} == {True}


def test_editors_that_differ_in_their_last_stage_alone_share_an_inversion(tmp_path, latent):
    prior = load.load_prior(latent, device="cpu", precision="fp32")
    y, physics = tasks.measure("sr4", torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6)), ids=("a",))
    restorer, edit = STSL(steps=2, inner_steps=1, eta=0.0, probes=0), Edit("a photo", "a face")
    first, then = STSLCAT(2, 3.0, null_steps=1, restorer=restorer), NTI(2, 3.0, null_steps=1, restorer=restorer)
    Editing(prior, first, cache=tmp_path).solve(y, physics, edit, ids=("a",))
    run = Editing(prior, then, cache=tmp_path).frames(y, physics, edit, ids=("a",))
    assert run.was_kept
    alone = Editing(prior, then).solve(y, physics, edit, ids=("a",))
    assert torch.equal(run.result().edited, alone.edited)
    own = STSLCAT(2, 3.0, null_steps=1, restorer=STSL(steps=2, eta=0.0, probes=0), pivot="zref")
    assert not Editing(prior, own, cache=tmp_path).frames(y, physics, edit, ids=("a",)).was_kept
