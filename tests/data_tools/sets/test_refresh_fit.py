"""Another fit of CLIP: the layer is made again from the stored frames, and what saw the old one is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.prepare import run as prepare
from data_tools.sets.refresh import RefreshConfig, run
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.training.checkpoints.checkpoint import Checkpoint, CheckpointInfo
from gen1_train.training.config import TrainConfig
from gen1_train.training.preflight import check_estimators
from gen1_train.training.stages import StageConfig
from tests.data_tools.small_source import config, make_source, quick_recipe

POOL = "video-64x48"


@pytest.mark.slow
def test_the_layer_clip_takes_another_fit(tmp_path: Path) -> None:
    prepare(config(make_source(tmp_path / "source"), tmp_path / "old", structure="edges"))
    recipe = quick_recipe()
    squash: ClipConfig = replace(recipe.clip, fit="squash")
    settings = RefreshConfig(str(tmp_path / "old"), str(tmp_path / "new"), "clip", replace(recipe, clip=squash))
    assert run(settings) == run(settings) == 0  # the second one finds it finished
    sample = ShardSet(tmp_path / "new").read(POOL, 0, ("frames", "image_embedding"))
    assert sample.frames is not None and sample.image_embedding is not None
    for encoder, equal in ((ClipEncoder(squash), True), (ClipEncoder(recipe.clip), False)):
        expected = encoder.images(sample.frames).numpy()
        close = np.abs(sample.image_embedding.astype(np.float32) - expected).max() < 1e-2
        assert close == equal, encoder.config
    old, new = Manifest.load(tmp_path / "old"), Manifest.load(tmp_path / "new")
    before, now = old.estimators["clip"], new.estimators["clip"]
    assert "fit" not in before["config"]  # as in older sets
    assert now["config"] == {**before["config"], "fit": "squash"} and now["fingerprint"] != before["fingerprint"]
    assert {**now, "config": 0, "fingerprint": 0} == {**before, "config": 0, "fingerprint": 0}
    trained = Checkpoint(Path("RUN"), CheckpointInfo("4", 10, True, estimators=old.estimators))
    training = TrainConfig(StageConfig("5", "4", 10, temporal=True, structure=True, max_level=7, image_ratio=0.125))
    training.data.root = "SET"
    check_estimators(training, old, trained, structure=True)
    with pytest.raises(UserError, match=r"^the shard set SET was made with another clip estimator than RUN.*squash"):
        check_estimators(training, new, trained, structure=True)


@pytest.mark.slow
def test_a_finished_refresh_of_a_version_without_fits_is_found(tmp_path: Path) -> None:
    prepare(config(make_source(tmp_path / "source"), tmp_path / "old", structure="edges"))
    settings = RefreshConfig(str(tmp_path / "old"), str(tmp_path / "new"), "clip", quick_recipe())
    assert run(settings) == 0
    manifest = Manifest.load(tmp_path / "new")
    recipe = json.loads(json.dumps(manifest.recipe))
    del recipe["clip"]["fit"]
    replace(manifest, recipe=recipe).save(tmp_path / "new")
    assert run(settings) == 0
    settings.recipe.clip = replace(settings.recipe.clip, fit="squash")
    with pytest.raises(UserError, match="holds another set"):
        run(settings)
