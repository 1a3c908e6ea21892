import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from gen1_train.config import TrainConfig
from gen1_train.errors import UserError
from gen1_train.training import gpus, plan, preflight
from gen1_train.training.gpus import GIBI, fits, gpu_bytes, smallest_card
from gen1_train.training.metrics import MetricsCSV
from gen1_train.training.plan import checked_material, foresee, largest_micro_batch, plan_lines, ranks_of
from gen1_train.training.preflight import check_disk, checkpoint_bytes, room_for_checkpoints
from gen1_train.training.stages import StageConfig
from gen1_train.training.throughput import step_flops
from gen1_train.training.tracing import Traced, Tracer, Work
from tests.made import make_shard_set
from tests.running import TRAIN, run
from tests.training.test_memory import TINY

STAGE = StageConfig("2", None, 100, temporal=False, structure=False, max_level=0, image_ratio=0.25)
Usage = namedtuple("Usage", "total used free")


def config(tmp_path: Path, root: Path | None = None) -> TrainConfig:
    """A stage that needs no other, of a tiny model, on one CPU process."""
    made = TrainConfig(STAGE, output=str(tmp_path), model=replace(TINY, max_frames=4))
    made.data.root, made.data.batch_clips = root and str(root), 4
    made.trainer.accelerator, made.trainer.precision, made.strategy.name = "cpu", "32-true", "single"
    made.plan.buckets = [] if root else ["64x32", "32x32"]
    return made


def lines(made: TrainConfig) -> str:
    return "\n".join(plan_lines(made, made.tree / "stage2", None))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs; and numbers in place of traces, which take a second each and are test_memory's."""

    def trace(self: Tracer, work: Work, *_: object, **__: object) -> Traced:
        pixels = work.samples * work.frames * work.height * work.width
        return Traced(pixels * 100_000, 10**8 + pixels * 120_000, 0)

    monkeypatch.setattr(plan, "gpu_bytes", lambda: None)
    monkeypatch.setattr(Tracer, "trace", trace)


def test_a_plan_needs_no_data_no_gpu_and_writes_nothing(tmp_path):
    told = lines(config(tmp_path))
    for word in ("image-64x32", "video-32x32", "it fits one of 24 GiB", "checkpointing=[true", "not checked without"):
        assert word in told
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_a_shard_set_has_its_pools_and_a_run_says_the_largest(tmp_path):
    made = config(tmp_path, make_shard_set(tmp_path / "set"))
    told = lines(made)
    assert "image-32x16" in told and "video-32x16" in told and "not checked" not in told
    line = foresee(made, checked_material(made, None), made.tree / "stage2")
    assert "a step of video-32x16 adds" in line
    assert line.partition(" GiB")[0].rpartition(" ")[2] in told  # the same total


def test_more_devices_than_there_are_can_be_planned(tmp_path):
    made = config(tmp_path)
    made.trainer.devices, made.trainer.nodes, made.strategy.name, made.data.batch_clips = 8, 4, "zero2", 64
    assert "zero2, 32-true, 32 ranks" in lines(made)
    assert ranks_of(made).layout.zero is not None


def test_a_plan_of_zero3_says_that_it_is_too_low(tmp_path):
    made = config(tmp_path)
    for name in ("zero2", "zero3"):
        made.strategy.name = name
        assert ("beware: plans of zero3 are too low" in lines(made)) == (name == "zero3")


def test_what_a_run_refuses_a_plan_refuses(tmp_path):
    made = config(tmp_path)
    made.trainer.accumulate = 3
    with pytest.raises(UserError, match="make it a multiple of 3"):
        lines(made)
    made = config(tmp_path)
    made.plan.buckets = []
    with pytest.raises(UserError, match=r"give data\.root=FOLDER, or plan\.buckets="):
        lines(made)
    for wrong in ("64", "60x32", "0x32"):
        made.plan.buckets = [wrong]
        with pytest.raises(UserError, match=rf"plan\.buckets={wrong} is no WIDTHxHEIGHT"):
            lines(made)


def test_time_comes_from_the_peak_or_from_what_the_run_has_measured(tmp_path):
    made = config(tmp_path)
    made.plan.buckets = ["64x32"]
    assert "give plan.tflops=" in lines(made)
    made.plan.tflops, made.plan.mfu = 0.001, 0.5
    image = step_flops(ranks_of(made).unet, 4, 8, 1, temporal=False).total * 4 * 4
    video = step_flops(ranks_of(made).unet, 4, 8, 4).total * 4
    seconds = 100 * (0.25 * image + 0.75 * video) / (0.001e12 * 0.5)
    assert f"{seconds / 86400:.2f} days, {seconds / 3600:.0f} GPU hours, at 50% of 0.001 TFLOP/s" in lines(made)
    metrics = MetricsCSV(made.tree / "stage2" / "metrics.csv", 0)
    (made.tree / "stage2").mkdir(parents=True)
    for step, rate in ((1, 0.1), (2, 2.0), (3, 2.0)):
        metrics.log_metrics({"frames_per_second": rate}, step=step)
    assert f"{100 * 16 / 2 / 86400:.2f} days, 0 GPU hours, at 2 frames/s of metrics.csv" in lines(made)


def test_a_gpu_that_is_too_small_is_told_and_refused_only_when_it_is_sure(tmp_path, monkeypatch):
    made = config(tmp_path)
    made.data.batch_clips = 64
    material = checked_material(made, None)
    total = float(foresee(made, material, tmp_path).partition(" GiB")[0].rpartition(" ")[2])
    made.plan.gigabytes = 0.8 * total
    assert "it does not fit a GPU of" in lines(made)
    made.plan.gigabytes = total
    assert "it may not fit a GPU of" in lines(made)
    made.trainer.accelerator = "auto"
    monkeypatch.setattr(plan.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(plan, "gpu_bytes", lambda: int(0.95 * total * GIBI))
    foresee(made, material, tmp_path)
    monkeypatch.setattr(plan, "gpu_bytes", lambda: int(0.8 * total * GIBI))
    with pytest.raises(UserError, match=r"raise trainer\.accumulate=, set model\.checkpointing="):
        foresee(made, material, tmp_path)


def test_the_largest_micro_batch_fits_and_one_more_clip_does_not(tmp_path):
    made = config(tmp_path)
    material, ranks = checked_material(made, None), ranks_of(made)
    pool = next(pool for pool, _ in material.pools if pool.kind == "video")

    def needs(clips: int) -> float:
        planner = plan.Planner(ranks.unet, replace(ranks.layout, accumulate=2))
        return planner.plan([material.work(pool, clips)]).total * gpus.MARGIN

    def most(card: float) -> int:
        return largest_micro_batch(ranks, 0, lambda n: material.work(pool, n), card)

    assert most(needs(1) * 0.9) == 0
    for clips in (1, 3, 8):
        assert most(1.001 * needs(clips)) == clips


def test_cards():
    assert smallest_card(20 * GIBI) == 24 and smallest_card(23 * GIBI) == 40 and smallest_card(140 * GIBI) is None
    assert fits(20, 22.1) and not fits(20, 21)


@pytest.mark.parametrize(
    ("said", "expected"), [("81559\n81559\n", 81559 * 2**20), ("81559\n24564\n", None), ("", None)]
)
def test_gpus_are_asked_without_being_touched(tmp_path, monkeypatch, said, expected):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '" + said.replace("\n", "\\n") + "'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_bytes() == expected
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert gpu_bytes() is None


def test_a_full_disk_is_told_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "yet" / "there"
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(0, 0, 10**9)

    monkeypatch.setattr(preflight.shutil, "disk_usage", usage)
    check_disk(folder, 10**9)
    with pytest.raises(UserError, match=r"need 1\.5 GB, 1\.0 GB are free there: .* lower checkpoint\.keep=.*output="):
        check_disk(folder, 15 * 10**8)
    assert asked == [tmp_path, tmp_path]
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage(0, 0, 10**5))
    made = config(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints in .* need"):
        lines(made)
    with pytest.raises(UserError, match=r"checkpoints in .* need"):
        foresee(made, checked_material(made, None), made.tree / "stage2")


def test_checkpoints_that_a_run_has_already_need_no_more_room(tmp_path):
    assert checkpoint_bytes(100) == 1200 and checkpoint_bytes(100, averages=2) == 2000
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 30
    for step in (1, 2, 3):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 10  # a new one is whole before an old one goes
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000001")
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 10


@pytest.mark.slow
def test_the_command_prints_a_plan_and_writes_nothing(tmp_path):
    given = ["stage=4", *TRAIN, "plan.buckets=[32x16]", f"output={tmp_path / 'runs'}", "plan_only=true"]
    done = run("gen1_train.train", *given, "trainer.devices=8", "trainer.nodes=4", "data.batch_clips=32")
    assert done.returncode == 0, done.stderr
    assert "32 ranks" in done.stdout and "video-32x16" in done.stdout
    assert list(tmp_path.iterdir()) == []
