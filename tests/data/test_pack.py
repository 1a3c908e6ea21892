import os
from pathlib import Path

import pytest
import webdataset

from gen1_train.data import pack
from gen1_train.data.index import Entry, build_index, index_path
from gen1_train.data.pack import PADDING, open_tar, sample_range, seal, sealed_shard


def write_tar(path: Path) -> bytes:
    with open_tar(path) as tar:
        tar.write("a", {"caption.txt": b"a ball", "meta.json": b"{}"})
        tar.write("k" * 150, {"caption.txt": b"long keys too"})
    return path.read_bytes()


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    assert write_tar(tmp_path / "a.tar") == write_tar(tmp_path / "b.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["caption.txt"]) for sample in samples] == [
        ("a", b"a ball"),
        ("k" * 150, b"long keys too"),
    ]


def test_an_unfinished_tar_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_tar(tmp_path / "a.tar") as tar:
        tar.write("a", {"caption.txt": b"a ball"})
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_tar_that_is_read_back_with_other_bytes_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk flips a bit between write and read."""

    def flip(path: Path) -> list[Entry]:
        data = bytearray(path.read_bytes())
        data[512] ^= 1  # the first byte of the first member
        path.write_bytes(data)
        return build_index(path)

    monkeypatch.setattr(pack, "build_index", flip)
    with pytest.raises(OSError, match="sample a was read back with other bytes"):
        write_tar(tmp_path / "a.tar")
    assert os.listdir(tmp_path) == []


def test_a_shard_is_complete_when_it_has_its_index(tmp_path: Path) -> None:
    """A killed freeze resumes from the complete shards and makes all others again."""
    tar = tmp_path / "a.tar"
    assert sealed_shard(tar) is None
    write_tar(tar)
    assert sealed_shard(tar) is None
    shard = seal(tar, build_index(tar))
    assert sealed_shard(tar) == shard
    assert (shard.name, shard.samples, shard.bytes) == ("a.tar", 2, tar.stat().st_size)
    index = index_path(tar).read_bytes()
    for damaged in (index[:-1], b'{"key": "a", "members": {}}\n', b""):
        index_path(tar).write_bytes(damaged)
        assert sealed_shard(tar) is None
    index_path(tar).write_bytes(index)
    tar.unlink()
    assert sealed_shard(tar) is None


def test_sample_ranges_can_be_copied_into_another_tar(tmp_path: Path) -> None:
    """Concatenated in another order, the ranges form a valid tar, even with names that need extra headers."""
    write_tar(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    entries = build_index(tmp_path / "a.tar")
    ranges = [sample_range(entry, previous) for entry, previous in zip(entries, [None, *entries])]
    copy = tmp_path / "b.tar"
    copy.write_bytes(b"".join(data[start : start + size] for start, size in reversed(ranges)) + PADDING)
    samples = list(webdataset.WebDataset(str(copy), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["k" * 150, "a"]
    assert samples[1]["caption.txt"] == b"a ball"
