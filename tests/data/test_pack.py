import os
from pathlib import Path

import pytest
import webdataset

from gen1_train.data import pack
from gen1_train.data.index import Entry, build_index, index_path
from gen1_train.data.pack import PADDING, open_tar, sample_range, seal, sealed


def fill(path: Path) -> bytes:
    with open_tar(path) as tar:
        tar.write("a", {"caption.txt": b"a ball", "meta.json": b"{}"})
        tar.write("k" * 150, {"caption.txt": b"long keys too"})
    return path.read_bytes()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path / "a.tar") == fill(tmp_path / "b.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["caption.txt"]) for sample in samples] == [
        ("a", b"a ball"),
        ("k" * 150, b"long keys too"),
    ]


def test_a_tar_that_was_not_finished_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_tar(tmp_path / "a.tar") as tar:
        tar.write("a", {"caption.txt": b"a ball"})
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_what_is_read_back_otherwise_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a bit between write and read."""

    def flip(path: Path) -> list[Entry]:
        data = bytearray(path.read_bytes())
        data[512] ^= 1  # the first byte of the first member
        path.write_bytes(data)
        return build_index(path)

    monkeypatch.setattr(pack, "build_index", flip)
    with pytest.raises(OSError, match="sample a was read back with other bytes"):
        fill(tmp_path / "a.tar")
    assert os.listdir(tmp_path) == []


def test_a_shard_is_whole_once_it_has_its_index(tmp_path: Path) -> None:
    """A freeze that was killed goes on by this; what it cannot vouch for is made again."""
    tar = tmp_path / "a.tar"
    assert sealed(tar) is None
    fill(tar)
    assert sealed(tar) is None
    shard = seal(tar, build_index(tar))
    assert sealed(tar) == shard
    assert (shard.name, shard.samples, shard.bytes) == ("a.tar", 2, tar.stat().st_size)
    whole = index_path(tar).read_bytes()
    for other in (whole[:-1], b'{"key": "a", "members": {}}\n', b""):
        index_path(tar).write_bytes(other)
        assert sealed(tar) is None
    index_path(tar).write_bytes(whole)
    tar.unlink()
    assert sealed(tar) is None


def test_the_range_of_a_sample_holds_all_of_it(tmp_path: Path) -> None:
    """Copied one after the other in another order, the ranges make a tar again; also where names need more headers."""
    fill(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    entries = build_index(tmp_path / "a.tar")
    ranges = [sample_range(entry, before) for entry, before in zip(entries, [None, *entries])]
    copy = tmp_path / "b.tar"
    copy.write_bytes(b"".join(data[start : start + size] for start, size in reversed(ranges)) + PADDING)
    again = list(webdataset.WebDataset(str(copy), shardshuffle=False))
    assert [sample["__key__"] for sample in again] == ["k" * 150, "a"]
    assert again[1]["caption.txt"] == b"a ball"
