"""What one visitor of the web application may use up: bytes, time, and nothing without the login."""

from collections.abc import Iterator

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from served import API, PATIENCE, Served, call, quick_priors, served
from stsl import images
from stsl.app.house import Limits
from stsl.app.serving import Access

LOGIN = ("ann", "a password")


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[Served]:
    limits = Limits(upload_mb=1, seconds=1e-3)
    with served(quick_priors(tmp_path_factory.mktemp("priors")), Access(port=0, login=LOGIN), limits) as here:
        yield here


def test_without_the_login_nothing_is_shown(strict):
    with httpx.Client(base_url=strict.url, timeout=PATIENCE) as stranger:
        for route in ("/config", f"{API}/info", f"{API}/file=/etc/passwd", f"{API}/queue/status"):
            assert stranger.get(route).status_code == 401, route
        assert call(stranger, "health").status_code == 401
        assert stranger.post(f"{API}/upload", files={"files": b"a"}).status_code == 401
        wrong = stranger.post("/login", data={"username": "ann", "password": "guess"})
        assert wrong.status_code == 400
    ann = Client(strict.url, auth=LOGIN, verbose=False)
    assert ann.predict(api_name="/health")["status"] == "ready"


def test_an_upload_that_is_too_large_is_refused_as_it_comes_in(strict):
    with httpx.Client(base_url=strict.url, timeout=PATIENCE) as ann:
        assert ann.post("/login", data=dict(zip(("username", "password"), LOGIN, strict=True))).status_code == 200

        def endless() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
            for _ in range(40):
                yield bytes(100_000)

        form = {"Content-Type": "multipart/form-data; boundary=b"}
        many = [("files", (f"{i}.png", bytes(300_000))) for i in range(5)]
        for answer in (
            ann.post(f"{API}/upload", files={"files": ("x.png", bytes(1_040_000))}),
            ann.post(f"{API}/upload", files={"files": ("x.png", bytes(9_000_000))}),
            ann.post(f"{API}/upload", files=many),
            ann.post(f"{API}/upload", content=endless(), headers=form),
            ann.post(f"{API}/call/health", content=bytes(2_000_000), headers={"Content-Type": "application/json"}),
        ):
            assert answer.status_code == 413
            assert "MB" in answer.text or "maximum allowed size" in answer.text
        assert not [path for path in strict.uploads.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]


def test_a_job_ends_when_its_time_is_up(strict, tmp_path):
    face = tmp_path / "face.png"
    images.write(face, images.astronaut_face(64))
    ann = Client(strict.url, auth=LOGIN, verbose=False)
    with pytest.raises(AppError, match="one job may not take longer"):
        ann.predict(handle_file(face), "denoise", settings={"steps": 50}, api_name="/restore")
    assert not strict.house.is_busy
