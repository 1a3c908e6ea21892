"""benchmarks/gpu.py on a CPU: each of its parts, and what happens to those that fail."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from benchmarks.on_gpu.parts import PARTS
from benchmarks.on_gpu.runner import Runner, succeeds
from benchmarks.on_gpu.scale import Scale
from gen1_train.model.unet import UNetConfig
from tests.running import REPOSITORY, command, run, started, wait_until

BROKEN = "tests.benchmarks.broken_parts"
# packages that machines with a GPU are known to lack
ABSENT = ("hydra", "omegaconf", "deepspeed", "diffusers", "open_clip", "av", "webdataset", "wandb", "peft")


def lines_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def ends_of(lines: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The state of each part and the reason for it."""
    return {line["part"]: (line["state"], line["reason"]) for line in lines if "state" in line}


def rows_of(lines: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["part"] == part and "state" not in line]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_runs_every_part_on_a_cpu() -> None:
    result = run("benchmarks.gpu", "--rehearse", fresh=True)
    lines = lines_of(result.stdout)
    assert ends_of(lines) == {part.name: ("done", "") for part in PARTS}, result.stderr[-4000:]
    assert result.returncode == 0
    assert [line for line in lines if line.keys() & {"error", "skipped", "fits"}] == []
    for part in PARTS:
        assert rows_of(lines, part.name), part.name
        assert f"| {part.name} | done |" in result.stderr and f"### {part.name}" in result.stderr
    assert {row["way"] for row in rows_of(lines, "attention")} == {"explicit", "triton", "sdpa in parts"}
    assert {row["level"] for row in rows_of(lines, "attention")} == {0, 1, 2, 3}
    assert {row["unet"] for row in rows_of(lines, "peers")} >= {"gen1-train", "SVD", "AnimateDiff"}
    assert [rows_of(lines, part)[0]["equal"] for part in ("bits", "default_bits")] == [True, True]
    assert [row["stage"][0] for row in rows_of(lines, "bf16")] == ["2", "3", "4"]
    for strategy in ("single", "ddp", "zero1", "zero2"):
        assert rows_of(lines, strategy)[0]["ours_wall_s"] > 0
    assert [(row["strategy"], row["gpus"]) for row in rows_of(lines, "several")] == [("single", 1), ("zero1", 2)]
    assert all(row["frames_per_second"] > 0 for row in rows_of(lines, "several"))


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_others_still_run() -> None:
    result = run(BROKEN, fresh=True)
    lines = lines_of(result.stdout)
    assert ends_of(lines) == {
        "good": ("done", ""),
        "raising": ("failed", "RuntimeError: the kernel failed"),
        "hanging": ("failed", "it took longer than 20 s"),
        "dying": ("failed", "its process ended with SIGSEGV"),
        "lacking": ("skipped", "no_such_package is not installed"),
        "unneeded": ("skipped", "no_such_package is not installed"),
        "needing_a_gpu": ("skipped", "it needs a GPU"),
        "half_failing": ("failed", "1 of 2 rows: ZeroDivisionError: division by zero"),
        "last": ("done", ""),
    }
    assert [line["number"] for line in lines if "number" in line] == [1, 2, 3, 4, 5, 6, 7, 1]  # also of those that fail
    assert result.returncode == 1
    assert "what a library prints" in result.stderr
    assert "in hanging" in result.stderr  # its stack
    assert "| hanging | failed | it took longer than 20 s |" in result.stderr


@pytest.mark.slow
def test_a_signal_ends_it_with_the_table_of_what_there_is() -> None:
    with started(command(BROKEN, "--wait")) as (process, output):

        def is_hanging() -> bool:
            output.seek(0)
            return '"number": 3' in output.read()

        assert wait_until(process, is_hanging, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        output.seek(0)
        text = output.read()
    lines = lines_of("\n".join(line for line in text.splitlines() if line.startswith("{")))
    assert ends_of(lines) == {
        "good": ("done", ""),
        "hanging": ("stopped", "by SIGTERM"),
        "last": ("stopped", "by SIGTERM before it began"),
    }
    assert "| good | done |" in text and "| hanging | stopped | by SIGTERM |" in text


@pytest.mark.slow
def test_it_can_be_imported_without_the_packages_that_machines_with_a_gpu_lack() -> None:
    names = ", ".join(f"benchmarks.on_gpu.{name}" for name in ("trainers", "half_precision", "checkpoints"))
    code = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); import benchmarks.gpu, {names}; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_names_the_remedy() -> None:
    result = run("benchmarks.gpu", "--only", "step")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("run it on a machine with one, or with --rehearse")
    assert run("benchmarks.gpu", "--only", "nonsense").returncode == 2


def test_a_fork_that_fails_or_hangs_is_noticed() -> None:
    assert succeeds(lambda: None, seconds=30)
    assert not succeeds(lambda: sys.exit(0), seconds=30)
    assert not succeeds(lambda: time.sleep(60), seconds=0.1)


def test_no_part_begins_without_time(capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(Scale.tiny(), seconds=1)
    outcomes = runner.run(PARTS[:1])
    assert (outcomes[0].state, outcomes[0].reason) == ("skipped", "nothing is left of the 1 seconds")
    assert runner.exit_code(outcomes) == 0
    assert lines_of(capsys.readouterr().out)[0]["state"] == "skipped"


def test_the_full_scale_is_stable_diffusions() -> None:
    scale = Scale.full()
    assert scale.unet == UNetConfig() and scale.unet.channels == [320, 640, 1280, 1280]
    assert scale.sizes == ((32, 56), (64, 112))  # 448x256 and 896x512
    setting = scale.setting(clips=4)
    assert (setting.heads, setting.clips) == ([8, 8, 8, 8], 4)


def test_the_names_and_bounds_of_the_parts() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(0 < part.seconds < 600 for part in PARTS)
