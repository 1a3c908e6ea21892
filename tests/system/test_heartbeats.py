"""Two ranks that share a store; the tests set their machines and the time."""

import os
import subprocess
import sys

import pytest
from torch.distributed import HashStore

from gen1_train.system import heartbeats
from gen1_train.system.heartbeats import SILENCE, Heartbeats, is_running, machine


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> tuple[Heartbeats, Heartbeats, list[float]]:
    """Ranks 0 and 1 on two machines, and the time, which starts at 0."""
    store, now = HashStore(), [0.0]
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heartbeats, "machine", lambda: "another one")
    other = Heartbeats(store, 1, 2)
    monkeypatch.setattr(heartbeats, "machine", lambda: "this one")
    return Heartbeats(store, 0, 2), other, now


def test_a_rank_on_another_machine_is_gone_after_a_long_silence(far):
    own, other, now = far
    for _ in range(5):
        other.beat()
        assert own.lost() is None
        now[0] += SILENCE
    now[0] += 1
    lost = own.lost()
    assert lost is not None and lost.startswith("rank 1 (") and f"no heartbeat for {SILENCE:g} s" in lost
    other.beat()
    assert own.lost() is None


def test_a_rank_that_is_still_starting_is_not_lost(monkeypatch):
    own = Heartbeats(HashStore(), 0, 3)
    assert own.lost() is None


def test_only_rank_0_detects_silent_ranks_on_other_machines(far):
    _, other, now = far
    assert other.lost() is None
    now[0] += 10 * SILENCE
    assert other.lost() is None


def test_a_process_of_this_machine_is_gone_as_soon_as_it_has_ended():
    store = HashStore()
    own = Heartbeats(store, 0, 2)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    store.set("gen1-train/place/1", f'{{"host": "here", "machine": "{machine()}", "pid": {process.pid}}}')
    while is_running(process.pid):
        pass
    assert own.lost() == f"rank 1 (here, pid {process.pid}) is gone: it was killed, or ended without an error message"
    process.wait()
    assert own.lost() is not None and is_running(os.getpid())
