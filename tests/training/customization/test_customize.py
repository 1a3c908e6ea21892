"""Customizations from start to end: their data, their checkpoints, resuming, and their output."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gen1_train.data.manifest import Manifest
from gen1_train.editing.opening import load_estimators
from gen1_train.errors import UserError
from gen1_train.exporting.folder import SPATIAL, WHOLE, read_diffusers, read_source, write_checked
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.checkpoints.checkpoint import OPTIMIZER, UNET, checkpoints_dir, find_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.customization.customize import CustomizeConfig
from gen1_train.training.customization.lora import BASE, check_adapter, merged
from gen1_train.training.replay import ReplayConfig, replay
from gen1_train.training.run import train
from gen1_train.training.stages import read_recorded
from tests.made_checkpoint import edit_info
from tests.tensors_of import assert_same_tensors
from tests.training.customization.customizing import (
    HEIGHT,
    WIDTH,
    changed,
    config,
    last,
    make_world,
    run_folder,
    write_start,
)
from tests.training.pair import run_pair

pytestmark = pytest.mark.slow  # all share two runs

BUCKET = f"{WIDTH}x{HEIGHT}"
ADAPTERS = ["lora.safetensors", "lora_ema_0.9.safetensors"]
FILES = ["ema_0.9.safetensors", OPTIMIZER, UNET]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and a run of all weights and one of an adapter in it."""
    root = make_world(tmp_path_factory.mktemp("customize"))
    for name, rank in (("full", None), ("lora", 2)):
        train(config(root, name, rank=rank))
    return root


def rows(root: Path, name: str, column: str) -> list[tuple[int, str]]:
    metrics = read_metrics(run_folder(root, name) / "metrics.csv")
    return [(int(row["step"]), row[column]) for row in metrics if row.get(column)]


def assert_equal_to_the_bit(root: Path, name: str, straight: str) -> None:
    assert_same_tensors(last(root, name).path, last(root, straight).path)
    for column in ("loss", "val_loss", "subject_loss_ema", "subject_loss_ema_above_best"):
        assert rows(root, name, column) == rows(root, straight, column)


@pytest.mark.parametrize(("name", "files"), [("full", FILES), ("lora", sorted([*FILES, *ADAPTERS]))])
def test_it_leaves_an_ordinary_checkpoint(root, name, files):
    found = last(root, name)
    assert sorted(path.name for path in found.path.glob("*.safetensors")) == files
    assert found.info.stage == "customize" and found.info.buckets == [BUCKET]
    recorded = read_recorded(found)
    start = load_file(find_checkpoint(root / "start").path / UNET)
    for which in ("ema", "raw"):
        unet = SpatioTemporalUNet(recorded.unet)
        load_weights(unet, found.weights(which), name, may_be_new=())  # as every reader does
    moved = {key for key, weight in found.weights("raw").items() if not torch.equal(weight, start[key])}
    adapted = {key for key in start if ".attn" in key and key.endswith(".weight") and ".temporal_" not in key}
    unused = {key for key in adapted if key.endswith((".attn2.to_q.weight", ".attn2.to_k.weight"))}
    assert moved == (set(start) if name == "full" else adapted - unused)
    load_estimators(found, torch.device("cpu"))


def test_image_steps_read_the_images_and_video_steps_the_prior(root):
    for name in ("full", "lora"):
        assert len(rows(root, name, "loss_image")) == len(rows(root, name, "loss_video")) == 2
    content = json.loads((run_folder(root, "full") / "images" / "images.json").read_text())
    assert len(content["used"]) == 8 and content["held_out"] == ["7.png"]
    cursors = last(root, "full").info.data["cursors"]
    assert cursors == {f"image-{BUCKET}": 2 * 8, f"video-{BUCKET}": 2 * 2}


def test_both_losses_are_validated_from_before_the_first_step(root):
    for column in ("val_loss", "val_loss_ema", "subject_loss", "subject_loss_ema", "val_loss_ema_above_best"):
        assert [step for step, _ in rows(root, "lora", column)] == [0, 2, 4]
    assert rows(root, "full", "val_loss")[0] == rows(root, "lora", "val_loss")[0]  # an adapter begins as nothing
    assert rows(root, "full", "subject_loss")[0] == rows(root, "lora", "subject_loss")[0]
    assert rows(root, "full", "val_loss")[1] != rows(root, "lora", "val_loss")[1]


def test_the_adapter_file_of_a_checkpoint_is_merged_into_its_weights(root):
    found, base = last(root, "lora"), load_file(run_folder(root, "lora") / BASE)
    for file, adapter in ((UNET, ADAPTERS[0]), ("ema_0.9.safetensors", ADAPTERS[1])):
        made = merged(base, load_file(found.path / adapter), found.info.lora["scale"])
        weights = load_file(found.path / file)
        assert all(torch.equal(made[name], weights[name]) for name in weights)
    assert (found.path / ADAPTERS[0]).stat().st_size < 0.05 * (found.path / UNET).stat().st_size
    moments = load_file(found.path / OPTIMIZER)
    assert len(moments) == 2 * len(load_file(found.path / ADAPTERS[0]))


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(root, capsys):
    """Works without the checkpoint that it started from, and does not prepare the images again."""
    copy = run_folder(root, "resumed")
    shutil.copytree(run_folder(root, "lora"), copy, symlinks=True)
    shutil.rmtree(checkpoints_dir(copy) / "step-00000004")
    made = (copy / "images" / "images.json").stat().st_mtime_ns
    train(changed(config(root, "resumed", rank=2), init__checkpoint=str(root / "gone")))
    assert "resuming from" in capsys.readouterr().out
    assert_equal_to_the_bit(root, "resumed", "lora")
    assert (copy / "images" / "images.json").stat().st_mtime_ns == made


def test_an_adapter_cannot_change_within_a_run(root, tmp_path):
    found, run = last(root, "lora"), run_folder(root, "lora")
    check_adapter(CustomizeConfig(lora_rank=2), run, found)
    for other in (CustomizeConfig(lora_rank=3), CustomizeConfig(lora_rank=2, lora_alpha=1.0), CustomizeConfig()):
        with pytest.raises(UserError, match=r"was trained with customize\.lora_rank=2 .*cannot change within a run"):
            check_adapter(other, run, found)
    check_adapter(CustomizeConfig(), run_folder(root, "full"), last(root, "full"))
    for content in (None, b"another"):
        if content is not None:
            (tmp_path / BASE).write_bytes(content)
        with pytest.raises(UserError, match=r"base\.safetensors is missing or was changed: restore it"):
            check_adapter(CustomizeConfig(lora_rank=2), tmp_path, found)


def test_a_customized_checkpoint_is_exported_and_read_by_diffusers(root, tmp_path):
    source = read_source(run_folder(root, "lora"))
    write_checked(source, tmp_path)
    theirs = read_diffusers(tmp_path / SPATIAL)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(theirs.state_dict()[name], last(root, "lora").weights("ema")[name])
    assert find_checkpoint(tmp_path / WHOLE).info.lora == {}


def pair(rank: int, root: Path, strategies: tuple[str, ...]) -> None:
    for strategy in strategies:
        train(changed(config(root, strategy, rank=2), strategy__name=strategy, trainer__devices=2))


def test_two_processes_take_the_same_steps_as_one(root, tmp_path):
    codes, errors = run_pair(pair, tmp_path, root, ("ddp", "zero2"), seconds=200)
    assert codes == [0, 0], errors
    wanted = last(root, "lora").path
    for name in ("ddp", "zero2"):
        for file in (UNET, *ADAPTERS):
            found, weights = load_file(last(root, name).path / file), load_file(wanted / file)
            for key in weights:
                torch.testing.assert_close(found[key], weights[key], rtol=2e-3, atol=2e-5, msg=f"{name} {key}")
        pairs = zip(rows(root, name, "subject_loss"), rows(root, "lora", "subject_loss"), strict=True)
        assert all(abs(float(a) - float(b)) < 1e-4 for (_, a), (_, b) in pairs)


def test_images_have_the_sizes_of_the_images_that_the_model_learned(root, tmp_path):
    """Where they are recorded; edits still have the size of its clips."""
    shutil.copytree(root / "start", tmp_path / "start", symlinks=True)
    sizes = [BUCKET, "32x32"]
    edit_info(next(checkpoints_dir(tmp_path / "start").glob("step-*")), lambda info: info.update(image_buckets=sizes))
    folder = shutil.copytree(root / "images", tmp_path / "images")
    Image.new("RGB", (40, 41), "red").save(folder / "square.png")
    made = changed(config(tmp_path, "sizes", steps=1, prior=False), customize__held_out=0)
    train(made)
    train(changed(made, stage__steps=2))  # the images are not encoded again
    found = last(tmp_path, "sizes").info
    assert (found.buckets, sorted(found.image_buckets)) == ([BUCKET], sorted(sizes))
    assert set(found.data["cursors"]) <= {f"image-{size}" for size in sizes}
    made_sets = Manifest.load(run_folder(tmp_path, "sizes") / "images" / "train").pools
    assert {name: pool.samples for name, pool in made_sets.items()} == {f"image-{BUCKET}": 9, "image-32x32": 1}


def test_without_a_prior_all_steps_read_images_and_other_images_can_come(root, capsys):
    shutil.copytree(root / "images", root / "others")
    folder = str(root / "others")
    train(changed(config(root, "alone", steps=1, prior=False), images=folder, customize__held_out=0))
    said = capsys.readouterr().out
    assert "warning: without data.root= all steps read the images: nothing guards against forgetting" in said
    assert "warning: no image is held out" in said
    found = last(root, "alone").info
    assert found.data["cursors"] == {f"image-{BUCKET}": 2 * 4} and found.buckets == [BUCKET]
    assert rows(root, "alone", "val_loss") == []
    (root / "others" / "0.png").unlink()
    train(changed(config(root, "alone", steps=2, prior=False), images=folder, customize__held_out=0))
    assert "the data changes from here on: from step 1: shard set" in capsys.readouterr().out
    assert last(root, "alone").info.data["manifest"] != found.data["manifest"]


def test_a_plan_writes_nothing(root, capsys):
    train(changed(config(root, "planned", rank=2), plan_only=True))
    said = capsys.readouterr().out
    assert f"image-{BUCKET}" in said and f"video-{BUCKET}" in said and not run_folder(root, "planned").exists()


def test_a_check_writes_nothing(root, capsys):
    train(changed(config(root, "checked"), check_only=True))
    assert "stage customize can run from step 0 to 4" in capsys.readouterr().out
    assert not run_folder(root, "checked").parent.exists()


def test_a_step_of_an_adapter_can_be_replayed(root, capsys):
    """The guard records the adapter; together with the run's base it gives the UNet that took the step."""
    train(changed(config(root, "guarded", steps=3, rank=2), guard__sigmas=1e-9, guard__window=1))
    path = min((run_folder(root, "guarded") / "guard").glob("step-*/guard.json"))
    capsys.readouterr()
    replay(ReplayConfig(replay=str(path), device="cpu"))
    table = [line.split() for line in capsys.readouterr().out.splitlines() if "image-" in line or "video-" in line]
    assert table and all(abs(float(row[-3]) - float(row[-2])) < 1e-3 * float(row[-2]) for row in table)


def test_prior_data_of_other_networks_are_refused(root, tmp_path):
    shutil.copytree(root / "prior", tmp_path / "prior")
    manifest = Manifest.load(tmp_path / "prior")
    manifest.estimators["clip"]["fingerprint"] = "another"
    manifest.save(tmp_path / "prior")
    with pytest.raises(UserError, match=r"was made with another clip estimator than .*start"):
        train(changed(config(root, "refused"), data__root=str(tmp_path / "prior")))
    assert not run_folder(root, "refused").exists()


def test_a_checkpoint_of_another_stage_is_refused(root, tmp_path):
    write_start(tmp_path / "start", stage="3")
    with pytest.raises(UserError, match=r"is of stage 3, but stage customize starts from stage 5: give one of that"):
        train(changed(config(root, "refused"), init__checkpoint=str(tmp_path / "start")))
    assert not run_folder(root, "refused").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": None}, "images is not given: add images=FOLDER with 15 to 30 images"),
        ({"customize__lora_rank": 0}, "customize.lora_rank=0 must be above 0"),
        ({"customize__lora_rank": -4}, "customize.lora_rank=-4 must be above 0"),
        ({"customize__lora_alpha": 0.0}, "customize.lora_alpha=0.0 must be above 0"),
        ({"customize__patience": 0}, "customize.patience=0 must be above 0"),
        ({"customize__held_out": 1}, "customize.held_out=1: give a number N of 2 or above"),
        ({"data__image_ratio": 0.0}, "would never read the images"),
        ({"data__order": "blocks"}, "data.order=blocks and data.cache are not for stage=customize"),
        ({"stage__name": "5"}, "images= is for stage=customize, not for stage=5"),
        ({"customize__lora_rank": 2, "strategy__name": "zero3"}, "strategy=zero3 does not go with customize.lora_rank"),
        ({"customize__lora_rank": 2, "strategy__name": "fsdp"}, "strategy=fsdp does not go with customize.lora_rank"),
        ({"customize__lora_rank": 2, "trainer__compile": True}, "trainer.compile=true does not go with"),
        ({"customize__lora_rank": 2, "stage__resets": ["ema"]}, "stage.resets must hold optimizer and ema"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, settings: dict[str, Any], said: str):
    made: TrainConfig = changed(config(tmp_path, "refused"), **settings)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        made.check()
    assert "\n" not in str(error.value)
