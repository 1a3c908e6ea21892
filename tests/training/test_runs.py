"""Whole runs of gen1-train on CPU processes, as a user starts them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gen1_train.training.checkpoint import checkpoints_dir
from gen1_train.training.metrics import read_metrics
from tests.running import TRAIN, run, run_well
from tests.training.runs import assert_equal_to_the_bit, assert_same_run, folder, stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHECKPOINTING = "model.checkpointing=[true,true,true,true]"  # of activations, at all resolutions
ZERO3 = ["strategy=zero3", "strategy.persist_below=0"]  # lets go of every weight after its layer: tiny's are all small
WAYS = {  # of training
    "zero2": ["strategy=zero2"],
    "checkpointing": ["strategy=zero2", CHECKPOINTING],
    "single": ["strategy=single", "trainer.devices=1"],
    "ddp": ["strategy=ddp"],
    "zero1": ["strategy=zero1"],
    "zero3": ZERO3,
    "zero3-checkpointing": [*ZERO3, CHECKPOINTING],
    "zero3-of-three": [*ZERO3, "trainer.devices=3", "data.batch_clips=3"],  # few weights divide by 3
    "zero2-bf16": ["strategy=zero2", "trainer.precision=bf16-mixed"],
}


def go(root: Path, output: str, way: list[str], *more: str) -> None:
    """Runs stage 3, or goes on with it."""
    run_well("gen1_train.train", *stage(root, 3, output, *way, *more))


@pytest.fixture(scope="module")
def straight(place: Path) -> Callable[[str], str]:
    """Makes stage 3 in one of the WAYS, uninterrupted, once; returns the run's name, which is the way's."""

    def made(name: str) -> str:
        if not (place / name).exists():
            go(place, name, WAYS[name], "checkpoint.every=1")
        return name

    return made


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero3", "zero3-checkpointing"])
def test_other_strategies_take_the_same_steps(place, straight, name):
    """Two ranks equal one; sharding changes nothing, also in image steps, which leave the temporal layers out; nor do
    layers that are computed again going back, when ZeRO-3 has to fetch their weights again.
    """
    assert_same_run(place, straight(name), straight("zero2"))


def test_activation_checkpointing_takes_the_same_steps_to_the_bit(place, straight):
    assert_equal_to_the_bit(place, straight("checkpointing"), straight("zero2"))


@pytest.mark.parametrize("name", ["single", "ddp", "zero1", "zero2", "zero3-of-three", "zero2-bf16"])
def test_resumed_equals_straight_to_the_bit(place, straight, name):
    """From the first step's checkpoint on: the learning rate still rises, and there is an image step to come."""
    whole, again = straight(name), f"{name}-resumed"
    shutil.copytree(folder(place, whole), folder(place, again))
    for path in checkpoints_dir(folder(place, again)).iterdir():
        if path.name != "step-00000001":
            shutil.rmtree(path)
    go(place, again, WAYS[name])
    assert_equal_to_the_bit(place, again, whole)


LIVES = {  # of one run: the step that each ends with, and how it is trained
    2: ["strategy=zero2"],
    4: ["strategy=single", "trainer.devices=1"],
    6: ["strategy=zero2", "trainer.devices=4"],
    8: ZERO3,
    10: ["strategy=zero2", "trainer.devices=1", "trainer.accumulate=2"],
    12: ["strategy=ddp"],
    14: ["strategy=zero2"],
}


def test_a_run_goes_on_on_any_number_of_processes_by_any_strategy(place):
    """The same samples and noise, and so the same losses and weights, as on two processes throughout."""
    for step, way in LIVES.items():
        go(place, "lives", way, f"stage.steps={step}")
    go(place, "one-life", LIVES[2], f"stage.steps={max(LIVES)}", "checkpoint.every=100")
    assert_same_run(place, "lives", "one-life")


def test_a_finished_stage_is_not_trained_again(place, straight):
    metrics = folder(place, straight("zero2")) / "metrics.csv"
    before = metrics.read_bytes()
    assert "finished already" in run_well("gen1_train.train", *stage(place, 3, "zero2"))
    assert metrics.read_bytes() == before


def test_the_run_folder_holds_what_made_it(place, straight):
    made = folder(place, straight("zero2"))
    assert "temporal: true" in (made / "config.yaml").read_text()
    rows = read_metrics(made / "metrics.csv")
    assert {"loss", "lr", "samples_per_second", "tflops_per_second", "mfu", "data_wait"} <= set(rows[0])
    assert all(float(row["mfu"]) > 0 for row in rows)
    kinds = ["image" if "loss_image" in row else "video" for row in rows]
    assert len(kinds) == 8 and kinds.count("image") == 1  # exactly one in the first block of eight


def test_wandb_works_offline_and_leaves_the_same_numbers(place):
    more = ["log.wandb=auto", "stage.steps=2", "strategy=single", "trainer.devices=1"]
    run_well("gen1_train.train", *stage(place, 3, "wandb", *more))
    made = folder(place, "wandb")
    assert list(made.glob("wandb/offline-run-*/*.wandb"))
    assert (made / "wandb.id").read_text() in next(made.glob("wandb/offline-run-*")).name


def test_a_missing_predecessor_ends_with_one_line_and_nothing_written(place):
    done = run("gen1_train.train", "stage=4", *TRAIN, f"data.root={place / 'set'}", f"output={place / 'none'}")
    assert done.returncode == 2
    assert "run `gen1-train stage=3` first" in done.stderr.strip().splitlines()[-1]
    assert not (place / "none").exists()


def test_a_checkpoint_of_another_shape_ends_with_one_line(place):
    more = ["model.channels=[16,32,32,32]", "model.context_dim=64"]
    done = run("gen1_train.train", *stage(place, 3, "shape", *more))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("gen1-train: error: the UNet in") and "(model: [16, 32, 32, 32])" in last
    assert not (place / "shape").exists()
