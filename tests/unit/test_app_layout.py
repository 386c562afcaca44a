"""What is on the page, without a browser."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from models import pixel_folder, sd15_folder
from stsl import images
from stsl.app import controls, handlers, layout, look, words
from stsl.app.examples import make_examples
from stsl.app.house import QUEUE, House
from stsl.app.outcomes import Restored, Row, Step
from stsl.priors.load import load_prior
from stsl.samplers import SAMPLERS, Sampler, State, knob

TALK = set(controls.TALK.values())


@dataclass(frozen=True)
class Unheard(Sampler):
    """A method that the page was never told of."""

    source = "nobody 2026"
    steps: int = knob(10, "denoising steps", low=1, high=1000)
    depth: float = knob(5.0, "how deep it goes", low=0.0, high=10.0)

    def step(self, problem, state: State, t: int, t_next: int, rng) -> State:
        return state


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    sd, px = sd15_folder(folder / "sd", size=64), pixel_folder(folder / "px", size=32)
    priors = {name: load_prior(path, device="cpu", precision="fp32") for name, path in (("sd", sd), ("px", px))}
    return House(priors, folder / "results")


@pytest.fixture(scope="module")
def page(house):
    SAMPLERS["unheard"] = Unheard
    try:
        return layout.build(house)
    finally:
        del SAMPLERS["unheard"]


def components(page, kind=object):
    return [block for block in page.blocks.values() if isinstance(block, kind)]


def labelled(page, prefix):
    """Labels of the components whose id begins so."""
    return {block.label for block in components(page) if (block.elem_id or "").startswith(prefix)}


def test_the_tabs_are_there_in_their_order(page):
    shown = [tab.label for tab in components(page, gr.Tab) if tab.id]
    assert shown == ["Restore", "Inpaint", "Edit with text", "Compare", "About"]


def test_both_tabs_have_the_talks_five_sliders_and_show_them_for_psld_only(page):
    for tab, visible in (("restore", False), ("inpaint", True)):
        assert labelled(page, f"{tab}-psld-") >= TALK
        steps = next(block for block in components(page) if block.elem_id == f"{tab}-psld-steps")
        group = steps.parent.parent  # between them is what gradio wraps fields in
        assert isinstance(group, gr.Group)
        assert group.visible is visible


def test_a_method_that_the_page_was_never_told_of_has_its_controls(page):
    for tab in ("restore", "inpaint"):
        assert labelled(page, f"{tab}-unheard-") == {"Steps", "Depth"}
    methods = next(block for block in components(page) if block.elem_id == "restore-method")
    assert ("Unheard", "unheard") in methods.choices


def test_every_labelled_thing_has_a_label_or_a_description(page):
    for block in components(page, (gr.Image, gr.Slider, gr.Number, gr.Radio, gr.Dropdown, gr.Textbox, gr.File)):
        assert block.label, block.elem_id
    for picture in components(page, gr.Image):
        assert picture.alt_text, picture.elem_id


def test_jobs_wait_in_one_queue_and_no_event_is_public_but_the_rest_functions(page):
    events = list(page.fns.values())
    jobs = [event for event in events if event.concurrency_id == QUEUE]
    assert len(jobs) >= 4
    assert {event.concurrency_limit for event in jobs} == {1}
    public = {event.api_name for event in events if event.api_visibility == "public"}
    assert public <= {"restore", "inpaint", "edit", "estimate", "health"}


def test_pictures_are_never_lossy(page):
    for block in components(page, (gr.Image, gr.ImageSlider, gr.ImageEditor, gr.Gallery)):
        assert block.format == "png", block.elem_id


def test_nothing_of_the_look_is_fetched_from_elsewhere():
    theme = look.theme()
    assert not [font for font in [*theme._font, *theme._font_mono] if isinstance(font, gr.themes.GoogleFont)]
    assert not re.search(r"url\(|@import|https?:", look.CSS)


def test_the_examples_are_the_astronaut_and_fit_the_model(house, tmp_path):
    examples = make_examples(tmp_path, 64)
    assert [example.label for example in examples] == ["Small", "Blurred", "Noisy", "Specks", "Scratched"]
    sizes = {example.label: images.read(example.photo).size for example in examples}
    assert sizes == {"Small": (16, 16)} | dict.fromkeys(("Blurred", "Noisy", "Specks", "Scratched"), (64, 64))
    scratched = examples[-1]
    known = images.read_mask(scratched.mask, (64, 64))
    face = images.astronaut_face(64)
    difference = (images.read(scratched.photo).x - face).abs()
    assert float((difference * known).max()) < 1 / 255
    assert 0.02 < float(1 - known.mean()) < 0.2
    assert sum(path.stat().st_size for path in Path(tmp_path).iterdir()) < 100_000


def test_text_from_outside_is_escaped():
    bad = "<img src=x onerror=alert(1)>"
    row = Row(bad, error=bad)
    for html in (words.note(bad), words.alert(bad), words.status(bad), words.progress(Step(bad)), words.table([row])):
        assert "<img" not in html
        assert "&lt;img" in html


def test_progress_is_told_to_screen_readers():
    html = words.progress(Step("step 3 of 4", 0.75, 12.0))
    assert 'role="progressbar"' in html
    assert 'aria-valuenow="75"' in html
    assert "step 3 of 4, 12 seconds left" in html
    assert "aria-valuenow" not in words.progress(Step("waiting"))


def test_a_job_that_ends_under_way_was_cancelled():
    assert "Cancelled." in words.ended(words.progress(Step("step 3 of 4", 0.75)))
    assert "Cancelled." in words.ended(words.status(words.WAITING))
    for shown in (words.status("Done in 3 seconds."), words.alert("No photo.")):
        assert words.ended(shown) == shown


@pytest.mark.parametrize(
    ("expected", "far", "kept", "said"),
    [
        (0.005, False, False, "fits what was measured"),
        (0.005, True, False, "does not fit what was measured"),
        (None, False, False, "the noise level is not known"),
        (0.0, True, True, "every pixel is the photo's own"),
    ],
)
def test_the_verdict_says_whether_a_result_fits(expected, far, kept, said):
    nowhere = Path("a.png")
    outcome = Restored(nowhere, nowhere, nowhere, {}, nowhere, (), 0.02, 0.006, expected, far, kept)
    assert said in words.verdict(outcome)
    assert ("far" in words.verdict(outcome).partition(">")[0]) == (far and not kept)


def run_of(house):
    return next(iter([handlers.RunPanel(gr.Button(), gr.Button(), gr.HTML())]))


def test_errors_become_sentences_and_faults_say_nothing_of_the_server(house, caplog):
    run = run_of(house)

    def refused(values):
        yield {run.status: "begun"}
        raise ValueError("/srv/secret/photo.png is damaged")

    shown = handlers.told(run, refused)({})
    assert next(shown) == {run.status: "begun"}
    assert "photo.png is damaged" in next(shown)[run.status]
    with pytest.raises(gr.Error, match=r"^'photo.png is damaged.'$"):
        next(shown)

    def broken(values):
        yield {}
        raise AssertionError("a secret")

    shown = handlers.told(run, broken)({})
    next(shown)
    assert "secret" not in next(shown)[run.status]
    with pytest.raises(gr.Error, match="Something went wrong"):
        next(shown)
    assert "a secret" in caplog.text  # the log has it


def test_what_was_painted_becomes_a_mask_of_the_upright_photo(house, tmp_path):
    path = tmp_path / "a.png"
    images.write(path, images.astronaut_face(100))
    drawn = np.zeros((50, 50, 4), np.uint8)
    drawn[10:20, 30:40, 3] = 255
    mask = handlers.painted_mask(house, path, {"layers": [drawn]})
    known = images.read_mask(mask, (100, 100))
    assert (known[0, 0, 20:40, 60:80] == 0).all()
    assert int((known == 0).sum()) == 400
    for nothing in (None, {"layers": []}, {"layers": [np.zeros((50, 50, 4), np.uint8)]}):
        with pytest.raises(ValueError, match="nothing is painted yet"):
            handlers.painted_mask(house, path, nothing)


def test_compare_takes_the_next_slower_quality_of_a_method():
    assert handlers.quality_of("stsl", "Balanced") == "Balanced"
    assert handlers.quality_of("latent_daps", "Balanced") == "Paper"
    with pytest.raises(ValueError, match="unknown method"):
        handlers.quality_of("nobody", "Fast")


def test_the_pages_description_is_plain_data(page):
    assert len(json.dumps(page.config, default=str)) < 1_500_000
