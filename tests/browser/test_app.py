"""The web application as people use it: found by role and label, on a prior that is quick and makes no picture."""

import io
import re

import numpy as np
import pytest
from pages import BRUSH, Tab, few_steps, paint, pixels
from PIL import ExifTags
from PIL import Image as Pillow
from playwright.sync_api import expect

from stsl.app.controls import TALK, controls_of, methods


def test_an_example_is_restored_to_the_size_it_should_have(visits):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Small")
    few_steps(tab)
    tab.run()
    expect(tab.page.get_by_text("Before and after")).to_be_visible()
    download = tab.download()
    assert download.suggested_filename.endswith(".png")
    assert pixels(download.path()).shape == (64, 64, 3)  # 16 x 16 pixels, enlarged 4 times
    settings = tab.settings()
    assert settings["task"] == "sr4"
    assert settings["sampler_settings"]["steps"] == 2
    expect(tab.page.get_by_text("Residual 0.")).to_be_visible()
    tab.page.get_by_role("tab", name="Settings").click()
    expect(tab.page.get_by_text("sampler_settings")).to_be_visible()


def test_a_photo_of_ones_own_keeps_its_size(visits, tmp_path):
    tab = Tab.open(visits, "Restore")
    photo = tmp_path / "holiday.webp"
    Pillow.fromarray(noise(150, 210)).save(photo, lossless=True)
    tab.upload(photo)
    expect(tab.page.get_by_text("210 x 150 pixels")).to_be_visible()
    tab.page.get_by_role("radio", name="Noisy").check()
    few_steps(tab)
    tab.start.focus()
    tab.page.keyboard.press("Enter")
    tab.finish()
    assert tab.picture().shape == (150, 210, 3)


def test_the_square_that_is_restored_can_be_chosen(visits, tmp_path):
    tab = Tab.open(visits, "Restore")
    photo = tmp_path / "photo.png"
    Pillow.fromarray(noise(200, 300)).save(photo)
    tab.page.get_by_role("radio", name="Noisy").check()
    tab.upload(photo)
    expect(tab.page.get_by_text("300 x 200 pixels")).to_be_visible()
    tab.unfold("Part of the photo")
    tab.choose("Part", "Chosen square")
    for label, value in (("Left", 50), ("Top", 20), ("Side", 35)):  # per cent
        tab.set(label, value)
    expect(tab.page.get_by_text("the framed part, 70 x 70")).to_be_visible()
    few_steps(tab)
    tab.run()
    assert tab.settings()["box"] == {"top": 40, "left": 150, "height": 70, "width": 70}
    left, top, right, bottom = bounds(pixels(photo), tab.picture())
    assert (left, top) >= (150, 40)
    assert (right, bottom) <= (219, 109)
    assert min(right - left, bottom - top) > 50


def test_samples_come_with_mean_and_spread(visits):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Small")
    few_steps(tab)
    tab.unfold("Prompt, seed and samples")
    tab.set("Samples", 2)
    tab.set("Seed", 7)
    tab.run()
    tab.page.get_by_role("tab", name="Samples").click()
    expect(tab.page.get_by_role("img", name="Mean of the samples")).to_be_visible()
    expect(tab.page.get_by_role("img", name="Standard deviation of the samples")).to_be_visible()
    settings = tab.settings()
    assert (settings["samples"], settings["seed"]) == (2, 7)


# Painting


def noise(height: int, width: int) -> np.ndarray:
    """A photo whose pixels all differ from what is painted over them."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bounds(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of where two pictures differ."""
    rows, columns = np.nonzero((before != after).any(2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_what_is_painted_over_is_filled_and_nothing_else(visits):
    tab = Tab.open(visits, "Inpaint")
    tab.take_example("Astronaut")
    before = pixels(visits.app.house.examples / "astronaut.png")
    paint(tab, before.shape[:2], (50, 70), (80, 70), (80, 90))
    few_steps(tab, "Number of diffusion steps")
    tab.run()
    after = tab.picture()
    assert after.shape == before.shape == (128, 128, 3)
    left, top, right, bottom = bounds(before, after)
    assert (left, top, right, bottom) == pytest.approx((50 - BRUSH, 70 - BRUSH, 80 + BRUSH, 90 + BRUSH), abs=4)
    assert np.array_equal(before[: 70 - BRUSH - 4], after[: 70 - BRUSH - 4])
    assert tab.settings()["task"] == "mask"


def test_on_a_portrait_photo_the_mask_lands_where_it_was_painted(visits, tmp_path):
    stored, photo = noise(240, 360), tmp_path / "portrait.jpg"
    exif = Pillow.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying on its side, as phones do
    Pillow.fromarray(stored).save(photo, exif=exif.tobytes(), quality=95)
    upright = pixels(photo)
    assert upright.shape == (360, 240, 3)
    tab = Tab.open(visits, "Inpaint")
    tab.upload(photo)
    paint(tab, (360, 240), (60, 80), (100, 80))
    few_steps(tab, "Number of diffusion steps")
    tab.run()
    after = tab.picture()
    assert after.shape == upright.shape
    assert bounds(upright, after) == pytest.approx((60 - BRUSH, 80 - BRUSH, 100 + BRUSH, 80 + BRUSH), abs=4)


def test_a_mask_from_a_file_is_taken(visits, tmp_path):
    mask = np.zeros((128, 128), np.uint8)
    mask[30:60, 20:100] = 255
    Pillow.fromarray(mask).save(tmp_path / "mask.png")
    tab = Tab.open(visits, "Inpaint")
    tab.take_example("Astronaut")
    tab.unfold("A mask from a file")
    tab.upload(tmp_path / "mask.png")
    expect(tab.page.get_by_role("cell", name="mask.png", exact=True)).to_be_visible()
    few_steps(tab, "Number of diffusion steps")
    tab.run()
    assert bounds(pixels(visits.app.house.examples / "astronaut.png"), tab.picture()) == (20, 30, 99, 59)


def test_without_a_mask_the_next_step_is_told(visits):
    tab = Tab.open(visits, "Inpaint")
    tab.take_example("Astronaut")
    tab.start.click()
    expect(tab.says("alert", "paint over what is to be filled, or upload a mask")).to_be_visible()


# Controls


@pytest.mark.parametrize("name", ["stsl", "psld"])
def test_every_slider_changes_the_settings_of_the_run(visits, name):
    method = methods()[name]
    tab = Tab.open(visits, "Restore")
    tab.take_example("Small")
    tab.unfold("Method and its settings")
    if name == "stsl":
        tab.choose("Init", "ddim")  # what kappa wants
    else:
        tab.choose("Method", method.__name__)
    wanted = {}
    for control in controls_of(name, method):
        field = tab.number(control.label)
        if control.kind not in ("slider", "number"):
            continue
        expect(field).to_be_visible()
        was, low, high = float(field.input_value()), control.low, control.high
        new = 2 if control.name == "steps" else moved(was, low, high, whole=control.whole)
        if control.name == "kernel":
            new = 5  # a gluing kernel has a centre
        if control.name in ("inner_steps", "probes", "prompt_steps"):
            new = 1 if was != 1 else 2
        if control.name == "nu":
            continue  # needs a ViT, which nobody can name here
        tab.set(control.label, new)
        assert new != was
        wanted[control.name] = new
    assert set(TALK) <= set(wanted) or name != "psld"
    tab.run()
    settings = tab.settings()["sampler_settings"]
    assert {key: settings[key] for key in wanted} == pytest.approx(wanted)


def moved(was: float, low: float | None, high: float | None, *, whole: bool) -> float:
    """Another value that a control takes."""
    assert low is not None
    assert high is not None
    if whole:
        return int(was) + 1 if was < high else int(was) - 1
    return float(f"{(was + (low if was > (low + high) / 2 else high)) / 2:.2g}")


def test_the_talks_five_change_the_picture(visits):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Scratched")
    tab.unfold("Method and its settings")
    expect(tab.number(TALK["gamma"])).to_be_hidden()
    tab.choose("Method", "PSLD")
    first = {"steps": 3, "gamma": 0.1, "kernel": 15, "kernel_sigma": 7, "omega": 1}
    other = {"steps": 4, "gamma": 0.4, "kernel": 31, "kernel_sigma": 2, "omega": 2}
    for name, value in first.items():
        tab.set(TALK[name], value)
    tab.run()
    base, seen = tab.picture(), tab.settings()["sampler_settings"]
    assert {name: seen[name] for name in first} == first
    assert tab.settings()["task"] == "mask"
    for name, value in other.items():
        tab.set(TALK[name], value)
        tab.run()
        assert tab.settings()["sampler_settings"][name] == value
        assert not np.array_equal(tab.picture(), base), TALK[name]
        tab.set(TALK[name], first[name])
    tab.run()
    assert np.array_equal(tab.picture(), base)


# Jobs


def test_cancel_makes_room_for_the_next_job(visits):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Small")
    few_steps(tab)
    cancel = tab.page.get_by_role("button", name="Cancel", exact=True)
    expect(cancel).to_be_disabled()
    with visits.app.gate.shut():
        tab.start.click()
        visits.app.gate.wait_for_a_job()
        expect(tab.start).to_be_disabled()
        cancel.click()
    expect(tab.says("status", "Cancelled")).to_be_visible()
    expect(tab.start).to_be_enabled()
    tab.run()
    assert not visits.app.house.is_busy


def test_a_job_shows_how_far_it_is_and_what_it_has(visits):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Noisy")
    tab.unfold("Method and its settings")
    tab.choose("Method", "PSLD")
    tab.set("Number of diffusion steps", 8)
    with visits.app.gate.shut(after=4):
        tab.start.click()
        visits.app.gate.wait_for_a_job()
        bar = tab.page.get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuenow", re.compile("^(12|25|38|50)$"))  # an estimate calls it, too
        expect(tab.says("status", "step [1-4] of 8, .+ left")).to_be_visible()
        expect(tab.page.get_by_role("img", name="The current estimate")).to_be_visible()
    tab.finish()


def test_a_second_visitor_waits_and_is_told_so(visits):
    tabs = [Tab.open(visits, "Restore") for _ in range(2)]
    for tab in tabs:
        tab.take_example("Small")
        few_steps(tab)
    with visits.app.gate.shut():
        tabs[0].start.click()
        visits.app.gate.wait_for_a_job()
        tabs[1].start.click()
        expect(tabs[1].says("status", "Waiting for a free place")).to_be_visible()
        expect(tabs[0].page.get_by_role("progressbar")).to_be_visible()
    for tab in tabs:
        tab.finish()
        assert tab.picture().shape == (64, 64, 3)


def test_a_photo_is_edited_and_its_inversion_used_again(visits):
    tab = Tab.open(visits, "Edit with text")
    tab.take_example("Astronaut")
    tab.page.get_by_role("textbox", name="From: what the photo shows").fill("a photo of a face")
    tab.page.get_by_role("textbox", name="To: what it shall show").fill("a photo of an ape")
    tab.set("Steps", 2)
    tab.run()
    expect(tab.page.get_by_text("Inverted anew")).to_be_visible()
    for name in ("restored", "edited"):
        expect(tab.page.get_by_role("img", name=f"The photo, {name}")).to_be_visible()
    first = tab.picture()
    assert first.shape == (128, 128, 3)
    tab.page.get_by_role("textbox", name="To: what it shall show").fill("a photo of an orange")
    tab.run()
    expect(tab.page.get_by_text("Inversion reused")).to_be_visible()
    assert not np.array_equal(tab.picture(), first)


def test_methods_are_compared_side_by_side(visits):
    tab = Tab.open(visits, "Compare")
    tab.take_example("Small")
    for method in ("STSL", "PSLD"):
        tab.page.get_by_role("checkbox", name=method, exact=True).uncheck()
    for method in ("ADMMTV", "LDPS"):
        tab.page.get_by_role("checkbox", name=method, exact=True).check()
    tab.run()
    for method in ("ADMMTV", "LDPS"):
        row = tab.page.get_by_role("row", name=re.compile(f"^{method}"))
        figures = [float(cell) for cell in row.get_by_role("cell").all_inner_texts()]
        assert len(figures) == 4
        assert figures[0] > 0
        expect(tab.page.get_by_role("img", name=method, exact=True)).to_be_visible()


# What is refused


def png_of_zeros(width: int, height: int) -> bytes:
    whole = io.BytesIO()
    Pillow.new("1", (width, height)).save(whole, "PNG")
    return whole.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bomb.png", lambda: png_of_zeros(10_000, 10_000), "100.0 megapixels; the limit is 24"),
        ("large.png", lambda: bytes(3_000_000), "maximum allowed size|larger than|exceeds"),
        ("part.png", lambda: png_of_zeros(4000, 4000)[:500], "save it as PNG or JPEG"),
        ("page.html", lambda: b"<script>alert(1)</script>", "nvalid file type|not a PNG"),
    ],
)
def test_a_file_that_cannot_be_taken_is_told_in_a_sentence(visits, name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content())
    tab = Tab.open(visits, "Restore")
    tab.upload(tmp_path / name)
    told = tab.says("alert", said).or_(tab.says("status", said))
    expect(told.first).to_be_visible()
    assert "/tmp" not in told.first.inner_text()
    assert "Traceback" not in told.first.inner_text()


# The page itself


def test_the_page_fits_a_phone(visits):
    page = visits.visit(390, 844)
    for name in ("Restore", "Inpaint", "Edit with text", "Compare"):
        Tab.open(visits, name, page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_models_and_limits_are_told(visits):
    page = visits.visit()
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_role("heading", name="tiny", exact=True)).to_be_visible()
    expect(page.get_by_text("At most 24 megapixels, 2 MB")).to_be_visible()


def test_the_functions_for_programs_are_documented_on_the_page(visits):
    page = visits.visit()
    page.get_by_role("button", name=re.compile("Use via API")).click()
    for name in ("/restore", "/inpaint", "/edit", "/estimate", "/health"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
