"""Tests of what a checkpoint records for editing: the frames that it takes at once, and the levels that it knows."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import INFO, Checkpoint, read_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.prior.config import PriorTrainConfig
from gen1_train.training.stages import StageConfig, load_recorded, read_recorded
from tests.made_checkpoint import write_checkpoint

POSITIONS = 8  # of model=tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("run"), frames=4))


@pytest.mark.parametrize(("frames", "window"), [(4, 4), (8, 8), (0, POSITIONS), (20, POSITIONS)])
def test_an_edit_takes_as_many_frames_at_once_as_the_clips_had(checkpoint, frames, window):
    info = replace(checkpoint.info, frames=frames)
    assert read_recorded(replace(checkpoint, info=info)).window == window


def test_a_checkpoint_of_an_older_version_takes_all_of_its_positions(checkpoint):
    path = checkpoint.path / INFO
    content = json.loads(path.read_text())
    assert content.pop("frames") == 4
    del content["format"], content["sha256"]
    path.write_text(json.dumps(content))
    assert read_recorded(read_checkpoint(checkpoint.path)).window == POSITIONS


@pytest.mark.parametrize(
    ("structure", "max_level", "learned"), [(False, 0, 0), (True, 0, 0), (True, 3, 3), (True, 7, 7)]
)
def test_a_stage_has_learned_the_levels_that_it_draws(structure, max_level, learned):
    stage = StageConfig("5", "4", 10, temporal=True, structure=structure, max_level=max_level, image_ratio=0.0)
    assert stage.highest_level == learned
    assert replace(stage, steps=0).highest_level == 0  # it has only initialized


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("stage", {"max_level": "${oc.env:GEN1_LEVEL}"}),
        ("stage", {"name": "${oc.env:GEN1_LEVEL}"}),
        ("stage", {"max_level": "seven"}),
        ("stage", {"max_level": 70}),
        ("stage", {"degradation": "blur"}),
        ("stage", {"else": 1}),
        ("model", {"channels": "x"}),
        ("model", {"max_frames": "${stage.steps}"}),
        ("diffusion", {"noise": 7}),
        ("diffusion", {"noise": {"steps": "${oc.env:GEN1_LEVEL}"}}),
    ],
)
def test_a_recorded_config_is_data_of_the_right_types(checkpoint, tmp_path, monkeypatch, section, values):
    """A recorded config does not read the environment, even if we wrote it."""
    monkeypatch.setenv("GEN1_LEVEL", "3")
    copy = shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config[section].update(values)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"config\.yaml cannot be read \(.*\); use another checkpoint$") as error:
        read_recorded(Checkpoint(copy, checkpoint.info))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["${oc.env:GEN1_SECRET}", "x${name}", "${now:%Y}"])
def test_the_config_of_a_replay_or_a_prior_reads_no_environment(checkpoint, monkeypatch, value):
    monkeypatch.setenv("GEN1_SECRET", "hidden")
    config = yaml.safe_load(checkpoint.config.read_text())
    config["data"]["root"] = value
    with pytest.raises(ValueError, match="not resolved in a recorded config"):
        TrainConfig.from_yaml(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="not resolved in a recorded config"):
        PriorTrainConfig.from_yaml(yaml.safe_dump({"name": value}))


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("model", {"layers": 10**9}, r"model\.layers=\[1000000000\]: 256 is the largest size"),
        ("model", {"channels": [10**9, 10**9]}, r"model\.channels=.*: 65536 is the largest size"),
        ("model", {"channels": [64] * 10**3}, r"model\.channels=.*: 65536 is the largest size"),
        ("diffusion", {"noise": {"steps": 10**12}}, r"diffusion\.noise\.steps=.*: 65536 is the largest size"),
        ("model", {"max_frames": 10**12}, "do not fit this model"),
        ("model", {"context_dim": 10**12}, "do not fit this model"),
        ("model", {"channels": [2**16] * 4, "layers": 8}, "do not fit this model"),
    ],
)
def test_a_recorded_model_that_would_fill_the_machine_is_refused_at_once(checkpoint, tmp_path, section, values, words):
    copy = shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config[section].update(values)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    hostile = Checkpoint(copy, checkpoint.info)
    with pytest.raises(UserError, match=words):
        load_recorded(hostile, read_recorded(hostile).unet)
