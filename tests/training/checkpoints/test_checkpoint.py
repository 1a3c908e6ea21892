import os
import shutil
from pathlib import Path

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.training.checkpoints import checkpoint
from gen1_train.training.checkpoints.checkpoint import (
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    find_checkpoint,
    latest,
    read_checkpoint,
)
from gen1_train.training.checkpoints.writing import begin, commit


def save(run: Path, step: int, value: float = 0.0, keep: int = 2, moment: float = 0.0) -> Path:
    tensors = {UNET: {"w": torch.full((2, 3), value)}, OPTIMIZER: {"w.exp_avg": torch.full((2, 3), moment)}}
    info = CheckpointInfo("3", step, finished=False)
    return commit(begin(run, step), tensors, "stage: {}\n", info, CheckpointConfig(keep=keep))


def test_the_newest_is_found_with_what_was_saved(tmp_path):
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
    partial = begin(tmp_path, 20)
    (partial / checkpoint.UNET).write_bytes(b"half")
    assert latest(tmp_path).info.step == 10
    save(tmp_path, 30)
    assert not partial.exists()  # the next one removes it, whatever its step


@pytest.mark.parametrize("name", ["unet.safetensors", "optimizer.safetensors", "config.yaml"])
def test_a_truncated_checkpoint_is_skipped_with_a_warning(tmp_path, capsys, name):
    save(tmp_path, 10)
    truncated = save(tmp_path, 20)
    (truncated / name).write_bytes((truncated / name).read_bytes()[:-3])
    assert latest(tmp_path).info.step == 10
    assert name in capsys.readouterr().out


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    save(tmp_path, 10, 1.0)
    with pytest.raises(UserError, match=r"1 of 1 tensors of unet\.safetensors are not finite at step 20, such as w"):
        save(tmp_path, 20, float("nan"))
    with pytest.raises(
        UserError, match=r"1 of 1 tensors of optimizer\.safetensors are not finite at step 20, such as w"
    ):
        save(tmp_path, 20, moment=float("inf"))
    assert latest(tmp_path).info.step == 10


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, 1.0)
    save(tmp_path, 10, 5.0)
    assert float(latest(tmp_path).weights()["w"][0, 0]) == 5.0


def test_errors_name_the_path_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="give a folder such as"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="train it first"):
        find_checkpoint(tmp_path)


def test_no_run_can_resume_from_a_checkpoint_without_moments(tmp_path):
    info = CheckpointInfo("1", 0, finished=True)
    tensors = {UNET: {"w": torch.zeros(2)}}
    made = read_checkpoint(commit(begin(tmp_path, 0), tensors, "stage: {}\n", info, CheckpointConfig()))
    assert set(made.info.files) == {"unet.safetensors", "config.yaml"}
    with pytest.raises(UserError, match=r"has no optimizer\.safetensors, so no run can resume from it: .* name="):
        made.moments()


def test_a_checkpoint_with_a_flipped_bit_is_skipped_with_a_warning(tmp_path, capsys):
    save(tmp_path, 10)
    flipped = save(tmp_path, 20) / OPTIMIZER
    data = bytearray(flipped.read_bytes())
    data[-3] ^= 1
    flipped.write_bytes(data)
    assert latest(tmp_path).info.step == 10
    assert f"{flipped.parent} is damaged: {OPTIMIZER} is not what was written" in capsys.readouterr().out
    with pytest.raises(UserError, match="is damaged"):
        find_checkpoint(flipped.parent, which=None)
    assert find_checkpoint(flipped.parent).info.step == 20  # an edit does not read AdamW's moments


def test_only_what_is_in_use_is_read(tmp_path, monkeypatch):
    average, adapter = "ema_0.9.safetensors", "lora.safetensors"
    tensors = {name: {"w": torch.zeros(2)} for name in (UNET, average, OPTIMIZER, adapter, f"lora_{average}")}
    info = CheckpointInfo("3", 10, finished=False, counters={"averaged": {"ema_0.9": 10}}, lora={"rank": 4})
    path = commit(begin(tmp_path, 10), tensors, "stage: {}\n", info, CheckpointConfig())
    read = []
    sha256 = checkpoint.sha256
    monkeypatch.setattr(checkpoint, "sha256", lambda path: read.append(path.name) or sha256(path))
    for which, files in {
        "ema": {average, f"lora_{average}"},
        "0.9": {average, f"lora_{average}"},
        "raw": {UNET, adapter},
        None: set(tensors),
    }.items():
        read.clear()
        assert find_checkpoint(path, which).path == path
        assert sorted(read) == sorted({*files, "config.yaml"})
    save(tmp_path, 5)
    with pytest.raises(UserError, match=r"has no weights=0\.5: choose from raw, 0\.9"):
        find_checkpoint(tmp_path, "0.5")  # an older checkpoint is no substitute


def test_the_link_points_to_the_newest_even_if_the_run_was_copied_without_links(tmp_path):
    save(tmp_path / "run", 10)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "latest").info.step == 10
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for run in (tmp_path / "run", tmp_path / "copy"):
        save(run, 20)
        assert os.readlink(run / "checkpoints" / "latest") == "step-00000020"
        assert not list((run / "checkpoints").glob(".*"))


def test_the_newest_of_every_span_of_hours_is_kept(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gen1_train.training.checkpoints.writing.time.time", lambda: now[0])
    for step in range(12):
        now[0] = 3600 * (0.5 + step)
        tensors = {UNET: {"w": torch.zeros(1)}}
        info = CheckpointInfo("3", step, finished=False)
        commit(begin(tmp_path, step), tensors, "stage: {}\n", info, CheckpointConfig(keep=2, keep_hours=4))
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [3, 7, 10, 11]


def test_weights_are_found_by_name(tmp_path):
    tensors = {name: {"w": torch.full((2,), value)} for name, value in ((UNET, 1.0), ("ema_0.9.safetensors", 2.0))}
    tensors["ema_0.5.safetensors"] = {"w": torch.full((2,), 3.0)}
    info = CheckpointInfo("3", 5, finished=True, counters={"averaged": {"ema_0.9": 5, "ema_0.5": 5}})
    made = read_checkpoint(commit(begin(tmp_path, 5), tensors, "stage: {}\n", info, CheckpointConfig()))
    found = {which: float(made.weights(which)["w"][0]) for which in ("ema", "raw", "0.9", "0.5")}
    assert found == {"ema": 2.0, "raw": 1.0, "0.9": 2.0, "0.5": 3.0}
    with pytest.raises(UserError, match=r"has no weights=0\.99: choose from raw, 0\.9, 0\.5"):
        made.weights("0.99")
    plain = read_checkpoint(save(tmp_path / "plain", 1, 7.0))
    assert float(plain.weights()["w"][0, 0]) == 7.0


def test_a_checkpoint_that_does_not_list_its_average_is_refused(tmp_path):
    info = CheckpointInfo("3", 5, finished=True, counters={"averaged": {"ema_0.9": 5}})
    with pytest.raises(UserError, match=r"does not list ema_0\.9\.safetensors"):
        commit(begin(tmp_path, 5), {UNET: {"w": torch.zeros(1)}}, "stage: {}\n", info, CheckpointConfig())
    assert latest(tmp_path) is None
