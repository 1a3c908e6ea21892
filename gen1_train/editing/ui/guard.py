"""A layer of the server between browsers and Gradio that passes on what the page needs, and nothing else.

Gradio answers to any host name, serves routes that the page does not use (a proxy, a converter of recordings, downloads
from URLs) and tells browsers the paths of files on the server. Here, requests are checked, and paths are replaced.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from gen1_train.editing.ui.hosts import Hosts
from gen1_train.system.records import parse_json

SHOWN = "/files"  # what browsers see in place of the folder of uploads and results
API = "/gradio_api"
FILE = f"{API}/file="
HEARTBEAT = f"{API}/heartbeat/"
UPLOAD = f"{API}/upload"
# what the page's own scripts ask for
PATHS = {
    "GET": {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/robots.txt",
        f"{API}/startup-events",
        f"{API}/queue/data",
        f"{API}/upload_progress",
        f"{API}/app_id",
    },
    "POST": {f"{API}/queue/join", f"{API}/run/predict", f"{API}/cancel", f"{API}/reset", UPLOAD},
}
FOLDERS = ("/assets/", "/static/", "/svelte/", HEARTBEAT, FILE)
# The browser may load this page only. Gradio's own page would request fonts and scripts from other servers.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
TEXTS = (b"text/html", b"text/plain", b"text/event-stream", b"application/json")  # responses that may name files
MAX_FORM = 1 << 20  # bytes of a request that is not an upload; ours
ENVELOPE = 1 << 20  # bytes of an upload that are not the file: names and separators; ours
SILENCE = 30.0  # seconds without a byte after which an upload is given up, and in which any pace is fine; ours
MIN_RATE = 10_000  # bytes a second of an upload on the average; ours

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Tabs(Protocol):
    """Who is told which tabs are open; the Studio."""

    def connect(self, session: str) -> None: ...

    def disconnect(self, session: str) -> None: ...


class Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """The layer, as ASGI middleware.

    Args:
        folder: of all uploads and results.
        megabytes: of the largest upload.
    """

    def __init__(self, app: App, hosts: Hosts, folder: Path, megabytes: int, tabs: Tabs) -> None:
        self.app = app
        self.hosts = hosts
        self.folder = folder
        self.tabs = tabs
        self.max_upload = megabytes * 1000**2 + ENVELOPE
        self._uploads = 0  # that are being received
        self._hidden = _spellings(folder)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            scope = self._checked(scope)
            receive = await self._form(scope, receive)
        except Refused as refused:
            await _answer(send, refused)
            return
        path = scope["path"]
        if path == UPLOAD:
            await self._upload(scope, receive, self._shown(send))
        elif path.startswith(HEARTBEAT):
            session = path.removeprefix(HEARTBEAT)
            self.tabs.connect(session)
            try:
                await self.app(scope, receive, self._shown(send))
            finally:
                self.tabs.disconnect(session)
        else:
            await self.app(scope, receive, self._shown(send))

    def _checked(self, scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The request with the path of a file on the server in place of the shown one. Raises Refused."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = scope["path"]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if reason := self.hosts.refusal(method, path, headers):
            raise Refused(403, reason)
        if path not in PATHS.get(method, ()) and not (method == "GET" and path.startswith(FOLDERS)):
            raise Refused(404, "the page has nothing there")
        if not path.startswith(FILE):
            return scope
        location = FILE + self._file(path.removeprefix(FILE))
        return {**scope, "path": location, "raw_path": quote(location).encode()}

    def _file(self, shown: Any) -> str:
        """The path of a file that a browser names. Raises Refused for one that is not in the folder."""
        if not isinstance(shown, str) or not shown.startswith(f"{SHOWN}/") or ".." in shown.split("/") or "\0" in shown:
            raise Refused(403, "this is not a file of the page")
        return str(self.folder) + shown.removeprefix(SHOWN)

    async def _form(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """Reads a request that is not an upload, and replaces the paths in it. Raises Refused."""
        if scope["method"] != "POST" or scope["path"] == UPLOAD:
            return receive
        body = b""
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                raise Refused(408, "the request has not arrived") from None
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ends early")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_FORM:
                raise Refused(413, f"a request may have {MAX_FORM} bytes")
        try:
            form = parse_json(bytes(body))
            for entry in _objects(form):
                if "path" in entry:
                    entry["path"] = self._file(entry["path"])
            body = json.dumps(form).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None
        _set_length(scope["headers"], len(body))
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay

    async def _upload(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Passes an upload on, within its limits of bytes and time. What an interrupted one has left is removed."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self.max_upload:
            await _answer(send, Refused(413, f"upload at most {self.max_upload // 1000**2} MB"))
            return
        began = time.monotonic()
        received = 0

        async def limited() -> Message:
            nonlocal received
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            seconds = time.monotonic() - began
            if received > self.max_upload or (seconds > SILENCE and received < MIN_RATE * (seconds - SILENCE)):
                return {"type": "http.disconnect"}
            return message

        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        self._uploads += 1
        try:
            # an answered request may wait for its client, who is not limited
            await self.app(scope, lambda: receive() if answered else limited(), watched)
        finally:
            self._uploads -= 1
            self._remove_parts()

    def _remove_parts(self) -> None:
        """Removes the files of interrupted uploads; Gradio receives files directly in the folder, then moves them."""
        now = time.time()
        for path in self.folder.glob("*"):
            try:
                if path.is_file() and (self._uploads == 0 or now - path.stat().st_mtime > 2 * SILENCE):
                    path.unlink()
            except FileNotFoundError:
                pass

    def _shown(self, send: Send) -> Send:
        """Sends a response under the page's policy, with the shown path in place of the folder of files."""
        held: Message | None = None  # the start of the response, until the length of the body is known
        is_text = False
        has_length = False
        body = b""

        async def shown(message: Message) -> None:
            nonlocal held, is_text, has_length, body
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY)]
                names = {name.lower(): value for name, value in headers}
                is_text = names.get(b"content-type", b"").startswith(TEXTS)
                has_length = b"content-length" in names
                held = {**message, "headers": headers}
                return
            if is_text and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if has_length and message.get("more_body", False):
                    return
                message = {**message, "body": self._hide(body)}
                body = b""
            if held is not None:
                if is_text and has_length:
                    _set_length(held["headers"], len(message["body"]))
                await send(held)
                held = None
            await send(message)

        return shown

    def _hide(self, text: bytes) -> bytes:
        for spelling in self._hidden:
            text = text.replace(spelling, SHOWN.encode())
        return text


def _spellings(folder: Path) -> list[bytes]:
    """The ways in which a response may write a path, the longest first."""
    paths = {str(folder), str(folder.resolve())}
    texts = {text for path in paths for text in (path, quote(path), json.dumps(path)[1:-1])}
    return sorted((text.encode() for text in texts), key=len, reverse=True)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _set_length(headers: list[tuple[bytes, bytes]], length: int) -> None:
    headers[:] = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    headers.append((b"content-length", str(length).encode()))


async def _answer(send: Send, refused: Refused) -> None:
    text = f"{refused}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
