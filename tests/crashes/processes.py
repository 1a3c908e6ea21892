"""The processes of a command that was started in a session of its own."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def session(leader: int) -> list[int]:
    """Returns the living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def command_lines(leader: int) -> bytes:
    """Returns the command lines of a session's processes."""
    found = b""
    for number in session(leader):
        with suppress(OSError):
            found += Path(f"/proc/{number}/cmdline").read_bytes()
    return found


def wait_for(ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the awaited state was not reached in time"
        time.sleep(0.02)
