"""The web application, served in this process, for the tests over HTTP and in the browser."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from models import pixel_folder, sd15_folder
from stsl.app import layout
from stsl.app.house import House, Limits
from stsl.app.serving import Access, serve, uploads, workplace
from stsl.priors.base import Prior
from stsl.priors.load import load_prior

QUICK = {"steps": 2}
PATIENCE = 30  # seconds, for what takes well under one
API = "/gradio_api"
FILE = {"meta": {"_type": "gradio.FileData"}}


def quick_priors(folder: Path) -> dict[str, Prior]:
    """Priors with random weights: they make no picture worth looking at, but make it quickly."""
    latent, pixel = sd15_folder(folder / "tiny"), pixel_folder(folder / "tiny-pixel", size=64)
    return {path.name: load_prior(path, device="cpu", precision="fp32") for path in (latent, pixel)}


class Gate:
    """Holds the calls of a prior's network while it is shut, so that a test decides how long a job takes."""

    def __init__(self, prior: Prior) -> None:
        self._open, self._waits = threading.Event(), threading.Event()
        self._open.set()
        self._pass = 0
        self._network: Callable[..., Any] = prior.epsilon
        prior.epsilon = self._call  # type: ignore[method-assign]

    def _call(self, *arguments: Any, **named: Any) -> Any:
        self._pass -= 1
        if not self._open.is_set() and self._pass < 0:
            self._waits.set()
            assert self._open.wait(PATIENCE), "the test never opened the gate"
        return self._network(*arguments, **named)

    @contextmanager
    def shut(self, after: int = 0) -> Iterator[None]:
        """Hold every call inside the block, but let so many pass before."""
        self._pass = after
        self._waits.clear()
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    def wait_for_a_job(self) -> None:
        """Until a network call stands before the shut gate."""
        assert self._waits.wait(PATIENCE), "no job called the network"


@dataclass(frozen=True, eq=False)
class Served:
    """An application that is up.

    Args:
        url: of the page.
        house, folder: what it has, and its private folder.
        page: the gradio Blocks.
        gate: before the first prior's network.
    """

    url: str
    house: House
    folder: Path
    page: Any
    gate: Gate

    @property
    def uploads(self) -> Path:
        return uploads(self.folder)


@contextmanager
def served(priors: Mapping[str, Prior], access: Access | None = None, limits: Limits | None = None) -> Iterator[Served]:
    """Serve the page on any free port."""
    access, limits = access or Access(port=0), limits or Limits()
    gate = Gate(next(iter(priors.values())))
    with workplace() as folder:
        house = House(priors, folder / "results", limits)
        page = layout.build(house)
        with serve(page, access, limits, folder) as url:
            yield Served(url.rstrip("/"), house, folder, page, gate)


def put(plain: httpx.Client, path: Path, name: str = "photo.png") -> dict[str, Any]:
    """Upload a file as the page does; what stands for it in a request."""
    (where,) = plain.post(f"{API}/upload", files={"files": (name, path.read_bytes())}).json()
    return {"path": where, **FILE}


def call(plain: httpx.Client, endpoint: str, **values: Any) -> httpx.Response:
    return plain.post(f"{API}/call/v2/{endpoint}", json=values)


def outcome(plain: httpx.Client, endpoint: str, started: httpx.Response) -> tuple[str, Any]:
    """The last event of a job, and its data."""
    text = plain.get(f"{API}/call/{endpoint}/{started.json()['event_id']}").text
    event, data = text.strip().split("\n\n")[-1].split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
