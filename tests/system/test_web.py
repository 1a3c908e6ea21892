"""Web servers that send without an end, too slowly, or nothing: one line, in bounded time and memory."""

import gzip
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from gen1_train.errors import UserError
from gen1_train.system import remote, web
from gen1_train.system.remote import copy_file, read_bytes, reason_of
from gen1_train.system.web import RemoteLimitError
from gen1_train.video.decode import probe
from gen1_train.video.decoding import remote as video_remote
from gen1_train.video.decoding.remote import download, open_remote
from gen1_train.video.errors import VideoError

MIB = 1 << 20


class Hostile(BaseHTTPRequestHandler):
    """Answers by the name of the file."""

    protocol_version = "HTTP/1.1"
    end: Event

    def do_GET(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client has had enough
            getattr(self, self.path.strip("/").partition(".")[0])()

    do_HEAD = do_GET

    def _start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def endless(self) -> None:
        self._start(Connection="close")
        while self.command == "GET" and not self.end.is_set():
            self.wfile.write(bytes(MIB))

    def endless_range(self) -> None:
        """Announces a size, and sends more than any range has."""
        self._start(
            206 if self.command == "GET" else 200, **({"Content_Length": MIB} if self.command == "HEAD" else {})
        )
        while self.command == "GET" and not self.end.is_set():
            self.wfile.write(bytes(MIB))

    def trickle(self) -> None:
        self._start(Content_Length=10 * MIB)
        while self.command == "GET" and not self.end.is_set():
            self.wfile.write(b"\0")
            time.sleep(0.05)

    def packed(self) -> None:
        body = gzip.compress(bytes(16 * MIB))
        self._start(Content_Length=len(body), Content_Encoding="gzip")
        self.wfile.write(body if self.command == "GET" else b"")

    def silent(self) -> None:
        self.end.wait(30)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the server; limits are small."""
    for module in (remote, web):
        monkeypatch.setattr(module, "PATIENCE", 1.0)
    monkeypatch.setattr(web, "MAX_IN_MEMORY", 4 * MIB)
    monkeypatch.setattr(web, "MAX_UNANNOUNCED", 8 * MIB)
    monkeypatch.setattr(video_remote, "SLOW", 0.5)
    Hostile.end = Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Hostile.end.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["endless", "packed"])
def test_a_small_file_without_an_end_is_refused_in_one_line_with_its_address(url: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"^{url}/{name}.json cannot be read: the answer has more than 4 MiB$"):
        read_bytes(f"{url}/{name}.json")


def test_a_file_of_unknown_size_has_a_limit(url: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="more than the 8388608 bytes") as caught:
        download(f"{url}/endless.mp4", tmp_path / "a.mp4")
    assert not caught.value.transient
    assert (tmp_path / "a.mp4").stat().st_size <= 8 * MIB


def test_a_file_of_known_size_is_not_read_beyond_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteLimitError, match="it has more than 1000 bytes"):
        copy_file(f"{url}/endless.tar", tmp_path / "a.tar", most=1000)
    assert (tmp_path / "a.tar").stat().st_size <= 8 * MIB


def test_a_server_cannot_send_more_than_the_range_that_was_asked_for(url: str) -> None:
    with open_remote(f"{url}/endless_range.mp4") as stream, pytest.raises(VideoError, match="more than the") as caught:
        stream.read(100)
    assert not caught.value.transient


def test_a_trickle_ends_at_a_minimum_pace(url: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(VideoError, match="less than 10 kB a second") as caught:
        download(f"{url}/trickle.mp4", tmp_path / "a.mp4")
    with pytest.raises(Exception, match="less than 10 kB a second"):
        read_bytes(f"{url}/trickle.json")
    assert caught.value.transient and time.monotonic() - began < 20


def test_a_silent_server_is_given_up_once_for_a_file(url: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        copy_file(f"{url}/silent.tar", tmp_path / "a.tar")
    assert reason_of(caught.value) == "the server was silent for 1 s"
    reasons = []
    for _ in range(5):
        with (
            pytest.raises(VideoError, match=r"^the server was silent for 1 s$") as error,
            open_remote(f"{url}/silent"),
        ):
            pass
        reasons.append(error.value)
    assert all(reason.transient for reason in reasons)
    assert len({id(reason.__cause__) for reason in reasons}) == 2  # one attempt; None for the others


@pytest.mark.slow
def test_the_child_reports_a_silent_server(url: str) -> None:
    began = time.monotonic()
    with pytest.raises(VideoError, match="the server was silent for 20 s") as caught:
        probe(f"{url}/silent.mp4")
    assert caught.value.transient and time.monotonic() - began < 60
