"""Reading run folders; damage is reported in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.reporting.run_log import newest_videos, read_run, read_stage
from gen1_train.training.checkpoints import checkpoint, writing
from tests.reporting.made_runs import CONFIG, write_run

STEPS = np.arange(10, 60, 10)


def make_run(folder: Path, **options: object) -> Path:
    columns = {"loss": np.linspace(1, 0.5, 5), "seconds": np.array([50.0, 20, 20, 20, 90])}
    return write_run(folder, columns, STEPS, **options)  # type: ignore[arg-type]


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    log = read_stage(make_run(tmp_path / "gen1" / "stage4", checkpoint=(40, False)))
    assert (log.name, log.stage, log.planned, log.last_step) == ("gen1", "4", 25_000, 50)
    assert (log.checkpoint, log.finished) == (40, False)
    assert log.columns["loss"].steps.tolist() == STEPS.tolist() and log.values("loss")[-1] == 0.5
    assert log.seconds_per_step == 2.0  # neither the first row nor the one with a checkpoint in it
    assert log.values("nothing").size == 0 and log.config is not None and "25000" in log.config


def test_without_settings_the_names_are_those_of_the_folders(tmp_path: Path) -> None:
    log = read_stage(make_run(tmp_path / "gen1" / "stage3", config=None))
    assert (log.name, log.stage, log.planned, log.checkpoint, log.finished) == ("gen1", "3", None, None, False)


@pytest.mark.parametrize("text", ["", "[1, 2", "a list: [\n", "- 1\n", "stage: 4\nname: [x]\n"])
def test_damaged_settings_are_ignored(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "gen1" / "stage3")
    (run / "config.yaml").write_text(text)
    log = read_stage(run)
    assert log.planned is None and log.stage == "3" and log.config == text


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "stage4"
    run.mkdir()
    (run / "metrics.csv").write_text("step,loss\n10,nan\n20,inf\n30,0.5\n")
    assert np.isfinite(read_stage(run).values("loss")).tolist() == [False, False, True]


def test_the_stages_of_a_tree_are_in_order(tmp_path: Path) -> None:
    for stage in ("2", "10", "4", "prior"):
        make_run(tmp_path / f"stage{stage}", config={**CONFIG, "stage": {"name": stage}})
    (tmp_path / "stage1").mkdir()  # has no rows, because it trains nothing
    assert [log.stage for log in read_run(tmp_path)] == ["2", "4", "10", "prior"]
    assert [log.stage for log in read_run(tmp_path / "stage4")] == ["4"]


def test_the_newest_checkpoint_of_training_is_found(tmp_path: Path) -> None:
    """It is read without torch, so the test compares it with what training writes."""
    run = make_run(tmp_path / "stage4")
    for step in (5, 10):
        info = checkpoint.CheckpointInfo("4", step, finished=step == 10)
        tensors = {checkpoint.UNET: {"weight": torch.zeros(1)}}
        writing.commit(writing.begin(run, step), tensors, "", info, checkpoint.CheckpointConfig())
    log = read_stage(run)
    assert (log.checkpoint, log.finished) == (10, True)
    (run / "checkpoints" / "step-00000010" / "checkpoint.json").write_text("{")
    assert read_stage(run).checkpoint == 5


DAMAGED = {
    "a cell": ("step,loss\n10,0.5\n20,0.4x\n", "loss at step 20 is '0.4x', not a number"),
    "a step": ("step,loss\n10,0.5\nx,0.4\n", "step at step ? is 'x', not a number"),
    "half a step": ("step,loss\n10.5,0.5\n", "step 10.5 follows step none"),
    "no step": ("loss\n0.5\n", "step at step ? is '', not a number"),
    "steps that go back": ("step,loss\n20,0.5\n10,0.4\n", "step 10 follows step 20"),
    "step nan": ("step,loss\nnan,0.5\n", "step nan follows step none"),
    "bytes": (b"step,loss\n10,\xff\xfe\n", "cannot be read"),
    "only a head": ("step,loss\n", "has no complete row yet"),
    "empty": ("", "has no complete row yet"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_table_is_reported(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGED[damage]
    path = tmp_path / "metrics.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_run(tmp_path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no metrics.csv in it or in its stages yet"):
        read_run(tmp_path)


def test_the_newest_videos_of_the_last_stage_come_first(tmp_path: Path) -> None:
    logs = [read_stage(make_run(tmp_path / f"stage{stage}", config={"stage": {"name": stage}})) for stage in "34"]
    for stage, step, name in (("3", 100, "a"), ("3", 2000, "a"), ("4", 50, "b"), ("4", 100, "b"), ("4", 100, "a")):
        folder = tmp_path / f"stage{stage}" / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.mp4").touch()
    (tmp_path / "stage4" / "samples" / "step-00000200").mkdir()  # is being written
    videos = [(heading, [file.stem for file in files]) for heading, files in newest_videos(logs)]
    assert videos == [("stage 4, step 100", ["a", "b"]), ("stage 4, step 50", ["b"]), ("stage 3, step 2,000", ["a"])]


def test_a_run_folder_of_others_neither_blocks_nor_fills_the_memory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.csv")
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        read_stage(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        read_stage(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n")
    assert read_stage(tmp_path).config is None
