"""How often planes of the structure are left out in a run: as given, or as in the checkpoint before."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gen1_train.data.manifest import Manifest
from gen1_train.diffusion.structure import PIXELS
from gen1_train.errors import UserError
from gen1_train.frozen.levels import with_levels
from gen1_train.training.checkpoints.checkpoint import Checkpoint, read_checkpoint
from gen1_train.training.config import TrainConfig
from gen1_train.training.preflight import choose_drop_planes, encoded_maps, encodes, missing_latents, with_chosen
from gen1_train.training.run_files import changed_settings
from gen1_train.training.stages import StageConfig
from tests.made import ESTIMATORS
from tests.made_checkpoint import edit_info, write_checkpoint

STAGE = StageConfig("5", "4", 10, temporal=True, structure=True, max_level=7, image_ratio=0.125)


def config(drop_planes: float | None = None, **changes: Any) -> TrainConfig:
    made = TrainConfig(replace(STAGE, drop_planes=drop_planes, **changes))
    made.data.root = "SHARDS"
    return made


def made_of(kind: str, **autoencoder: Any) -> Manifest:
    estimators = deepcopy(ESTIMATORS)
    estimators["structure"]["kind"] = kind
    estimators["autoencoder"] = with_levels({**estimators["autoencoder"], **autoencoder}, 7, PIXELS)
    return Manifest(pools={}, recipe={}, estimators=estimators, plan="")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """Returns a checkpoint of stage 5 that left out planes this often; None: of a version without the setting."""
    written = write_checkpoint(tmp_path_factory.mktemp("run"))

    def make(drop_planes: float | None) -> Checkpoint:
        content = yaml.safe_load((written / "config.yaml").read_text())
        content["stage"].pop("drop_planes", None)
        if drop_planes is not None:
            content["stage"]["drop_planes"] = drop_planes
        (written / "config.yaml").write_text(yaml.safe_dump(content))
        edit_info(written, lambda info: None)
        return read_checkpoint(written)

    return make


@pytest.mark.parametrize(
    ("given", "learned", "chosen"),
    [(None, None, 0), (None, 0.2, 0.2), (0.1, 0.2, 0.1), (0.0, 0.2, 0), (0.3, None, 0.3)],
)
def test_a_run_follows_what_is_given_and_else_the_checkpoint_before(checkpoint, given, learned, chosen):
    start = checkpoint(learned)
    assert choose_drop_planes(config(given), made_of("depth+edges"), start) == chosen
    assert with_chosen(config(given), made_of("depth+edges"), start).stage.drop_planes == chosen
    assert choose_drop_planes(config(given), made_of("depth+edges"), None) == (given or 0)


def test_a_single_plane_cannot_be_left_out(checkpoint):
    assert choose_drop_planes(config(), made_of("depth"), checkpoint(None)) == 0
    assert choose_drop_planes(config(0.0), made_of("depth"), None) == 0
    with pytest.raises(UserError) as error:
        choose_drop_planes(config(0.2), made_of("depth"), None)
    assert str(error.value) == (
        "stage.drop_planes=0.2, but the structure of SHARDS is depth alone: leave it out, or make a set of several "
        "kinds, as by gen1-data refresh layer=depth+edges"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_planes": 1.5}, "stage.drop_planes=1.5 is a share: give a number from 0 to 1"),
        ({"drop_planes": 0.5, "structure": False, "name": "3"}, "stage.drop_planes=0.5: stage 3 sees no structure"),
    ],
)
def test_the_stage_checks_its_setting(changes, message):
    with pytest.raises(UserError, match=message):
        replace(STAGE, **changes).check()


def test_the_share_of_maps_that_are_encoded_is_planned(checkpoint):
    stored, bare = made_of("depth+edges"), made_of("depth+edges", stored=False)
    assert encoded_maps(config(0.0), stored) == 0 and not encodes(config(0.0), stored)
    assert encoded_maps(config(0.5), stored) == 0.75 and encodes(config(0.5), stored)
    assert encoded_maps(config(0.5), bare) == encoded_maps(config(0.0), bare) == 2
    images = config(0.5, structure=False, max_level=0)
    images.stage.drop_planes = None
    assert encoded_maps(images, bare) == 1
    assert missing_latents(config(0.5), stored) == 0  # a validation set needs no more latents than before


def test_a_resumed_run_is_compared_with_what_was_chosen(checkpoint):
    start = checkpoint(0.2)

    def changes(drop_planes: float | None) -> list[str]:
        recorded = TrainConfig.load(Path(start.path) / "config.yaml")
        recorded.stage.drop_planes = drop_planes
        return changed_settings(start, recorded)

    assert changes(None) == changes(0.2) == [] and changes(0.5) == ["stage.drop_planes: 0.2 -> 0.5"]
