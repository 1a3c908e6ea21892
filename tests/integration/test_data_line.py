"""Whole runs and the order of their data: through a cache, and with another global batch after some steps."""

import json
from pathlib import Path

import pytest

from gen1_train.data.shards import ShardSet
from gen1_train.data.state import LIMIT
from tests.made import make_shard_set
from tests.running import run, run_well
from tests.training.runs import assert_equal_to_the_bit, folder, last, losses, stage
from tests.video.web import serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BLOCKS = ["data.order=blocks", "data.window=1", "data.lanes=2"]


def rows(printed: str) -> list[dict[str, str]]:
    """The table of `gen1-data order`."""
    header, *lines = (line.split("\t") for line in printed.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_blocks_from_a_web_server_through_a_cache_equal_blocks_from_the_disk(run_root: Path, tmp_path: Path) -> None:
    """On two ranks that share the cache, which is smaller than the set."""
    root = make_shard_set(tmp_path / "web" / "set", clips=24, images=48, shards=12)
    local = [f"data.root={root}", *BLOCKS]
    run_well("gen1_train.train", *stage(run_root, 3, "disk", *local))
    shards = [shard for pool in ShardSet(root).manifest.pools.values() for shard in pool.shards]
    budget = 0.6 * sum(shard.bytes for shard in shards)
    with serve(tmp_path / "web") as web:
        settings = [f"data.cache={tmp_path / 'cache'}", f"data.cache_gigabytes={budget / 1e9:.9f}"]
        remote = [f"data.root={web.url}/set", *BLOCKS]
        printed = run_well("gen1_train.train", *stage(run_root, 3, "cached", *remote, *settings))
        assert f"copying shards from {web.url}/set to {tmp_path / 'cache'}" in printed and " 0 shards (0 GB)" in printed
        assert_equal_to_the_bit(run_root, "cached", "disk")
        (cache,) = (tmp_path / "cache").iterdir()
        held = sum(path.stat().st_size for path in (cache / "shards").iterdir())
        assert 0 < held <= budget
        assert len(list((cache / "shards").glob("*.tar"))) < len(shards)
        uncached = run("gen1_train.train", *stage(run_root, 3, "uncached", *remote))
    assert uncached.returncode == 2
    assert "add data.cache=FOLDER" in uncached.stderr.strip().splitlines()[-1]
    assert not folder(run_root, "uncached").exists()


def test_another_global_batch_continues_in_each_pool(run_root: Path) -> None:
    """12 clips in batches of 4 for two steps and of 2 afterwards: every clip comes once before any comes again."""
    alone = ["strategy=single", "trainer.devices=1", "data.workers=0", "data.image_ratio=0"]
    run_well("gen1_train.train", *stage(run_root, 3, "batch", *alone, "stage.steps=2"))
    before = rows(run_well("data_tools.main", "order", *order(run_root, "batch"), "step=0", "steps=2"))
    printed = run_well("gen1_train.train", *stage(run_root, 3, "batch", *alone, "stage.steps=4", "data.batch_clips=2"))
    assert "the data changes from here on: from step 2: data.batch_clips 4 -> 2" in printed
    state = json.loads((last(run_root, "batch") / "checkpoint.json").read_text())["data"]
    assert state["history"] == ["from step 2: data.batch_clips 4 -> 2"]
    assert state["cursors"] == {"video-32x16": 2 * 4 + 2 * 2} and state["step"] == 4
    assert len(json.dumps(state)) < LIMIT
    after = rows(run_well("data_tools.main", "order", *order(run_root, "batch"), "step=2", "steps=2"))
    assert sorted(row["key"] for row in before + after) == [f"video-{i:03d}" for i in range(12)]
    assert [row["epoch"] for row in before + after] == ["0"] * 12
    assert "batch_clips: 2" in (folder(run_root, "batch") / "config.yaml").read_text()
    assert [step for step, _ in losses(run_root, "batch")] == [1, 2, 3, 4]
    refused = run("gen1_train.train", *stage(run_root, 3, "batch", *alone, "stage.steps=6", "seed=1"))
    assert refused.returncode == 2 and "seed cannot be changed within a run" in refused.stderr.strip().splitlines()[-1]


def order(run_root: Path, output: str) -> list[str]:
    return [f"output={run_root / 'set'}", f"run={folder(run_root, output)}"]
