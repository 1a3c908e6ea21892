"""The index of a shard: it round-trips, as a whole and row by row, and every flipped byte is detected."""

import random
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from gen1_train.batch import SampleError
from gen1_train.data.index import (
    Entry,
    Index,
    IndexDamage,
    build_index,
    check_index,
    index_path,
    read_index,
    write_index,
)
from gen1_train.errors import UserError
from tests.made import make_shard_set

NAMES = [f"frame{i:02d}.jpg" for i in range(3)] + ["moments.npy", "caption.txt", "meta.json"]


def random_entries(seed: int, rows: int) -> list[Entry]:
    """Random entries in the order of a tar: any members in any order, some empty, and offsets beyond 4 GB."""
    rng = random.Random(seed)
    entries = []
    offset = rng.choice([512, 1 << 40])
    for row in range(rows):
        members = {}
        for name in rng.sample(NAMES, rng.randint(0, len(NAMES))):
            size = rng.choice([0, 1, rng.randrange(1 << 20), (1 << 32) - 1])
            members[name] = (offset, size, rng.randrange(1 << 32))
            offset += size + 512
        key = "".join(rng.choices("abcXYZ019_-", k=rng.choice([1, 12, 190])))
        entries.append(Entry(f"{key}-{row}", members))
    return entries


def as_lists(entries: list[Entry]) -> list[tuple[str, list[tuple[str, tuple[int, int, int]]]]]:
    """The entries with the order of their members, which dict equality ignores."""
    return [(entry.key, list(entry.members.items())) for entry in entries]


def read_by_the_docstring(data: bytes) -> list[Entry]:
    """An independent reader, written from the module's docstring alone."""
    assert data[:8] == b"gen1idx1"
    rows, width, members, length = struct.unpack("<IHHI", data[8:20])
    names = data[24 : 24 + length].decode().split("\n")
    entries = []
    position = 24 + length + 4
    for _ in range(rows):
        key = data[position : position + width].rstrip(b"\0").decode()
        position += width
        present = {}
        for name in names[:members]:
            offset, size, crc32 = struct.unpack("<QII", data[position : position + 16])
            position += 16
            if offset:
                present[name] = (offset, size, crc32)
        position += 4
        entries.append(Entry(key, present))
    assert position == len(data)
    return entries


@pytest.mark.parametrize("rows", [0, 1, 2, 17])
@pytest.mark.parametrize("seed", range(5))
def test_entries_round_trip(tmp_path: Path, rows: int, seed: int) -> None:
    tar, entries = tmp_path / "a.tar", random_entries(seed, rows)
    crc32 = write_index(tar, entries)
    assert as_lists(read_index(tar)) == as_lists(read_index(tar, crc32)) == as_lists(entries)
    with Index(tar, crc32) as index:
        assert (index.header.rows, index.header.crc32) == (rows, crc32)
        assert as_lists([index.entry(row) for row in range(rows)]) == as_lists(entries)
        for row in (-1, rows):
            with pytest.raises(IndexError):
                index.entry(row)
    assert read_by_the_docstring(index_path(tar).read_bytes()) == entries


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """A foreign tar may have more members than fit into the first read."""
    members = {f"a-rather-long-name-of-a-member-{i:04d}.bin": (512 + 1024 * i, i, i) for i in range(500)}
    write_index(tmp_path / "a.tar", [Entry("a", members), Entry("b", {})])
    assert read_index(tmp_path / "a.tar") == [Entry("a", members), Entry("b", {})]


def test_an_index_agrees_with_tarfile(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path, clips=7, images=5, frames=3)
    for tar in sorted((root / "shards").glob("*.tar")):
        entries = build_index(tar)
        assert read_index(tar) == entries
        locations = {f"{e.key}.{name}": location for e in read_index(tar) for name, location in e.members.items()}
        with tarfile.open(tar) as archive:
            infos = [info for info in archive if info.isfile()]
            assert [info.name for info in infos] == list(locations)
            for info in infos:
                data = archive.extractfile(info).read()
                assert locations[info.name] == (info.offset_data, info.size, zlib.crc32(data))


def test_equal_entries_give_equal_bytes(tmp_path: Path) -> None:
    entries = random_entries(3, 9)
    reordered = [Entry(entry.key, dict(reversed(entry.members.items()))) for entry in entries]
    assert write_index(tmp_path / "a.tar", entries) == write_index(tmp_path / "b.tar", reordered)
    assert (tmp_path / "a.index").read_bytes() == (tmp_path / "b.index").read_bytes()


def test_every_flipped_byte_is_detected(tmp_path: Path) -> None:
    """In the header it invalidates the index, in a row only that row; reading the whole index detects both."""
    tar, entries = tmp_path / "a.tar", random_entries(2, 4)
    crc32 = write_index(tar, entries)
    path = index_path(tar)
    whole = path.read_bytes()
    stride = (len(whole) - whole.index(entries[0].key.encode())) // len(entries)
    start = len(whole) - stride * len(entries)
    check_index(whole, crc32)
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(IndexDamage):
            check_index(bytes(data), crc32)
        with pytest.raises(UserError, match="is not the index that was frozen"):
            read_index(tar)
        if position < start:
            with pytest.raises(UserError, match="is not the index that was frozen"):
                Index(tar, crc32)
            continue
        damaged_row = (position - start) // stride
        with Index(tar, crc32) as index:
            for row, entry in enumerate(entries):
                if row == damaged_row:
                    with pytest.raises(SampleError, match=rf"a\.index: row {row} is damaged \(its crc32 differs\)"):
                        index.entry(row)
                else:
                    assert index.entry(row) == entry


@pytest.mark.parametrize("size", [0, 7, 30, -20, -1])
def test_a_truncated_index_is_refused(tmp_path: Path, size: int) -> None:
    crc32 = write_index(tmp_path / "a.tar", random_entries(1, 5))
    path = tmp_path / "a.index"
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_index, Index):
        with pytest.raises(UserError) as error:
            read(tmp_path / "a.tar", crc32)
        assert f"{path} is not the index that was frozen" in str(error.value) and "\n" not in str(error.value)


def test_swapped_rows_are_detected(tmp_path: Path) -> None:
    """Each row is intact, but in the position of another."""
    tar = tmp_path / "a.tar"
    entries = [Entry(key, {"meta.json": (512 + 1024 * i, 9, i)}) for i, key in enumerate("abc")]
    write_index(tar, entries)
    data = index_path(tar).read_bytes()
    size = 1 + 16 + 4
    rows = [data[-3 * size : -2 * size], data[-2 * size : -size], data[-size:]]
    index_path(tar).write_bytes(data[: -3 * size] + rows[1] + rows[0] + rows[2])
    with Index(tar) as index:
        for row in (0, 1):
            with pytest.raises(SampleError, match=f"row {row} is damaged"):
                index.entry(row)
        assert index.entry(2) == entries[2]


def test_the_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    """The crc32 in the manifest depends on the content of the index; that of the file would be the same for any."""
    mine, theirs = ([Entry(key, {"meta.json": (512, 9, crc32)})] for key, crc32 in (("a", 1), ("b", 2)))
    own, other = write_index(tmp_path / "a.tar", mine), write_index(tmp_path / "b.tar", theirs)
    files = [(tmp_path / f"{name}.index").read_bytes() for name in "ab"]
    assert own != other and zlib.crc32(files[0]) == zlib.crc32(files[1])
    with pytest.raises(IndexDamage, match="its crc32 differs"):
        check_index(files[0], other)
    for read in (read_index, Index):
        with pytest.raises(UserError, match=r"a\.index is not the index that was frozen \(its crc32 differs\)"):
            read(tmp_path / "a.tar", other)


def test_reading_the_whole_index_detects_intact_rows_of_another_index(tmp_path: Path) -> None:
    mine, theirs = ([Entry(key, {"meta.json": (512, 9, crc32)})] for key, crc32 in (("a", 1), ("b", 2)))
    crc32 = write_index(tmp_path / "a.tar", mine)
    write_index(tmp_path / "b.tar", theirs)
    size = 1 + 16 + 4
    path = tmp_path / "a.index"
    path.write_bytes(path.read_bytes()[:-size] + (tmp_path / "b.index").read_bytes()[-size:])
    with pytest.raises(UserError, match="is not the index that was frozen"):
        read_index(tmp_path / "a.tar", crc32)
    with pytest.raises(IndexDamage):
        check_index(path.read_bytes(), crc32)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"gen1idx0" + bytes(60), b"gen1idx1" + b"\xff" * 60])
def test_a_file_that_is_not_an_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.index").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.index is not the index that was frozen"):
        read_index(tmp_path / "a.tar")


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.index cannot be read \(No such file or directory\)"):
        read_index(tmp_path / "a.tar")
