"""Pairs of captions and frames: which samples are pairs, which of them are held out, and what a step reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gen1_train.batch import Pool, Sample
from gen1_train.data.pairs import PairBatches, Pairs, PairsConfig, find_captioned, pair_indices, read_pairs, split
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.system.console import console
from tests.made import make_sample, make_shard_set

CONFIG = PairsConfig()


def partly_captioned(key: str, pool: Pool, seed: int) -> Sample:
    """Makes a sample; every third image has no caption, and every two clips share a caption."""
    sample = make_sample(key, pool, seed)
    if pool.kind == "image" and seed % 3 == 0:
        return replace(sample, text_embedding=None, caption=None)
    return replace(sample, text_embedding=make_sample(key, pool, seed // 2).text_embedding)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(make_shard_set(tmp_path_factory.mktemp("pairs") / "set", make=partly_captioned))


@pytest.fixture(scope="module")
def pairs(shards: ShardSet) -> Pairs:
    return read_pairs(shards, find_captioned(shards), CONFIG)


def test_only_captioned_samples_are_pairs(shards: ShardSet, pairs: Pairs) -> None:
    captioned = find_captioned(shards)
    assert len(captioned) == len(pairs) == 12 + 27  # 1000 + i is a multiple of three for 13 of the images
    for number, (pool, index) in enumerate(captioned):
        sample = shards.read(pool, index, ("text_embedding", "image_embedding"))
        first, end = pairs.starts[number : number + 2]
        assert np.array_equal(pairs.texts[number], sample.text_embedding)
        assert np.array_equal(pairs.frames[first:end], sample.image_embedding)


def test_the_split_shares_no_caption_and_loses_no_pair(pairs: Pairs) -> None:
    training, held_out = split(pairs, held_out=1000)
    assert len(training) + len(held_out) == len(pairs) and 1 <= len(held_out) <= len(pairs) // 10
    texts = [{text.tobytes() for text in part.texts.numpy()} for part in (training, held_out)]
    assert not texts[0] & texts[1]
    assert len(split(pairs, held_out=1)[1]) <= 2  # one caption with all its pairs


def test_the_held_out_captions_do_not_depend_on_the_order_of_the_set(pairs: Pairs) -> None:
    reversed_pairs = pairs.take(np.arange(len(pairs))[::-1].copy())
    held_out = [sorted(part.texts.numpy().tolist()) for part in (split(pairs, 3)[1], split(reversed_pairs, 3)[1])]
    assert held_out[0] == held_out[1]


def test_taking_pairs_takes_their_frames(pairs: Pairs) -> None:
    indices = np.array([30, 2, 35])
    taken = pairs.take(indices)
    for new, old in enumerate(indices):
        first, end = taken.starts[new : new + 2]
        old_first, old_end = pairs.starts[old : old + 2]
        assert torch.equal(taken.frames[first:end], pairs.frames[old_first:old_end])
    assert pairs.take(np.arange(len(pairs))).hash == pairs.hash != taken.hash


def test_middle_frames_belong_to_their_pairs(pairs: Pairs) -> None:
    middle = pairs.middle_frames()
    for number in range(len(pairs)):
        first, end = pairs.starts[number : number + 2]
        assert torch.equal(middle[number], pairs.frames[first + (end - first) // 2])


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (5, 12)])
def test_every_pair_comes_once_an_epoch(size: int, batch: int) -> None:
    """This includes epochs that end within a batch, and batches that hold several epochs."""
    read = np.concatenate([pair_indices(size, seed=3, step=step, batch=batch) for step in range(4 * size)])
    for epoch in read.reshape(-1, size):
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in read.reshape(-1, size)}) > 1


def test_a_batch_is_a_function_of_seed_and_step(pairs: Pairs) -> None:
    batches = PairBatches(pairs, seed=1, batch=16, timesteps=1000, drop_text=0.5)
    batches[0]  # earlier reads do not matter
    one, same = batches[5], PairBatches(pairs, 1, 16, 1000, 0.5)[5]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert one["texts"].shape == one["images"].shape == one["noise"].shape == (16, 64)
    for other in (batches[6], PairBatches(pairs, 2, 16, 1000, 0.5)[5]):
        assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_text_is_paired_with_each_of_its_own_frames_over_time(pairs: Pairs) -> None:
    clip = pairs.take(np.array([next(i for i in range(len(pairs)) if pairs.starts[i + 1] - pairs.starts[i] == 4)]))
    batch = PairBatches(clip, seed=0, batch=64, timesteps=10, drop_text=0.25)[0]
    frames = {image.tobytes() for image in batch["images"].half().numpy()}
    assert frames == {frame.tobytes() for frame in clip.frames.numpy()}
    assert batch["timesteps"].min() == 0 and batch["timesteps"].max() == 9
    assert 4 <= int(batch["dropped"].sum()) <= 28  # 16 expected


def test_beyond_max_pairs_a_fixed_choice_is_read(shards: ShardSet) -> None:
    captioned = find_captioned(shards)
    chosen = [read_pairs(shards, captioned, PairsConfig(max_pairs=10)) for _ in range(2)]
    assert len(chosen[0]) == 10 and chosen[0].hash == chosen[1].hash


def test_a_damaged_pair_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ShardSet(make_shard_set(tmp_path / "set"))
    captioned = find_captioned(shards)
    shard, row = shards.locate(*captioned[3])
    offset, size, _ = shards.entry(shard, row).members["text_embedding.npy"]
    with open(tmp_path / "set" / "shards" / shard.name, "r+b") as stream:
        stream.seek(offset + size - 8)
        stream.write(b"\xff" * 8)
    with console("gen1-train"):
        pairs = read_pairs(shards, captioned, CONFIG)
    assert (len(pairs), pairs.unreadable) == (len(captioned) - 1, 1)
    assert capsys.readouterr().out.startswith(f"gen1-train: warning: a pair is left out: {shard.name}: ")


def test_a_set_without_captions_is_refused(tmp_path: Path) -> None:
    def uncaptioned(key: str, pool: Pool, seed: int) -> Sample:
        return replace(make_sample(key, pool, seed), text_embedding=None, caption=None)

    shards = ShardSet(make_shard_set(tmp_path / "set", make=uncaptioned))
    with pytest.raises(UserError, match=r"no sample of .* has a caption"):
        find_captioned(shards)


def test_too_few_captions_are_refused(tmp_path: Path) -> None:
    shards = ShardSet(make_shard_set(tmp_path / "set", clips=2, images=17))
    with pytest.raises(UserError, match="19 pairs with 19 different captions are too few"):
        split(read_pairs(shards, find_captioned(shards), CONFIG), held_out=5)


def test_embeddings_of_two_widths_are_refused(tmp_path: Path) -> None:
    def narrow(key: str, pool: Pool, seed: int) -> Sample:
        sample = make_sample(key, pool, seed)
        assert sample.text_embedding is not None
        return replace(sample, text_embedding=sample.text_embedding[:48])

    shards = ShardSet(make_shard_set(tmp_path / "set", make=narrow))
    with pytest.raises(UserError, match="a text embedding has width 48 and an image embedding 64"):
        read_pairs(shards, find_captioned(shards), CONFIG)
