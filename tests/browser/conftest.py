"""A Chromium of this machine, and the application it visits."""

import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from pages import DEFAULT, Visits
from playwright.sync_api import Browser, expect, sync_playwright

from served import Served, quick_priors, served
from stsl.app.house import Limits

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not of the whole session: while Playwright runs, other tests could start no event loop.
    if CHROMIUM is None:
        why = "there is no Chromium: apt-get install chromium"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    with sync_playwright() as playwright:
        expect.set_options(timeout=DEFAULT)
        # Its sandbox wants privileges that containers lack; it visits nothing but this application.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Served]:
    with served(quick_priors(tmp_path_factory.mktemp("priors")), limits=Limits(upload_mb=2)) as here:
        yield here


@pytest.fixture
def visits(browser, app) -> Iterator[Visits]:
    visits = Visits(browser, app)
    yield visits
    visits.end()
    hosts = {urlsplit(url).hostname for url in visits.asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}, "the page asked another machine"
    assert visits.faults == []
