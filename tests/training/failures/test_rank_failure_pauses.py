"""Which steps are late because a rank hangs, and which ones only wait for a rank that pauses."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from torch.distributed import HashStore

from gen1_train.errors import LOST
from gen1_train.training.failures import deadline as deadline_module
from gen1_train.training.failures import rank_failure as module
from gen1_train.training.failures.deadline import MEASURED, Deadline, Late
from gen1_train.training.failures.rank_failure import CODE, Notice, RankFailure

LIMIT = 60.0


class Ranks:
    """Ranks that share a store and a clock; each has done MEASURED steps of one second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.now, self.store = 0.0, HashStore()
        for clock in ("monotonic", "perf_counter"):
            monkeypatch.setattr(deadline_module.time, clock, lambda: self.now)
        self.pausing: set[int] = set()
        self.deadlines = [Deadline(10.0, LIMIT, lambda rank=rank: rank in self.pausing) for rank in range(count)]
        self.watchers = [RankFailure(deadline=deadline) for deadline in self.deadlines]
        for step in range(1, MEASURED + 1):
            self.begin(step)
            self.now += 1
            self.end(step)

    def begin(self, step: int, *but: int) -> None:
        """All ranks begin a step, except for some."""
        for rank, deadline in enumerate(self.deadlines):
            if rank not in but:
                deadline.begin(step, 1)

    def end(self, step: int, *but: int) -> None:
        """All ranks complete a step, except for some."""
        for rank, deadline in enumerate(self.deadlines):
            if rank not in but:
                deadline.end(step)

    def late(self, seconds: int) -> set[int]:
        """The ranks that are late within the next seconds."""
        late = set()
        for _ in range(seconds):
            self.now += 1
            late |= {rank for rank, watcher in enumerate(self.watchers) if watcher._late(self.store) is not None}
        return late


@pytest.mark.parametrize("step", [MEASURED, MEASURED + 1])
def test_ranks_that_wait_for_one_that_pauses_are_not_late(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """They wait at the end of the step after which it pauses, or in the next one."""
    ranks = Ranks(monkeypatch, 3)
    if step > MEASURED:
        ranks.begin(step, 2)
    ranks.pausing = {2}  # it still writes a checkpoint
    assert ranks.late(500) == set()
    ranks.pausing.clear()
    ranks.deadlines[2].begin(MEASURED + 1, 1)  # now it hangs in the step
    assert ranks.late(3 * int(LIMIT)) == {0, 1, 2}


@pytest.mark.parametrize("pausing", [{0, 1}, {0}, set()])
def test_a_rank_that_hangs_at_the_end_of_a_step_is_late_while_the_others_wait_for_it_after_it(
    monkeypatch: pytest.MonkeyPatch, pausing: set[int]
) -> None:
    """They wait in the collectives of a row, or of a validation, which is a pause."""
    ranks = Ranks(monkeypatch, 3)
    ranks.begin(MEASURED + 1)
    ranks.end(MEASURED + 1, 2)
    ranks.pausing = pausing
    assert ranks.late(2 * int(LIMIT)) == ({2} if pausing else {0, 1, 2})
    assert all(watcher._deadline.is_slow for watcher in ranks.watchers)  # so that they ask for the notice


def test_only_slow_ranks_ask_for_the_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 1)
    (watcher,) = ranks.watchers
    notice = Notice(200, late=MEASURED + 1)
    ranks.store.set(CODE, str(notice))
    ranks.deadlines[0].begin(MEASURED + 1, 1)
    assert ranks.late(int(LIMIT) // 3) == set() and watcher._asked_for(ranks.store) == b""
    assert ranks.late(int(LIMIT) // 3) == set() and Notice.read(watcher._asked_for(ranks.store)) == notice


@pytest.mark.parametrize("notice", [Notice(2), Notice(200, 12)])
def test_a_notice_survives_the_store(notice: Notice) -> None:
    assert Notice.read(str(notice).encode()) == notice


def test_a_single_process_ends_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr(module, "leave", leave)
    monkeypatch.setattr(module, "PERIOD", 0.0)
    monkeypatch.setattr(Deadline, "tick", lambda deadline: Late(12, 60.0, 1.0))
    with pytest.raises(SystemExit) as ended:
        RankFailure(lambda: True, Deadline(10.0, LIMIT), tmp_path)._watch_alone()
    folder = tmp_path / "stuck" / "step-00000012"
    assert ended.value.code == LOST and [path.name for path in folder.iterdir()] == ["rank-00000.txt"]
    line = capsys.readouterr().err
    assert "error: step 12 takes longer than 60 s (the median is 1 s); it is after micro-batch 0 of step 0" in line
    assert f"; the stacks of rank 0 are in {folder}; call the same command again to resume" in line
