"""The images of one set and the clips of another form one set for the schedule and for loader workers."""

import pickle
from pathlib import Path

import pytest

from gen1_train.data.manifest import Manifest
from gen1_train.data.merged import MergedShards
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from tests.made import make_shard_set

FIELDS = ("moments", "image_embedding")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("merged")
    images, prior = make_shard_set(root / "images", clips=2, images=5), make_shard_set(root / "prior", width=48)
    manifest = Manifest.load(images)
    manifest.recipe = {"buckets": ["32x16"]}
    manifest.save(images)
    return images, prior


def test_images_and_clips_come_from_their_own_sets(sets):
    images, prior = sets
    merged = MergedShards(images, prior)
    assert sorted(merged.manifest.pools) == ["image-32x16", "video-48x16"]
    for pool, source in (("image-32x16", images), ("video-48x16", prior)):
        for index in range(merged.manifest.pools[pool].samples):
            sample, original = merged.read(pool, index, FIELDS), ShardSet(source).read(pool, index, FIELDS)
            assert sample.key == original.key and (sample.moments == original.moments).all()
            shard, row = merged.locate(pool, index)
            assert merged.entry(shard, row) == ShardSet(source).entry(shard, row)


def test_levels_are_stored_only_if_both_sets_hold_them(tmp_path):
    roots = [make_shard_set(tmp_path / name) for name in ("images", "prior")]
    levels = {"highest": 7, "degradation": "1"}
    for root, expected in zip(roots, (None, levels), strict=True):  # first in one of them, then in both
        manifest = Manifest.load(root)
        manifest.estimators["autoencoder"]["levels"] = levels
        manifest.save(root)
        assert MergedShards(*roots).manifest.estimators["autoencoder"].get("levels") == expected
    assert MergedShards(roots[0]).manifest.estimators["autoencoder"]["levels"] == levels
    for changes, expected in (({"highest": 3}, {**levels, "highest": 3}), ({"degradation": "2"}, None)):
        manifest.estimators["autoencoder"]["levels"] = {**levels, **changes}
        manifest.save(roots[1])
        assert MergedShards(*roots).manifest.estimators["autoencoder"].get("levels") == expected


def test_a_merged_set_can_be_pickled(sets):
    merged = MergedShards(*sets)
    unpickled = pickle.loads(pickle.dumps(merged))
    assert unpickled.manifest.hash == merged.manifest.hash
    assert unpickled.buckets == merged.buckets == merged.image_buckets == ["32x16"]  # older sets have no other
    assert MergedShards(sets[0]).manifest.hash != merged.manifest.hash


def test_a_batch_may_be_larger_than_its_pool(sets):
    """Each image still comes once an epoch."""
    schedule = Schedule(MergedShards(*sets), Settings(0, 0.5, clips=2))
    seen = []
    for number in range(20):
        step = schedule.at(number)
        if step.kind == "image":
            assert step.size == 8 and step.samples == 5
            seen += [schedule.sample(step, slot) for slot in range(step.size)]
    epochs = [seen[start : start + 5] for start in range(0, len(seen), 5)]
    assert len(epochs) == 16 and all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 8


def test_in_other_sets_a_batch_larger_than_a_pool_is_refused(sets):
    with pytest.raises(UserError, match="image-32x16 has 5 samples, fewer than one global batch of 8"):
        Schedule(ShardSet(sets[0]), Settings(0, 1.0, clips=2))


def test_without_a_prior_all_pools_are_of_the_image_set(sets):
    merged = MergedShards(sets[0])
    assert merged.pools("video") == merged.images.pools("video") and merged.read("image-32x16", 0, FIELDS).key
