"""A set with a structure of several planes: refreshed equals prepared, and verify knows how many there must be."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.prepare import run as prepare
from data_tools.sets.refresh import RefreshConfig, run
from data_tools.sets.shard_check import Rules, decode_and_validate
from data_tools.sets.verify import VerifyConfig
from data_tools.sets.verify import run as verify
from data_tools.stats import Stats
from gen1_train.batch import SampleError
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from tests.data_tools.sets.test_refresh import members
from tests.data_tools.small_source import config, quick_recipe
from tests.video.files import make_video

KINDS = "soft_edges+face+edges"
POOL = "video-64x48"


@pytest.mark.slow
def test_a_refreshed_set_equals_one_that_was_prepared_with_these_planes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_video(tmp_path / "source" / "a.mp4", frames=40)
    small = {"clips_per_video": 1, "structure_levels": 1, "stills": "never"}
    prepare(config(tmp_path / "source", tmp_path / "edges", structure="edges", **small))
    prepare(config(tmp_path / "source", tmp_path / "several", structure=KINDS, **small))
    # both from the stored JPEGs, whose pixels are a little different from those of the source
    for source in ("edges", "several"):
        settings = RefreshConfig(str(tmp_path / source), str(tmp_path / f"{source}2"), KINDS, quick_recipe())
        assert run(settings) == 0 and verify(VerifyConfig(str(tmp_path / f"{source}2"), workers=1)) in (0, None)
    for name in ("structure", "frame", "moments"):
        assert members(tmp_path / "edges2", name) == members(tmp_path / "several2", name) != {}
    described, other = (Manifest.load(tmp_path / name).estimators for name in ("edges2", "several"))
    assert described["structure"] == other["structure"] and described["structure"]["kind"] == KINDS
    assert list(other["structure"]["config"]) and set(other["structure"]["config"]) == set(KINDS.split("+"))

    shards = ShardSet(tmp_path / "edges2")
    sample = shards.read(POOL, 0, ("structure", "structure_latent", "meta"))
    assert sample.structure is not None and sample.structure.shape == (2, 3, 48, 64) and sample.meta is not None
    assert sample.structure[:, 0].any() and not sample.structure[:, 1].any()  # noise has no face
    assert sample.meta["structure"] == KINDS and sample.meta["structure_range"] == [[0.0, 1.0]] * 3
    assert sample.meta["empty_frames"] == 2
    before = ShardSet(tmp_path / "edges").read(POOL, 0, ("structure",)).structure
    assert before is not None and before.shape == (2, 48, 64)  # a single plane is as ever
    np.testing.assert_allclose(sample.structure[:, 2] > 0, before > 0, atol=1)

    stats = Stats.load(tmp_path / "edges2")
    line = stats.empty_structure(described)
    assert line == (
        "2 of 2 frames (100%) have no face: their plane of it is empty, and the model learns nothing from it"
    )
    report = (tmp_path / "edges2" / "report.html").read_text()
    assert "structure (soft_edges in red, face in green, edges in blue) below" in report
    refuses_another_number_of_planes(tmp_path / "edges2")


def refuses_another_number_of_planes(root: Path) -> None:
    manifest = Manifest.load(root)
    png = next(data for name, data in members(root, "structure0").items() if name.endswith(".png"))
    pool = manifest.pools[POOL].pool
    assert decode_and_validate("k", "structure00.png", png, Rules.of(manifest, pool)) is not None
    manifest.estimators["structure"]["kind"] = "edges"
    with pytest.raises(SampleError, match="has 3 planes, by the manifest it must have 1"):
        decode_and_validate("k", "structure00.png", png, Rules.of(manifest, pool))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("depth+pose", r"layer=depth\+pose: 'pose' is not one of depth"),
        ("edges+edges", "names a kind twice"),
        ("pose", "layer=pose is not one of"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(tmp_path: Path, layer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(RefreshConfig(str(tmp_path / "a"), str(tmp_path / "b"), layer, quick_recipe()))
