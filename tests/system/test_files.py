"""Files that are complete or absent."""

import os
import threading
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.system import files
from gen1_train.system.files import (
    append_line,
    network_file_system,
    own_folder,
    read_regular,
    refuse_link,
    remove_leftovers,
    write_atomically,
)


def test_only_the_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    write_atomically(tmp_path / "plan.json", b"complete")
    (tmp_path / ".plan.json.0011.tmp").write_bytes(b"comp")
    (tmp_path / ".step-00000001.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000001.tmp", "plan.json"]
    remove_leftovers(tmp_path / "absent")


def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine\n")
    (tmp_path / "starts.jsonl").symlink_to("victim")
    for _ in range(2):
        with pytest.raises(UserError, match="is a link, and nothing is written"):
            append_line(tmp_path / "starts.jsonl", "theirs")
    write_atomically(tmp_path / "starts.jsonl", b"replaced")
    assert (tmp_path / "victim").read_text() == "mine\n"
    assert not (tmp_path / "starts.jsonl").is_symlink()


def test_a_folder_below_the_user_s_is_not_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")  # the user's own choice
    assert own_folder(tmp_path / "run", "guard", "step-1").is_dir()
    assert own_folder(tmp_path / "run", "guard", "step-1").is_dir()
    (tmp_path / "run" / "samples").symlink_to(tmp_path)
    (tmp_path / "run" / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "run" / "pipe")
    for name, kind in (("samples", "a link"), ("dangling", "a link"), ("pipe", "neither a file nor a folder")):
        with pytest.raises(UserError, match=f"{name} is {kind}"):
            own_folder(tmp_path / "run", name, "step-1")
    refuse_link(tmp_path / "nothing")
    assert not (tmp_path / "step-1").exists() and not (tmp_path / "nothing").exists()


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"12345")
    for name in ("pipe", "zeros", "file"):
        with pytest.raises(OSError):
            read_regular(tmp_path / name, 4)
    assert read_regular(tmp_path / "file", 5) == b"12345"


def test_leftovers_that_are_links_stay(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".a.tmp").symlink_to("victim")
    remove_leftovers(tmp_path)
    assert (tmp_path / "victim").exists() and (tmp_path / ".a.tmp").is_symlink()


def test_a_thread_that_waits_for_a_disk_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RETRY", 0.0)
    seen = []

    def attempt() -> int:
        seen.append(files.is_waiting(threading.current_thread()))
        if len(seen) < 3:
            raise OSError(28, "No space left on device")
        return 7

    assert files.patiently(attempt, "it cannot be written", seconds=60) == 7
    assert seen == [False, True, True] and not files.is_waiting(threading.current_thread())
    with pytest.raises(UserError, match="it cannot be written"):
        files.patiently(Path("/nowhere/at/all").unlink, "it cannot be written", seconds=-1)
    assert not files.is_waiting(threading.current_thread())


@pytest.mark.parametrize(
    ("kind", "expected"), [("nfs4", "nfs4"), ("fuse.juicefs", "fuse.juicefs"), ("ext4", None), ("fuseblk", None)]
)
def test_a_network_file_system_is_known_by_its_type(tmp_path: Path, kind: str, expected: str | None) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"22 1 0:999 / /other rw - lustre other rw\n23 1 {number} / /a\\040b rw shared:1 - {kind} host:/set rw\n"
    )
    assert network_file_system(tmp_path, mounts) == expected
    assert network_file_system(tmp_path / "missing", mounts) is None
    assert network_file_system(tmp_path, tmp_path / "missing") is None
    mounts.write_text("torn\n\n")
    assert network_file_system(tmp_path, mounts) is None


def test_a_file_system_of_the_kernel_is_no_network_file_system() -> None:
    assert network_file_system(Path("/proc")) is None
