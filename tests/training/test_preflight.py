from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.structure import DEGRADATIONS, PIXELS
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.levels import with_levels
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.checkpoints.checkpoint import UNET, Checkpoint, CheckpointConfig, CheckpointInfo
from gen1_train.training.checkpoints.writing import begin, commit
from gen1_train.training.config import TrainConfig
from gen1_train.training.preflight import (
    check_data,
    check_start,
    encodes,
    load_autoencoder,
    micro_clips,
    open_data,
    open_schedule,
    open_validation,
    process_count,
)
from gen1_train.training.stages import InitConfig, StageConfig, build_unet, predecessor, run_folder, stage_unet
from miniature.tiny import write_stable_diffusion
from tests.made import WIDTH, make_shard_set
from tests.running import WEIGHTS

AUTOENCODER = WEIGHTS / "autoencoder"
STAGES = {
    1: StageConfig("1", None, 0, temporal=False, structure=False, max_level=0, image_ratio=1.0),
    3: StageConfig("3", "2", 10, temporal=True, structure=False, max_level=0, image_ratio=0.125),
    4: StageConfig("4", "3", 10, temporal=True, structure=True, max_level=0, image_ratio=0.125),
    5: StageConfig("5", "4", 10, temporal=True, structure=True, max_level=7, image_ratio=0.125),
}


def config(root: Path | None = None, clips: int = 4, **model: int) -> TrainConfig:
    made = TrainConfig(STAGES[3], model=UNetConfig(content_dim=WIDTH, **model))
    made.data.root = root and str(root)
    made.data.batch_clips = clips
    made.trainer.accelerator = "cpu"
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("preflight") / "set")


def test_a_fitting_set_is_opened_with_the_stage_s_share_of_images(root):
    shards = open_data(config(root))
    assert shards.manifest.hash == Manifest.load(root).hash
    schedule, history = open_schedule(config(root), shards, None)
    assert history == ()
    assert [schedule.kind(t) for t in range(8)].count("image") == 1
    own = config(root)
    own.data.image_ratio = 0.0
    assert {open_schedule(own, shards, None)[0].kind(t) for t in range(8)} == {"video"}


def test_data_that_does_not_fit_is_refused_with_the_mend(root, tmp_path):
    with pytest.raises(UserError, match=r"add data\.root=FOLDER"):
        open_data(config(None))
    with pytest.raises(UserError, match="make one with gen1-data"):
        open_data(config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"set model\.max_frames=4"):
        open_data(config(root, max_frames=2))
    set_of_16 = replace(Manifest.load(root), estimators=deepcopy(Manifest.load(root).estimators))
    set_of_16.estimators["autoencoder"]["channels"] = 16
    with pytest.raises(UserError, match="have 16 channels, the model takes 4: choose another recipe"):
        check_data(config(root), set_of_16)
    check_data(config(root, out_channels=16), set_of_16)
    other = config(root)
    other.model.content_dim = 768
    with pytest.raises(UserError, match=rf"have width {WIDTH}, the model takes 768"):
        open_data(other)


def test_the_global_batch_must_be_split_evenly():
    assert micro_clips(config(clips=12), 3) == 4
    accumulating = config(clips=12)
    accumulating.trainer.accumulate = 2
    assert micro_clips(accumulating, 3) == 2
    with pytest.raises(UserError, match="make it a multiple of 8"):
        micro_clips(accumulating, 4)


def test_processes_are_as_many_as_asked_for_and_one_on_a_cpu():
    alone = config()
    assert process_count(alone) == 1
    alone.trainer.devices = 3
    assert process_count(alone) == 3


def test_another_autoencoder_than_the_set_s_is_refused():
    same = Autoencoder(AutoencoderConfig(str(AUTOENCODER)))
    encoding = {"config": {"path": str(AUTOENCODER)}, "fingerprint": same.fingerprint}
    assert load_autoencoder(encoding).fingerprint == same.fingerprint
    with pytest.raises(UserError, match="is not the one that made the shard set"):
        load_autoencoder({**encoding, "fingerprint": "another"})


def started(tree: Path, number: int, estimators: dict[str, Any]) -> TrainConfig:
    """The config of a stage whose predecessor was trained on a set of these estimators."""
    before = STAGES[number - 1] if number > 3 else replace(STAGES[3], name="2", temporal=False)
    recorded = TrainConfig(before, model=UNetConfig(content_dim=WIDTH)).to_yaml()
    info = CheckpointInfo(before.name, before.steps, finished=True, estimators=estimators)
    tensors: dict[str, dict[str, Tensor]] = {UNET: {}}
    commit(begin(run_folder(tree, before.name), before.steps), tensors, recorded, info, CheckpointConfig())
    made = replace(config(), stage=STAGES[number], output=str(tree.parent), name=tree.name)
    made.data.root = "SET"
    return made


def start_of(config: TrainConfig) -> Checkpoint:
    return predecessor(config.stage, config.init, config.tree)


def made_by(name: str, **changes: Any) -> Manifest:
    """A manifest whose estimators are those of tests.made, one of them with these changes."""
    estimators = deepcopy(ESTIMATORS)
    estimators[name].update(changes)
    return Manifest(pools={}, recipe={}, estimators=estimators, plan="")


ESTIMATORS: dict[str, dict[str, Any]] = {
    "autoencoder": {"config": {"path": "ae"}, "fingerprint": "1" * 64, "scale": 0.5, "factor": 8},
    "structure": {"kind": "depth", "config": {"path": "midas"}, "fingerprint": "2" * 64},
    "clip": {"config": {"model": "clip"}, "fingerprint": "3" * 64, "width": WIDTH},
}


@pytest.mark.parametrize(
    ("number", "levels", "encoding"),
    [
        (5, {}, True),  # an older set, or one with recipe.structure_levels=0
        (5, {"levels": {"highest": 7, "degradation": DEGRADATIONS[PIXELS]}}, False),
        (5, {"levels": {"highest": 3, "degradation": DEGRADATIONS[PIXELS]}}, True),  # t_s is drawn up to 7
        (5, {"levels": {"highest": 7, "degradation": "another"}}, True),
        (5, {"levels": {"highest": 7, "degradation": DEGRADATIONS[PIXELS]}, "stored": False}, True),
        (4, {}, False),
        (4, {"levels": {"highest": 7, "degradation": "another"}}, False),  # t_s = 0 has none
    ],
)
def test_the_autoencoder_is_needed_where_the_set_lacks_latents_at_a_level_that_is_drawn(number, levels, encoding):
    assert encodes(TrainConfig(STAGES[number]), made_by("autoencoder", **levels)) is encoding


def test_a_validation_set_without_the_levels_of_the_training_set_is_refused(tmp_path):
    here = config(make_shard_set(tmp_path / "set"))
    here.stage = STAGES[5]
    here.validation.root = str(make_shard_set(tmp_path / "held-out"))
    assert open_validation(here, ShardSet(tmp_path / "set")) is not None  # both lack them
    manifest = Manifest.load(tmp_path / "set")
    manifest.estimators["autoencoder"] = with_levels(manifest.estimators["autoencoder"], 7)
    manifest.save(tmp_path / "set")
    with pytest.raises(UserError, match=r"held-out lacks latents of the structure at t_s up to 7 .*, which .* refresh"):
        open_validation(here, ShardSet(tmp_path / "set"))
    here.stage = STAGES[4]
    assert open_validation(here, ShardSet(tmp_path / "set")) is not None


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_stage_starts_on_a_set_of_the_same_estimators(tmp_path, number):
    here = started(tmp_path / "tree", number, ESTIMATORS)
    check_start(here, made_by("clip"), start_of(here))
    # where they lie, and what does not change their values, may differ
    check_start(here, made_by("clip", config={"model": "elsewhere"}, precision="fp16"), start_of(here))


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("name", ["autoencoder", "clip"])
def test_a_stage_refuses_a_set_of_other_estimators(tmp_path, number, name):
    here = started(tmp_path / "tree", number, ESTIMATORS)
    with pytest.raises(UserError) as error:
        check_start(here, made_by(name, config={"path": "other"}, fingerprint="4" * 64), start_of(here))
    line = str(error.value)
    assert f"the shard set SET was made with another {name} estimator than {tmp_path / 'tree'}" in line
    before, now = ESTIMATORS[name], "{'path': 'other'} (fingerprint 444444444444)"
    assert f"{now} instead of {before['config']} (fingerprint {before['fingerprint'][:12]})" in line
    assert "\n" not in line


@pytest.mark.parametrize("change", [{"fingerprint": "5" * 64}, {"kind": "edges"}])
def test_another_structure_matters_from_the_second_stage_that_sees_it(tmp_path, change):
    """Stage 4 is the first to see structure: it learns whichever the set has."""
    for number in (3, 4):
        here = started(tmp_path / f"tree{number}", number, ESTIMATORS)
        check_start(here, made_by("structure", **change), start_of(here))
    here = started(tmp_path / "tree5", 5, ESTIMATORS)
    with pytest.raises(UserError, match=r"another structure estimator .*: (depth|edges) \{.* instead of depth \{"):
        check_start(here, made_by("structure", **change), start_of(here))


def test_a_start_without_estimators_is_stage_1_s(tmp_path):
    here = started(tmp_path / "tree", 3, {})
    check_start(here, made_by("clip", fingerprint="other"), start_of(here))


def test_a_start_that_lacks_one_estimator_is_refused(tmp_path):
    known = {name: value for name, value in ESTIMATORS.items() if name != "structure"}
    here = started(tmp_path / "tree", 5, known)
    with pytest.raises(UserError, match="another structure estimator"):
        check_start(here, made_by("structure"), start_of(here))


def test_the_unet_of_a_stage_has_what_the_stage_says():
    model = UNetConfig()
    assert [stage_unet(model, STAGES[n]).in_channels for n in (1, 3, 5)] == [4, 4, 12]
    assert [stage_unet(model, STAGES[n]).temporal for n in (1, 3, 5)] == [False, True, True]


def test_a_stage_without_its_start_says_where_it_comes_from(tmp_path):
    model = UNetConfig(channels=[8, 16, 32, 32], groups=8, context_dim=WIDTH, content_dim=WIDTH)
    with pytest.raises(UserError, match=r"give its folder with init\.from=PATH"):
        build_unet(model, STAGES[1], InitConfig(), None, 0)
    with pytest.raises(UserError, match="gen1-train stage=2"):
        predecessor(STAGES[3], InitConfig(), tmp_path)
    with pytest.raises(UserError, match=r"use init\.checkpoint="):
        predecessor(STAGES[3], InitConfig(from_="sd"), tmp_path)
    write_stable_diffusion(tmp_path / "sd")
    first, _ = build_unet(model, STAGES[1], InitConfig(from_=str(tmp_path / "sd")), None, 0)
    again, _ = build_unet(model, STAGES[1], InitConfig(from_=str(tmp_path / "sd")), None, 1)
    assert all((a == b).all() for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "change"),
    [(1, {"heads": [4, 4, 4, 4]}), (1, {"groups": 4}), (3, {"heads": [4, 4, 4, 4]}), (3, {"temporal_head_width": 16})],
)
def test_a_stage_refuses_a_start_that_no_shape_tells_apart(tmp_path, start, change):
    model = UNetConfig(channels=[8, 16, 32, 32], groups=8, context_dim=WIDTH, content_dim=WIDTH)
    unet = SpatioTemporalUNet(stage_unet(model, STAGES[start]))
    temporary = begin(run_folder(tmp_path, str(start)), 0)
    recorded = TrainConfig(STAGES[start], model=model).to_yaml()
    info = CheckpointInfo(str(start), 0, finished=True)
    commit(temporary, {UNET: unet.state_dict()}, recorded, info, CheckpointConfig())
    after = replace(STAGES[start + 2], predecessor=str(start))
    checkpoint = predecessor(after, InitConfig(), tmp_path)
    build_unet(model, after, InitConfig(), checkpoint, 0)
    with pytest.raises(UserError, match=f"does not match the chosen model: {next(iter(change))}"):
        build_unet(replace(model, **change), after, InitConfig(), checkpoint, 0)


def test_a_batch_must_be_whole_clips_of_each_length_for_each_process(tmp_path):
    root = make_shard_set(tmp_path / "set", longer={8: 6})
    open_data(config(root, clips=4))
    with pytest.raises(UserError, match=r"of the set \(4, 8\): give a multiple of 2, such as 4"):
        open_data(config(root, clips=3))
    with pytest.raises(UserError, match=r"set model\.max_frames=8"):
        open_data(config(root, max_frames=4))
    divided = config(root, clips=4)
    divided.trainer.devices, divided.trainer.accumulate = 2, 2
    with pytest.raises(UserError, match=r"in each of 4 micro-batches: give a multiple of 8, such as 8"):
        open_data(divided)
    divided.data.batch_clips = 8
    shards = open_data(divided)
    schedule, _ = open_schedule(divided, shards, None)
    assert (schedule.lengths, schedule.batch_size(4), schedule.batch_size(8), schedule.batch_size(1)) == (
        [4, 8],
        8,
        4,
        32,
    )
    assert (shards.buckets, shards.image_buckets) == (["32x16"], ["32x16"])
    divided.data.batch_clips = 3
    divided.data.image_ratio = 1.0
    open_data(divided)  # it reads no clips
