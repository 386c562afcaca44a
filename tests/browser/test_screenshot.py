"""The picture of the page in the README and the docs. STSL_SCREENSHOT=docs/images/app.png makes it again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import Tab, pixels
from PIL import Image as Pillow
from playwright.sync_api import expect

from served import Served, quick_priors, served
from stsl.priors.load import load_prior

ASKED = os.environ.get("STSL_SCREENSHOT")
A_WHILE = 1_500_000 if ASKED else 60_000  # milliseconds: then a real prior works at a real number of steps


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Served]:
    priors = {"faces-128": load_prior("faces-128")} if ASKED else quick_priors(tmp_path_factory.mktemp("priors"))
    with served(priors) as here:
        yield here


@pytest.mark.timeout(1800)
def test_the_page_with_a_restored_astronaut_is_pictured(visits, tmp_path):
    tab = Tab.open(visits, "Restore")
    tab.take_example("Small")
    if not ASKED:
        tab.unfold("Method and its settings")
        tab.set("Steps", 2)
        tab.unfold("Method and its settings")
    tab.start.click()
    expect(tab.says("status", "^Done")).to_be_visible(timeout=A_WHILE)
    slider = tab.page.get_by_text("Before and after")
    expect(slider).to_be_visible()
    slider.evaluate("element => document.fonts.ready")
    tab.page.evaluate("window.scrollTo(0, 0)")
    path = Path(ASKED or tmp_path / "app.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    tab.page.screenshot(path=path)
    with Pillow.open(path) as picture:
        assert picture.size == (1280, 900)
    assert pixels(path).std() > 10  # something is on it
