"""Ranks that are about to do different things stop at the start; those that are not read one stream together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.training.callbacks import agreement
from gen1_train.training.callbacks.agreement import Agreement, check_agreement, disagreement
from tests.made import make_shard_set
from tests.training.pair import run_pair, train_small

STEPS = 16


def test_ranks_that_agree_have_nothing_to_say() -> None:
    assert disagreement(["a", "b"], [{"manifest": "1" * 64, "step": "3"}] * 2) is None
    check_agreement({"step": "3"})  # alone


def test_a_disagreement_is_one_line_that_names_what_and_who() -> None:
    hosts = ["node1", "node1", "node2", "node2"]
    good, other = {"manifest": "a" * 64, "step": "40"}, {"manifest": "b" * 64, "step": "40"}
    assert disagreement(hosts, [good, good, other, good]) == (
        "the ranks do not agree on manifest (aaaaaaaaaaaa on ranks 0-1, 3 (node1, node2), bbbbbbbbbbbb on rank 2 "
        "(node2)): start all of them from the same code, with the same settings, data and run folder"
    )
    line = disagreement(hosts, [{**good, "step": "35"}, good, other, {"manifest": "a" * 64}])
    assert line is not None and line.startswith("the ranks do not agree on manifest (")
    assert " and step (35 on rank 0 (node1), 40 on ranks 1-2 (node1, node2), nothing on rank 3 (node2)): " in line


def test_the_line_stays_short_with_a_thousand_ranks() -> None:
    hosts = [f"node{rank // 8}" for rank in range(1024)]
    line = disagreement(hosts, [{"schedule": f"{rank:064d}"[::-1], "code": str(rank % 2)} for rank in range(1024)])
    assert line is not None and len(line) < 1000
    assert "and 1021 more" in line and "and 509 more" in line and "and 125 more" in line


def train_agreeing(rank: int, values: list[dict[str, str]]) -> None:
    train_small(lambda number: print(f"step {number}", flush=True), Agreement(values[rank]))


@pytest.mark.slow
def test_ranks_that_agree_train(tmp_path: Path) -> None:
    codes, outputs = run_pair(train_agreeing, tmp_path, [{"manifest": "a" * 64, "step": "0"}] * 2)
    assert codes == [0, 0], outputs


@pytest.mark.slow
def test_ranks_that_do_not_agree_stop_before_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = [{"manifest": "a" * 64, "step": "0"}, {"manifest": "a" * 64, "step": "5"}]
    codes, outputs = run_pair(train_agreeing, tmp_path, values)
    assert codes == [2, 2], outputs
    errors = [line for text in outputs for line in text.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("gen1-train: error: the ranks do not agree on step (0 on rank 0 (")
    assert "Traceback" not in "".join(outputs) and "step 0" not in capfd.readouterr().out


def walk(rank: int, root: Path) -> None:
    """Reads the steps with its own shard set and worker; at each step, the ranks exchange what they hold."""
    torch.distributed.init_process_group("gloo")
    shards = ShardSet(root)
    schedule = Schedule(shards, Settings(3, 0.25, 4))
    steps = []
    for batch in build_loader(
        BatchDataset(shards, schedule, BatchPartition(rank, 2, 1), ("image_embedding",)), 0, STEPS, 1, pin=False
    ):
        step = schedule.at(batch.step)
        own = {"step": batch.step, "kind": batch.kind, "pool": step.pool, "slots": batch.slots, "keys": batch.keys}
        all_ranks: list[Any] = [None, None]
        torch.distributed.all_gather_object(all_ranks, own)
        steps.append(all_ranks)
    (root / f"steps-{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes_agree_at_every_step(tmp_path: Path) -> None:
    root = make_shard_set(tmp_path / "set", clips=9, images=20)
    codes, outputs = run_pair(walk, tmp_path, root)
    assert codes == [0, 0], outputs
    steps, other = (json.loads((root / f"steps-{rank}.json").read_text()) for rank in range(2))
    assert steps == other and len(steps) == STEPS
    schedule = Schedule(ShardSet(root), Settings(3, 0.25, 4))
    for number, ranks in enumerate(steps):
        step = schedule.at(number)
        assert [(own["step"], own["kind"], own["pool"]) for own in ranks] == [(number, step.kind, step.pool)] * 2
        assert [slot for own in ranks for slot in own["slots"]] == list(range(step.size))  # disjoint, and all
        indices = [schedule.sample(step, slot) for slot in range(step.size)]
        assert [key for own in ranks for key in own["keys"]] == [f"{step.kind}-{index:03d}" for index in indices]
    assert [ranks[0]["kind"] for ranks in steps].count("image") == STEPS // 4


def test_the_code_hash_covers_the_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any module that differs, or that is new, changes the hash, and nothing else does."""
    package = shutil.copytree(Path(agreement.__file__).parents[2], tmp_path / "gen1_train")
    monkeypatch.setattr(agreement, "__file__", str(package / "training" / "callbacks" / "agreement.py"))
    hashes = [agreement.code_hash()]
    (package / "data" / "notes.txt").write_text("no code")
    assert agreement.code_hash() == hashes[0]
    for path in (package / "batch.py", package / "data" / "new.py"):
        path.write_text("pass\n")
        hashes.append(agreement.code_hash())
    assert len(set(hashes)) == 3
