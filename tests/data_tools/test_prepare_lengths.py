"""A set with clips of two lengths: those of one length are as in a set without the other, byte for byte."""

import hashlib
import json
from pathlib import Path

import pytest

from data_tools.prepare import run
from data_tools.sets import refresh
from data_tools.sets.refresh import RefreshConfig
from data_tools.sets.set_check import check_set
from data_tools.stats import Stats
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from tests.data_tools.small_source import config, quick_recipe
from tests.video.files import make_video, number_of

LONG = "video-64x48-4f"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video, a set of clips of 2 frames, and one that also has clips of 4."""
    folder = tmp_path_factory.mktemp("lengths")
    (folder / "source").mkdir()
    make_video(folder / "source" / "a.mp4", frames=60)
    make_video(folder / "source" / "short.mp4", frames=6)  # a clip of 2 frames spans 3 of them, one of 4 spans 7
    assert run(config(folder / "source", folder / "one", stills="always")) == 0
    assert run(config(folder / "source", folder / "two", stills="always", more_frames=[4])) == 0
    return folder


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "shards").iterdir()}


def test_the_longer_clips_are_in_a_pool_of_their_own_and_nothing_else_changes(folder: Path) -> None:
    one, two = (Manifest.load(folder / name) for name in ("one", "two"))
    assert {name: pool.frames for name, pool in two.pools.items()} == {"image-64x48": 1, "video-64x48": 2, LONG: 4}
    assert digests(folder / "one").items() <= digests(folder / "two").items()
    for name, pool in one.pools.items():
        assert two.pools[name] == pool
    shards = ShardSet(folder / "two")
    samples = [shards.read(LONG, index, ("frames", "moments", "meta")) for index in range(two.pools[LONG].samples)]
    assert len({sample.key for sample in samples}) == 3 and all(sample.key.endswith("-4f") for sample in samples)
    for sample in samples:
        assert sample.frames is not None and sample.meta is not None and sample.moments is not None
        first = sample.meta["first_frame"]
        assert [number_of(frame) for frame in sample.frames] == [first + 2 * n for n in range(4)]
        assert sample.meta["seconds"] == pytest.approx([first / 25, (first + 6) / 25], abs=0.01)
        assert len(sample.moments) == 4 and sample.meta["stride"] == 2


def test_counts_report_and_checks_know_the_lengths(folder: Path) -> None:
    stats = Stats.load(folder / "two")
    assert stats.samples["video-64x48"] == 4 and stats.samples[LONG] == 3 and stats.videos == 2
    assert {name: loss.count for name, loss in stats.drops.items()} == {"too short, clips of 4 frames": 1}
    page = (folder / "two" / "report.html").read_text()
    assert LONG in page and "clips of 2 frames, or as many frames of longer ones, or" in page
    assert check_set(folder / "two", Manifest.load(folder / "two"), workers=1) == []


def test_the_recipe_of_one_length_is_recorded_as_by_older_versions(folder: Path) -> None:
    for name, more in (("one", None), ("two", [4])):
        recipe = Manifest.load(folder / name).recipe
        assert recipe == json.loads((folder / name / "plan.json").read_text())["recipe"]
        assert recipe["cut"].get("more_frames") == more
    assert run(config(folder / "source", folder / "two", stills="always", more_frames=[4])) == 0  # again: frozen
    with pytest.raises(UserError, match="was planned with another recipe"):
        run(config(folder / "source", folder / "two", stills="always", more_frames=[5]))


def test_a_layer_of_all_lengths_is_refreshed(folder: Path, tmp_path: Path) -> None:
    settings = RefreshConfig(str(folder / "two"), str(tmp_path / "new"), "edges", recipe=quick_recipe())
    assert refresh.run(settings) == 0
    old, new = Manifest.load(folder / "two"), Manifest.load(tmp_path / "new")
    assert {name: (pool.frames, pool.samples) for name, pool in new.pools.items()} == {
        name: (pool.frames, pool.samples) for name, pool in old.pools.items()
    }
    assert new.recipe["cut"] == old.recipe["cut"] and check_set(tmp_path / "new", new, workers=1) == []
