"""A frozen shard set: random access agrees with the tar, and every kind of damage is reported in one line."""

import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from gen1_train.batch import Pool, SampleError, encode_sample
from gen1_train.data.index import Entry, index_path, read_index, write_index
from gen1_train.data.manifest import FORMAT, Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.system.files import write_atomically
from tests.made import make_sample, make_shard_set

VIDEO, IMAGE = "video-32x16", "image-32x16"
FIELDS = ("frames", "structure", "moments", "structure_latent", "image_embedding", "text_embedding", "caption", "meta")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 clips in 2 tars and 5 images in 2 tars, shared by all tests that damage nothing."""
    return make_shard_set(tmp_path_factory.mktemp("set"), clips=7, images=5, frames=3)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set that a test may damage."""
    return make_shard_set(tmp_path, clips=4, images=3, frames=2)


def message_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("pool", "count"), [(VIDEO, 7), (IMAGE, 5)])
def test_samples_are_read_as_they_were_written(root: Path, pool: str, count: int) -> None:
    shards = ShardSet(root)
    layout = shards.manifest.pools[pool].pool
    assert shards.manifest.pools[pool].samples == count
    for i in range(count):
        written = make_sample(f"{layout.kind}-{i:03d}", layout, i + (1000 if layout.kind == "image" else 0))
        sample = shards.read(pool, i, FIELDS)
        assert (sample.key, sample.caption, sample.meta) == (written.key, written.caption, written.meta)
        for field in ("structure", "moments", "structure_latent", "image_embedding", "text_embedding"):
            np.testing.assert_array_equal(getattr(sample, field), getattr(written, field))
        assert sample.frames.shape == written.frames.shape


def test_only_the_named_fields_are_read(root: Path) -> None:
    sample = ShardSet(root).read(VIDEO, 0, ("structure_latent", "caption"))
    assert sample.structure_latent is not None and sample.caption is not None
    assert sample.frames is None and sample.structure is None and sample.moments is None and sample.meta is None


def test_locate_finds_shard_and_row(root: Path) -> None:
    shards = ShardSet(root)
    sizes = [shard.samples for shard in shards.manifest.pools[VIDEO].shards]
    assert sizes == [4, 3]
    locations = [(shard.name, row) for shard, row in (shards.locate(VIDEO, i) for i in range(7))]
    assert locations == [(f"{VIDEO}-{n:06d}.tar", row) for n, size in enumerate(sizes) for row in range(size)]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            shards.locate(VIDEO, index)


def test_the_entry_of_a_sample_agrees_with_its_index_and_data(root: Path) -> None:
    shards = ShardSet(root)
    for i in range(7):
        shard, row = shards.locate(VIDEO, i)
        entry = shards.entry(shard, row)
        assert entry == read_index(root / "shards" / shard.name)[row]
        assert entry.key == shards.read(VIDEO, i, ("caption",)).key == f"video-{i:03d}"


def test_pools_of_a_kind_are_sorted(root: Path) -> None:
    shards = ShardSet(root)
    assert [pool.pool for pool in shards.pools("video")] == [Pool("video", 32, 16, 3)]
    assert [pool.pool.name for pool in shards.pools("image")] == [IMAGE]
    assert shards.pools("sound") == []


def test_webdataset_reads_the_same_keys_and_bytes(root: Path) -> None:
    """Any user of WebDataset can read our shards."""
    tars = sorted(str(tar) for tar in (root / "shards").glob("video-*.tar"))
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    theirs = [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in stream]
    layout = ShardSet(root).manifest.pools[VIDEO].pool
    ours = [{"__key__": f"video-{i:03d}", **encode_sample(make_sample(f"video-{i:03d}", layout, i))} for i in range(7)]
    assert theirs == ours


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("field", "member"), [("frames", "frame01.jpg"), ("moments", "moments.npy")])
def test_a_flipped_byte_is_detected_and_named(own: Path, field: str, member: str) -> None:
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    offset, size, _ = read_index(tar)[1].members[member]
    flip(tar, offset + size - 1)
    shards = ShardSet(own)
    with pytest.raises(SampleError) as error:
        shards.read(VIDEO, 1, (field,))
    assert f"{tar.name}: member video-001.{member} is damaged" in message_of(error) and error.value.reason == "checksum"
    shards.read(VIDEO, 0, (field,))  # the sample next to it is intact
    shards.read(VIDEO, 1, ("caption",))  # other members of the sample are intact too


def test_a_truncated_tar_is_detected(own: Path) -> None:
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    tar.write_bytes(tar.read_bytes()[: read_index(tar)[1].members["moments.npy"][0] + 5])
    with pytest.raises(SampleError, match=r"video-001\.moments\.npy is damaged"):
        ShardSet(own).read(VIDEO, 1, ("moments",))


def test_a_missing_member_is_named(own: Path) -> None:
    tar = own / "shards" / f"{IMAGE}-000000.tar"
    entry = read_index(tar)[0]
    del entry.members["caption.txt"]
    refreeze_index(own, IMAGE, tar, [entry, *read_index(tar)[1:]])
    with pytest.raises(SampleError, match=r"sample image-000 has no member caption\.txt") as error:
        ShardSet(own).read(IMAGE, 0, ("caption",))
    assert error.value.reason == "missing"


def refreeze_index(root: Path, pool: str, tar: Path, entries: list[Entry]) -> None:
    """Replaces the index of one shard, and keeps all checksums consistent."""
    manifest = Manifest.load(root)
    crc32 = write_index(tar, entries)
    shards = manifest.pools[pool].shards
    changed = tuple(replace(shard, crc32=crc32) if shard.name == tar.name else shard for shard in shards)
    manifest.pools[pool] = replace(manifest.pools[pool], shards=changed)
    manifest.save(root)


def test_an_intact_member_that_cannot_be_decoded_is_named_with_its_sample(own: Path) -> None:
    """The checksums match, but the frozen bytes are not an image. Only the message can say where it is."""
    tar = own / "shards" / f"{VIDEO}-000000.tar"
    entries = read_index(tar)
    offset, size, _ = entries[1].members["frame00.jpg"]
    data = bytearray(tar.read_bytes())
    data[offset : offset + 4] = b"GIF?"
    tar.write_bytes(data)
    entries[1].members["frame00.jpg"] = (offset, size, zlib.crc32(data[offset : offset + size]))
    refreeze_index(own, VIDEO, tar, entries)
    with pytest.raises(SampleError, match=r"(?=.*video-001)(?=.*frame00\.jpg)"):
        ShardSet(own).read(VIDEO, 1, ("frames",))


def test_a_sample_that_breaks_the_contract_is_refused(own: Path) -> None:
    manifest = Manifest.load(own)
    manifest.pools["video-16x32"] = replace(manifest.pools.pop(VIDEO), width=16, height=32)
    manifest.save(own)
    with pytest.raises(SampleError, match=r"video-000: structure is uint16 \(2, 16, 32\)"):
        ShardSet(own).read("video-16x32", 0, ("structure",))


def test_a_truncated_index_is_refused(own: Path) -> None:
    path = index_path(own / "shards" / f"{VIDEO}-000000.tar")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError) as error:
        ShardSet(own).read(VIDEO, 0, ("caption",))
    assert str(path) in message_of(error) and "not the index that was frozen" in message_of(error)


@pytest.mark.parametrize("suffix", [".index", ".tar"])
def test_a_missing_file_is_named(own: Path, suffix: str) -> None:
    path = own / "shards" / f"{VIDEO}-000000{suffix}"
    path.unlink()
    with pytest.raises(UserError) as error:
        ShardSet(own).read(VIDEO, 0, ("caption",))
    assert str(path) in message_of(error)


def test_a_manifest_round_trips_and_its_hash_covers_its_content(own: Path) -> None:
    manifest = Manifest.load(own)
    manifest.save(own)
    loaded = Manifest.load(own)
    assert loaded == manifest and loaded.hash == manifest.hash
    loaded.estimators["clip"]["width"] = 65
    assert loaded.hash != manifest.hash


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ShardSet(tmp_path / "nowhere")
    assert "manifest.json is missing" in message_of(error) and str(tmp_path / "nowhere") in message_of(error)


def test_a_manifest_that_was_changed_is_refused(own: Path) -> None:
    path = own / "manifest.json"
    path.write_text(path.read_text().replace('"scale": 0.5', '"scale": 0.6'))
    with pytest.raises(UserError) as error:
        ShardSet(own)
    assert "was changed after it was frozen" in message_of(error)


def test_a_manifest_of_another_format_is_refused(own: Path) -> None:
    path = own / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(UserError) as error:
        ShardSet(own)
    assert f"{path} was made by a newer gen1-train (format {FORMAT + 1}, but this" in message_of(error)
    path.write_text(path.read_text().replace(f'"format": {FORMAT + 1}', f'"format": {FORMAT - 1}'))
    with pytest.raises(UserError) as error:
        ShardSet(own)
    assert f"has format {FORMAT - 1}, but this version reads {FORMAT}" in message_of(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "pools": {"a": {}}}'])
def test_an_invalid_manifest_is_refused(own: Path, content: str) -> None:
    path = own / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        ShardSet(own)
    assert str(path) in message_of(error)


def test_a_set_is_pickled_as_its_path(root: Path) -> None:
    """What DataLoader sends to a worker must not grow with the set or contain open files."""
    shards = ShardSet(root)
    sample = shards.read(VIDEO, 6, ("moments",))
    pickled = pickle.dumps(shards)
    assert len(pickled) < len(str(root)) + 300
    unpickled = pickle.loads(pickled)
    assert np.array_equal(unpickled.read(VIDEO, 6, ("moments",)).moments, sample.moments)
    assert unpickled.manifest == shards.manifest


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
