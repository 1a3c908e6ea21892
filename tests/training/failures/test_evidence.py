"""The stacks that a rank leaves, and the line about the ranks that are behind."""

import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from gen1_train.training.failures import evidence
from gen1_train.training.failures.deadline import PHASES, Late, Position
from gen1_train.training.failures.evidence import Answer, read_answers, stuck_line, within, write_evidence

LATE = Late(step=12, limit=300.0, median=2.5)
RUN = Path("runs/a")
START = "step 12 takes longer than 300 s (the median is 2.5 s); "
END = "; the stacks of {} are in runs/a/stuck/step-00000012"


def at(rank: int, phase: str, micro_batch: int = 1, collectives: int = 40, written: bool = True) -> Answer:
    return Answer(rank, Position(12, micro_batch, PHASES.index(phase), collectives), written)


def line(world: int, *answers: Answer) -> str:
    return stuck_line(LATE, world, answers, lambda rank: f"rank {rank} (node{rank // 2})", RUN)


def test_answers_survive_the_store() -> None:
    answers = [at(3, "backward"), at(0, "end", 2, 41, written=False)]
    assert read_answers("".join(map(str, answers)).encode()) == answers


def test_the_ranks_behind_are_named_with_their_hosts() -> None:
    said = line(3, at(0, "optimizer"), at(1, "backward"), at(2, "optimizer"))
    behind = "rank 1 (node0) is behind, in the backward pass of micro-batch 1 of step 12"
    assert (
        said == f"{START}{behind}, where others are in the optimizer, micro-batch 1 of step 12{END.format('3 ranks')}"
    )
    assert "rank 0 (node0) and rank 3 (node1) are behind, in" in line(
        4, at(3, "forward"), at(1, "forward", 2), at(2, "end"), at(0, "forward")
    )


def test_collectives_tell_ranks_of_one_phase_apart() -> None:
    said = line(2, at(0, "backward", collectives=41), at(1, "backward", collectives=39))
    assert "rank 1 (node0) is behind, in the backward" in said and "where others are 2 collectives farther;" in said


def test_silent_ranks_are_named() -> None:
    said = line(4, at(0, "backward"), at(3, "backward", written=False))
    silent = "rank 1 (node0) and rank 2 (node1) do not answer"
    assert (
        said
        == f"{START}{silent}; all others are in the backward pass of micro-batch 1 of step 12{END.format('rank 0')}"
    )


def test_a_thousand_ranks_make_one_short_line() -> None:
    said = line(1024, *(at(rank, "forward" if rank % 2 else "backward") for rank in range(512)))
    assert "ranks 512-1023 (the first: rank 512 (node256)) do not answer" in said
    assert "ranks 1, 3, 5 and 253 more (the first: rank 1 (node0)) are behind" in said and len(said) < 500


def test_it_says_where_all_are_if_no_rank_is_behind() -> None:
    assert "; all ranks are in the optimizer, micro-batch 1 of step 12; " in line(
        2, at(0, "optimizer"), at(1, "optimizer")
    )
    assert line(1, at(0, "forward", written=False)) == f"{START}it is in the forward pass of micro-batch 1 of step 12"


def test_stacks_of_all_threads_are_written(tmp_path: Path) -> None:
    let_go = threading.Event()

    def waits_for_something() -> None:
        let_go.wait()

    thread = threading.Thread(target=waits_for_something)
    thread.start()
    try:
        assert write_evidence(tmp_path, 12, 3, Position(12, 1, 0, 40))
    finally:
        let_go.set()
        thread.join()
    (path,) = (tmp_path / "stuck" / "step-00000012").iterdir()  # a single process has no collectives
    text = path.read_text()
    assert path.name == "rank-00003.txt" and text.startswith("rank 3 on ")
    assert "in the forward pass of micro-batch 1 of step 12, 40 collectives\n" in text
    assert "in waits_for_something\n" in text and "in test_stacks_of_all_threads_are_written\n" in text


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "stuck").symlink_to(tmp_path / "elsewhere")
    assert not write_evidence(tmp_path, 12, 3, Position(12, 1, 0, 40))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_disk_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(evidence, "WRITING", 0.1)
    monkeypatch.setattr(evidence, "own_folder", lambda *names: let_go.wait() and tmp_path)
    assert not write_evidence(tmp_path, 12, 3, Position(12, 1, 0, 40))
    assert within(0.1, let_go.wait) is None
    let_go.set()
    assert within(5.0, lambda: 7) == 7


@pytest.mark.parametrize(
    ("backends", "dump"),
    [
        (["gloo"], "_dump_fr_trace"),
        (["nccl"], "_dump_nccl_trace"),
        (["gloo", "cpu:gloo,cuda:nccl"], "_dump_nccl_trace"),
    ],
)
def test_the_recorder_is_that_of_the_backend(monkeypatch: pytest.MonkeyPatch, backends: list[str], dump: str) -> None:
    monkeypatch.setattr(evidence.c10d, dump, called := Mock(return_value=b"recorded"), raising=False)
    groups = dict(enumerate((backend, None) for backend in backends))
    monkeypatch.setattr(evidence, "_world", SimpleNamespace(pg_map=groups))
    assert evidence.recorder()() == b"recorded" and called.call_count == 1
