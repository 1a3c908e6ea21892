"""data.order=auto: what a new run chooses, and that a resumed one keeps its order."""

from dataclasses import asdict
from pathlib import Path

import pytest

from gen1_train.data.shards import ShardSet
from gen1_train.data.state import capture
from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import Checkpoint, CheckpointInfo
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning import data_order
from gen1_train.training.planning.data_order import choose_order
from gen1_train.training.preflight import open_schedule
from gen1_train.training.run_files import changed_settings
from tests.made import make_shard_set
from tests.training.alone import config as make_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Two nodes that read a set on NFS."""
    monkeypatch.setattr(data_order, "network_file_system", lambda path: "nfs4" if path == tmp_path / "set" else None)
    made = make_config(tmp_path, "out", steps=2)
    made.trainer.nodes = 2
    return made


def test_several_nodes_read_a_network_file_system_in_blocks(config: TrainConfig, tmp_path: Path) -> None:
    chosen, line = choose_order(config, None)
    assert chosen.data.order == "blocks"
    assert line == f"data.order=blocks: 2 nodes read {tmp_path / 'set'}, which is on nfs4"


@pytest.mark.parametrize("case", ["one node", "a disk of each node", "no set"])
def test_other_runs_read_from_all_shards(config: TrainConfig, tmp_path: Path, case: str) -> None:
    if case == "one node":
        config.trainer.nodes = 1
    else:
        config.data.root = str(tmp_path / "local") if case == "a disk of each node" else None
    chosen, line = choose_order(config, None)
    assert (chosen.data.order, line) == ("global", None)


def test_a_cache_needs_blocks(config: TrainConfig) -> None:
    config.trainer.nodes, config.data.cache, config.data.root = 1, "cache", "s3://bucket/set"
    config.data.check()
    chosen, line = choose_order(config, None)
    assert (chosen.data.order, line) == ("blocks", "data.order=blocks: data.cache needs it")
    config.data.order = "global"
    with pytest.raises(UserError, match=r"data\.cache needs data\.order=blocks"):
        config.data.check()


@pytest.mark.parametrize("order", ["global", "blocks"])
def test_a_given_order_is_kept(config: TrainConfig, order: str) -> None:
    config.data.order = order
    assert choose_order(config, None) == (config, None)


@pytest.mark.parametrize("order", ["global", "blocks"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_that_resumes_keeps_its_order(config: TrainConfig, tmp_path: Path, order: str, nodes: int) -> None:
    shards = ShardSet(make_shard_set(tmp_path / "set"))
    config.data.order = order
    before, _ = open_schedule(config, shards, None)
    info = CheckpointInfo(
        "3", 1, finished=False, data=asdict(capture(before, 1)), estimators=shards.manifest.estimators
    )
    path = tmp_path / "step-00000001"
    path.mkdir()
    (path / "config.yaml").write_text(config.to_yaml())
    resume = Checkpoint(path, info)
    config.data.order, config.trainer.nodes = "auto", nodes
    assert not [change for change in changed_settings(resume, config) if change.startswith("data.")]
    chosen, line = choose_order(config, resume)
    assert (chosen.data.order, line) == (order, None)
    schedule, history = open_schedule(chosen, shards, resume)
    assert schedule.hash == before.hash and history == ()
