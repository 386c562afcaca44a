"""Suites, published figures and the pictures of a benchmark."""

import csv
import io
import json
import pickle

import pytest
import torch
import yaml
from PIL import Image as Picture
from pydantic import ValidationError

from stsl import images
from stsl.bench.data import find_pictures
from stsl.bench.published import figures, published_folder
from stsl.bench.suite import Data, Method, Published, Suite, load_suite, suite_folder, suite_names

PUBLISHED_SUITES = {
    "psld-ffhq256",
    "stsl-table1-ffhq",
    "stsl-table1-imagenet",
    "stsl-table2",
    "stsl-table3",
    *(f"stsl-table4{letter}" for letter in "abcde"),
    "stsl-table4f-editing",
    "stsl-table5",
}


def content(name="mini-table1"):
    return yaml.safe_load((suite_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_published_table_has_its_suite():
    assert set(suite_names()) >= PUBLISHED_SUITES
    assert {f"mini-{name}" for name in ("table1", "table2", "table3", "table4", "table4f", "table5", "psld")} <= set(
        suite_names()
    )


@pytest.mark.parametrize("name", suite_names())
def test_every_row_and_task_of_a_suite_that_claims_a_published_figure_has_one(name):
    suite = load_suite(name)
    assert suite.name == name
    printed = figures(suite.published)
    known = {(figure.task, figure.method) for figure in printed}
    claimed = [
        (suite.tasks[task].published or task, method.published)
        for method in suite.methods
        for task in suite.tasks
        if method.published and suite.runs(method, task)
    ]
    if suite.published.comparable:
        assert set(claimed) <= known
        # The other way round: no row of the printed table is left out, but for the one whose values are lost.
        assert {method for _, method in known} - {method for _, method in claimed} <= {"STSL[K]"}
    else:
        assert {method for _, method in claimed} <= {method for _, method in known}


@pytest.mark.parametrize("name", suite_names())
def test_super_resolution_by_8_is_not_run_at_64_pixels(name):
    suite = load_suite(name)
    for task, corruption in suite.tasks.items():
        if corruption.spec.startswith("sr8"):
            assert all(suite.blocks[block].side >= 128 for block in suite.blocks_of(task))


def test_a_suite_that_runs_sr8_at_64_is_refused():
    wrong = content()
    del wrong["tasks"]["sr8"]["blocks"]
    with pytest.raises(ValidationError, match="sr8 at 64 pixels leaves 8"):
        Suite.model_validate(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(sampler="x"), "Extra inputs"),
        (lambda s: s["methods"][0].update(code="import os"), "Extra inputs"),
        (lambda s: s["methods"][0].update(sampler="my_file.py:Mine"), "unknown sampler"),
        (lambda s: s["methods"][0].update(sampler="pslt"), "did you mean 'psld'"),
        (lambda s: s["methods"][0].update(set={"stepps": 3}), "stepps"),
        (lambda s: s["methods"][0].update(preset="papr"), "did you mean 'paper'"),
        (lambda s: s["methods"][0].update(name="PSLD"), "two methods have one name"),
        (lambda s: s["methods"][0].update(block="latnt"), "did you mean 'latent'"),
        (lambda s: s["tasks"]["sr4"].update(spec="sr5"), "unknown task"),
        (lambda s: s.update(reference="none"), "no method"),
        (lambda s: s["methods"][0].update(name="STSL, again"), "has a comma"),
        (lambda s: s["methods"][0].update(editor="nti"), "one of sampler, editor and pipeline"),
        (lambda s: s["methods"][0].update(restorer={"sampler": "psld"}), "only an editor has a restorer"),
        (lambda s: s["methods"][0].update(prior="a/b"), "a pipeline names the weights"),
        (lambda s: s["methods"].append({"name": "x", "editor": "nti", "block": "latent"}), "edits: say what"),
        (lambda s: s["methods"].append({"name": "x", "editor": "ntj", "block": "latent"}), "did you mean 'nti'"),
        (lambda s: s["methods"].append({"name": "x", "pipeline": "paint", "block": "latent"}), "'inpaint'"),
    ],
)
def test_what_a_suite_does_not_know_is_refused(change, said, tmp_path):
    wrong = content()
    change(wrong)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_suite(path)


def test_a_suite_cannot_make_python_objects(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(ValueError, match="not YAML"):
        load_suite(path)


def test_methods_and_tasks_are_chosen_by_name():
    part = load_suite("mini-table1").only("stsl,GML-DPS", "sr4")
    assert [method.name for method in part.methods] == ["STSL", "GML-DPS"]
    assert list(part.tasks) == ["sr4"]
    with pytest.raises(ValueError, match="did you mean 'psld'"):
        load_suite("mini-table1").only("pslt", None)
    with pytest.raises(ValueError, match="mini-table1 runs none of DPS, DiffPIR on sr8"):
        load_suite("mini-table1").only("dps,diffpir", "sr8")


def test_an_editor_behind_a_restorer_is_called_by_both():
    suite = load_suite("mini-table4f")
    assert [method.name for method in suite.only("nti,psld+nti", None).methods] == ["NTI", "PSLD then NTI"]
    assert [method.name for method in suite.only("stsl then nti", None).methods] == ["STSL then NTI"]


def test_what_makes_a_row_holds_under_fast_too():
    rows = {method.name: method for method in load_suite("mini-table4").methods}
    assert rows["STSL[K=10]"].build("salt_pepper", fast=True).inner_steps == 10
    assert rows["STSL[T=5]"].build("salt_pepper", fast=True).steps == 5
    assert rows["STSL[T=5]"].build("salt_pepper").inner_steps == 5


def edits(**changes):
    wrong = content("mini-table4f")
    wrong["edit"] |= changes.pop("edit", {})
    wrong["methods"][3] |= changes
    return wrong


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edit": {"region": [0, 0, 1, 1]}}, "whole picture"),
        ({"edit": {"target": ""}}, "needs a target prompt"),
        ({"edit": {"cross": 1.5}}, "share of the steps"),
        ({"restorer": {"sampler": "admm_tv"}}, "unknown restorer"),
        ({"restorer": {"sampler": "psld", "preset": "papr"}}, "no preset 'papr'"),
        ({"set": {"lam": 0.1}}, "lam"),
        ({"preset": "fast"}, "only a sampler has presets"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_an_edit_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        Suite.model_validate(edits(**changes))


@pytest.mark.parametrize("name", suite_names())
def test_what_a_worker_is_given_can_go_to_another_process(name):
    suite = load_suite(name)
    for method in suite.methods:
        for task, corruption in suite.tasks.items():
            if suite.runs(method, task):
                way = method.way(corruption.spec, suite.edit)
                there = pickle.loads(pickle.dumps(way))
                assert there == way
                assert json.loads(json.dumps(there.settings())) == way.settings()


@pytest.mark.parametrize("name", sorted(PUBLISHED_SUITES))
def test_a_contrastive_term_at_512_pixels_names_a_vit_of_photos(name):
    """The built-in one knows faces of 64 pixels; a row that names no other would be run with it, or left out."""
    suite = load_suite(name)
    for method in suite.methods:
        settings = method.way("sr4", suite.edit).settings()
        for part in (settings, settings.get("restorer") or {}):
            assert not part.get("nu") or part["vit"] == "facebook/dino-vitb8", method.name


def test_an_editors_row_has_its_restorer_and_what_the_suite_changes():
    suite = load_suite("mini-table4f")
    rows = {method.name: method.way("sr8", suite.edit) for method in suite.methods}
    assert (rows["NTI"].name, rows["NTI"].settings()["restorer"]) == ("NTI", None)
    assert rows["PSLD then NTI"].settings()["restorer"]["sampler"] == "PSLD"
    assert rows["STSL-CAT"].settings()["edit"]["target"] == "a smiling face"
    quick = {method.name: method.way("sr8", suite.edit, fast=True).settings() for method in suite.methods}
    assert quick["NTI"]["steps"] == 10 < rows["NTI"].settings()["steps"]
    assert quick["STSL-CAT"]["restorer"]["steps"] < rows["STSL-CAT"].settings()["restorer"]["steps"]
    with_ten = Method.model_validate({"name": "x", "editor": "nti", "block": "b", "vary": {"steps": 7}})
    assert with_ten.build("sr8", fast=True).steps == 7  # what makes the row holds


def test_no_published_figure_is_filled_in_and_doubtful_ones_do_not_count():
    for path in published_folder().glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert row["evidence"] in ("paper", "secondary", "missing")
                assert row["evidence"] == "paper" or not row["value"] or row["evidence"] == "secondary"
    editing = figures(Published(file="stsl_table4_ablation.csv", tables=("4f",)))
    assert len(editing) == 4
    assert not any(figure.counts for figure in editing)
    assert sorted(str(figure) for figure in editing)[0].endswith("(unverified)")


def test_ssim_of_the_tables_is_brought_to_our_scale():
    (figure,) = [
        f
        for f in figures(load_suite("stsl-table1-ffhq").published)
        if (f.task, f.method, f.metric) == ("sr8", "STSL", "ssim")
    ]
    assert figure.value == pytest.approx(0.9132)


def picture(path, side=40, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.new("RGB", (side, side + 8), (value, 90, 30)).save(path)


def test_pictures_of_the_published_layouts_are_found(tmp_path):
    for number in range(3):
        picture(tmp_path / "ffhq" / "images1024x1024" / "00000" / f"{number:05}.png")
        picture(tmp_path / "coco" / "val2017" / f"{number:012}.jpg")
        picture(tmp_path / "imagenet" / "val" / f"n0208562{number}" / f"ILSVRC2012_val_{number:08}.JPEG")
    picture(tmp_path / "imagenet" / "val" / "n01440764" / "ILSVRC2012_val_00000009.JPEG")
    ffhq = find_pictures(tmp_path / "ffhq", Data(layout="ffhq", images=2))
    assert [p.id for p in ffhq] == ["00000", "00001"]
    assert len(find_pictures(tmp_path / "coco", Data(layout="coco", images=3))) == 3
    assert len(find_pictures(tmp_path / "imagenet", Data(layout="imagenet", images=4))) == 4
    assert len(find_pictures(tmp_path / "imagenet", Data(layout="imagenet", images=3, only="dogs"))) == 3
    picture(tmp_path / "imagenet" / "val" / "n02123159" / "ILSVRC2012_val_00000008.JPEG")
    (cat,) = find_pictures(tmp_path / "imagenet", Data(layout="imagenet", images=9, only="cats"), limit=9)
    assert cat.id == "ILSVRC2012_val_00000008"
    (tmp_path / "imagenet" / "ctest10k.txt").write_text("ILSVRC2012_val_00000009.JPEG 1\n", encoding="utf-8")
    (listed,) = find_pictures(tmp_path / "imagenet", Data(layout="imagenet", images=1))
    assert listed.id == "ILSVRC2012_val_00000009"


def test_a_random_choice_does_not_depend_on_what_else_is_asked_for(tmp_path):
    for number in range(12):
        picture(tmp_path / f"{number:03}.png")
    drawn = [p.id for p in find_pictures(tmp_path, Data(layout="coco", images=12, choose="random"))]
    assert drawn != sorted(drawn)
    few = [p.id for p in find_pictures(tmp_path, Data(layout="coco", images=12, choose="random"), limit=4)]
    assert few == drawn[:4]
    other = [p.id for p in find_pictures(tmp_path, Data(layout="coco", images=12, choose="random", seed=1))]
    assert other != drawn


def test_too_few_pictures_are_refused_with_what_to_place_where(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"1 pictures where this table takes 5.*val2017.*cocodataset"):
        find_pictures(tmp_path, Data(layout="coco", images=5))
    with pytest.raises(FileNotFoundError, match=r"no data at .*images1024x1024"):
        find_pictures(tmp_path / "nowhere", Data(layout="ffhq", images=5))
    with pytest.raises(FileNotFoundError, match=r"no picture for this table.* of the dogs .*in folders by class"):
        find_pictures(tmp_path, Data(layout="imagenet", images=5, only="dogs"), limit=1)
    (tmp_path / "faces.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match=r"faces\.parquet is no Parquet file"):
        find_pictures(tmp_path / "faces.parquet", Data(layout="faces", images=5))


def test_a_parquet_file_gives_colour_and_grey_in_turns(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    def png(value):
        buffer = io.BytesIO()
        Picture.new("RGB", (16, 16), (value, 0, 0)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{value}.png"}

    colour = [True, True, True, False, False]
    emotion = ["neutral", "happiness", "", "neutral", "neutral"]
    table = pyarrow.table({"image": [png(value) for value in range(5)], "color": colour, "emotion": emotion})
    parquet.write_table(table, tmp_path / "faces.parquet")
    found = find_pictures(tmp_path / "faces.parquet", Data(layout="faces", images=5))
    assert [p.id for p in found] == ["faces-0", "faces-3", "faces-1", "faces-4", "faces-2"]
    assert [p.tag for p in found] == ["colour", "grey", "colour", "grey", "colour"]
    assert round(float(found[1].load().x[0, 0, 0, 0]) * 255) == 3
    kinds = {
        only: [
            p.id for p in find_pictures(tmp_path / "faces.parquet", Data(layout="faces", images=9, only=only), limit=9)
        ]
        for only in ("neutral", "smiling")
    }
    assert kinds == {"neutral": ["faces-0", "faces-3", "faces-4"], "smiling": ["faces-1"]}


def test_the_square_is_the_middle_of_the_photo(tmp_path):
    path = tmp_path / "wide.png"
    stripes = Picture.new("RGB", (60, 20), (0, 0, 0))
    stripes.paste((255, 255, 255), (20, 0, 40, 20))
    stripes.save(path)
    x = images.square(images.read(path), 20)
    assert x.shape == (1, 3, 20, 20)
    assert torch.equal(x, torch.ones_like(x))


def test_a_task_may_have_a_preset_of_its_own():
    (row,) = [method for method in load_suite("psld-ffhq256").methods if method.name == "PSLD"]
    assert (row.build("sr4").omega, row.build("box_inpaint").omega) == (1.0, 0.1)


def test_a_suite_of_ones_own_needs_no_published_figures_and_reads_no_other_file():
    own = content()
    del own["published"]
    assert figures(Suite.model_validate(own).published) == []
    for path in ("../secret.csv", "/etc/passwd"):
        with pytest.raises(ValidationError, match="pattern"):
            Suite.model_validate(own | {"published": {"file": path}})


def test_pictures_of_one_name_get_their_folders_into_it(tmp_path):
    for name in ("a/x.png", "b/x.png", "y.png"):
        picture(tmp_path / name)
    found = find_pictures(tmp_path, Data(layout="faces", images=3))
    assert {p.id for p in found} == {"a_x_png", "b_x_png", "y"}
