"""How a ShardSet reads: any row alone, with few open files."""

from dataclasses import replace
from pathlib import Path

import pytest

from gen1_train.batch import SampleError
from gen1_train.data import shards as module
from gen1_train.data.index import index_path, read_index, write_index
from gen1_train.data.shards import Manifest, ShardSet
from gen1_train.errors import UserError
from tests.data.test_opened import held
from tests.made import make_shard_set

VIDEO = "video-32x16"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """8 clips of 3 frames in 8 tars."""
    return make_shard_set(tmp_path, clips=8, images=0, frames=3, shards=8)


def tar_of(root: Path, number: int) -> Path:
    return root / "shards" / f"{VIDEO}-{number:06d}.tar"


def test_no_more_files_are_open_than_the_bound(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN", 3)
    shards = ShardSet(own)
    for i in [*range(8), *reversed(range(8))]:
        assert shards.read(VIDEO, i, ("caption",)).key == f"video-{i:03d}"
        files = [name for name in held() if name.startswith(str(own))]
        assert max(sum(name.endswith(suffix) for name in files) for suffix in (".tar", ".index")) <= 3
    del shards
    assert not [name for name in held() if name.startswith(str(own))]


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


def test_an_index_of_fewer_samples_than_the_manifest_says_is_refused(own: Path) -> None:
    """All checksums in order: what a wrong program would have frozen."""
    tar = tar_of(own, 0)
    manifest = Manifest.load(own)
    pool = manifest.pools[VIDEO]
    first = replace(pool.shards[0], samples=2, crc32=write_index(tar, read_index(tar)))
    manifest.pools[VIDEO] = replace(pool, shards=(first, *pool.shards[1:]))
    manifest.save(own)
    with pytest.raises(UserError, match=r"000000\.index names 1 samples, the manifest says 2"):
        ShardSet(own).read(VIDEO, 0, ("caption",))
