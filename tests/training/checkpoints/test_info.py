"""checkpoint.json that is damaged, old, newer, or made up by others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import (
    INFO,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    latest,
    read_checkpoint,
)
from gen1_train.training.checkpoints.info import read_info
from gen1_train.training.checkpoints.writing import begin, commit
from tests.made_checkpoint import edit_info


def save(run: Path, step: int) -> Path:
    info = CheckpointInfo(
        stage="4",
        step=step,
        finished=step >= 30,
        data={"step": step, "cursors": [["video", 3]], "history": []},
        estimators={"clip": {"fingerprint": "ab" * 32, "width": 8}},
        buckets=["448x256"],
        frames=8,
        counters={"updates": step, "averaged": {"ema_0.9": step}, "norms": {"count": 3, "mean": 0.25}},
        code="c0de",
    )
    tensors = {name: {"w": torch.ones(2)} for name in (UNET, "ema_0.9.safetensors")}
    return commit(begin(run, step), tensors, "stage: {}\n", info, CheckpointConfig())


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 29])
def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, every: int) -> None:
    path = save(tmp_path, 30) / INFO
    written, whole = read_info(path.parent), path.read_bytes()
    accepted = 0
    for place in range(0, 8 * len(whole), every):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert read_info(path.parent) == written, place
            accepted += 1
        except ValueError:
            pass
    assert accepted < 0.05 * 8 * len(whole) / every  # white space that became other white space


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 30) / INFO
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="use another checkpoint"):
            read_checkpoint(path.parent)


def as_old(content: dict[str, Any]) -> dict[str, Any]:
    """As older versions wrote it: without format and hash."""
    return {name: value for name, value in content.items() if name not in ("format", "sha256")}


def test_a_checkpoint_of_an_older_version_without_a_hash_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 30)
    before = read_info(path)
    content = as_old(json.loads((path / INFO).read_text()))
    del content["frames"], content["lora"]
    (path / INFO).write_text(json.dumps(content))
    read = read_checkpoint(path).info
    assert (read.step, read.counters, read.files, read.frames) == (30, before.counters, before.files, 0)


INVALID: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step as text": lambda info: info.update(step="30"),
    "step as a float": lambda info: info.update(step=30.0),
    "step as a truth value": lambda info: info.update(step=True),
    "negative step": lambda info: info.update(step=-30),
    "another step than the folder's": lambda info: info.update(step=20),
    "finished as a number": lambda info: info.update(finished=1),
    "no stage": lambda info: info.pop("stage"),
    "stage with a line break": lambda info: info.update(stage="4\nall is well"),
    "data as a list": lambda info: info.update(data=[1]),
    "an estimator as a text": lambda info: info.update(estimators={"clip": "ViT"}),
    "buckets as a text": lambda info: info.update(buckets="448x256"),
    "a bucket without a height": lambda info: info.update(buckets=["448"]),
    "counters as null": lambda info: info.update(counters=None),
    "an unknown counter": lambda info: info["counters"].update(more=1),
    "averaged as a list": lambda info: info["counters"].update(averaged=["ema_0.9"]),
    "a negative counter": lambda info: info["counters"].update(updates=-1),
    "a norm that is not finite": lambda info: info["counters"]["norms"].update(mean=float("nan")),
    "an unknown statistic of the norm": lambda info: info["counters"]["norms"].update(window=1.0),
    "an average that is not there": lambda info: info["counters"].update(averaged={"ema_0.5": 1}),
    "weights elsewhere": lambda info: info.update(weights="../../other/unet.safetensors"),
    "files as a list": lambda info: info.update(files=["unet.safetensors"]),
    "a file as null": lambda info: info["files"].update({UNET: None}),
    "a file elsewhere": lambda info: info["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}),
    "a file without a size": lambda info: info["files"][UNET].pop("bytes"),
    "a hash that is none": lambda info: info["files"][UNET].update(sha256=3),
    "saved as null": lambda info: info.update(saved=None),
    "an unknown entry": lambda info: info.update(surprise=1),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("hashed", [True, False])
def test_an_invalid_value_is_refused_in_one_line_and_the_older_checkpoint_is_used(
    tmp_path: Path, name: str, hashed: bool
) -> None:
    save(tmp_path, 20)
    path = save(tmp_path, 30)
    edit_info(path, INVALID[name])
    if not hashed:
        (path / INFO).write_text(json.dumps(as_old(json.loads((path / INFO).read_text()))))
    with pytest.raises(UserError, match=r"use another checkpoint$") as refused:
        read_checkpoint(path)
    assert "\n" not in str(refused.value)
    found = latest(tmp_path)
    assert found is not None and found.info.step == 20


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"step"', "[" * 100_000, "\xff", "{}"])
def test_what_is_not_an_object_of_json_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 30)
    (path / INFO).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="use another checkpoint"):
        read_checkpoint(path)


def test_a_newer_format_is_named_and_an_older_checkpoint_is_not_used_instead(tmp_path: Path) -> None:
    save(tmp_path, 20)
    path = save(tmp_path, 30)
    edit_info(path, lambda info: info.update(format=3, surprise=1))
    for read in (lambda: read_checkpoint(path), lambda: latest(tmp_path)):
        with pytest.raises(UserError, match=r"was made by a newer gen1-train .*: update gen1-train"):
            read()
    text = (path / INFO).read_text()
    (path / INFO).write_text(text.replace('"format": 3', '"format": 4'))  # damaged, not newer
    found = latest(tmp_path)
    assert found is not None and found.info.step == 20


def test_several_lengths_of_clips_are_recorded_and_one_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 30)
    assert "lengths" not in json.loads((path / INFO).read_text())  # older versions read it
    assert read_info(path).trained_lengths == [8]
    edit_info(path, lambda content: content.update(lengths=[4, 8]))
    assert (read_info(path).lengths, read_info(path).trained_lengths) == ([4, 8], [4, 8])
    for wrong in ([8, 4], [4, 16], [0, 8], [8, 8]):
        edit_info(path, lambda content, wrong=wrong: content.update(lengths=wrong))
        with pytest.raises(ValueError, match="the lengths of its clips are not in order, up to its frames"):
            read_info(path)
    assert CheckpointInfo("1", 0, True).trained_lengths == []
