"""What a request may look like before Gradio sees it."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

JSON_BYTES = 1_000_000  # pictures come as uploads, so that a request is names and numbers
# A form has its own bytes around the file.
FORM_BYTES = 64_000
# Of Gradio's routes those that this page has no use for: they fetch addresses, run ffmpeg, or keep what visitors did.
UNUSED = re.compile(
    r"/gradio_api/(file[=/]\s*[a-z][a-z0-9+.-]*:/|proxy=|process_recording|deep_link|run-history|vibe|undo-vibe|stream/)"
    r"|/monitoring",
    re.IGNORECASE,
)
# The page asks nobody else for anything, stands in nobody else's, and no upload passes for a page or a script.
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# The editor's mask arrives in layers; Gradio makes a list as long as the number that a request names.
FAR_LAYER = re.compile(rb'name="index"\r\n\r\n\s*\+?0*[1-9][0-9]')


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        reason: what was wrong with it, and what would be right.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Guard:
    """An ASGI application around another one, which refuses what no visitor of the page would send.

    Gradio leaves out a header when the origin is foreign, but carries the request out; it fetches pictures from
    addresses that a request names; it limits each file of an upload, but not their number.

    Args:
        app: what is guarded.
        hosts: names under which the server may be asked; None is any. A page elsewhere can give its own name this
            machine's address (DNS rebinding), and its visitors' browsers then take the two for one.
        folder: where uploads lie; no request may name a file elsewhere.
        max_bytes: of an upload.
    """

    app: App
    hosts: frozenset[str] | None
    folder: Path
    max_bytes: int

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self._check_names(headers)
            path = unquote(scope["path"])
            if UNUSED.search(path):
                raise Refused(404, f"{path[:80]} is not part of this application")
            guarded = await self._checked_body(path, headers, receive)
        except Refused as refused:
            await _answer(send, refused, headers)
            return
        began = False

        async def send_on(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                message = dict(message) | {"headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            await self.app(scope, guarded, send_on)
        except Refused as refused:  # a body that turned out too long while it was read
            if began:
                raise
            await _answer(send, refused, headers)

    def _check_names(self, headers: dict[str, str]) -> None:
        """The host that is asked for is this one, and who asks is a page of it or no page at all."""
        host = headers.get("host", "")
        name = _name(f"//{host}")
        if self.hosts is not None and name not in self.hosts:
            raise Refused(403, f"this server is not called {name[:80]!r}: open it as {', '.join(sorted(self.hosts))}")
        origin = headers.get("origin")
        if origin is None:
            return
        own = {host, headers.get("x-forwarded-host", host)}  # a tunnel may ask under a name of its own
        if urlsplit(origin).netloc not in own:
            raise Refused(403, f"pages of {origin[:80]!r} may not use this server; it serves its own page only")

    async def _checked_body(self, path: str, headers: dict[str, str], receive: Receive) -> Receive:
        """The same body, bounded, and read beforehand where it has to be looked into."""
        is_form = _is_form(headers)
        limit = self.max_bytes + FORM_BYTES if is_form else JSON_BYTES
        what = f"{self.max_bytes / 1e6:g} MB" if is_form else f"{JSON_BYTES / 1e6:g} MB without its files"
        too_long = Refused(413, f"the request is larger than {what}: make the picture smaller first")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            raise too_long
        if is_form and not path.rstrip("/").endswith("/component_server"):
            return _bounded(receive, limit, too_long)
        body = b""
        async for part in _parts(receive):
            body += part
            if len(body) > limit:
                raise too_long
        if is_form:
            if FAR_LAYER.search(body):
                raise Refused(400, "a mask has one layer")
        elif path.startswith("/gradio_api/") and body:
            self._check_files(body)
        return _again(body, receive)

    def _check_files(self, body: bytes) -> None:
        """Pictures are uploads: no address, no data inside the request, no file of this machine."""
        try:
            values = [json.loads(body)]
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None
        while values:
            value = values.pop()
            if isinstance(value, list):
                values += value
            elif isinstance(value, dict):
                values += value.values()
                self._check_file(value.get("path"), value.get("url"))

    def _check_file(self, path: object, url: object) -> None:
        # The browser sends the address that it showed a picture under back with it; nothing is fetched from there.
        if isinstance(url, str) and url and "/gradio_api/file=" not in url:
            raise Refused(400, "a picture cannot be given by an address: upload it")
        if path in (None, ""):
            return
        if not isinstance(path, str) or "://" in path or "\0" in path:
            raise Refused(400, "a picture cannot be given by an address: upload it")
        if not Path(path).resolve().is_relative_to(self.folder.resolve()):
            raise Refused(400, "a file of this machine cannot be named: upload the picture")


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_form(headers: dict[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _answer(send: Send, refused: Refused, headers: dict[str, str]) -> None:
    """The reason, as Gradio's clients expect it: plain for uploads, else JSON."""
    kind, body = b"text/plain; charset=utf-8", refused.reason.encode()
    if not _is_form(headers):
        kind, body = b"application/json", json.dumps({"detail": refused.reason}).encode()
    lines = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The parts of a body."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _bounded(receive: Receive, limit: int, too_long: Refused) -> Receive:
    """The same parts, until they are more than `limit` bytes."""
    so_far = 0

    async def parts() -> Message:
        nonlocal so_far
        message = await receive()
        so_far += len(message.get("body", b""))
        if so_far > limit:
            raise too_long
        return message

    return parts


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, given once more; afterwards what the connection has to say."""
    left: Iterator[bytes] = iter([body])

    async def parts() -> Message:
        part = next(left, None)
        if part is None:
            return await receive()
        return {"type": "http.request", "body": part, "more_body": False}

    return parts
