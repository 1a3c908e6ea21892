"""Whole runs of gen1-train on CPU processes, as a user starts them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import checkpoints_dir
from tests.running import TRAIN, run, run_well
from tests.training.runs import assert_equal_to_the_bit, assert_same_run, folder, stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHECKPOINTING = "model.checkpointing=[true,true]"  # of activations, at all resolutions
ZERO3 = ["strategy=zero3", "strategy.persist_below=0"]  # frees every weight after its layer, however small it is
RUNS = {  # settings by the name of the run
    "zero2": ["strategy=zero2"],
    "checkpointing": ["strategy=zero2", CHECKPOINTING],
    "single": ["strategy=single", "trainer.devices=1"],
    "ddp": ["strategy=ddp"],
    "zero1": ["strategy=zero1"],
    "zero3": ZERO3,
    "zero3-checkpointing": [*ZERO3, CHECKPOINTING],
    "zero3-of-three": [*ZERO3, "trainer.devices=3", "data.batch_clips=3"],  # few weights divide by 3
    "zero2-bf16": ["strategy=zero2", "trainer.precision=bf16-mixed"],
    "fsdp": ["strategy=fsdp"],
}


def train(root: Path, output: str, settings: list[str], *more: str, fresh: bool = False) -> None:
    """Runs or resumes stage 3."""
    run_well("gen1_train.train", *stage(root, 3, output, *settings, *more), fresh=fresh)


@pytest.fixture(scope="module")
def straight(run_root: Path) -> Callable[[str], str]:
    """Runs one of RUNS without an interruption, once, and returns its name.

    That of ZeRO-2, with which the others are compared, is one of fresh Python processes.
    """

    def run_once(name: str) -> str:
        if not (run_root / name).exists():
            train(run_root, name, RUNS[name], "checkpoint.every=1", fresh=name == "zero2")
        return name

    return run_once


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero3", "zero3-checkpointing", "fsdp"])
def test_other_strategies_take_the_same_steps(run_root, straight, name):
    """Two ranks equal one, and sharding changes nothing, also in image steps, which skip the temporal layers; nor does
    the recomputation of layers in the backward pass, for which ZeRO-3 has to gather their weights again.
    """
    assert_same_run(run_root, straight(name), straight("zero2"))


def test_activation_checkpointing_takes_the_same_steps_to_the_bit(run_root, straight):
    assert_equal_to_the_bit(run_root, straight("checkpointing"), straight("zero2"))


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero2", "zero3-of-three", "zero2-bf16", "fsdp"])
def test_resumed_equals_straight_to_the_bit(run_root, straight, name):
    """Resumed from the checkpoint of the first step: the learning rate still rises, and an image step is to come."""
    whole, resumed = straight(name), f"{name}-resumed"
    shutil.copytree(folder(run_root, whole), folder(run_root, resumed))
    for path in checkpoints_dir(folder(run_root, resumed)).iterdir():
        if path.name != "step-00000001":
            shutil.rmtree(path)
    train(run_root, resumed, RUNS[name])
    assert_equal_to_the_bit(run_root, resumed, whole)


CHANGING = {  # settings of one run by the step at which each of its starts ends
    2: ["strategy=zero2"],
    4: ["strategy=single", "trainer.devices=1"],
    6: ["strategy=fsdp", "trainer.devices=4"],
    8: ZERO3,
    10: ["strategy=zero2", "trainer.devices=1", "trainer.accumulate=2"],
    12: ["strategy=ddp"],
    14: ["strategy=zero2"],
}


def test_a_run_resumes_on_any_number_of_processes_by_any_strategy(run_root):
    """With the same samples and noise, and so the same losses and weights, as on two processes throughout."""
    for step, settings in CHANGING.items():
        train(run_root, "changing", settings, f"stage.steps={step}")
    train(run_root, "unchanged", CHANGING[2], f"stage.steps={max(CHANGING)}", "checkpoint.every=100")
    assert_same_run(run_root, "changing", "unchanged")


def test_a_finished_stage_is_not_trained_again(run_root, straight):
    metrics = folder(run_root, straight("zero2")) / "metrics.csv"
    before = metrics.read_bytes()
    assert "finished already" in run_well("gen1_train.train", *stage(run_root, 3, "zero2"))
    assert metrics.read_bytes() == before


def test_the_run_folder_holds_config_and_metrics(run_root, straight):
    run_folder = folder(run_root, straight("zero2"))
    assert "temporal: true" in (run_folder / "config.yaml").read_text()
    rows = read_metrics(run_folder / "metrics.csv")
    assert {"loss", "lr", "samples_per_second", "tflops_per_second", "mfu", "data_wait"} <= set(rows[0])
    assert all(float(row["mfu"]) > 0 for row in rows)
    kinds = ["image" if "loss_image" in row else "video" for row in rows]
    assert len(kinds) == 8 and kinds.count("image") == 1  # exactly one in the first block of eight


def test_wandb_works_offline_and_has_the_id_of_the_run(run_root):
    more = ["log.wandb=auto", "stage.steps=2", "strategy=single", "trainer.devices=1"]
    run_well("gen1_train.train", *stage(run_root, 3, "wandb", *more))
    run_folder = folder(run_root, "wandb")
    assert list(run_folder.glob("wandb/offline-run-*/*.wandb"))
    assert (run_folder / "wandb.id").read_text() in next(run_folder.glob("wandb/offline-run-*")).name


def test_a_missing_predecessor_ends_with_one_line_and_nothing_written(run_root):
    result = run("gen1_train.train", "stage=4", *TRAIN, f"data.root={run_root / 'set'}", f"output={run_root / 'none'}")
    assert result.returncode == 2
    assert "run `gen1-train stage=3` first" in result.stderr.strip().splitlines()[-1]
    assert not (run_root / "none").exists()


def test_a_checkpoint_of_another_shape_ends_with_one_line(run_root):
    more = ["model.channels=[16,32]", "model.context_dim=64"]
    result = run("gen1_train.train", *stage(run_root, 3, "shape", *more))
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("gen1-train: error: the UNet in") and "(model: [16, 32])" in last
    assert not (run_root / "shape").exists()
