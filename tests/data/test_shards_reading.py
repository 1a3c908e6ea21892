"""The reads of a ShardSet: few reads, few open files, a retry after an error, and waiting for shards to arrive."""

import errno
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gen1_train.batch import SampleError
from gen1_train.data import shards as shards_module
from gen1_train.data.index import index_path, read_index, write_index
from gen1_train.data.manifest import Manifest
from gen1_train.data.open_files import OpenFile
from gen1_train.data.shards import PREFETCH_ERROR, ShardSet, adjacent_runs, read_members
from gen1_train.errors import UserError
from tests.data.test_open_files import open_paths
from tests.made import make_shard_set

VIDEO = "video-32x16"
Read = Callable[[int, int, int], bytes]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """8 clips of 3 frames in 8 tars."""
    return make_shard_set(tmp_path, clips=8, images=0, frames=3, shards=8)


def tar_of(root: Path, number: int) -> Path:
    return root / "shards" / f"{VIDEO}-{number:06d}.tar"


def spy(monkeypatch: pytest.MonkeyPatch, suffix: str, change: Callable[[int, Read], Read]) -> list[str]:
    """Returns a list that records the reads of one kind of file; `change` may replace the nth read by another one."""
    pread: Read = os.pread
    reads: list[str] = []

    def read(number: int, size: int, offset: int) -> bytes:
        name = os.readlink(f"/proc/self/fd/{number}")
        if not name.endswith(suffix):
            return pread(number, size, offset)
        reads.append(name)
        return change(len(reads), pread)(number, size, offset)

    monkeypatch.setattr(os, "pread", read)
    return reads


def failing(code: int) -> Read:
    def read(number: int, size: int, offset: int) -> bytes:
        raise OSError(code, os.strerror(code))

    return read


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (("frames",), 1),  # 3 adjacent members
        (("frames", "image_embedding", "moments"), 1),  # webdataset writes members in alphabetical order
        (("frames", "structure", "moments", "structure_latent", "image_embedding", "caption", "meta"), 1),
        (("moments", "structure_latent", "image_embedding"), 2),  # the structure is in between
    ],
)
def test_adjacent_members_take_one_read(
    own: Path, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...], count: int
) -> None:
    shards = ShardSet(own)
    for field in fields:  # each field by reads of its own
        single = [getattr(shards.read(VIDEO, i, (field,)), field) for i in range(8)]
        together = [getattr(shards.read(VIDEO, i, fields), field) for i in range(8)]
        for one, other in zip(single, together):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    reads = spy(monkeypatch, ".tar", lambda n, pread: pread)
    shards.read(VIDEO, 3, fields)
    assert len(reads) == count


def test_a_coalesced_read_equals_single_reads_and_keeps_the_requested_order(own: Path) -> None:
    tar = tar_of(own, 2)
    [entry] = read_index(tar)
    names = list(reversed(entry.members))
    with OpenFile(tar) as file:
        together = read_members(file, entry, names)
        assert together == {name: read_members(file, entry, [name])[name] for name in names}
        assert list(together) == names
    data = tar.read_bytes()
    assert together == {name: data[start : start + size] for name, (start, size, _) in entry.members.items()}


def test_damage_in_a_coalesced_read_is_attributed_to_its_member(own: Path) -> None:
    tar = tar_of(own, 2)
    [entry] = read_index(tar)
    offset, size, _ = entry.members["frame01.jpg"]
    data = bytearray(tar.read_bytes())
    data[offset + size] ^= 1  # padding, which belongs to no member
    tar.write_bytes(data)
    with OpenFile(tar) as file:
        read_members(file, entry, ["frame00.jpg", "frame01.jpg", "frame02.jpg"])
        data[offset] ^= 1
        tar.write_bytes(data)
        with pytest.raises(SampleError, match=r"member video-002\.frame01\.jpg is damaged"):
            read_members(file, entry, ["frame00.jpg", "frame01.jpg", "frame02.jpg"])
        read_members(file, entry, ["frame00.jpg", "frame02.jpg"])  # across the damaged one, which is not requested


def test_members_of_a_run_are_at_most_the_maximal_gap_apart() -> None:
    locations = [((offset, 100, 0), str(offset)) for offset in (512, 1536, 1636 + 4096, 1736 + 2 * 4096 + 1)]
    assert [[name for _, name in run] for run in adjacent_runs(locations)] == [["512", "1536", "5732"], ["9929"]]
    assert adjacent_runs([]) == []


def test_the_number_of_open_files_is_limited(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN", 3)
    shards = ShardSet(own)
    for i in [*range(8), *reversed(range(8))]:
        assert shards.read(VIDEO, i, ("caption",)).key == f"video-{i:03d}"
        files = [name for name in open_paths() if name.startswith(str(own))]
        assert max(sum(name.endswith(suffix) for name in files) for suffix in (".tar", ".index")) <= 3
    del shards
    assert not [name for name in open_paths() if name.startswith(str(own))]


def test_evicted_shards_are_closed(own: Path) -> None:
    """A deleted file that is still open keeps its disk space, and a cache would exceed its budget."""
    shards = ShardSet(own, patience=600)
    for i in range(3):
        shards.read(VIDEO, i, ("caption",))
    for path in (tar_of(own, 1), index_path(tar_of(own, 1))):
        path.unlink()
    assert any("(deleted)" in name for name in open_paths())
    shards.read(VIDEO, 3, ("caption",))
    names = {Path(name).name for name in open_paths() if name.startswith(str(own))}
    assert names == {path.name for i in (0, 2, 3) for path in (tar_of(own, i), index_path(tar_of(own, i)))}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("suffix", [".tar", ".index"])
def test_a_read_that_fails_once_is_retried(own: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, code: int) -> None:
    moments = ShardSet(own).read(VIDEO, 2, ("moments",)).moments
    shards = ShardSet(own)
    shards.read(VIDEO, 2, ("meta",))
    before = {name for name in open_paths() if name.startswith(str(own))}
    reads = spy(monkeypatch, suffix, lambda n, pread: failing(code) if n == 1 else pread)
    assert np.array_equal(shards.read(VIDEO, 2, ("moments",)).moments, moments)
    assert len(reads) >= 2 and {name for name in open_paths() if name.startswith(str(own))} == before


@pytest.mark.parametrize(("suffix", "what"), [(".tar", "sample video-002"), (".index", "row 0 of its index")])
def test_a_read_that_always_fails_is_a_bad_sample(
    own: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, what: str
) -> None:
    shards = ShardSet(own)
    shards.read(VIDEO, 2, ("meta",))
    with monkeypatch.context() as patch:
        spy(patch, suffix, lambda n, pread: failing(errno.EIO))
        with pytest.raises(SampleError) as error:
            shards.read(VIDEO, 2, ("moments",))
    assert str(error.value) == f"{VIDEO}-000002.tar: {what} cannot be read (Input/output error)"
    assert error.value.reason == "read"
    shards.read(VIDEO, 2, ("moments",))  # the disk works again


def test_a_damaged_row_of_the_index_is_a_bad_sample(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path, clips=3, images=0, frames=2, shards=1)
    path = index_path(tar_of(root, 0))
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    shards = ShardSet(root)
    with pytest.raises(SampleError, match=rf"{path.name}: row 2 is damaged"):
        shards.read(VIDEO, 2, ("caption",))
    assert [shards.read(VIDEO, i, ("caption",)).key for i in (0, 1)] == ["video-000", "video-001"]


def test_an_index_with_fewer_samples_than_the_manifest_is_refused(own: Path) -> None:
    """All checksums match, as if a faulty program had frozen the set."""
    tar = tar_of(own, 0)
    manifest = Manifest.load(own)
    pool = manifest.pools[VIDEO]
    first = replace(pool.shards[0], samples=2, crc32=write_index(tar, read_index(tar)))
    manifest.pools[VIDEO] = replace(pool, shards=(first, *pool.shards[1:]))
    manifest.save(own)
    with pytest.raises(UserError, match=r"000000\.index names 1 samples, but the manifest says 2"):
        ShardSet(own).read(VIDEO, 0, ("caption",))


def test_a_file_without_read_permission_is_an_error_at_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting does not change the mode of a file."""
    shards = ShardSet(own, patience=600)

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"000000\.index cannot be read \(Permission denied\)"):
        shards.read(VIDEO, 0, ("caption",))


class Source:
    """Stands for a prefetcher: takes shards out of a set and puts them back."""

    def __init__(self, root: Path, outside: Path) -> None:
        self.root = root
        self.outside = outside
        outside.mkdir()

    def take(self, number: int) -> None:
        for path in (tar_of(self.root, number), index_path(tar_of(self.root, number))):
            path.rename(self.outside / path.name)

    def put_back(self, number: int) -> None:
        for path in (index_path(tar_of(self.root, number)), tar_of(self.root, number)):
            (self.outside / path.name).rename(path)


@pytest.fixture
def source(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    source = Source(own, tmp_path_factory.mktemp("outside") / "shards")
    source.take(5)
    return source


@pytest.mark.parametrize("call", ["entry", "read"])
def test_a_read_waits_for_a_shard_to_arrive(source: Source, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet(source.root, patience=60)
    assert shards.read(VIDEO, 4, ("caption",)).key == "video-004"
    pauses = []
    sleep = shards_module.time.sleep

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            source.put_back(5)
        sleep(0)

    monkeypatch.setattr(shards_module.time, "sleep", pause)
    result = shards.read(VIDEO, 5, ("caption",)) if call == "read" else shards.entry(*shards.locate(VIDEO, 5))
    assert result.key == "video-005"
    assert pauses == [0.02, 0.04, 0.08]


def test_a_shard_may_arrive_during_the_wait(source: Source) -> None:
    shards = ShardSet(source.root, patience=60)
    timer = threading.Timer(0.1, source.put_back, [5])
    timer.start()
    try:
        assert shards.read(VIDEO, 5, ("caption",)).key == "video-005"
    finally:
        timer.join()


def test_a_read_waits_for_the_tar_of_an_index(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index arrives first."""
    index = index_path(tar_of(source.root, 5))
    (source.outside / index.name).rename(index)
    shards = ShardSet(source.root, patience=60)
    assert shards.entry(*shards.locate(VIDEO, 5)).key == "video-005"
    tar = tar_of(source.root, 5)
    monkeypatch.setattr(shards_module.time, "sleep", lambda _: (source.outside / tar.name).rename(tar))
    assert shards.read(VIDEO, 5, ("caption",)).key == "video-005"


def test_a_shard_that_arrives_again_after_its_eviction_is_read(source: Source) -> None:
    shards = ShardSet(source.root, patience=60)
    for number in (2, 3):
        shards.read(VIDEO, 2, ("caption",))
        source.take(2)
        source.put_back(2)
        shards.read(VIDEO, number, ("caption",))
    assert shards.read(VIDEO, 2, ("caption",)).key == "video-002"


def test_patience_ends(source: Source) -> None:
    shards = ShardSet(source.root, patience=0.05)
    with pytest.raises(UserError) as error:
        shards.read(VIDEO, 5, ("caption",))
    line = str(error.value)
    assert "\n" not in line and "has not arrived within 0.05 s: check that the prefetcher is running" in line
    assert str(index_path(tar_of(source.root, 5))) in line


def test_an_error_of_the_prefetcher_ends_the_wait_at_once(source: Source) -> None:
    (source.root / PREFETCH_ERROR).write_text("the bucket is on fire: put it out\n")
    shards = ShardSet(source.root, patience=600)
    assert shards.read(VIDEO, 4, ("caption",)).key == "video-004"  # shards that have arrived are read
    with pytest.raises(UserError) as error:
        shards.read(VIDEO, 5, ("caption",))
    assert str(error.value) == "the bucket is on fire: put it out"


def test_without_patience_a_missing_shard_is_an_error_at_once(source: Source) -> None:
    (source.root / PREFETCH_ERROR).write_text("of an earlier start")
    with pytest.raises(UserError, match=r"000005\.index cannot be read \(No such file or directory\); the shard set"):
        ShardSet(source.root).read(VIDEO, 5, ("caption",))


def test_patience_is_pickled(own: Path) -> None:
    assert pickle.loads(pickle.dumps(ShardSet(own, patience=7.5))).patience == 7.5
    assert pickle.loads(pickle.dumps(ShardSet(own))).patience == 0
