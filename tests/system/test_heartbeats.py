"""Ranks that share a store; the tests set their machines and the time."""

import json
import os
import subprocess
import sys

import pytest
from torch.distributed import HashStore

from benchmarks.training.scale import CountingStore
from gen1_train.system import heartbeats
from gen1_train.system.heartbeats import BEAT, PERIOD, PLACE, RESIGNED, SILENCE, Heartbeats, is_running, machine

NOTICE = "notice"


class Cluster:
    """Ranks on several machines, in one process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machines: int, each: int = 1) -> None:
        self.store, self.now, self.gone = CountingStore(), [0.0], set[int]()
        monkeypatch.setattr(heartbeats.time, "monotonic", lambda: self.now[0])
        self.ranks: list[Heartbeats] = []
        for rank in range(machines * each):
            monkeypatch.setattr(heartbeats, "machine", lambda rank=rank: f"machine {rank // each}")
            self.ranks.append(Heartbeats(self.store, rank, NOTICE, machines * each))  # type: ignore[arg-type]
            self.store.store.set(f"{PLACE}{rank}", json.dumps([f"host{rank // each}", rank]))
        monkeypatch.setattr(heartbeats, "is_running", lambda pid: pid not in self.gone)

    def beat(self, times: int = 1, without: tuple[int, ...] = ()) -> None:
        for _ in range(times):
            for number, rank in enumerate(self.ranks):
                if number not in without and number not in self.gone:
                    rank.beat()


def test_each_machine_has_one_voice_its_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=3, each=4)
    cluster.beat(2)
    assert [number for number, rank in enumerate(cluster.ranks) if rank.is_voice] == [0, 4, 8]
    assert [rank.lost() for rank in cluster.ranks] == [None] * 12


def test_a_rank_that_took_itself_for_a_voice_resigns_when_one_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=1)
    late = cluster.ranks.pop()
    monkeypatch.setattr(heartbeats, "machine", lambda: "machine 7")
    second = Heartbeats(cluster.store, 9, NOTICE, 10)  # type: ignore[arg-type]
    second.beat()
    first = Heartbeats(cluster.store, 8, NOTICE, 10)  # type: ignore[arg-type]
    for rank in (second, first, late):
        rank.beat()
    assert first.is_voice and not second.is_voice
    assert cluster.store.store.get(f"{BEAT}9") == RESIGNED.encode()
    cluster.now[0] += 2 * SILENCE
    for rank in (first, late):
        rank.beat()
    assert late.lost() is None  # what has resigned is not missed


def test_a_machine_that_is_lost_before_its_first_word_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=3)
    cluster.store.store.delete_key(f"{PLACE}2")
    cluster.now[0] += SILENCE / 2
    cluster.beat(without=(2,))
    assert cluster.ranks[0].lost() is None
    cluster.now[0] += SILENCE
    cluster.beat(without=(2,))
    lost = cluster.ranks[0].lost()
    assert lost is not None and lost.startswith(
        f"rank 2 is gone: it met the others, and nothing came from it for {SILENCE:g} s"
    )
    assert cluster.ranks[1].lost() is None
    cluster.store.store.set(f"{PLACE}2", "it is late")
    assert cluster.ranks[0].lost() is None and not cluster.ranks[0]._missing


def test_a_machine_is_gone_after_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=3, each=2)
    for _ in range(5):
        cluster.beat()
        assert [rank.lost() for rank in cluster.ranks] == [None] * 6
        cluster.now[0] += SILENCE
    cluster.beat(without=(2, 3))
    cluster.now[0] += 1
    (line, *others) = [rank.lost() for rank in cluster.ranks]
    assert line is not None and line.startswith("rank 2 (host1, pid 2) is gone") and f"for {SILENCE:g} s" in line
    assert others == [None] * 5  # only rank 0 watches other machines
    cluster.beat()
    assert cluster.ranks[0].lost() is None


def test_a_rank_that_is_still_starting_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=1)
    cluster.beat()
    cluster.now[0] += 10 * SILENCE
    assert cluster.ranks[0].lost() is None


@pytest.mark.parametrize("gone", range(8))
def test_a_process_that_ended_is_noticed_on_its_machine(monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    cluster = Cluster(monkeypatch, machines=2, each=4)
    cluster.beat(2)
    cluster.gone.add(gone)
    cluster.beat()
    noticed = [number for number, rank in enumerate(cluster.ranks) if number != gone and rank.lost() is not None]
    first = gone // 4 * 4
    # by the voice, or by all others if it is the voice
    assert noticed == ([first] if gone != first else [first + 1, first + 2, first + 3])
    assert (cluster.ranks[noticed[0]].lost() or "").startswith(
        f"rank {gone} (host{gone // 4}, pid {gone}) is gone: it "
    )


def test_a_notice_is_seen_by_voices_and_by_those_that_lost_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=2, each=2)
    cluster.beat(2)
    cluster.store.store.set(NOTICE, "2")
    assert [rank.beat() for rank in cluster.ranks] == [b"2", b"2", b"2", b""]  # all on rank 0's machine see it
    cluster.gone |= {0, 2}  # they have ended because of it
    assert [cluster.ranks[rank].beat() for rank in (1, 3)] == [b"2", b"2"]


@pytest.mark.parametrize(("machines", "each"), [(1, 8), (8, 8), (128, 8), (512, 8), (1024, 1)])
def test_the_store_gets_few_requests_however_large_the_cluster_is(
    monkeypatch: pytest.MonkeyPatch, machines: int, each: int
) -> None:
    """At most 100 a second, of which 14 are of rank 0's machine, and 10 of each rank at the start."""
    cluster = Cluster(monkeypatch, machines, each)
    cluster.beat(2)
    assert not any(rank.lost() for rank in cluster.ranks)
    assert cluster.store.requests.total() <= 10 * machines * each
    before = cluster.store.requests.total()
    cluster.beat()
    assert not any(rank.lost() for rank in cluster.ranks)
    period = cluster.ranks[0].period
    assert period >= PERIOD and all(rank.period <= period for rank in cluster.ranks)
    asked = cluster.store.requests.total() - before
    assert asked == 2 * machines + (machines > 1) + each - 1
    assert (2 * machines + 1) / period + (each - 1) / PERIOD <= 100


def test_a_process_of_this_machine_is_gone_as_soon_as_it_has_ended() -> None:
    store = HashStore()
    own = Heartbeats(store, 0, NOTICE, 2)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    other = Heartbeats(store, 1, NOTICE, 2)
    store.set(f"{PLACE}1", json.dumps(["here", process.pid]))
    own.beat()
    while is_running(process.pid):
        pass
    assert own.lost() == f"rank 1 (here, pid {process.pid}) is gone: it was killed, or ended without an error message"
    process.wait()
    assert own.lost() is not None and is_running(os.getpid()) and machine() == machine()
    other.beat()
    assert not other.is_voice and other.lost() is None
