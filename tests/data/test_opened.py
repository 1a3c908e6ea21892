"""Open files: no more than the limit, closed when they are let go, read to the end of what was asked."""

import os
from pathlib import Path

import pytest

from gen1_train.data.opened import OpenFile, OpenFiles


def held() -> set[str]:
    """The files that this process has open, deleted ones with a mark of the kernel's."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{i}" for i in range(6)]
    for i, path in enumerate(made):
        path.write_bytes(bytes([i]) * 10)
    return made


def test_reads_by_position_and_stops_at_the_end(paths: list[Path]) -> None:
    with OpenFile(paths[3]) as file:
        assert file.read(4, 2) == b"\3" * 4
        assert file.read(100, 8) == b"\3" * 2
        assert file.read(0, 0) == file.read(5, 10) == b""
        assert file.size == 10
        assert str(paths[3]) in held()
    assert str(paths[3]) not in held()
    file.close()  # again: nothing happens


def test_a_read_in_pieces_is_put_together(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may give less than was asked, before the end."""
    pread = os.pread
    paths[0].write_bytes(bytes(range(10)))
    with OpenFile(paths[0]) as file:
        monkeypatch.setattr(os, "pread", lambda number, size, offset: pread(number, min(size, 3), offset))
        assert file.read(8, 1) == bytes(range(1, 9))
        assert file.read(100, 5) == bytes(range(5, 10))


def test_a_file_that_is_forgotten_is_closed(paths: list[Path]) -> None:
    file = OpenFile(paths[0])
    assert str(paths[0]) in held()
    del file
    assert str(paths[0]) not in held()


def test_the_one_longest_unused_makes_room(paths: list[Path]) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(3)
    opened = []

    def get(number: int) -> bytes:
        def open_file() -> OpenFile:
            opened.append(number)
            return OpenFile(paths[number])

        return files.get(str(number), open_file).read(1, 0)

    for number in (0, 1, 2, 0, 3, 0, 4):
        assert get(number) == bytes([number])
        assert len(held() & set(map(str, paths))) <= 3
    assert opened == [0, 1, 2, 3, 4]
    assert held() & set(map(str, paths)) == {str(paths[number]) for number in (0, 3, 4)}
    files.close("3")
    files.close("never opened")
    assert held() & set(map(str, paths)) == {str(paths[number]) for number in (0, 4)}


def test_deleted_files_are_closed_and_the_others_stay(paths: list[Path]) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(5)
    for path in paths[:4]:
        files.get(path.name, lambda path=path: OpenFile(path))  # type: ignore[misc]
    paths[1].unlink()
    paths[4].replace(paths[2])  # another file under the same name: the one that is open is deleted
    files.close_deleted()
    assert held() & {f"{path}{mark}" for path in paths for mark in ("", " (deleted)")} == {str(paths[0]), str(paths[3])}


def test_what_cannot_be_opened_leaves_no_trace(paths: list[Path], tmp_path: Path) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(1)
    files.get("0", lambda: OpenFile(paths[0]))
    with pytest.raises(FileNotFoundError):
        files.get("gone", lambda: OpenFile(tmp_path / "gone"))
    assert str(paths[0]) in held()
