"""What t_s above 0 does in a run: as in the set and in the checkpoint before, or one line about what disagrees."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.structure import AUTO, PIXELS, RELATIVE
from gen1_train.errors import UserError
from gen1_train.frozen.levels import with_levels
from gen1_train.training.checkpoints.checkpoint import Checkpoint, read_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.preflight import choose_degradation, open_validation, warn_of_new_levels
from gen1_train.training.stages import StageConfig
from tests.made import make_shard_set
from tests.made_checkpoint import edit_info, write_checkpoint

STAGE = StageConfig("5", "4", 10, temporal=True, structure=True, max_level=7, image_ratio=0.125)
OLDER: dict[str, Any] = {}  # the entry of a set of an older version without levels


def config(degradation: str = AUTO, **changes: Any) -> TrainConfig:
    made = TrainConfig(replace(STAGE, degradation=degradation, **changes))
    made.data.root = "SHARDS"
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """Returns a checkpoint of stage 5 with these settings of the stage; None for a setting: an older version's."""
    run = tmp_path_factory.mktemp("run")
    written = write_checkpoint(run)
    content = yaml.safe_load((written / "config.yaml").read_text())

    def make(**stage: Any) -> Checkpoint:
        changed = deepcopy(content)
        changed["stage"] = {name: value for name, value in {**content["stage"], **stage}.items() if value is not None}
        (written / "config.yaml").write_text(yaml.safe_dump(changed))
        edit_info(written, lambda info: None)
        return read_checkpoint(written)

    return make


@pytest.mark.parametrize(
    ("given", "entry", "learned", "chosen"),
    [
        (AUTO, OLDER, None, PIXELS),
        (AUTO, with_levels(OLDER, 7, PIXELS), None, PIXELS),
        (AUTO, with_levels(OLDER, 7, RELATIVE), None, RELATIVE),
        (AUTO, with_levels(OLDER, 0, RELATIVE), None, RELATIVE),
        (AUTO, with_levels(OLDER, 0, RELATIVE), PIXELS, PIXELS),  # it holds no latents that would be of no use
        (AUTO, OLDER, RELATIVE, RELATIVE),
        (AUTO, {"levels": {"highest": 7, "degradation": "3: another"}}, RELATIVE, RELATIVE),
        (RELATIVE, OLDER, None, RELATIVE),
        (RELATIVE, with_levels(OLDER, 7, RELATIVE), RELATIVE, RELATIVE),
        (PIXELS, with_levels(OLDER, 0, RELATIVE), None, PIXELS),
    ],
)
def test_a_run_follows_the_set_and_the_checkpoint_before(checkpoint, given, entry, learned, chosen):
    start = checkpoint(degradation=learned) if learned else checkpoint(max_level=0)
    assert choose_degradation(config(given), entry, start) == chosen
    assert learned is not None or choose_degradation(config(given), entry, None) == chosen


def test_a_checkpoint_of_an_older_version_has_learned_pixels(checkpoint):
    older = checkpoint(degradation=None)
    assert "degradation" not in yaml.safe_load((older.path / "config.yaml").read_text())["stage"]
    assert choose_degradation(config(), OLDER, older) == PIXELS
    with pytest.raises(UserError, match=r"was trained with stage\.degradation=pixels"):
        choose_degradation(config(), with_levels(OLDER, 7, RELATIVE), older)


@pytest.mark.parametrize(
    ("given", "entry", "learned", "line"),
    [
        (
            PIXELS,
            with_levels(OLDER, 7, RELATIVE),
            None,
            "stage.degradation=pixels, but SHARDS holds the latents of recipe.degradation=relative: leave it out, or "
            "make another set by gen1-data refresh layer=latents recipe.degradation=pixels",
        ),
        (
            AUTO,
            with_levels(OLDER, 7, RELATIVE),
            PIXELS,
            "SHARDS holds the latents of recipe.degradation=relative, but CHECKPOINT was trained with "
            "stage.degradation=pixels: make another set by gen1-data refresh layer=latents recipe.degradation=pixels",
        ),
        (
            RELATIVE,
            OLDER,
            PIXELS,
            "stage.degradation=relative, but CHECKPOINT was trained with stage.degradation=pixels: leave it out",
        ),
    ],
)
def test_what_disagrees_is_one_line_with_the_remedy(checkpoint, given, entry, learned, line):
    start = checkpoint(degradation=learned) if learned else None
    with pytest.raises(UserError) as error:
        choose_degradation(config(given), entry, start)
    assert str(error.value) == (line if start is None else line.replace("CHECKPOINT", str(start.path)))
    # at t_s = 0 there is nothing to disagree about, as from stage 4 to 5
    assert choose_degradation(config(given, max_level=0), entry, start)
    if given == AUTO:
        assert choose_degradation(config(given), entry, checkpoint(degradation=learned, max_level=0)) == RELATIVE


def test_a_validation_set_is_degraded_like_the_training_set(tmp_path: Path) -> None:
    for name, degradation in (("set", RELATIVE), ("held-out", PIXELS)):
        manifest = Manifest.load(make_shard_set(tmp_path / name))
        manifest.estimators["autoencoder"] = with_levels(manifest.estimators["autoencoder"], 7, degradation)
        manifest.save(tmp_path / name)
    here = config(RELATIVE)
    here.validation.root = str(tmp_path / "held-out")
    with pytest.raises(UserError, match=r"held-out lacks latents of the structure at t_s up to 7 \(relative\)"):
        open_validation(here, ShardSet(tmp_path / "set"))
    manifest.estimators["autoencoder"] = with_levels(manifest.estimators["autoencoder"], 7, RELATIVE)
    manifest.save(tmp_path / "held-out")
    assert open_validation(here, ShardSet(tmp_path / "set")) is not None


def test_a_customization_that_has_to_teach_levels_says_so(checkpoint, caplog) -> None:
    here = config()
    warn_of_new_levels(here, checkpoint(max_level=3))  # stage 5 has time for them
    here.images = "FOLDER"
    warn_of_new_levels(here, checkpoint())
    assert caplog.messages == []
    warn_of_new_levels(here, checkpoint(max_level=3))
    [line] = caplog.messages
    assert line.startswith("stage.max_level=7, but ") and "has learned t_s up to 3" in line
