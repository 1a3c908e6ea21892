"""Open files: they stay within the limit, close when they are no longer used, and read all that is requested."""

import os
from pathlib import Path

import pytest

from gen1_train.data.open_files import OpenFile, OpenFiles


def open_paths() -> set[str]:
    """The files that this process has open; Linux appends " (deleted)" to deleted ones."""
    targets = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            targets.add(os.readlink(link))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return targets


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 10)
    return paths


def test_reads_are_at_an_offset_and_stop_at_the_end(paths: list[Path]) -> None:
    with OpenFile(paths[3]) as file:
        assert file.read(4, 2) == b"\3" * 4
        assert file.read(100, 8) == b"\3" * 2
        assert file.read(0, 0) == file.read(5, 10) == b""
        assert file.size == 10
        assert str(paths[3]) in open_paths()
    assert str(paths[3]) not in open_paths()
    file.close()  # a second time, without effect


def test_short_reads_are_continued(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may return fewer bytes than requested before the end of a file."""
    pread = os.pread
    paths[0].write_bytes(bytes(range(10)))
    with OpenFile(paths[0]) as file:
        monkeypatch.setattr(os, "pread", lambda number, size, offset: pread(number, min(size, 3), offset))
        assert file.read(8, 1) == bytes(range(1, 9))
        assert file.read(100, 5) == bytes(range(5, 10))


def test_a_file_is_closed_when_it_is_garbage_collected(paths: list[Path]) -> None:
    file = OpenFile(paths[0])
    assert str(paths[0]) in open_paths()
    del file
    assert str(paths[0]) not in open_paths()


def test_the_least_recently_used_file_is_closed(paths: list[Path]) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(3)
    opened = []

    def get(number: int) -> bytes:
        def open_file() -> OpenFile:
            opened.append(number)
            return OpenFile(paths[number])

        return files.get(str(number), open_file).read(1, 0)

    for number in (0, 1, 2, 0, 3, 0, 4):
        assert get(number) == bytes([number])
        assert len(open_paths() & set(map(str, paths))) <= 3
    assert opened == [0, 1, 2, 3, 4]
    assert open_paths() & set(map(str, paths)) == {str(paths[number]) for number in (0, 3, 4)}
    files.close("3")
    files.close("never opened")
    assert open_paths() & set(map(str, paths)) == {str(paths[number]) for number in (0, 4)}


def test_only_deleted_files_are_closed(paths: list[Path]) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(5)
    for path in paths[:4]:
        files.get(path.name, lambda path=path: OpenFile(path))  # type: ignore[misc]
    paths[1].unlink()
    paths[4].replace(paths[2])  # another file gets the same name, which deletes the open one
    files.close_deleted()
    names = {f"{path}{suffix}" for path in paths for suffix in ("", " (deleted)")}
    assert open_paths() & names == {str(paths[0]), str(paths[3])}


def test_a_file_that_cannot_be_opened_closes_no_other(paths: list[Path], tmp_path: Path) -> None:
    files: OpenFiles[OpenFile] = OpenFiles(1)
    files.get("0", lambda: OpenFile(paths[0]))
    with pytest.raises(FileNotFoundError):
        files.get("gone", lambda: OpenFile(tmp_path / "gone"))
    assert str(paths[0]) in open_paths()
