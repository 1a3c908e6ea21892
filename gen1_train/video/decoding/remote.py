"""Videos and images that are not on this machine: seekable streams, and errors that tell whether to try again."""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gen1_train.errors import UserError
from gen1_train.system.remote import copy_file, file_system, reason_of
from gen1_train.system.web import RemoteLimitError
from gen1_train.video.decoding.sandbox import heartbeat
from gen1_train.video.errors import VideoError

BLOCK = 256 << 10  # bytes per request while a header is read
LONGEST = 1 << 20  # bytes of one read, so that each is short; ours
AGAIN = 10.0  # seconds before a URL is tried again that failed after SLOW seconds; ours
SLOW = 5.0

_failures: dict[str, tuple[float, VideoError]] = {}  # the last one: when, and why


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """A readable, seekable stream that fetches only what is read.

    Errors are transient VideoErrors, except that the server sends more than the file has. One that could not be opened
    is not tried again at once: the same file is opened several times, to find its format and to decode it.
    """
    failed_at, failure = _failures.get(url, (0.0, None))
    if failure is not None and time.monotonic() - failed_at < AGAIN:
        raise VideoError(str(failure), failure.transient)
    heartbeat()
    began = time.monotonic()
    try:
        with transient_errors():
            system, path = file_system(url)
            stream = system.open(path, "rb", block_size=BLOCK)
    except VideoError as error:
        if time.monotonic() - began > SLOW:
            _failures.clear()
            _failures[url] = time.monotonic(), error
        raise
    with stream, tempfile.NamedTemporaryFile(prefix="gen1-") as copy:
        yield io.BufferedReader(_Remote(url, stream, copy))


def download(url: str, target: Path) -> None:
    """Copies a remote file. Errors are transient VideoErrors, except that the server sends more than the file has."""
    with transient_errors():
        copy_file(url, target, lambda count: heartbeat())


@contextmanager
def transient_errors() -> Iterator[None]:
    """Turns every error of a file system inside the block into a transient VideoError; UserError passes unchanged."""
    try:
        yield
    except (UserError, VideoError):
        raise
    except RemoteLimitError as error:
        raise VideoError(str(error), transient=error.transient) from error
    except Exception as error:  # each file system has its own errors, and not all are OSErrors
        raise VideoError(reason_of(error), transient=True) from error


class _Remote(io.RawIOBase):
    """A raw stream over a remote file, whose network errors are not mistaken for damage of the file.

    If a web server supports no range requests, or does not tell the size, the whole file is downloaded to `copy`.
    """

    def __init__(self, url: str, stream: Any, copy: Any) -> None:
        self.url = url
        self.stream = stream
        self.copy = copy
        self.size: int | None = getattr(stream, "size", None)
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size is None:
            self._fetch_all()
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size or 0}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        with transient_errors():
            try:
                data = self._read(min(len(buffer), LONGEST))
            except ValueError:
                if self.stream is self.copy:
                    raise
                self._fetch_all()
                data = self._read(min(len(buffer), LONGEST))
        heartbeat()
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        self.stream.seek(self.position)
        return self.stream.read(count)

    def _fetch_all(self) -> None:
        download(self.url, Path(self.copy.name))
        self.stream = self.copy
        self.size = os.path.getsize(self.copy.name)
