"""Files that are whole or not there, also after a power cut."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Temp file, fsync, rename: the file has its whole content or does not exist. Several writers do not meet."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
