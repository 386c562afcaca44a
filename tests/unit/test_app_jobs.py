"""What visitors can have done, without a page: a model with random weights, and real photos."""

import dataclasses
import json
import os
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from models import pixel_folder, sd15_folder
from stsl import images, tasks
from stsl.app import jobs, orders, outcomes, sentences
from stsl.app.deadline import Overtime
from stsl.app.house import House, Limits
from stsl.app.orders import Damage, EditOrder, Order, Part
from stsl.estimate import Estimate
from stsl.images import Box
from stsl.loop import Diverged
from stsl.priors.load import load_prior

QUICK = {"steps": 2, "inner_steps": 1}
GPS = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x88%\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\x01\0\x01\0\x02\0\0\0\x02N\0\0\0\0\0\0\0"


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors")
    latent, pixel = sd15_folder(folder / "latent", size=64), pixel_folder(folder / "pixel", size=32)
    return {name: load_prior(path, device="cpu", precision="fp32") for name, path in (("sd", latent), ("px", pixel))}


@pytest.fixture
def house(priors, tmp_path):
    return House(priors, tmp_path / "results", Limits(megapixels=0.1, samples=3))


@pytest.fixture
def photo(tmp_path):
    """64 x 64 pixels, which is what the latent model makes."""
    path = tmp_path / "my photo.png"
    images.write(path, images.astronaut_face(64))
    return path


def mask_file(path, hole):
    Picture.fromarray((255 * hole).astype(np.uint8)).save(path)
    return path


def order(photo, damage=None, method="psld", model="sd", **more):
    damage = damage or Damage("denoise")
    settings = {"steps": 2} if method != "stsl" else QUICK
    return Order(photo, damage, method, orders.sampler(method, "Fast", damage.kind, settings), model, **more)


def outcome(steps):
    *_, last = steps
    assert last.outcome is not None
    return last.outcome


def pixels(path):
    return np.asarray(Picture.open(path))


def test_a_restoration_says_how_far_it_is_and_leaves_everything(house, photo):
    steps = list(jobs.restore(house, order(photo)))
    told = [step for step in steps if step.said.startswith("step")]
    assert [step.said for step in told] == ["step 1 of 2", "step 2 of 2"]
    assert [step.done for step in told] == [0.5, 1.0]
    assert told[0].preview.shape == (1, 3, 64, 64)
    done = outcome(steps)
    assert done.picture.name == "my photo.png"
    assert pixels(done.picture).shape == (64, 64, 3)
    assert [path.stem for path in done.check] == ["measured", "predicted", "difference"]
    assert done.expected == pytest.approx(0.005)
    assert done.samples == ()
    assert Picture.open(done.before).size == Picture.open(done.after).size


def test_the_settings_are_complete_and_name_no_place_on_the_server(house, photo, tmp_path):
    done = outcome(jobs.restore(house, order(photo, seed=3, prompt="a face", part=Part("whole"))))
    text = json.dumps(done.settings)
    assert str(tmp_path) not in text
    assert str(tmp_path) not in done.record.read_text(encoding="utf-8")
    assert "log" not in done.settings
    assert "log" in json.loads(done.record.read_text(encoding="utf-8"))
    said = {key: done.settings[key] for key in ("photo", "method", "model", "task", "seed", "prompt", "part")}
    expected = {"photo": "my photo.png", "method": "psld", "model": "sd", "task": "denoise"}
    assert said == expected | {"seed": 3, "prompt": "a face", "part": "whole"}
    assert done.settings["sampler_settings"]["steps"] == 2


def test_known_pixels_of_an_upright_portrait_equal_the_upload(house, tmp_path):
    """The file lies on its side and says so; the mask is painted on what the visitor sees."""
    upright = np.random.default_rng(0).integers(0, 256, (120, 80, 3), dtype=np.uint8)
    path = tmp_path / "phone.png"
    exif = Picture.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    Picture.fromarray(np.rot90(upright)).save(path, exif=exif)
    hole = np.zeros((120, 80), bool)
    hole[20:50, 40:70] = True
    mask = mask_file(tmp_path / "mask.png", hole)
    done = outcome(jobs.restore(house, order(path, Damage("mask", noise=0.0, mask=mask))))
    result = pixels(done.picture)
    assert result.shape == upright.shape
    assert (result[~hole] == upright[~hole]).all()
    assert (result[hole] != upright[hole]).any()
    assert done.kept


def test_transparency_and_16_bits_stay_and_the_place_goes(house, tmp_path):
    deep = images.astronaut_face(64) * 0.987
    like = images.Photo(
        x=deep,
        alpha=torch.linspace(0, 1, 64).expand(1, 1, 64, 64),
        is_grey=False,
        bits=16,
        format="PNG",
        exif=GPS,
        icc=b"",
        path=tmp_path,
    )
    images.write(tmp_path / "deep.png", deep, like=like)
    assert images.read(tmp_path / "deep.png").exif
    done = outcome(jobs.restore(house, order(tmp_path / "deep.png")))
    again = images.read(done.picture)
    assert again.bits == 16
    assert torch.allclose(again.alpha, like.alpha, atol=1e-4)
    assert again.exif == b""
    assert b"eXIf" not in done.picture.read_bytes()


def test_a_large_photo_is_restored_around_the_hole_at_its_own_size(house, tmp_path):
    path = tmp_path / "large.png"
    upload = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Picture.fromarray(upload).save(path)
    hole = np.zeros((200, 300), bool)
    hole[100:120, 200:230] = True
    done = outcome(
        jobs.restore(house, order(path, Damage("mask", noise=0.0, mask=mask_file(tmp_path / "m.png", hole))))
    )
    assert done.settings["box"] == {"top": 78, "left": 183, "height": 64, "width": 64}
    assert (pixels(done.picture)[~hole] == upload[~hole]).all()


def test_several_samples_have_a_mean_and_a_spread(house, photo):
    done = outcome(jobs.restore(house, order(photo, samples=2)))
    assert [path.name for path in done.samples] == ["my photo_sample0.png", "my photo_sample1.png"]
    first, second, mean = (pixels(path).astype(int) for path in (*done.samples, done.mean))
    assert (first != second).any()
    assert np.abs(mean - (first + second) / 2).max() <= 1.5  # each is rounded by itself
    assert done.std.is_file()


def test_super_resolution_enlarges_the_photo(house, tmp_path):
    y, _ = tasks.measure("sr4", images.astronaut_face(64), noise=0.005, ids=["a"])
    images.write(tmp_path / "small.png", y.clamp(0, 1))
    done = outcome(jobs.restore(house, order(tmp_path / "small.png", Damage("sr4"))))
    assert pixels(done.picture).shape == (64, 64, 3)
    assert Picture.open(done.before).size == (64, 64)


def test_a_closed_job_leaves_its_place(house, photo):
    run = jobs.restore(house, order(photo))
    next(run)
    assert house.is_busy
    run.close()
    assert not house.is_busy


def test_a_failed_job_leaves_its_place(house, photo, monkeypatch):
    def fail(*arguments):
        raise Diverged("it diverged")

    monkeypatch.setattr(jobs, "_watched", fail)
    with pytest.raises(Diverged):
        list(jobs.restore(house, order(photo)))
    assert not house.is_busy


def test_a_job_that_takes_too_long_is_stopped(priors, photo, tmp_path):
    house = House(priors, tmp_path / "results", Limits(seconds=0))
    with pytest.raises(Overtime, match=r"stopped after 0 seconds: one job.*Choose a faster quality"):
        list(jobs.restore(house, order(photo)))
    assert not house.is_busy


def test_a_job_is_stopped_in_the_middle_of_a_step(priors, photo, tmp_path):
    house = House(priors, tmp_path / "results", Limits(seconds=2))
    endless = orders.sampler("stsl", "Fast", None, {"steps": 1, "inner_steps": 100, "reuse_last": False})
    endless = dataclasses.replace(endless, probes=64, eta=1.0)
    said = []
    with pytest.raises(Overtime):
        said += [step.said for step in jobs.restore(house, Order(photo, Damage("denoise"), "stsl", endless, "sd"))]
    assert not house.is_busy
    assert not [text for text in said if text.startswith("step")]


def test_a_photo_that_would_become_too_large_is_refused(priors, tmp_path):
    house = House(priors, tmp_path / "results", Limits(megapixels=0.1))
    path = tmp_path / "a.png"
    images.write(path, torch.full((1, 3, 120, 100), 0.5))
    with pytest.raises(ValueError, match=r"enlarged 4 times this photo has 0\.192 megapixels, the limit is 0\.1"):
        list(jobs.restore(house, order(path, Damage("sr4"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 4}, "samples = 4: choose 1 to 3"),
        ({"seed": -1}, "seed = -1"),
        ({"prompt": "a" * 301}, "the text has 301 letters"),
        ({"model": "other"}, "there is no model 'other' here; there are sd, px"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_before_anything_runs(house, photo, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        next(jobs.restore(house, order(photo, **{"model": "sd", **change})))


def test_a_photo_with_too_many_pixels_is_refused_by_its_header(house, tmp_path):
    path = tmp_path / "bomb.png"
    Picture.new("1", (4000, 4000)).save(path)
    with pytest.raises(ValueError, match=r"4000 x 4000 pixels.*the limit is 0.1"):
        next(jobs.restore(house, order(path)))
    mask = Damage("mask", noise=0.0, mask=path)
    small = tmp_path / "small.png"
    images.write(small, images.astronaut_face(64))
    with pytest.raises(ValueError, match=r"the limit is 0\.1"):
        list(jobs.restore(house, order(small, mask)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Damage("mask"), "upload a mask"),
        (lambda: Damage("kernel"), "upload it as a small grey picture"),
        (lambda: Damage("motion_blur"), "draws its mask or kernel at random"),
        (lambda: Damage("nothing"), "unknown task"),
        (lambda: Damage("gaussian_blur", {"std": -1.0}), "a number from 0 to 1000"),
        (lambda: Damage("denoise", noise=2.0), "noise is a standard deviation from 0 to 1"),
        (lambda: Part("box"), "needs a box"),
        (lambda: Part("middle"), "unknown part 'middle'"),
        (lambda: orders.sampler("stsl2", "Fast"), "unknown method 'stsl2', did you mean 'stsl'"),
        (lambda: orders.sampler("stsl", "Fast", None, {"stepz": 1}), "no setting 'stepz', did you mean 'steps'"),
        (lambda: orders.sampler("stsl", "Fast", None, {"vit": "/etc"}), "vit cannot be set here"),
        (lambda: orders.sampler("stsl", "Fast", None, {"steps": 0}), "STSL: steps = 0"),
    ],
)
def test_orders_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_methods_are_compared_on_the_same_measurement(house, photo):
    damage = Damage("gaussian_blur", {"std": 1.0})
    orders = [order(photo, damage, name) for name in ("psld", "ldps", "stsl")]
    rows = outcome(jobs.compare(house, orders))
    assert [row.method for row in rows] == ["PSLD", "LDPS", "STSL"]
    assert [row.evaluations for row in rows] == [2, 2, 2]
    assert all(row.residual > 0 and row.expected == pytest.approx(0.005) and row.seconds > 0 for row in rows)
    assert all(row.picture.is_file() for row in rows)
    alone = outcome(jobs.restore(house, orders[0]))
    assert alone.residual == rows[0].residual


def test_a_method_that_cannot_take_part_says_why(house, photo):
    rows = outcome(jobs.compare(house, [order(photo), order(photo, method="ddrm", model="sd")]))
    assert rows[0].error == ""
    assert "pixels" in rows[1].error
    assert rows[1].picture is None
    with pytest.raises(ValueError, match="two methods or more"):
        next(jobs.compare(house, [order(photo)]))


def test_an_edit_is_made_and_its_inversion_is_reused(house, photo):
    settings = {"steps": 2, "null_steps": 1}
    again = EditOrder(photo, "a cat", "a dog", settings=settings, model="sd")
    done = outcome(jobs.edit(house, again))
    assert not done.reused
    assert pixels(done.edited).shape == pixels(done.restored).shape == (64, 64, 3)
    assert done.words.is_file()
    assert done.settings["editor"] == "NTICAT"
    steps = list(jobs.edit(house, again))
    assert outcome(steps).reused
    assert "the inversion of an earlier edit is used again" in [step.said for step in steps]
    assert all(step.said.startswith("editing") for step in steps if "step" in step.said)


def test_a_damaged_photo_is_restored_before_it_is_edited(house, photo, monkeypatch):
    monkeypatch.setitem(jobs.methods()["stsl"].presets, "fast", QUICK | {"eta": 0.0, "probes": 0})
    order_ = EditOrder(
        photo,
        "a cat",
        "a dog",
        Damage("denoise", noise=0.1),
        settings={"steps": 2, "null_steps": 1, "probes": 0},
        quality="Fast",
    )
    steps = list(jobs.edit(house, order_))
    stages = {step.said.partition(":")[0] for step in steps if ": step" in step.said}
    assert stages == {"restoring", "inverting", "tuning the empty text", "editing"}
    settings = outcome(steps).settings
    assert settings["editor"] == "STSLCAT"
    assert settings["editor_settings"]["restorer"]["sampler"] == "STSL"
    assert settings["noise"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"editor": "p2q"}, "unknown editor 'p2q', did you mean 'p2p'"),
        ({"settings": {"vit": "x"}}, "has no setting 'vit'"),
        ({"target": " "}, "an edit needs a target prompt"),
        ({"model": "px"}, "text"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(house, photo, change, message):
    given = {"source": "a cat", "target": "a dog"} | change
    with pytest.raises((ValueError, TypeError), match=message):
        list(jobs.edit(house, EditOrder(photo, **given)))
    assert not house.is_busy


def test_the_automatic_part_is_the_face_or_the_hole(tmp_path):
    face = images.astronaut_face(128)
    wide = torch.cat([face, torch.full((1, 3, 128, 100), 0.5)], 3)
    images.write(tmp_path / "wide.png", wide)
    photo = images.read(tmp_path / "wide.png")
    auto = Part()
    box = auto.of(photo, (64, 64))["box"]
    assert box.left + box.width < 140
    inside, outside = torch.ones(1, 1, 128, 228), torch.ones(1, 1, 128, 228)
    inside[:, :, 50:60, 50:60] = 0
    outside[:, :, 50:60, 200:210] = 0
    assert auto.of(photo, (64, 64), inside) == {"box": box}
    assert auto.of(photo, (64, 64), outside) == {"crop": "mask"}
    assert auto.of(photo, (256, 256), inside) == {"crop": "mask"}  # the model sees the face whole around the hole
    assert auto.of(photo, (128, 228)) == {}
    grey = tmp_path / "grey.png"
    images.write(grey, torch.full((1, 3, 90, 120), 0.5))
    assert auto.of(images.read(grey), (64, 64)) == {"resize": True}


def test_the_part_that_will_be_restored_can_be_shown(house, tmp_path):
    path = tmp_path / "wide.png"
    images.write(path, torch.full((1, 3, 90, 120), 0.5))
    assert jobs.region(house, path, "sd", "denoise", Part())[1] == Box(0, 0, 90, 120)
    assert jobs.region(house, path, "sd", "denoise", Part("tiles"))[1] == Box(0, 0, 90, 120)
    chosen = jobs.region(house, path, "sd", "denoise", Part("box", Box(80, 100, 40, 40)))[1]
    assert chosen == Box(50, 80, 40, 40)  # moved into the photo
    with pytest.raises(ValueError, match="no upright frontal face"):
        jobs.region(house, path, "sd", "denoise", Part("face"))


def test_a_box_is_the_only_way_that_is_chosen(tmp_path):
    images.write(tmp_path / "a.png", torch.full((1, 3, 40, 60), 0.5))
    photo = images.read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="give no crop and no resize with it"):
        images.fit(photo, 32, box=Box(0, 0, 8, 8), crop="face")
    with pytest.raises(ValueError, match="at least one pixel on each side, this one 0 x 8"):
        images.fit(photo, 32, box=Box(0, 0, 0, 8))


def test_an_estimate_is_made_once(house, monkeypatch):
    sampler = orders.sampler("psld", "Fast")
    monkeypatch.setattr(jobs, "estimate_memory", lambda prior, sampler: Estimate(weights=100, activations=23))
    first, second = jobs.estimate(house, "sd", sampler)
    assert first.seconds > 0
    assert (first.bytes, second.bytes) == (None, 123)
    monkeypatch.setattr(jobs, "predict_seconds", None)  # would fail if it were called
    changes = {"omega": 0.5, "kernel": 7, "steps": 2 * sampler.steps}  # they change what a step costs in nothing
    weaker = orders.sampler("psld", "Fast", None, changes)
    (again,) = jobs.estimate(house, "sd", weaker, samples=3)
    assert again.seconds == pytest.approx(6 * first.seconds)
    assert again.bytes == second.bytes
    with pytest.raises(TypeError, match="NoneType"):  # another method costs something else
        list(jobs.estimate(house, "sd", orders.sampler("stsl", "Fast")))


def test_nothing_is_estimated_while_somebody_computes(house, monkeypatch):
    monkeypatch.setattr(jobs, "predict_seconds", None)
    with house.one_at_a_time():
        (expected,) = jobs.estimate(house, "sd", orders.sampler("ldps", "Fast"))
    assert (expected.seconds, expected.bytes) == (None, None)
    assert sentences.in_words(expected) == ""


def test_estimates_are_told_in_words():
    assert sentences.in_words(outcomes.Expected(0.4, 3 << 20)) == "about a second and 3 MiB"
    assert sentences.in_words(outcomes.Expected(42.3, 6 << 30)) == "about 42 seconds and 6.0 GiB"
    assert sentences.duration(600) == "10 minutes"
    assert sentences.duration(9000) == "2.5 hours"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("/tmp/gradio/ab12/photo.png is empty (0 bytes)", "photo.png is empty (0 bytes)."),
        ("mask /tmp/x/mask.png has no hole", "Mask mask.png has no hole."),
        (r"C:\Users\me\my photo.png is damaged", "my photo.png is damaged."),
        ("", "ValueError."),
        ("A real sentence!", "A real sentence!"),
    ],
)
def test_an_error_is_a_sentence_without_the_servers_paths(error, said):
    told = sentences.sentence(ValueError(error))
    assert said in told
    assert "/tmp" not in told
    assert "--" not in told


def test_the_ways_out_are_those_of_the_page(tmp_path):
    images.write(tmp_path / "a.png", torch.full((1, 3, 40, 60), 0.5))
    photo = images.read(tmp_path / "a.png")
    for wrong in ({}, {"crop": "face"}, {"crop": "mask"}):
        with pytest.raises(ValueError, match="--") as caught:
            images.fit(photo, 32, **wrong)
        told = sentences.sentence(caught.value)
        assert "--" not in told
        assert re.search("choose|paint", told)


def test_health_tells_what_there_is(house):
    told = jobs.health(house)
    assert (told["status"], told["models"], told["device"]) == ("ready", ["sd", "px"], "cpu")
    assert told["limits"]["samples"] == 3
    json.dumps(told)
    with house.one_at_a_time():
        assert jobs.health(house)["status"] == "busy"


def test_old_results_are_deleted_and_examples_stay(house, priors):
    folders = [house.new_folder(), house.new_folder(), house.examples, house.folder / "inversions"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "a.png").write_bytes(b"x")
    fresh = house.folder / "inversions" / "fresh.safetensors"
    fresh.write_bytes(b"x")
    for path in [*(folder / "a.png" for folder in folders), *folders[:3]]:
        os.utime(path, (time.time() - 4000,) * 2)
    house.sweep()
    assert [folder.is_dir() for folder in folders] == [False, False, True, True]
    assert (house.examples / "a.png").is_file()
    assert [path.name for path in folders[3].iterdir()] == ["fresh.safetensors"]


def test_a_house_has_a_model_for_a_method_or_says_so(house, priors, tmp_path):
    assert house.prior_for(jobs.methods()["stsl"]) == "sd"
    assert house.prior_for(jobs.methods()["dps"]) == "px"
    only = House({"px": priors["px"]}, tmp_path)
    with pytest.raises(ValueError, match="STSL works on latent models"):
        only.prior_for(jobs.methods()["stsl"])
    with pytest.raises(ValueError, match="at least one prior"):
        House({}, tmp_path)
