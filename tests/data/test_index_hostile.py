"""Indices whose checksums fit, but that no writer of ours writes: one line, and no more memory than the file has."""

import resource
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gen1_train.batch import SampleError
from gen1_train.data.index import CHECK, HEADER, MAGIC, Entry, Index, index_path, read_index, write_index
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from tests.damage import assert_refused_or_equal, flipped_bits
from tests.made import make_shard_set

VIDEO = "video-32x16"
HOSTILE_KEYS = ["../../x", "a b", "a.b", "a\nb", "", "\x1b[2J", "ü"]
HOSTILE_MEMBERS = ["../x", "a/b.jpg", "a b", "a\x1b.jpg", "a.b.c", ""]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_shard_set(tmp_path, clips=4, images=3, frames=2, shards=1)


def rewrite(root: Path, change: Callable[[list[Entry]], list[Entry]]) -> Path:
    """Replaces the index of the videos and keeps all checksums consistent; returns the tar."""
    manifest = Manifest.load(root)
    pool = manifest.pools[VIDEO]
    tar = root / "shards" / pool.shards[0].name
    crc32 = write_index(tar, change(read_index(tar)))
    manifest.pools[VIDEO] = replace(pool, shards=(replace(pool.shards[0], crc32=crc32),))
    manifest.save(root)
    return tar


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_key_that_is_no_plain_name_is_refused(own: Path, key: str) -> None:
    tar = rewrite(own, lambda entries: [replace(entries[0], key=key), *entries[1:]])
    with pytest.raises(UserError, match="is not a plain name") as error:
        read_index(tar)
    assert str(error.value).isprintable()
    with pytest.raises(SampleError, match="row 0 was never written so") as bad:
        ShardSet(own).read(VIDEO, 0, ("caption",))
    assert str(bad.value).isprintable()
    assert ShardSet(own).read(VIDEO, 1, ("caption",)).caption  # other rows can be read


@pytest.mark.parametrize("name", HOSTILE_MEMBERS)
def test_a_name_of_a_member_that_is_no_such_name_is_refused(own: Path, name: str) -> None:
    tar = rewrite(own, lambda entries: [replace(e, members={**e.members, name: (512, 1, 0)}) for e in entries])
    for read in (lambda: read_index(tar), lambda: ShardSet(own).read(VIDEO, 0, ("caption",))):
        with pytest.raises(UserError, match="is not the name of a member") as error:
            read()
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("names", "width", "members", "message"),
    [
        (b"a.jpg\na.jpg", 4, 2, "it names a member twice"),
        (b"a.jpg", 4, 2, "it names 1 members, not 2"),
        (b"\xff\xfe", 4, 1, "the name 'utf-8' codec"),
        (b"a.jpg", 60_000, 1, "its keys have 60000 bytes, more than 200"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, names: bytes, width: int, members: int, message: str
) -> None:
    tar = tmp_path / "x.tar"
    header = HEADER.pack(MAGIC, 0, width, members, len(names), zlib.crc32(b"")) + names
    index_path(tar).write_bytes(header + CHECK.pack(zlib.crc32(header)))
    for read in (lambda: read_index(tar), lambda: Index(tar)):
        with pytest.raises(UserError, match=message):
            read()


@pytest.mark.parametrize("location", [(1 << 63, 10, 0), ((1 << 64) - 1, 10, 0), (512, (1 << 32) - 1, 0)])
def test_a_member_beyond_the_end_is_a_bad_sample_and_takes_no_memory(own: Path, location: tuple[int, int, int]) -> None:
    def beyond(entries: list[Entry]) -> list[Entry]:
        return [replace(entry, members={**entry.members, "caption.txt": location}) for entry in entries]

    rewrite(own, beyond)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SampleError, match=r"caption\.txt is damaged|beyond the end of any file"):
        ShardSet(own).read(VIDEO, 0, ("caption",))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB, of 4 GB


def test_every_flipped_bit_of_an_index_is_refused(own: Path) -> None:
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    crc32 = Manifest.load(own).pools[VIDEO].shards[0].crc32
    changes = flipped_bits(index_path(tar).read_bytes(), 600)
    assert assert_refused_or_equal(index_path(tar), changes, lambda: read_index(tar, crc32)) == 600
