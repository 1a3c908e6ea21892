import os
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from gen1_train.errors import UserError
from gen1_train.system.device import MAX_MAP
from gen1_train.training import preflight
from gen1_train.training.callbacks.metrics import MetricsCSV
from gen1_train.training.config import TrainConfig
from gen1_train.training.planning import gpus, workload
from gen1_train.training.planning.choice import plan_run
from gen1_train.training.planning.gpus import GIBI, PlanConfig, fits, gpu_bytes, peak_tflops, smallest_card
from gen1_train.training.planning.memory import Planner
from gen1_train.training.planning.plan import largest_micro_batch, memory_line, plan_lines
from gen1_train.training.planning.throughput import step_flops
from gen1_train.training.planning.tracing import MicroBatch, PassMemory, Tracer
from gen1_train.training.planning.workload import PlannedData, planned_data, ranks_of
from gen1_train.training.preflight import check_disk, checkpoint_bytes, room_for_checkpoints
from gen1_train.training.stages import StageConfig
from tests.made import make_shard_set
from tests.running import TRAIN, run
from tests.training.planning.test_memory import TINY

STAGE = StageConfig("2", None, 100, temporal=False, structure=False, max_level=0, image_ratio=0.25)
Usage = namedtuple("Usage", "total used free")


def config(tmp_path: Path, root: Path | None = None) -> TrainConfig:
    """A stage without a predecessor, of a tiny model, on one CPU process."""
    made = TrainConfig(STAGE, output=str(tmp_path), model=replace(TINY, max_frames=4))
    made.data.root = root and str(root)
    made.data.batch_clips = 4
    made.trainer.accelerator = "cpu"
    made.trainer.precision = "32-true"
    made.strategy.name = "single"
    made.plan.buckets = [] if root else ["64x32", "32x32"]
    return made


def lines(made: TrainConfig) -> str:
    return "\n".join(plan_lines(made, made.tree / "stage2", None))


def line_of(made: TrainConfig, data: PlannedData | None = None) -> str:
    return memory_line(plan_run(made, data or planned_data(made, None)), made.tree / "stage2")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs; and fixed formulas in place of traces, which test_memory.py tests."""

    def trace(self: Tracer, micro_batch: MicroBatch, *_: object, **__: object) -> PassMemory:
        pixels = micro_batch.samples * micro_batch.frames * micro_batch.height * micro_batch.width
        return PassMemory(pixels * 100_000, 10**8 + pixels * 120_000, 0)

    monkeypatch.setattr(gpus, "gpu_bytes", lambda: None)
    monkeypatch.setattr(Tracer, "trace", trace)


def test_a_plan_needs_no_data_no_gpu_and_writes_nothing(tmp_path):
    text = lines(config(tmp_path))
    for word in ("image-64x32", "video-32x32", "it fits one of 24 GiB", "checkpointing=[true", "not checked without"):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_a_shard_set_has_its_pools_and_a_run_prints_the_largest(tmp_path):
    made = config(tmp_path, make_shard_set(tmp_path / "set"))
    text = lines(made)
    assert "image-32x16" in text and "video-32x16" in text and "not checked" not in text
    line = line_of(made)
    assert "a step of video-32x16 adds" in line
    assert line.partition(" GiB")[0].rpartition(" ")[2] in text  # the same total


def test_more_devices_than_exist_can_be_planned(tmp_path):
    made = config(tmp_path)
    made.trainer.devices = 8
    made.trainer.nodes = 4
    made.strategy.name = "zero2"
    made.data.batch_clips = 64
    assert "zero2, 32-true, 32 ranks" in lines(made)
    assert ranks_of(made).layout.zero is not None


def test_a_plan_that_is_an_upper_bound_notes_it(tmp_path):
    made = config(tmp_path)
    for name in ("zero2", "zero3", "fsdp"):
        made.strategy.name = name
        assert (f"note: plans of {name} are an upper bound" in lines(made)) == (name != "zero2")


def test_a_plan_refuses_what_a_run_refuses(tmp_path):
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
        with pytest.raises(UserError, match=rf"plan\.buckets={wrong} is not WIDTHxHEIGHT"):
            lines(made)


def test_time_is_computed_from_the_peak_rate_or_from_the_measured_one(tmp_path):
    made = config(tmp_path)
    made.plan.buckets = ["64x32"]
    assert "give plan.gpu= or plan.tflops=" in lines(made)
    made.plan.gpu = "H100-PCIe"
    assert "GPU hours, at 30% of 756 TFLOP/s on each of 1 H100-PCIes" in lines(made)
    made.plan.tflops, made.plan.gpu = 0.001, None
    made.plan.mfu = 0.5
    image = step_flops(ranks_of(made).unet, 4, 8, 1, temporal=False).total * 4 * 4
    video = step_flops(ranks_of(made).unet, 4, 8, 4).total * 4
    seconds = 100 * (0.25 * image + 0.75 * video) / (0.001e12 * 0.5)
    assert f"{seconds / 86400:.2f} days, {seconds / 3600:.0f} GPU hours, at 50% of 0.001 TFLOP/s" in lines(made)
    metrics = MetricsCSV(made.tree / "stage2" / "metrics.csv", 0)
    (made.tree / "stage2").mkdir(parents=True)
    for step, rate in ((1, 0.1), (2, 2.0), (3, 2.0)):
        metrics.log_metrics({"frames_per_second": rate}, step=step)
    assert f"{100 * 16 / 2 / 86400:.2f} days, 0 GPU hours, at 2 frames/s of metrics.csv" in lines(made)


def test_a_gpu_that_may_be_too_small_is_reported_and_refused_only_if_certain(tmp_path, monkeypatch):
    made = config(tmp_path)
    made.data.batch_clips = 64
    data = planned_data(made, None)
    total = float(line_of(made, data).partition(" GiB")[0].rpartition(" ")[2])
    made.plan.gigabytes = 0.8 * total
    assert "it does not fit a GPU of" in lines(made)
    made.plan.gigabytes = total
    assert "it may not fit a GPU of" in lines(made)
    made.trainer.accelerator = "auto"
    made.plan.gigabytes = None
    monkeypatch.setattr(workload.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpus, "gpu_bytes", lambda: int(0.95 * total * GIBI))
    line_of(made, data)
    monkeypatch.setattr(gpus, "gpu_bytes", lambda: int(0.8 * total * GIBI))
    with pytest.raises(UserError, match=r"raise trainer\.accumulate=, set model\.checkpointing="):
        line_of(made, data)


def test_the_largest_micro_batch_fits_and_one_more_clip_does_not(tmp_path):
    made = config(tmp_path)
    data, ranks = planned_data(made, None), ranks_of(made)
    pool = next(pool for pool, _ in data.pools if pool.kind == "video")

    def needs(clips: int) -> float:
        planner = Planner(ranks.unet, replace(ranks.layout, accumulate=2))
        return planner.plan([data.micro_batch(pool, clips)]).total * gpus.MARGIN

    def most(card: float) -> int:
        return largest_micro_batch(ranks, 0, lambda n: data.micro_batch(pool, n), card)

    assert most(needs(1) * 0.9) == 0
    for clips in (1, 3, 8):
        assert most(1.001 * needs(clips)) == clips


def test_a_micro_batch_whose_maps_a_gpu_cannot_index_is_refused(tmp_path, monkeypatch):
    """Its maps grow with it: a fourth of the largest that fits is a fourth of the batch."""
    made = config(tmp_path)
    made.plan.buckets = ["64x32"]
    made.data.batch_clips = 12
    traced = Tracer.trace

    def trace(self: Tracer, micro_batch: MicroBatch, *_: object) -> PassMemory:
        widest = micro_batch.samples * micro_batch.frames * (MAX_MAP // 16)  # of clips of four frames, four fit
        return replace(traced(self, micro_batch), widest=widest)

    monkeypatch.setattr(Tracer, "trace", trace)
    line_of(made)  # CPUs have no such limit
    assert "2^31" not in lines(made)
    made.trainer.accelerator = "auto"
    made.plan_only = True
    made.plan.gigabytes = 80
    text = lines(made)
    assert text.count("a micro-batch of 12 clips of 64x32 has maps of 6.44e+09 elements") == 1
    assert text.count("at most 4 clips per micro-batch of a rank: trainer.accumulate=3") == 2
    with pytest.raises(UserError, match=r"wrong on a GPU: at most 4 clips; set trainer\.accumulate=3$"):
        line_of(made)
    made.trainer.accumulate = 3
    line_of(made)
    assert "2^31" not in lines(made)


def test_the_smallest_gpu_is_chosen_with_a_margin():
    assert smallest_card(20 * GIBI) == 24 and smallest_card(23 * GIBI) == 40 and smallest_card(140 * GIBI) is None
    assert fits(20, 22.1) and not fits(20, 21)


@pytest.mark.parametrize(
    ("output", "expected"), [("81559\n81559\n", 81559 * 2**20), ("81559\n24564\n", None), ("", None)]
)
def test_gpu_memory_is_read_without_initializing_a_gpu(tmp_path, monkeypatch, output, expected):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '" + output.replace("\n", "\\n") + "'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_bytes() == expected
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert gpu_bytes() is None


def test_the_peak_rate_is_that_of_this_machines_gpus(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, expected in (("NVIDIA H200", (989.4, "NVIDIA H200")), ("Tesla K80", None)):
        fake.write_text(f"#!/bin/sh\nprintf '{name}\\n{name}\\n'\n")
        fake.chmod(0o755)
        assert peak_tflops(PlanConfig()) == expected
    assert peak_tflops(PlanConfig(gpu="A100")) == (312.0, "A100")
    assert peak_tflops(PlanConfig(gpu="A100", tflops=300.0)) == (300.0, "A100")
    with pytest.raises(UserError, match=r"plan\.gpu=V100 is not one of A100, H100-SXM"):
        PlanConfig(gpu="V100").check()


def test_a_full_disk_is_reported_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "yet" / "there"
    queried: list[Path] = []

    def usage(path: Path) -> Usage:
        queried.append(path)
        return Usage(0, 0, 10**9)

    monkeypatch.setattr(preflight.shutil, "disk_usage", usage)
    check_disk(folder, 10**9)
    with pytest.raises(UserError, match=r"need 1\.5 GB, 1\.0 GB are free there: .* lower checkpoint\.keep=.*output="):
        check_disk(folder, 15 * 10**8)
    assert queried == [tmp_path, tmp_path]
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage(0, 0, 10**5))
    made = config(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints in .* need"):
        lines(made)
    with pytest.raises(UserError, match=r"checkpoints in .* need"):
        line_of(made)


def test_existing_checkpoints_need_no_more_space(tmp_path):
    assert checkpoint_bytes(100, 100) == 1200 and checkpoint_bytes(100, 100, averages=2) == 2000
    assert checkpoint_bytes(100, 10, averages=1) == 880 and checkpoint_bytes(100, 10, averages=1, adapted=True) == 960
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 30
    for step in (1, 2, 3):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 10  # a new one is complete before an old one is removed
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000001")
    assert room_for_checkpoints(tmp_path, keep=2, size=10) == 10


@pytest.mark.slow
def test_the_command_prints_a_plan_and_writes_nothing(tmp_path):
    settings = ["stage=4", *TRAIN, "plan.buckets=[32x16]", f"output={tmp_path / 'runs'}", "plan_only=true"]
    done = run("gen1_train.train", *settings, "trainer.devices=8", "trainer.nodes=4", "data.batch_clips=32")
    assert done.returncode == 0, done.stderr
    assert "32 ranks" in done.stdout and "video-32x16" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_several_lengths_is_that_of_the_longest_clips_of_the_largest_size(tmp_path):
    made = config(tmp_path, make_shard_set(tmp_path / "set", longer={8: 6}))
    made.stage.temporal, made.model.max_frames = True, 8
    text = lines(made)
    assert "a step: 4 clips of 4 frames or 2 clips of 8 frames or 16 images" in text
    assert "a step of video-32x16-8f adds" in line_of(made)
    data = planned_data(made, None)
    samples = {pool.name: data.micro_batch(pool, 4).samples for pool, _ in data.pools}
    assert samples == {"image-32x16": 16, "video-32x16": 4, "video-32x16-8f": 2} and data.step == 2
    most = re.search(r"at most (\d+) clips per micro-batch", text)
    assert most is not None and int(most[1]) % 2 == 0
    made.data.batch_clips = 3
    with pytest.raises(UserError, match="give a multiple of 2, such as 4"):
        lines(made)
