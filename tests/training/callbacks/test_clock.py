from collections import deque
from typing import Any

import pytest

from gen1_train.training.callbacks import clock as module
from gen1_train.training.callbacks.clock import PHASES, Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose only element is the time of the process."""
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_every_second_counts_once_for_the_innermost_phase(now: list[float]) -> None:
    clock = Clock()
    now[0] += 1
    clock.switch("forward")
    now[0] += 2
    with clock.phase("checkpoint"):
        now[0] += 4
        with clock.phase("ema"):
            now[0] += 8
        now[0] += 16
    now[0] += 32
    clock.switch("other")
    now[0] += 64
    taken = clock.take()
    assert taken == dict.fromkeys(PHASES, 0.0) | {"other": 65.0, "forward": 34.0, "checkpoint": 20.0, "ema": 8.0}
    assert sum(taken.values()) == now[0] - 100


def test_taken_seconds_are_not_counted_again_and_an_open_phase_continues(now: list[float]) -> None:
    clock = Clock()
    with clock.phase("validation"):
        now[0] += 1
        assert clock.take()["validation"] == 1
        now[0] += 2
    assert clock.take() == dict.fromkeys(PHASES, 0.0) | {"validation": 2.0}
    now[0] += 4
    clock.restart("cpu")
    assert set(clock.take().values()) == {0.0}


def test_an_error_ends_its_phase(now: list[float]) -> None:
    clock = Clock()
    with pytest.raises(ValueError), clock.phase("ema"):
        raise ValueError
    now[0] += 1
    assert clock.take()["other"] == 1
    with pytest.raises(KeyError):
        clock.switch("lunch")  # type: ignore[arg-type]


class Gpu:
    """A stand-in for a device with CUDA events: it does queued work in order, and later."""

    def __init__(self) -> None:
        self.host = self.done = 0.0
        self.waits = 0

    def work(self, seconds: float) -> None:
        self.done = max(self.done, self.host) + seconds

    def event(self, enable_timing: bool) -> Any:
        gpu = self

        class Event:
            def record(self) -> None:
                self.at = max(gpu.done, gpu.host)

            def query(self) -> bool:
                return self.at <= gpu.host

            def synchronize(self) -> None:
                gpu.waits += 1
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, later: Any) -> float:
                assert self.query() and later.query()
                return (later.at - self.at) * 1e3

        return Event()


def test_on_a_gpu_a_phase_gets_the_time_of_its_work_and_only_take_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(module.torch.cuda, "Event", gpu.event)
    clock = Clock("cuda")
    for _ in range(3):
        clock.switch("forward")
        gpu.work(1)
        clock.switch("backward")
        gpu.work(2)
        with clock.phase("data_wait"):  # the GPU is busy meanwhile
            gpu.host += 0.5
        clock.switch("other")
    assert gpu.waits == 0 and gpu.host == 1.5
    taken = clock.take()
    assert gpu.waits == 1 and gpu.host == 9
    assert taken == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"forward": 3, "backward": 6})
    with clock.phase("data_wait"):  # now the GPU is idle
        gpu.host += 4
    assert clock.take() == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"data_wait": 4})


def test_stamps_that_have_passed_are_dropped(now: list[float]) -> None:
    clock = Clock()
    for _ in range(1000):
        clock.switch("forward")
    assert isinstance(clock._begun, deque) and len(clock._begun) == 1
