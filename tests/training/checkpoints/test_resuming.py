"""Starts of a run whose checkpoints are damaged, or that another run is writing to."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.system.locks import LOCK, Lock
from gen1_train.training.checkpoints.checkpoint import (
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    checkpoints_dir,
    latest,
    newest,
)
from gen1_train.training.checkpoints.resuming import claimed, make_way, steps_done, to_resume
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.run import train
from tests.digests import digests
from tests.training.alone import config, make_start, rows


def save(run: Path, step: int, keep: int = 2, value: float = 0.0) -> Path:
    tensors = {UNET: {"w": torch.full((2, 3), value)}, OPTIMIZER: {"w.exp_avg": torch.zeros(2, 3)}}
    info = CheckpointInfo("3", step, finished=False)
    return commit(begin(run, step), tensors, "stage: {}\n", info, CheckpointConfig(keep=keep))


def flip(path: Path) -> None:
    """Damages a checkpoint such that only its hash shows it."""
    data = bytearray((path / OPTIMIZER).read_bytes())
    data[-3] ^= 1
    (path / OPTIMIZER).write_bytes(data)


def named(run: Path) -> list[str]:
    return sorted(path.name for path in checkpoints_dir(run).iterdir() if path.name != "latest")


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_by_itself(tmp_path: Path) -> None:
    for step in (10, 20):
        flip(save(tmp_path, step))
    before = named(tmp_path)
    with pytest.raises(UserError) as refused:
        to_resume(tmp_path, restart=False)
    assert "has done 20 steps or more, and none of its checkpoints is intact" in str(refused.value)
    assert "restart=true" in str(refused.value) and "\n" not in str(refused.value)
    assert named(tmp_path) == before
    assert to_resume(tmp_path, restart=True) is None


def test_a_run_whose_checkpoints_are_gone_does_not_start_over_either(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"step": 0}\n{"step": 400}\nnot json\n{"step"')
    assert steps_done(tmp_path) == 400
    with pytest.raises(UserError, match="has done 400 steps"):
        to_resume(tmp_path, restart=False)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"step": 0}\n')
    assert to_resume(tmp_path, restart=False) is None


def test_restart_resumes_from_an_intact_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job that Slurm starts again has the same command line."""
    save(tmp_path, 10)
    found = to_resume(tmp_path, restart=True)
    assert found is not None and found.info.step == 10
    assert "name= starts another run" in capsys.readouterr().out


def test_damaged_checkpoints_of_later_steps_do_not_crowd_out_new_ones(tmp_path: Path) -> None:
    save(tmp_path, 10, keep=3)
    for step in (20, 30):
        flip(save(tmp_path, step, keep=3))
    resume = to_resume(tmp_path, restart=False)
    assert resume is not None and resume.info.step == 10
    make_way(tmp_path, resume.info.step)
    assert named(tmp_path) == ["damaged-step-00000020", "damaged-step-00000030", "step-00000010"]
    for step in (15, 25):
        save(tmp_path, step)
    assert named(tmp_path) == ["damaged-step-00000020", "damaged-step-00000030", "step-00000015", "step-00000025"]
    found = latest(tmp_path)
    assert found is not None and found.info.step == 25


def test_a_damaged_checkpoint_is_moved_aside_again_after_another_one_of_its_step(tmp_path: Path) -> None:
    for _ in range(3):
        flip(save(tmp_path, 20))
        make_way(tmp_path, 10)
    assert named(tmp_path) == [f"damaged-step-00000020{number}" for number in ("", "-2", "-3")]


def test_what_was_just_written_is_never_removed(tmp_path: Path) -> None:
    """Whatever is there, for example copied from elsewhere."""
    for step in (20, 30):
        flip(save(tmp_path, step))
    written = save(tmp_path, 15, keep=1)
    assert named(tmp_path) == ["step-00000015", "step-00000020", "step-00000030"]
    found = latest(tmp_path)
    assert found is not None and found.path == written


def test_incomplete_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (save(tmp_path, 20) / OPTIMIZER).unlink()
    save(tmp_path, 30)
    assert named(tmp_path) == ["step-00000010", "step-00000030"]


def test_two_runs_never_write_into_one_temporary_folder(tmp_path: Path) -> None:
    first = begin(tmp_path, 10)
    assert begin(tmp_path, 10).name != first.name


def test_a_folder_in_use_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "stage4"
    start: Any = {"known": None, "restart": False, "patience": 0, "is_rank_zero": True}
    with claimed(run, None, **start):
        with pytest.raises(UserError) as refused, claimed(run, None, **start):
            pass
        with claimed(run, None, **start | {"is_rank_zero": False}):
            pass  # the other ranks
    words = str(refused.value)
    assert words.startswith(f"{run} is in use by pid {os.getpid()} on ")
    assert words.endswith(": stop it, or choose another name=")
    assert not (tmp_path / "runs").exists()  # nothing was written


def test_a_checkpoint_that_another_run_wrote_in_the_meantime_is_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, 10)
    resume = to_resume(tmp_path, restart=False)
    known = newest(tmp_path)
    save(tmp_path, 20)
    with claimed(tmp_path, resume, known=known, restart=False, patience=0, is_rank_zero=True) as claim:
        assert claim.resume is not None and claim.resume.info.step == 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 2 to start from, and a stage 3 that ran to step 2."""
    root = tmp_path_factory.mktemp("resuming")
    make_start(root)
    train(config(root, "half", 2))
    return root


@pytest.mark.slow
def test_restart_moves_everything_aside_and_starts_at_step_0(root: Path) -> None:
    shutil.copytree(root / "half", root / "damaged")
    run = root / "damaged" / "run" / "stage3"
    flip(next(checkpoints_dir(run).glob("step-*2")))
    before = digests(run)
    again = config(root, "damaged", 4)
    with pytest.raises(UserError, match="restart=true"):
        train(again)
    assert before == digests(run)
    again.restart = True
    assert train(again) == 0
    aside = run / "before-restart-1"
    kept = digests(aside)
    assert kept == before
    assert [int(step) for step, *_ in rows(root, "damaged")] == [1, 2, 3, 4]
    found = latest(run)
    assert found is not None and found.info.step == 4
    assert train(again) == 0  # it is finished, whatever restart says


@pytest.mark.slow
def test_a_run_folder_in_use_is_refused_before_anything_is_written(root: Path) -> None:
    run = root / "busy" / "run" / "stage3"
    with Lock(run, "stop it", pytest.fail):
        with pytest.raises(UserError, match=r"stage3 is in use by pid .*: stop it, or choose another name="):
            train(config(root, "busy", 2))
        assert [path.name for path in run.iterdir()] == [LOCK]
    assert train(config(root, "busy", 2)) == 0
    assert not (run / LOCK).exists()


@pytest.mark.parametrize("name", ["checkpoints", "starts.jsonl", "metrics.csv", "guard", "samples", "wandb", LOCK])
def test_a_run_folder_of_others_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    """Otherwise a resumed run would remove the checkpoints of another run, or append lines to any file."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for step in (10, 20):
        save(mine, step)
    (mine / "file").write_text("mine")
    theirs.mkdir()
    (theirs / name).symlink_to(mine / ("checkpoints" if name == "checkpoints" else "file"))
    for restart in (False, True):
        with pytest.raises(UserError, match=f"{name} is a link"):
            to_resume(theirs, restart=restart)
    assert named(mine) == ["step-00000010", "step-00000020"] and (mine / "file").read_text() == "mine"
    if name == "checkpoints":
        with pytest.raises(UserError, match="is a link"):
            save(theirs, 30)
        assert named(mine) == ["step-00000010", "step-00000020"]


def test_checkpoints_that_are_links_remove_nothing_elsewhere(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    checkpoints_dir(run).mkdir(parents=True)
    for name in ("step-00000001", "step-00000002", ".step-00000003.x.tmp", "latest"):
        (checkpoints_dir(run) / name).symlink_to(victim)
    for step in (2, 3, 4):
        save(run, step, keep=1)
    make_way(run, 1)
    assert (victim / "file").read_text() == "mine" and os.listdir(victim) == ["file"]


def test_a_pipe_in_place_of_the_starts_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "starts.jsonl")
    assert steps_done(tmp_path) == 0
    with pytest.raises(UserError, match="neither a file nor a folder"):
        to_resume(tmp_path, restart=False)
