"""The trace of one optimizer step."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.training.callbacks.profiling import LOGGED, Profile, operator_lines, profiling
from gen1_train.training.run import train
from gen1_train.training.run_files import changed_settings
from tests.training.alone import config, make_start
from tests.training.test_run_files import stored


@pytest.mark.slow
def test_one_step_is_traced_into_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_start(tmp_path)
    made = config(tmp_path, "traced", steps=3)
    made.trainer.profile = 2
    made.trainer.accumulate = 2
    assert train(made) == 0
    folder = tmp_path / "traced" / "run" / "stage3" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2.json.gz", "step-2.txt"]
    with gzip.open(folder / "step-2.json.gz") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum("convolution_backward" in name for name in names) > 0
    assert sum(name.startswith("Optimizer.step") for name in names) == 1  # one optimizer step, of both micro-batches
    assert "convolution_backward" in (folder / "step-2.txt").read_text()
    printed = capsys.readouterr().out
    assert "step 2 was traced:" in printed and "calls)" in printed


class FakeTrainer(SimpleNamespace):
    """The parts of Lightning's Trainer that the hooks use."""


def test_only_rank_0_traces_and_a_step_that_is_done_is_reported(tmp_path, capsys) -> None:
    module = SimpleNamespace(device=torch.device("cpu"))
    made = Profile(tmp_path, step=2)
    for rank_zero, step in ((False, 1), (True, 0), (True, 2)):
        trainer = FakeTrainer(is_global_zero=rank_zero, global_step=step)
        made.on_train_start(trainer, module)  # type: ignore[arg-type]
        made.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
        made.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    assert made._profiler is None and list(tmp_path.iterdir()) == []
    assert "trainer.profile=2 traces nothing: step 2 is done already" in capsys.readouterr().out


def test_a_disk_that_cannot_take_the_trace_does_not_end_the_run(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    run.write_text("not a folder")
    made, module = Profile(run, step=1), SimpleNamespace(device=torch.device("cpu"))
    made.on_train_batch_start(FakeTrainer(is_global_zero=True, global_step=0), module, None, 0)  # type: ignore[arg-type]
    made.on_train_batch_end(FakeTrainer(global_step=1), module, None, None, 0)  # type: ignore[arg-type]
    assert "the trace of step 1 cannot be written" in capsys.readouterr().out


def test_the_profiler_is_off_after_an_exception(tmp_path) -> None:
    made, module = Profile(tmp_path, step=1), SimpleNamespace(device=torch.device("cpu"))
    trainer = FakeTrainer(is_global_zero=True, global_step=0)
    made.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    assert torch.autograd._profiler_enabled()
    made.on_exception(trainer, module, ValueError())  # type: ignore[arg-type]
    assert not torch.autograd._profiler_enabled()


def test_the_longest_operators_come_first_by_their_own_time() -> None:
    times = {f"op{i}": SimpleNamespace(key=f"op{i}", count=i, self_cpu_time_total=1000.0 * i) for i in range(20)}
    lines = operator_lines(list(times.values()), "cpu")  # type: ignore[arg-type]
    assert len(lines) == LOGGED and lines[0].split() == ["19.00", "ms", "10.0%", "op19", "(19", "calls)"]
    gpu = [SimpleNamespace(key="kernel", count=1, self_cpu_time_total=0.0, self_device_time_total=2000.0)]
    assert operator_lines(gpu, "cuda")[0].split()[:4] == ["2.00", "ms", "100.0%", "kernel"]  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [None, 0])
def test_nothing_is_traced_by_default(tmp_path, step) -> None:
    assert profiling(tmp_path, step) == [] != profiling(tmp_path, 1)


def test_a_step_that_does_not_exist_is_refused_in_one_line(tmp_path) -> None:
    made = config(tmp_path, "refused", steps=3)
    for step, said in (
        (4, "trainer.profile=4, but the run has 3 steps"),
        (-1, "trainer.profile=-1 must be 0 or above"),
    ):
        made.trainer.profile = step
        with pytest.raises(UserError, match=said) as error:
            made.check()
        assert "\n" not in str(error.value)
    for step in (3, 0, None):
        made.trainer.profile = step
        made.check()


def test_a_trace_is_not_a_change_of_a_run(tmp_path) -> None:
    made = config(tmp_path, "runs", steps=3)
    made.stage.name, made.name = "4", "gen1"
    resume = stored(made)
    made.trainer.profile = 1
    assert changed_settings(resume, made) == []
