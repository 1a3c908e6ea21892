"""Limits on what web servers send: an endless, trickling or silent answer ends in an error."""

import re
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import ClientResponse, StreamReader

PATIENCE = 20.0  # seconds without a byte before a web server is given up; ours
MIN_RATE = 10_000  # bytes a second on the average, after PATIENCE; ours
MAX_IN_MEMORY = 256 << 20  # bytes of an answer that is read as a whole: manifests, indices, lists; ours
MAX_UNANNOUNCED = 4 << 30  # bytes of a file whose size the server does not announce; ours
CHUNK = 1 << 20  # bytes


class RemoteLimitError(Exception):
    """A server sends too much, or too slowly. `transient`: another attempt may succeed."""

    def __init__(self, reason: str, transient: bool) -> None:
        super().__init__(reason)
        self.transient = transient


def client_options() -> dict[str, Any]:
    """Options of an aiohttp session; aiohttp's own give up after five minutes in total."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, connect=PATIENCE, sock_connect=PATIENCE, sock_read=PATIENCE)
    return {"timeout": timeout, "response_class": limited_response()}


@cache
def limited_response() -> "type[ClientResponse]":
    """The class of an answer whose body has at most the bytes asked for or announced, at a minimum pace."""
    from aiohttp import ClientResponse  # here, since most commands never need it

    class LimitedResponse(ClientResponse):
        async def start(self, *arguments: Any, **options: Any) -> ClientResponse:
            response = await super().start(*arguments, **options)
            self.content = _Body(self.content, _limit(self))  # type: ignore[assignment]
            return response

    return LimitedResponse


def _limit(response: "ClientResponse") -> int:
    """The most bytes that the body of an answer may have."""
    requested = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request_info.headers.get("Range", ""))
    if response.status == 206 and requested:
        return int(requested[2]) - int(requested[1]) + 1
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and "Content-Encoding" not in response.headers:  # else it is the size of the packed bytes
        return int(announced)
    return MAX_UNANNOUNCED


class _Body:
    """A StreamReader that raises RemoteLimitError."""

    def __init__(self, content: "StreamReader", limit: int) -> None:
        self._content = content
        self._limit = limit
        self._began = time.monotonic()
        self._received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def read(self, n: int = -1) -> bytes:
        if n >= 0:
            return self._counted(await self._content.read(n))
        parts = []
        while part := await self.read(CHUNK):
            parts.append(part)
            if self._received > MAX_IN_MEMORY:
                raise RemoteLimitError(f"the answer has more than {MAX_IN_MEMORY >> 20} MiB", transient=False)
        return b"".join(parts)

    async def readany(self) -> bytes:
        return self._counted(await self._content.readany())

    def _counted(self, part: bytes) -> bytes:
        self._received += len(part)
        if self._received > self._limit:
            raise RemoteLimitError(f"the server sends more than the {self._limit} bytes of the file", transient=False)
        seconds = time.monotonic() - self._began
        if part and seconds > PATIENCE and self._received < MIN_RATE * (seconds - PATIENCE):
            raise RemoteLimitError(f"the server sends less than {MIN_RATE // 1000} kB a second", transient=True)
        return part
