"""The rows that Measure logs from the trainer's hooks."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gen1_train.batch import Batch
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.callbacks import measure as measure_module
from gen1_train.training.callbacks.clock import PHASES, Clock
from gen1_train.training.callbacks.measure import Measure
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig

TINY = UNetConfig(channels=[8, 16], attention=[True, False], heads=[2, 2], layers=1, groups=8)
BATCH = Batch("video", 0, [0, 1], ["", ""], None, torch.zeros(2, 3, 4))


class Trainer(SimpleNamespace):
    """The parts of Lightning's Trainer that the hooks use: one process, two micro-batches per step."""

    def __init__(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        logger = SimpleNamespace(log_metrics=lambda row, step: rows.append((step, row)))
        strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
        super().__init__(precision="32-true", strategy=strategy, loggers=[logger], optimizers=[optimizer])
        self.global_step = 0
        self.global_rank = 0
        self.world_size = 1
        self.is_global_zero = False


def steps(measure: Measure, trainer: Any, norms: list[tuple[float, int]]) -> None:
    """Runs an optimizer step for each of the norms, with two micro-batches that have the losses 1 and 3."""
    module = Gen1Module(SpatioTemporalUNet(TINY), OptimConfig(), DiffusionConfig(), StageSpec(seed=0, latent_scale=1.0))
    measure.on_train_start(trainer, module)
    for norm in norms:
        for micro in range(2):
            measure.on_train_batch_start(trainer, module, BATCH, micro)
            measure.on_before_backward(trainer, module, torch.zeros(()))
            measure.on_after_backward(trainer, module)
            if micro == 1:
                trainer.global_step += 1
                measure.gradient(*norm)
            zeros = torch.zeros(2, dtype=torch.long)
            losses = torch.full((2,), 1.0 + 2 * micro)
            outputs = {"losses": losses, "timesteps": zeros, "levels": zeros, "dropped": zeros.bool()}
            measure.on_train_batch_end(trainer, module, outputs, BATCH, micro)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.setattr(measure_module, "gemm_rate", lambda device, dtype: 1e12)
    return Measure(
        title="stage 3",
        steps=5,
        every=2,
        flops=lambda batch: 10,  # type: ignore[arg-type]
        image_share=lambda step: step / 8,
        clock=Clock(),
    )


def test_a_row_is_logged_every_n_steps_and_at_the_last_one(measure: Measure) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    steps(measure, Trainer(rows), [(1.0, 0), (3.0, 0), (8.0, 1), (0.5, 1), (2.0, 2)])
    assert [step for step, _ in rows] == [2, 4, 5]
    assert [row["grad_norm"] for _, row in rows] == [2.0, 4.25, 2.0]
    assert [row["grad_norm_max"] for _, row in rows] == [3.0, 8.0, 2.0]
    assert [row["skipped_steps"] for _, row in rows] == [0, 1, 2]  # since the run began
    assert [row["image_share"] for _, row in rows] == [2 / 8, 4 / 8, 5 / 8]
    for _, row in rows:
        assert (row["loss"], row["loss_video"], row["loss_t1"], row["lr"]) == (2.0, 2.0, 2.0, 0.5)
        shares = [row["data_wait"], *(row[f"time_{phase}"] for phase in PHASES if phase != "data_wait")]
        assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0
        assert row["time_forward"] > 0 and row["time_backward"] > 0 and row["memory_gigabytes"] > 0.01


def test_without_gradient_reports_there_are_no_gradient_columns(measure, monkeypatch) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(measure, "gradient", lambda norm, skipped: None)
    steps(measure, Trainer(rows), [(1.0, False), (1.0, True)])
    assert not {"grad_norm", "grad_norm_max", "skipped_steps"} & set(rows[0][1])


def test_the_share_of_the_peak_is_logged_for_known_devices_only(measure, monkeypatch) -> None:
    for peak, expected in ((math.nan, False), (4e12, True)):
        monkeypatch.setattr(measure_module, "device_peak", lambda device, dtype, peak=peak: peak)
        rows: list[tuple[int, dict[str, float]]] = []
        steps(measure, Trainer(rows), [(1.0, 0), (1.0, 0)])
        row = rows[0][1]
        assert ("mfu_peak" in row) == expected
        if expected:
            assert row["mfu_peak"] == pytest.approx(row["mfu"] / 4)


@pytest.mark.parametrize(("name", "known"), [("NVIDIA H200", True), ("Tesla K80", False)])
def test_peaks_are_those_of_bfloat16_on_gpus(monkeypatch, name, known) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    gpu = torch.device("cuda", 0)
    assert measure_module.device_peak(gpu, torch.bfloat16) == 989.4e12 or not known
    assert math.isnan(measure_module.device_peak(gpu, torch.bfloat16)) != known
    assert math.isnan(measure_module.device_peak(gpu, torch.float32))
    assert math.isnan(measure_module.device_peak(torch.device("cpu"), torch.bfloat16))
