"""A local web server that serves a folder."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class PlainHandler(SimpleHTTPRequestHandler):
    """Serves whole files only, like Python's own server; refuses /forbidden and redirects /moved."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/forbidden?X-Amz-Signature=SECRET")
            self.end_headers()
        elif self.path.startswith("/forbidden"):
            self.send_error(403)
        elif self.path.startswith("/broken"):
            self.send_error(503)
        else:
            self.answer()

    do_HEAD = do_GET

    def answer(self) -> None:
        super().do_GET() if self.command == "GET" else super().do_HEAD()

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]


class RangeHandler(PlainHandler):
    """Supports range requests, and counts the bytes sent."""

    def answer(self) -> None:
        path = Path(self.translate_path(self.path))
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.command == "HEAD" or not requested or not path.is_file():
            super().answer()
            return
        content = path.read_bytes()
        part = content[int(requested[1]) : int(requested[2]) + 1]
        self.server.sent += len(part)  # type: ignore[attr-defined]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {requested[1]}-{int(requested[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, handler: type[PlainHandler]) -> None:
        self.requests: list[str] = []
        self.sent = 0
        super().__init__(("127.0.0.1", 0), partial(handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(folder: Path, handler: type[PlainHandler] = RangeHandler) -> Iterator[Web]:
    """A server of a folder, which runs until the end of the block."""
    server = Web(folder, handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
