"""Videos and images that are not on this machine: streams that seek, and errors that say whether to try again."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gen1_train.errors import UserError
from gen1_train.remote import copy_file, file_system, reason_of
from gen1_train.video.probe import VideoError

BLOCK = 256 << 10  # bytes in one request while a header is read


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """A readable, seekable stream, of which only what is read is fetched. All errors are VideoError, transient."""
    with transient_errors():
        system, path = file_system(url)
        stream = system.open(path, "rb", block_size=BLOCK)
    with stream, tempfile.NamedTemporaryFile(prefix="gen1-") as copy:
        yield io.BufferedReader(_Remote(url, stream, copy))


def download(url: str, target: Path) -> None:
    """Copies a remote file. All errors are VideoError, transient."""
    with transient_errors():
        copy_file(url, target)


@contextmanager
def transient_errors() -> Iterator[None]:
    """Whatever a file system says in the block becomes a VideoError; UserError stays what it is."""
    try:
        yield
    except (UserError, VideoError):
        raise
    except Exception as error:  # each file system has errors of its own, and not all are OSErrors
        raise VideoError(reason_of(error), transient=True) from error


class _Remote(io.RawIOBase):
    """Passes reads on, so that an error of the network is not taken for one of the file's content.

    A web server that serves no ranges, or no size, has to give the whole file: it goes to `copy`.
    """

    def __init__(self, url: str, stream: Any, copy: Any) -> None:
        self.url, self.stream, self.copy = url, stream, copy
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
                data = self._read(len(buffer))
            except ValueError:
                if self.stream is self.copy:
                    raise
                self._fetch_all()
                data = self._read(len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        self.stream.seek(self.position)
        return self.stream.read(count)

    def _fetch_all(self) -> None:
        download(self.url, Path(self.copy.name))
        self.stream, self.size = self.copy, os.path.getsize(self.copy.name)
