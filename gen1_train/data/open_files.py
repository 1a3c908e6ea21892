"""Files that are kept open, within a limit: a shard set has more files than a process may have open."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from gen1_train.system.files import open_regular

PART = 1 << 26  # bytes of one read, at most; ours


class OpenFile:
    """A file that is read at explicit offsets only. It is a context manager, and also closes when garbage-collected.

    Links are followed, so that a shard set may be spread over several disks. Raises OSError if the file cannot be
    opened, or is not a regular file.
    """

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as stream:
            self._descriptor = os.dup(stream.fileno())

    def read(self, size: int, offset: int) -> bytes:
        """Reads `size` bytes from `offset`; fewer only at the end of the file. Raises OSError.

        A size that an index claims takes no more memory than the file has, because it is read in parts.
        """
        parts = []
        while size > 0 and (part := os.pread(self._descriptor, min(size, PART), offset)):
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return os.fstat(self._descriptor).st_size

    @property
    def deleted(self) -> bool:
        """Whether the file has been deleted, so that only this descriptor keeps its disk space allocated."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        descriptor = self._descriptor
        self._descriptor = -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    __del__ = close


F = TypeVar("F", bound=OpenFile)


class OpenFiles(Generic[F]):
    """At most `limit` open files by name. When another one is opened, the least recently used is closed.

    Not thread-safe: a file may be closed while another thread still reads it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[str, F] = OrderedDict()

    def get(self, name: str, open_file: Callable[[], F]) -> F:
        """Returns the file of this name; calls `open_file` if it is not open. Raises what `open_file` raises."""
        if name not in self._files:
            file = open_file()
            if len(self._files) >= self.limit:
                self._files.popitem(last=False)[1].close()
            self._files[name] = file
        self._files.move_to_end(name)
        return self._files[name]

    def close(self, name: str) -> None:
        """Closes one file, if it is open."""
        if (file := self._files.pop(name, None)) is not None:
            file.close()

    def close_deleted(self) -> None:
        """Closes the files that have been deleted."""
        for name in [name for name, file in self._files.items() if file.deleted]:
            self.close(name)
