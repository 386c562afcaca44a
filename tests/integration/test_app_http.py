"""The web application over HTTP: its REST functions, and what it refuses."""

import http.client
import io
import json
import runpy
import socket
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import ExifTags
from PIL import Image as Pillow

from served import API, FILE, PATIENCE, QUICK, Served, call, outcome, put, quick_priors, served
from stsl import images
from stsl.app.house import QUEUE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[Served]:
    with served(quick_priors(tmp_path_factory.mktemp("priors"))) as here:
        yield here


@pytest.fixture(scope="module")
def client(app, tmp_path_factory) -> Client:
    return Client(app.url, download_files=tmp_path_factory.mktemp("downloads"), verbose=False)


@pytest.fixture(scope="module")
def plain(app) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=PATIENCE) as plain:
        yield plain


@pytest.fixture
def face(tmp_path) -> Path:
    """A photo as large as the tiny prior's images."""
    path = tmp_path / "face.png"
    images.write(path, images.astronaut_face(64))
    return path


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """An address on this machine, and who called there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[Any] = []

        def accept() -> None:
            try:
                while True:
                    calls.append(server.accept()[1])
            except OSError:  # the test is over
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/picture.png", calls
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)


def pixels(path: str | Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# REST


def test_a_restoration_has_the_photos_size_times_the_factor(client, face):
    done = client.predict(handle_file(face), "sr4", settings=QUICK, part="whole", api_name="/restore")
    assert done["done"] == 1
    result = done["result"]
    assert pixels(result["picture"]).shape == (256, 256, 3)
    assert result["settings"]["sampler_settings"]["steps"] == 2
    assert result["settings"]["method"] == "stsl"
    assert result["samples"] == []
    assert result["residual"] > 0


def test_a_jobs_progress_is_streamed(client, face):
    job = client.submit(handle_file(face), "denoise", settings=QUICK, part="whole", api_name="/restore")
    done = [step["done"] for step in job if step["done"] is not None]
    assert done == sorted(done)
    assert len(set(done)) >= 2
    assert job.outputs()[-1]["result"] is not None


def test_samples_come_with_mean_and_std(client, face):
    done = client.predict(handle_file(face), "denoise", samples=2, settings=QUICK, api_name="/restore")
    result = done["result"]
    assert len(result["samples"]) == 2
    assert not np.array_equal(pixels(result["samples"][0]), pixels(result["samples"][1]))
    assert pixels(result["mean"]).shape == pixels(result["std"]).shape == (64, 64, 3)


def test_known_pixels_of_an_inpainting_are_the_uploads(client, face, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 16:48] = 255
    Pillow.fromarray(mask).save(tmp_path / "mask.png")
    done = client.predict(handle_file(face), handle_file(tmp_path / "mask.png"), settings=QUICK, api_name="/inpaint")
    before, after = pixels(face), pixels(done["result"]["picture"])
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert not np.array_equal(before[mask > 0], after[mask > 0])
    assert done["result"]["settings"]["method"] == "psld"


def test_a_second_edit_of_a_photo_uses_the_inversion_again(client, face):
    settings = {"steps": 2, "null_steps": 1}
    words = (handle_file(face), "a photo of a face", "a photo of an ape")
    first, second = (client.predict(*words, settings=settings, api_name="/edit")["result"] for _ in range(2))
    assert not first["inversion_reused"]
    assert second["inversion_reused"]
    assert pixels(first["edited"]).shape == pixels(first["restored"]).shape == (64, 64, 3)
    assert np.array_equal(pixels(first["edited"]), pixels(second["edited"]))


def test_an_estimate_knows_seconds_and_bytes(client):
    expected = client.predict("psld", settings=QUICK, api_name="/estimate")
    assert expected["seconds"] > 0
    assert expected["bytes"] > 0


def test_health_answers_while_a_job_runs(app, client, face):
    with app.gate.shut():
        job = client.submit(handle_file(face), "denoise", settings=QUICK, api_name="/restore")
        app.gate.wait_for_a_job()
        assert client.predict(api_name="/health")["status"] == "busy"
    assert job.result(PATIENCE)["result"] is not None
    health = client.predict(api_name="/health")
    assert health["status"] == "ready"
    assert health["models"] == ["tiny", "tiny-pixel"]
    assert {"stsl", "psld"} <= set(health["methods"])


def test_the_python_example_runs(app, tmp_path, monkeypatch):
    example = ROOT / "examples" / "app_client.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "out"), app.url])
    runpy.run_path(str(example), run_name="__main__")
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["method"] == "stsl"
    assert pixels(tmp_path / "out" / "restored.png").shape == (128, 128, 3)


def test_only_the_five_functions_are_public_and_all_have_words_and_types(plain, app):
    info = plain.get(f"{API}/info").json()
    assert set(info["named_endpoints"]) == {"/restore", "/inpaint", "/edit", "/estimate", "/health"}
    assert info["unnamed_endpoints"] == {}
    for name, endpoint in info["named_endpoints"].items():
        assert endpoint["description"], name
        assert endpoint["returns"][0]["type"]["type"] == "object", name
        for parameter in endpoint["parameters"]:
            assert parameter["type"], (name, parameter)
            assert parameter["python_type"]["description"], (name, parameter)


def test_whatever_computes_stands_in_one_queue(app):
    for event in app.page.fns.values():
        if event.queue:
            # What a form would take is told beside a running job; it is computed when nothing else is.
            assert event.concurrency_id in (QUEUE, "estimate"), event.api_name
            assert event.concurrency_limit == 1, event.api_name


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("quality", "best", "quality"),
        ("seed", "one", "seed"),
        ("seed", -1, "seed"),
        ("samples", 1000, "samples"),
        ("method", "stsll", "did you mean 'stsl'"),
        ("method", "../evil.py:Mine", "unknown method"),
        ("model", "stabilityai/sd", "no model"),
        ("model", "/etc", "no model"),
        ("settings", {"steps": 10**9}, "steps"),
        ("settings", {"vit": "/etc/passwd"}, "vit"),
        ("settings", {"nothing": 1}, "no setting"),
        ("task", "freeform_inpaint", "random"),
        ("task", "../operator", "operator"),
        ("options", {"factor": 10**6}, "no option"),
        ("noise", float("1e9"), "noise"),
        ("box", [0, 0, 64], "box"),
        ("box", [0, 0, 0, 0], "at least one pixel"),
        ("prompt", "a" * 100_000, "letters"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(argument, value, said, client, face):
    given = {"settings": QUICK, argument: value} | ({"part": "box"} if argument == "box" else {})
    with pytest.raises(AppError, match=f"(?i){said}") as refused:
        client.predict(handle_file(face), api_name="/restore", **given)
    assert "/tmp" not in str(refused.value)


# Files


SECRET = "no visitor reads this"


@pytest.fixture
def secret(app, tmp_path) -> Path:
    """A file of this machine, and one of the application that nobody was given."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET, encoding="utf-8")
    app.house.folder.mkdir(exist_ok=True)
    (app.house.folder / "secret.txt").write_text(SECRET, encoding="utf-8")
    return path


def test_no_route_leads_to_the_machines_files(app, plain, secret):
    up = "../" * 12
    escaped = "%2e%2e%2f" * 12
    places = [str(secret), str(app.house.folder / "secret.txt"), f"{app.uploads}/../results/secret.txt"]
    places += [f"{up}{secret}", f"{escaped}{secret}", f"..\\..\\..{secret}", f"/{secret}", f"file://{secret}"]
    places += [str(ROOT / "pyproject.toml"), "pyproject.toml", "C:\\Windows\\win.ini", ".", ""]
    routes = [
        f"{API}/file=",
        f"{API}/file/",
        "/static/",
        "/assets/",
        f"{API}/stream/",
        "/svelte/",
        f"{API}/custom_component/",
    ]
    for route in routes:
        for place in places:
            # As it is: httpx would resolve the dots before anything is sent.
            connection = http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=PATIENCE)
            connection.putrequest("GET", f"{route}{place}", skip_accept_encoding=True)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            assert answer.status in (400, 403, 404, 405, 500), (route, place, answer.status)
            assert SECRET.encode() not in body
            assert b"build-system" not in body


@pytest.mark.parametrize("name", ["../../evil.png", "..\\..\\evil.png", "/tmp/evil.png", "%2e%2e%2fevil.png", ".."])
def test_the_name_of_an_upload_leads_nowhere(name, app, plain, face):
    answer = plain.post(f"{API}/upload", files={"files": (name, face.read_bytes())})
    if answer.status_code == 200:
        (where,) = answer.json()
        assert Path(where).resolve().is_relative_to(app.uploads.resolve())
        assert Path(where).is_file()
    assert not list(app.folder.glob("evil*")) + list(app.folder.parent.glob("evil*")) + list(Path("/tmp").glob("evil*"))


def test_a_picture_is_no_address_and_no_file_of_the_machine(app, plain, secret, listener):
    address, calls = listener
    own = f"{app.url}{API}/file={secret}"
    refused = [
        {"path": address},
        {"path": "", "url": address},
        {"path": None, "url": address},
        {"path": "HTTP://example.com/a.png"},
        {"path": "file:///etc/passwd"},
        {"url": "data:image/png;base64,iVBORw0KGgo="},
        {"path": str(secret)},
        {"path": str(app.house.folder / "secret.txt")},
        {"path": f"{app.uploads}/../results/secret.txt"},
        {"path": "pyproject.toml"},
        {"path": str(secret), "url": own},
        {"path": 7},
    ]
    for picture in refused:
        for given in (picture, picture | FILE):
            answer = call(plain, "restore", photo=given, task="denoise")
            assert answer.status_code == 400, (given, answer.text)
            assert "upload" in answer.json()["detail"]
            join = {"data": [[{"deep": given}]], "fn_index": 0, "session_hash": "abc"}
            assert plain.post(f"{API}/queue/join", json=join).status_code == 400
    for text in ("a.png", address, ["a"], None):
        event, said = outcome(plain, "restore", call(plain, "restore", photo=text, task="denoise"))
        assert event == "error"
        assert said["error"].startswith("Photo")
    assert calls == []


def test_the_server_fetches_nothing_for_visitors(plain, listener):
    address, calls = listener
    for route in (f"{API}/file=", f"{API}/file/", f"{API}/proxy=", f"{API}/file=%20"):
        assert plain.get(f"{route}{address}").status_code in (403, 404)
    assert calls == []


def test_what_gradio_has_and_nobody_needs_is_closed(plain):
    for route in ("/monitoring", "/monitoring/summary", f"{API}/deep_link", f"{API}/vibe-code", f"{API}/runs"):
        assert plain.get(route).status_code in (403, 404), route
    assert plain.post(f"{API}/process_recording", files={"video": ("a.mp4", b"a")}).status_code == 404
    config = plain.get("/config").json()
    assert not config["analytics_enabled"]
    assert not config.get("run_history", False)
    assert not config.get("pwa", False)


# Other origins


def test_pages_of_others_cannot_use_the_server(app, plain, face):
    here = app.url
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example", "file://"):
        strange = {"Origin": origin}
        assert plain.get("/", headers=strange).status_code == 403, origin
        assert plain.post(f"{API}/upload", files={"files": face.read_bytes()}, headers=strange).status_code == 403
        assert plain.post(f"{API}/call/health", json={"data": []}, headers=strange).status_code == 403
        assert plain.post(f"{API}/cancel", json={}, headers=strange).status_code == 403
    assert plain.get("/", headers={"Origin": here}).status_code == 200
    assert plain.post(f"{API}/call/health", json={"data": []}, headers={"Origin": here}).status_code == 200


def test_under_another_name_the_server_does_not_answer(app, plain):
    port = urlsplit(app.url).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert plain.get("/", headers={"Host": host}).status_code in (400, 403), host
    assert plain.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_a_browser_is_told_to_ask_nobody_else(plain):
    for route in ("/", "/config", f"{API}/info"):
        headers = plain.get(route).headers
        assert "default-src 'self'" in headers["content-security-policy"], route
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


# Hostile and damaged pictures


def png(width: int, height: int) -> bytes:
    """A PNG of zeros, one bit a pixel: 10,000 x 10,000 of them are 12 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_of_ten_thousand_squared_pixels_is_refused_before_it_is_decoded(client, face, tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(10_000, 10_000))
    assert bomb.stat().st_size < 20_000
    for given in ({"photo": bomb}, {"photo": face, "task": "mask", "mask": bomb}):
        files = {name: handle_file(path) if isinstance(path, Path) else path for name, path in given.items()}
        with pytest.raises(AppError, match=r"100\.0 megapixels; the limit is 24"):
            client.predict(**files, settings=QUICK, api_name="/restore")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused_with_a_way_out(kind, client, face, tmp_path):
    whole = io.BytesIO()
    with Pillow.open(face) as picture:
        picture.save(whole, kind)
    part = tmp_path / f"part.{kind.lower()}"
    part.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(AppError, match="save it as PNG or JPEG") as refused:
        client.predict(handle_file(part), "denoise", settings=QUICK, api_name="/restore")
    assert "/tmp" not in str(refused.value)


def test_what_is_no_picture_is_refused(client, tmp_path):
    for name, data in (("a.png", b"GIF89a"), ("b.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("c.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AppError, match=r"PNG, JPEG|empty"):
            client.predict(handle_file(tmp_path / name), "denoise", settings=QUICK, api_name="/restore")


def test_a_download_says_nothing_of_where_the_photo_was_taken(client, tmp_path):
    photo = tmp_path / "holiday.jpg"
    exif = Pillow.Exif()
    exif[ExifTags.Base.Make] = "Camera of Ann"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    Pillow.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photo, exif=exif.tobytes())
    assert b"Camera of Ann" in photo.read_bytes()
    done = client.predict(handle_file(photo), "denoise", settings=QUICK, samples=2, api_name="/restore")
    for path in (done["result"]["picture"], *done["result"]["samples"], done["result"]["mean"]):
        assert b"Camera" not in Path(path).read_bytes()
        with Pillow.open(path) as picture:
            assert not picture.getexif()


# The queue


def test_nobody_passes_the_queue_by(plain, face):
    for route in ("run", "api"):
        answer = plain.post(f"{API}/{route}/restore", json={"data": [put(plain, face), "denoise"]})
        assert answer.status_code == 404


def test_of_twenty_jobs_one_runs_and_sixteen_wait(app, plain, client, face):
    values = {"photo": put(plain, face), "task": "denoise", "method": "psld", "settings": QUICK}
    with app.gate.shut():
        taken = [call(plain, "restore", **values)]
        app.gate.wait_for_a_job()
        answers = [call(plain, "restore", **values) for _ in range(19)]
        taken += [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(taken) == 17
        assert {answer.status_code for answer in refused} == {503}
        assert all("Queue is full" in answer.json()["detail"] for answer in refused)
        # Not by the client, which would wait in the full queue.
        assert plain.post(f"{API}/run/health", json={"data": []}).json()["data"][0]["status"] == "busy"
    assert [outcome(plain, "restore", started)[0] for started in taken] == ["complete"] * 17
    assert client.predict(api_name="/health")["status"] == "ready"


def test_a_cancelled_job_makes_room_at_its_next_step(app, client, face):
    with app.gate.shut():
        long = client.submit(handle_file(face), "denoise", settings={"steps": 500}, api_name="/restore")
        app.gate.wait_for_a_job()
        next_one = client.submit(handle_file(face), "denoise", settings=QUICK, api_name="/restore")
        # The answer comes after the step, which stands before the gate.
        cancelling = threading.Thread(target=long.cancel)
        cancelling.start()
    cancelling.join(PATIENCE)
    assert next_one.result(PATIENCE)["result"] is not None
    assert not app.house.is_busy


def test_a_visitor_who_leaves_makes_room(app, plain, client, face):
    values = {"photo": put(plain, face), "task": "denoise", "settings": {"steps": 500}}
    with app.gate.shut():
        event = call(plain, "restore", **values).json()["event_id"]
        with plain.stream("GET", f"{API}/call/restore/{event}"):
            app.gate.wait_for_a_job()
        next_one = client.submit(handle_file(face), "denoise", settings=QUICK, api_name="/restore")
    assert next_one.result(PATIENCE)["result"] is not None


def test_what_visitors_leave_is_deleted_after_an_hour(app):
    assert app.page.delete_cache == (3600, 3600)
    assert app.house.limits.keep_seconds == 3600
