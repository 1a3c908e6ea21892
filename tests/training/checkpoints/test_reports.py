"""Reports of the ranks' writers to that of rank 0."""

import threading

import pytest
from torch.distributed import TCPStore

from gen1_train.errors import UserError
from gen1_train.training.checkpoints import reports as module
from gen1_train.training.checkpoints.reports import Reports


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("localhost", 0, 1, is_master=True)


def test_reports_arrive_in_the_order_of_ranks_and_of_their_checkpoint(store: TCPStore) -> None:
    ranks = [Reports(store.clone(), rank, 3) for rank in range(3)]
    before = store.num_keys()
    for step in ("step-1", "step-2"):
        for rank in (2, 0, 1):
            ranks[rank].send(step, {"rank": rank, "of": step})
    for step in ("step-1", "step-2"):
        assert ranks[0].receive(step, 10) == [{"rank": rank, "of": step} for rank in range(3)]
    assert store.num_keys() == before  # nothing is left behind


def test_a_late_report_is_waited_for(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 0.05)
    late = threading.Timer(0.3, Reports(store.clone(), 1, 2).send, ("step", {"late": True}))
    late.start()
    first = Reports(store.clone(), 0, 2)
    first.send("step", {})
    assert first.receive("step", 60) == [{}, {"late": True}]


def test_the_rank_that_is_missing_is_named(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 0.05)
    first = Reports(store.clone(), 0, 3)
    first.send("step", {})
    Reports(store.clone(), 2, 3).send("step", {})
    with pytest.raises(UserError, match=r"rank 1 has not written its part of checkpoint step within 0\.1 s"):
        first.receive("step", 0.1)
