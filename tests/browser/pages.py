"""Visitors of the web application, and its tabs, in their words."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from playwright.sync_api import Browser, BrowserContext, Download, Locator, Page, expect

from served import Gate, Served

T = TypeVar("T")
DEFAULT = 60_000  # milliseconds that a page may take for what takes well under a second
# Counts what the page has asked for and not been told yet: what follows a choice, such as another method's fields.
COUNT = """
window.underWay = 0;
const send = window.fetch;
window.fetch = (...given) => {
    const answer = send(...given);
    if (String(given[0]?.url ?? given[0]).includes("/gradio_api/run/")) {
        window.underWay += 1;
        answer.finally(() => { window.underWay -= 1; }).catch(() => {});
    }
    return answer;
};
"""
# An answer is shown in the next frames, and what is shown may ask again.
CALM = "() => { window.calm = window.underWay ? 0 : (window.calm ?? 0) + 1; return window.calm > 12; }"
BRUSH = 24  # the editor's, from its middle, in pixels of the photo


def pixels(path: str | Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


class Visits:
    """Visitors, each with cookies of their own, and whatever their pages asked for."""

    def __init__(self, browser: Browser, app: Served) -> None:
        self.browser, self.app = browser, app
        self.asked: list[str] = []
        self.faults: list[str] = []
        self._contexts: list[BrowserContext] = []

    def visit(self, width: int = 1280, height: int = 900) -> Page:
        context = self.browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        self._contexts.append(context)
        context.set_default_timeout(DEFAULT)
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.add_init_script(COUNT)
        page = context.new_page()
        page.goto(self.app.url)
        return page

    def end(self) -> None:
        for context in self._contexts:
            context.close()


@dataclass(frozen=True)
class Tab:
    """A tab of the page, opened."""

    page: Page
    gate: Gate
    action: str

    @classmethod
    def open(cls, visits: Visits, name: str, page: Page | None = None) -> "Tab":
        page = page or visits.visit()
        page.get_by_role("tab", name=name, exact=True).click()
        tab = cls(page, visits.app.gate, name.partition(" ")[0])
        tab.start.wait_for()
        return tab

    def button(self, name: str) -> Locator:
        # What other tabs hide has no role; a button with a picture is also called by it.
        return self.page.get_by_role("button", name=re.compile(f"(^| ){name}( ▼)?$")).first

    @property
    def start(self) -> Locator:
        return self.page.get_by_role("button", name=self.action, exact=True)

    def upload(self, path: Path, name: str = "Click to upload or drop files") -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name=name).first.click()
        chooser.value.set_files(path)
        self.settle()

    def take_example(self, name: str) -> None:
        self.button(name).click()
        self.page.get_by_role("button", name="Clear").first.wait_for()
        self.settle()

    def settle(self) -> None:
        """Until the page shows all that follows from what was done."""
        self.page.evaluate("window.calm = 0")
        self.page.wait_for_function(CALM)

    def unfold(self, name: str) -> None:
        self.page.get_by_role("button", name=re.compile(f"^{name}")).first.click()
        self.settle()  # what stands in it is only made now

    def number(self, label: str) -> Locator:
        """The number of a slider, or a plain one."""
        return self.page.get_by_role("spinbutton", name=re.compile(f"^(number input for )?{re.escape(label)}$"))

    def set(self, label: str, value: float) -> None:
        self.number(label).fill(str(value))
        self.number(label).press("Tab")
        expect(self.number(label)).to_have_value(str(value))

    def says(self, what: str, text: str) -> Locator:
        """A status or alert that says so."""
        return self.page.get_by_role(what).filter(has_text=re.compile(text))

    def choose(self, label: str, option: str) -> None:
        """An option of a drop-down list."""
        self.page.get_by_role("combobox", name=label, exact=True).click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.settle()

    def run(self) -> None:
        with self.gate.shut():  # or what an earlier run said could pass for the end of this one
            self.start.click()
            expect(self.start).to_be_disabled()
        self.finish()

    def finish(self) -> None:
        expect(self.says("status", "^Done")).to_be_visible()
        expect(self.start).to_be_enabled()

    def download(self, what: str = "PNG") -> Download:
        with self.page.expect_download() as coming:
            self.page.get_by_role("button", name=f"Download {what}", exact=True).click()
        return coming.value

    def picture(self) -> np.ndarray:
        return pixels(self.download().path())

    def settings(self) -> dict[str, Any]:
        return json.loads(self.download("settings").path().read_text(encoding="utf-8"))


def few_steps(tab: Tab, label: str = "Steps") -> None:
    if not tab.number(label).is_visible():
        tab.unfold("Method and its settings")
    tab.set(label, 2)


def settled(tab: Tab, look: Callable[[], T]) -> T:
    """What is seen once it has been the same for a second: a page lays itself out in several steps."""
    seen: list[T] = []
    while len(seen) < 5 or any(other != seen[-1] for other in seen[-5:]):
        assert len(seen) < 240, f"the page does not come to rest: {seen[-5:]}"
        seen.append(look())
        tab.page.wait_for_timeout(250)
    return seen[-1]


def paint(tab: Tab, size: tuple[int, int], *points: tuple[float, float]) -> None:
    """Draw a stroke through points of a photo of `size`, (height, width), in its pixels."""
    shown = tab.page.get_by_role("button", name=re.compile(r"^\d+%$"))
    canvas = tab.page.locator("canvas").last
    expect(shown).not_to_have_text("100%")  # the photo has been fitted into the canvas
    canvas.scroll_into_view_if_needed()
    frame, zoom = settled(tab, lambda: (canvas.bounding_box(), float(shown.inner_text().rstrip("%")) / 100))
    assert frame is not None
    left, top = (
        frame["x"] + (frame["width"] - zoom * size[1]) / 2,
        frame["y"] + (frame["height"] - zoom * size[0]) / 2,
    )
    mouse = tab.page.mouse
    mouse.move(left + zoom * points[0][0], top + zoom * points[0][1])
    mouse.down()
    for x, y in points:
        mouse.move(left + zoom * x, top + zoom * y, steps=2)
    mouse.up()
    expect(tab.page.get_by_role("button", name="Undo")).to_be_enabled()
