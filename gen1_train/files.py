"""Files that are whole or not there, also after a power cut."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. At the end of the block it is synced and renamed to `path`.

    If the block raises, nothing is left of it and `path` is as it was. Several writers do not meet.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Temp file, fsync, rename: the file has its whole content or does not exist. Several writers do not meet."""
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        stream.write(data)


def clear_killed(folder: Path) -> None:
    """Removes what `write_atomically` of killed processes has left; for a folder into which nobody else writes now."""
    for left in folder.glob(".*.tmp"):
        if left.is_file():
            left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file, or a folder's list of names, is on the disk: without it a power cut may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
