"""The index of a shard: what is written comes back, whole or row by row, and every flipped byte is found."""

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


def made_entries(seed: int, rows: int) -> list[Entry]:
    """Random samples in the order of a tar: any members, also empty ones, in any order, beyond 4 GB too."""
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
    """With the order of the members, which a dict's equality does not ask for."""
    return [(entry.key, list(entry.members.items())) for entry in entries]


def read_by_the_docstring(data: bytes) -> list[Entry]:
    """What a stranger would write who has nothing but the docstring of the module."""
    assert data[:8] == b"gen1idx1"
    rows, width, members, length = struct.unpack("<IHHI", data[8:20])
    names = data[24 : 24 + length].decode().split("\n")
    entries, at = [], 24 + length + 4
    for _ in range(rows):
        key = data[at : at + width].rstrip(b"\0").decode()
        at += width
        found = {}
        for name in names[:members]:
            offset, size, crc32 = struct.unpack("<QII", data[at : at + 16])
            at += 16
            if offset:
                found[name] = (offset, size, crc32)
        at += 4
        entries.append(Entry(key, found))
    assert at == len(data)
    return entries


@pytest.mark.parametrize("rows", [0, 1, 2, 17])
@pytest.mark.parametrize("seed", range(5))
def test_entries_come_back(tmp_path: Path, rows: int, seed: int) -> None:
    tar, entries = tmp_path / "a.tar", made_entries(seed, rows)
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
    """A tar of somebody else's may have more members than one read of ours takes."""
    members = {f"a-rather-long-name-of-a-member-{i:04d}.bin": (512 + 1024 * i, i, i) for i in range(500)}
    write_index(tmp_path / "a.tar", [Entry("a", members), Entry("b", {})])
    assert read_index(tmp_path / "a.tar") == [Entry("a", members), Entry("b", {})]


def test_an_index_stands_where_the_tar_says(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path, clips=7, images=5, frames=3)
    for tar in sorted((root / "shards").glob("*.tar")):
        entries = build_index(tar)
        assert read_index(tar) == entries
        found = {f"{e.key}.{name}": place for e in read_index(tar) for name, place in e.members.items()}
        with tarfile.open(tar) as archive:
            infos = [info for info in archive if info.isfile()]
            assert [info.name for info in infos] == list(found)
            for info in infos:
                data = archive.extractfile(info).read()
                assert found[info.name] == (info.offset_data, info.size, zlib.crc32(data))


def test_equal_entries_give_equal_bytes(tmp_path: Path) -> None:
    entries = made_entries(3, 9)
    turned = [Entry(entry.key, dict(reversed(entry.members.items()))) for entry in entries]
    crcs = [write_index(tmp_path / name, given) for name, given in (("a.tar", entries), ("b.tar", turned))]
    assert crcs[0] == crcs[1]
    assert (tmp_path / "a.index").read_bytes() == (tmp_path / "b.index").read_bytes()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """In the header it spoils the index, in a row that sample alone; whoever reads all of it finds either."""
    tar, entries = tmp_path / "a.tar", made_entries(2, 4)
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
        spoilt = (position - start) // stride
        with Index(tar, crc32) as index:
            for row, entry in enumerate(entries):
                if row == spoilt:
                    with pytest.raises(SampleError, match=rf"a\.index: row {row} is damaged \(its crc32 differs\)"):
                        index.entry(row)
                else:
                    assert index.entry(row) == entry


@pytest.mark.parametrize("size", [0, 7, 30, -20, -1])
def test_an_index_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    crc32 = write_index(tmp_path / "a.tar", made_entries(1, 5))
    path = tmp_path / "a.index"
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_index, Index):
        with pytest.raises(UserError) as error:
            read(tmp_path / "a.tar", crc32)
        assert f"{path} is not the index that was frozen" in str(error.value) and "\n" not in str(error.value)


def test_rows_that_changed_places_are_found(tmp_path: Path) -> None:
    """Each is whole, and stands where another belongs."""
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
    """The number in the manifest is of what the index says; that of the file would be the same for all of them."""
    mine, theirs = ([Entry(key, {"meta.json": (512, 9, crc32)})] for key, crc32 in (("a", 1), ("b", 2)))
    own, other = write_index(tmp_path / "a.tar", mine), write_index(tmp_path / "b.tar", theirs)
    files = [(tmp_path / f"{name}.index").read_bytes() for name in "ab"]
    assert own != other and zlib.crc32(files[0]) == zlib.crc32(files[1])
    with pytest.raises(IndexDamage, match="its crc32 differs"):
        check_index(files[0], other)
    for read in (read_index, Index):
        with pytest.raises(UserError, match=r"a\.index is not the index that was frozen \(its crc32 differs\)"):
            read(tmp_path / "a.tar", other)


def test_whole_rows_of_another_index_are_found_by_who_reads_all(tmp_path: Path) -> None:
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
def test_what_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.index").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.index is not the index that was frozen"):
        read_index(tmp_path / "a.tar")


def test_an_index_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.index cannot be read \(No such file or directory\)"):
        read_index(tmp_path / "a.tar")
