"""What the guard reports, and what it lets pass."""

import ast
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuzzing import guard
from tests.fuzzing.guard import ViolationError, watched
from tests.running import REPOSITORY


def spin() -> None:
    """Works for up to 3 s of this process's own time, as the limit counts it."""
    until = os.times().user + 3
    while os.times().user < until:
        sum(range(10_000))


def caught() -> None:
    """Something that a reader does and whose refusal it swallows."""
    with suppress(BaseException):
        socket.getaddrinfo("localhost", 80)


FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "opened to be written": lambda outside: (outside / "x").write_text("x"),
    "os.remove": lambda outside: (outside / "there").unlink(),
    "os.rename": lambda outside: os.replace("inside", outside / "there"),
    "os.mkdir": lambda outside: (outside / "x").mkdir(),
    "is started": lambda outside: subprocess.run([sys.executable, "-c", ""]),
    "is compiled": lambda outside: eval("1 + 1"),
    "is run": lambda outside: exec(CODE),
    "pickle.find_class": lambda outside: pickle.loads(PICKLE),
    "os.system": lambda outside: os.system("true"),
    "socket.getaddrinfo": lambda outside: caught(),
    "more than 1 s": lambda outside: spin(),
}
CODE = compile("x = 1", "made", "exec")
PICKLE = b"cbuiltins\nlen\n."


@pytest.mark.parametrize("problem", FORBIDDEN)
def test_a_violation_is_reported(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 1)
    (tmp_path / "there").write_text("old")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_text("x")
    monkeypatch.chdir(folder)
    with pytest.raises(ViolationError, match=problem), watched(folder):
        FORBIDDEN[problem](tmp_path)
    assert (tmp_path / "there").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there"]


def test_a_growth_of_memory_is_reported(tmp_path: Path) -> None:
    """In a process of its own: this one may free what earlier tests have left at the same time."""
    code = (
        "import sys; from pathlib import Path; from tests.fuzzing import guard\n"
        "with guard.watched(Path(sys.argv[1])): bytearray(b'x') * (guard.GROWTH + int(sys.argv[2]))"
    )
    for more, ends in ((50 << 20, "ViolationError: its memory grew by "), (-(200 << 20), "")):
        command = [sys.executable, "-c", code, str(tmp_path), str(more)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert (ends in done.stderr) and bool(done.returncode) == bool(ends), done.stderr


def test_a_link_out_of_the_folder_is_not_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "there").write_text("old")
    (folder / "link").symlink_to(tmp_path)
    (folder / "file").symlink_to(tmp_path / "there")
    for path in (folder / "link" / "x", folder / "file"):
        with pytest.raises(ViolationError, match="opened to be written"), watched(folder):
            path.write_text("x")
    assert (tmp_path / "there").read_text() == "old"


def test_an_allocation_beyond_the_limit_fails(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), watched(tmp_path):
        bytearray(guard.ADDRESS_SPACE + (1 << 30))


def test_what_readers_do_is_no_violation(tmp_path: Path) -> None:
    with watched(tmp_path):
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").rename(tmp_path / "y")
        assert ast.literal_eval((tmp_path / "y").read_text().replace("x", "{'a': 1}")) == {"a": 1}
        assert Path(__file__).read_text()
        (tmp_path / "y").unlink()
