"""Files that are kept open, and no more of them than a process may have: a set has more shards than that."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar


class OpenFile:
    """A file that is read by position alone. Use as a context, or let it go: it closes itself. Raises OSError."""

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on; fewer only where the file ends."""
        parts = []
        while size > 0 and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return os.fstat(self._descriptor).st_size

    @property
    def deleted(self) -> bool:
        """Whether nothing but this descriptor holds the file any more, and with it its room on the disk."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    __del__ = close


F = TypeVar("F", bound=OpenFile)


class OpenFiles(Generic[F]):
    """At most `limit` open files by name; for one more, the one that was not asked for longest is closed.

    For one thread: what another still reads may be closed under it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[str, F] = OrderedDict()

    def get(self, name: str, open_file: Callable[[], F]) -> F:
        """The file of this name, opened by `open_file` if it is not open. Raises what that raises."""
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
