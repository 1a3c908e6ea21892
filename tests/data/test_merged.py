"""Images of one set and clips of another are one set, for the schedule and for loader workers."""

import pickle
from pathlib import Path

import pytest

from gen1_train.data.merged import MergedShards
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import Manifest, ShardSet
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


def test_images_are_of_the_one_and_clips_of_the_other(sets):
    images, prior = sets
    both = MergedShards(images, prior)
    assert sorted(both.manifest.pools) == ["image-32x16", "video-48x16"]
    for pool, source in (("image-32x16", images), ("video-48x16", prior)):
        for index in range(both.manifest.pools[pool].samples):
            found, wanted = both.read(pool, index, FIELDS), ShardSet(source).read(pool, index, FIELDS)
            assert found.key == wanted.key and (found.moments == wanted.moments).all()
            shard, row = both.locate(pool, index)
            assert both.entry(shard, row) == ShardSet(source).entry(shard, row)


def test_a_loader_worker_gets_the_same(sets):
    both = MergedShards(*sets)
    again = pickle.loads(pickle.dumps(both))
    assert again.manifest.hash == both.manifest.hash and again.buckets == both.buckets == ["32x16"]
    assert MergedShards(sets[0]).manifest.hash != both.manifest.hash


def test_a_batch_may_be_larger_than_its_pool_and_each_image_still_comes_once_an_epoch(sets):
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


def test_other_sets_are_refused_a_batch_larger_than_a_pool(sets):
    with pytest.raises(UserError, match="image-32x16 has 5 samples, fewer than one global batch of 8"):
        Schedule(ShardSet(sets[0]), Settings(0, 1.0, clips=2))


def test_without_a_prior_there_are_images_alone(sets):
    alone = MergedShards(sets[0])
    assert alone.pools("video") == alone.images.pools("video") and alone.read("image-32x16", 0, FIELDS).key
