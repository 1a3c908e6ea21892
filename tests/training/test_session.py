"""What a run sets for the whole process."""

import os
import threading

import pytest
import torch

from gen1_train.system import files
from gen1_train.training.callbacks.clock import PHASES, Clock
from gen1_train.training.config import TrainerConfig
from gen1_train.training.session import PAUSES, set_switches, step_deadline


@pytest.fixture(autouse=True)
def restored():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("benchmark", [True, False])
def test_the_switches_are_set_each_by_its_own_and_a_cpu_s_numbers_stay(tf32, benchmark):
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    before = a @ b
    set_switches(TrainerConfig(tf32=tf32, cudnn_benchmark=benchmark))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.equal(a @ b, before)


@pytest.mark.parametrize("benchmark", [True, False])
def test_a_deterministic_run_lets_cudnn_choose_nothing_by_time(monkeypatch, benchmark):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_switches(TrainerConfig(deterministic=True, cudnn_benchmark=benchmark))
    assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_switches(TrainerConfig(cudnn_benchmark=benchmark))
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark is benchmark


def test_a_step_s_deadline_does_not_run_in_pauses(monkeypatch):
    clock = Clock()
    deadline = step_deadline(TrainerConfig(step_deadline=4.0, step_deadline_seconds=7.0), clock)
    assert (deadline.multiple, deadline.seconds) == (4.0, 7.0)
    for phase in PHASES:
        clock.switch(phase)
        assert deadline._is_pausing() is (phase in PAUSES)
    clock.switch("other")
    monkeypatch.setattr(files, "_waiting", {threading.get_ident()})
    assert deadline._is_pausing()
