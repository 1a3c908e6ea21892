from pathlib import Path

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.training import checkpoint
from gen1_train.training.checkpoint import (
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    begin,
    commit,
    find_checkpoint,
    latest,
    read_checkpoint,
)


def save(run: Path, step: int, value: float = 0.0, keep: int = 2, moment: float = 0.0) -> Path:
    tensors = {UNET: {"w": torch.full((2, 3), value)}, OPTIMIZER: {"w.exp_avg": torch.full((2, 3), moment)}}
    info = CheckpointInfo("3", step, finished=False)
    return commit(begin(run, step), tensors, "stage: {}\n", info, CheckpointConfig(keep=keep))


def test_the_newest_is_found_and_holds_what_was_saved(tmp_path):
    save(tmp_path, 10, 1.0)
    save(tmp_path, 20, 2.0, moment=3.0)
    found = latest(tmp_path)
    assert found.info.step == 20 and not found.info.finished
    assert torch.equal(found.weights()["w"], torch.full((2, 3), 2.0))
    assert torch.equal(found.moments()["w.exp_avg"], torch.full((2, 3), 3.0))
    assert find_checkpoint(tmp_path) == found == find_checkpoint(found.path)


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    names = sorted(p.name for p in checkpoint.checkpoints_dir(tmp_path).iterdir())
    assert names == ["latest", "step-00000020", "step-00000030"]


def test_a_checkpoint_that_is_being_written_is_never_found(tmp_path):
    save(tmp_path, 10)
    torn = begin(tmp_path, 20)
    (torn / checkpoint.UNET).write_bytes(b"half")
    assert latest(tmp_path).info.step == 10
    save(tmp_path, 30)
    assert not torn.exists()  # the next one clears it away, whatever its step


@pytest.mark.parametrize("name", ["unet.safetensors", "optimizer.safetensors", "config.yaml"])
def test_a_torn_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, name):
    save(tmp_path, 10)
    torn = save(tmp_path, 20)
    (torn / name).write_bytes((torn / name).read_bytes()[:-3])
    assert latest(tmp_path).info.step == 10
    assert name in capsys.readouterr().out


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    save(tmp_path, 10, 1.0)
    with pytest.raises(UserError, match=r"1 of 1 tensors of unet\.safetensors are not finite at step 20, w among them"):
        save(tmp_path, 20, float("nan"))
    with pytest.raises(UserError, match=r"1 of 1 tensors of optimizer\.safetensors are not finite at step 20, w"):
        save(tmp_path, 20, moment=float("inf"))
    assert latest(tmp_path).info.step == 10


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, 1.0)
    save(tmp_path, 10, 5.0)
    assert float(latest(tmp_path).weights()["w"][0, 0]) == 5.0


def test_errors_name_the_path_and_the_mend(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="give a folder such as"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="train it first"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_without_moments_says_that_no_run_goes_on_from_it(tmp_path):
    info = CheckpointInfo("1", 0, finished=True)
    tensors = {UNET: {"w": torch.zeros(2)}}
    made = read_checkpoint(commit(begin(tmp_path, 0), tensors, "stage: {}\n", info, CheckpointConfig()))
    assert set(made.info.files) == {"unet.safetensors", "config.yaml"}
    with pytest.raises(UserError, match=r"has no optimizer\.safetensors, so no run goes on from it: .* name="):
        made.moments()
