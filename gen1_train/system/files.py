"""Files that are complete or absent, also after a power failure."""

import errno
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from gen1_train.errors import UserError

RETRY = 10.0  # seconds between two attempts to write
# types of file systems that other machines serve, as the kernel names them; with FUSE nearly all of them are
# fmt: off
NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "wekafs", "panfs", "orangefs", "pvfs2", "gfs2",
    "ocfs2", "cifs", "smb3", "afs", "9p", "virtiofs",
}
# fmt: on

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` to write to. At the end of the block, it is synced and renamed to `path`.

    If the block raises, the temporary file is removed and `path` is unchanged. Concurrent writers do not collide.
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
    """Writes a file that has its whole content or does not exist. Concurrent writers do not collide."""
    with atomic_file(path) as temporary, open(temporary, "wb") as stream:
        stream.write(data)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file, which may not exist yet, completely or not at all. Only one process may append.

    If a killed process left part of a line, the new one begins after it. Raises OSError, and UserError for a link.
    """
    refuse_link(path)
    with open(path, "ab") as stream:
        size = stream.tell()
    torn = b""
    if size:
        with open(path, "rb") as stream:
            stream.seek(-1, os.SEEK_END)
            torn = b"" if stream.read() == b"\n" else b"\n"
    try:
        with open(path, "ab") as stream:
            stream.write(torn + line.encode() + b"\n")
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


_waiting: set[int] = set()  # the threads that wait in `patiently`


def patiently(attempt: Callable[[], Result], what: str, seconds: float) -> Result:
    """Returns what `attempt` returns, and repeats it every RETRY seconds while it raises OSError.

    `what`: of the message, such as "metrics.csv cannot be written"; the wait is announced once. Raises UserError when
    no attempt within `seconds` succeeded. What `attempt` does must be the same if it is repeated.
    """
    until = time.monotonic() + seconds
    thread = threading.get_ident()
    try:
        while True:
            try:
                return attempt()
            except OSError as error:
                reason = f"{what} ({error.strerror or error})"
                cause = error
            if time.monotonic() + RETRY > until:
                raise UserError(
                    f"{reason}: free some space or fix the disk, then call the same command again"
                ) from cause
            if thread not in _waiting:
                logger.warning(f"{reason}: trying again every {RETRY:g} s, for at most {seconds:g} s")
                _waiting.add(thread)
            time.sleep(RETRY)
    finally:
        _waiting.discard(thread)


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread waits in `patiently` for a disk that is full or does not answer."""
    return thread.ident in _waiting


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read. Raises OSError, also for what is not a regular file: opening a pipe would block forever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """Reads a regular file of up to `most` bytes. Raises OSError, also for a larger one and for what is no file."""
    with open_regular(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return data


def own_folder(root: Path, *names: str) -> Path:
    """Creates ROOT/NAME/…, in which this process writes and removes files, and returns it.

    ROOT is a folder that the user names, and may be a link. What is in it may come from others, so that a link below
    ROOT could lead to files that are not the command's: UserError. Raises OSError.
    """
    if not root.exists():  # a file in its place is named by the next step
        root.mkdir(parents=True, exist_ok=True)
    for name in names:
        root = root / name
        refuse_link(root)
        root.mkdir(exist_ok=True)
    return root


def refuse_link(path: Path) -> None:
    """Raises UserError for a link, and for a pipe or a device, at a path that this process writes to.

    Files that are replaced as a whole (`write_atomically`) need no such check: the link is replaced, not its target.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # there is nothing yet; what writes there reports all else
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise UserError(f"{path} is {kind}, and nothing is written or removed through it: remove it")


def check_new(setting: str, path: Path, overwrite: bool) -> None:
    """Raises UserError for a file to write that exists already, unless the user allows that with overwrite=true."""
    if path.is_dir():
        raise UserError(f"{setting}={path} is a folder: give the name of a file")
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{setting}={path} exists already: give another name, or add overwrite=true")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed writers from a folder that no other process is writing to."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file() and not leftover.is_symlink():
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk; without it, a power failure may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Returns the type of the file system that a path is on, such as nfs4, if other machines may serve it, else None.

    Also None where the kernel does not tell, which only Linux does.
    """
    try:
        device = os.stat(path).st_dev  # first, because it may cause the mount
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:  # ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE OPTIONS
        before, _, after = line.partition(" - ")
        kind = after.split(" ")[0]
        if before.split(" ")[2:3] == [number]:
            return kind if kind in NETWORK or kind.startswith("fuse.") else None
    return None
