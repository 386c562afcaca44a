"""What the web application refuses before Gradio sees it, without a server."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stsl.app.guard import JSON_BYTES, Guard, Message, Receive, Send

FORM = {"content-type": "multipart/form-data; boundary=b"}


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with the body it was sent."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def guard(tmp_path) -> Guard:
    return Guard(echo, hosts=frozenset({"127.0.0.1"}), folder=tmp_path, max_bytes=1000)


def ask(
    guard: Guard, path: str, parts: Sequence[bytes] = (), headers: dict[str, str] | None = None
) -> tuple[int, bytes, list[Message]]:
    """Status and body of the answer, and all that was sent."""
    given = {"host": "127.0.0.1:7860"} | (headers or {})
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    lines = [(key.encode(), value.encode()) for key, value in given.items()]
    asyncio.run(guard({"type": "http", "path": path, "headers": lines}, receive, send))
    return sent[0]["status"], sent[1]["body"], sent


def asked(guard: Guard, value: Any) -> int:
    return ask(guard, "/gradio_api/queue/join", [json.dumps(value).encode()])[0]


def test_what_is_allowed_arrives_as_it_was_sent(guard, tmp_path):
    value = {"data": [{"path": str(tmp_path / "a.png"), "url": "http://127.0.0.1/gradio_api/file=/a.png"}, 1.5, "ä"]}
    text = json.dumps(value).encode()
    status, body, _ = ask(guard, "/gradio_api/queue/join", [text[:9], text[9:]], {"content-type": "application/json"})
    assert (status, body) == (200, text)
    status, body, _ = ask(guard, "/gradio_api/upload", [b"x" * 400, b"y" * 500], FORM)
    assert (status, body) == (200, b"x" * 400 + b"y" * 500)


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/component_server"])
def test_a_body_without_a_length_is_counted_as_it_comes(path, guard):
    status, body, sent = ask(guard, path, [bytes(40_000)] * 4, FORM)
    assert status == 413
    assert b"0.001 MB" in body
    assert len(sent) == 2
    assert (b"content-type", b"text/plain; charset=utf-8") in sent[0]["headers"]


def test_a_body_is_refused_by_its_length_alone(guard):
    for length in ("9999999", "-1", "many"):
        status, _, _ = ask(guard, "/gradio_api/upload", [], FORM | {"content-length": length})
        assert status == 413, length
    assert ask(guard, "/gradio_api/queue/join", [bytes(JSON_BYTES), b"1"])[0] == 413


def test_a_name_leads_to_uploads_only(guard, tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    for path in ("/etc/passwd", f"{tmp_path}/../x", f"{tmp_path}x/a", f"{tmp_path}/link/passwd", "a.png", "a\0b", 3):
        assert asked(guard, {"data": [[{"a": {"path": path}}]]}) == 400, path
    assert asked(guard, {"path": str(tmp_path / "deep" / "a.png")}) == 200
    assert asked(guard, {"path": None, "url": None}) == 200


def test_a_mask_of_far_layers_is_refused(guard):
    def field(index: str) -> bytes:
        return f'--b\r\nContent-Disposition: form-data; name="index"\r\n\r\n{index}\r\n--b--'.encode()

    for index, status in (("0", 200), ("3", 200), ("null", 200), ("10", 400), (" 1000000000", 400), ("+010", 400)):
        assert ask(guard, "/gradio_api/component_server/", [field(index)], FORM)[0] == status, index


def test_nesting_without_end_is_no_json(guard):
    deep = b'{"data":' + b"[" * 300_000 + b"]" * 300_000 + b"}"
    assert ask(guard, "/gradio_api/queue/join", [deep])[0] == 400


def test_a_tunnel_may_ask_under_its_own_name(guard):
    shared = replace(guard, hosts=None)
    headers = {"origin": "https://abc.gradio.live", "x-forwarded-host": "abc.gradio.live"}
    assert ask(shared, "/", headers=headers)[0] == 200
    assert ask(shared, "/", headers={"host": "abc.gradio.live", "origin": "https://abc.gradio.live"})[0] == 200
    assert ask(shared, "/", headers={"host": "abc.gradio.live", "origin": "https://evil.example"})[0] == 403
    assert ask(guard, "/", headers={"host": "abc.gradio.live"})[0] == 403
    assert ask(guard, "/", headers={"host": "[127.0.0.1"})[0] == 403


def test_other_traffic_passes(guard):
    passed: list[Path | str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(replace(guard, app=app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
