"""Validation is the same at every step and on any number of ranks, and does not affect training; in this process."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gen1_train.batch import SampleError, collate
from gen1_train.data.manifest import Manifest
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.schedule import NoiseConfig
from gen1_train.errors import UserError
from gen1_train.reporting.rows import read_metrics
from gen1_train.training.callbacks.previews import GAP, side_by_side
from gen1_train.training.callbacks.validation import choose_samples, read_turns
from gen1_train.training.config import TrainConfig
from gen1_train.training.draws import Drawing, fixed_draw, fixed_level
from gen1_train.training.run import train
from tests.made import make_sample_with_levels, make_shard_set
from tests.running import WEIGHTS
from tests.tensors_of import assert_same_tensors
from tests.training.alone import config, last, make_start
from tests.training.pair import run_pair

AUTOENCODER = WEIGHTS / "autoencoder"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validation")
    make_start(root)
    return root


def test_the_same_clips_are_chosen_once_each_from_all_pools(root):
    shards = ShardSet(root / "set")
    samples = choose_samples(shards, "video", 8)
    assert len(set(samples)) == 8 and choose_samples(shards, "video", 5) == samples[:5]
    assert len(choose_samples(shards, "video", 1000)) == sum(pool.samples for pool in shards.pools("video"))


@pytest.mark.parametrize("world", [1, 2, 3, 8, 13])
def test_each_clip_counts_once_and_all_ranks_do_as_many_passes(root, world):
    shards = ShardSet(root / "set")
    samples = choose_samples(shards, "video", 8)
    ranks = [read_turns(shards, samples, ("image_embedding",), rank, world) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(turn.number for rank in ranks for turn in rank if turn.counts) == list(range(8))


def test_a_clip_that_cannot_be_read_does_not_count(root, monkeypatch, capsys):
    shards = ShardSet(root / "set")
    samples, read = choose_samples(shards, "video", 4), shards.read

    def failing(pool: str, index: int, fields: tuple[str, ...]) -> Any:
        if (pool, index) in bad:
            raise SampleError("torn", "read")
        return read(pool, index, fields)

    monkeypatch.setattr(shards, "read", failing)
    bad = {samples[1]}
    kept = read_turns(shards, samples, ("image_embedding",), 0, 1)
    assert [turn.counts for turn in kept] == [True, False, True, True] and kept[1].sample is kept[0].sample
    assert "validation skips a sample" in capsys.readouterr().out
    bad = set(samples)
    with pytest.raises(UserError, match="no validation sample"):
        read_turns(shards, samples, ("image_embedding",), 0, 1)


def test_each_clip_is_read_at_its_level(tmp_path):
    shards = ShardSet(make_shard_set(tmp_path / "set", make=make_sample_with_levels))
    samples = choose_samples(shards, "video", 10)
    turns = read_turns(shards, samples, ("structure_latent",), 0, 1, level=partial(fixed_level, 7))
    assert [turn.sample.structure_latent is not None for turn in turns] == [i in (0, 8) for i in range(10)]
    assert [list(turn.sample.degraded_latents) for turn in turns] == [[], [1], [2], [3], [4], [5], [6], [7], [], [1]]
    batch = collate("video", turns[3].number, [0], [turns[3].sample])
    drawn = fixed_draw(Drawing(0, NoiseConfig(), 7, 0.0), replace(batch, moments=torch.zeros(1, 4, 8, 1, 1)))
    assert batch.structure_levels == drawn.rounds == [3]


def validated(root: Path, output: str, steps: int = 4) -> TrainConfig:
    made = config(root, output, steps)
    made.validation.every, made.validation.clips = 2, 3
    return made


def values(root: Path, output: str) -> dict[int, dict[str, str]]:
    rows = read_metrics(root / output / "run" / "stage3" / "metrics.csv")
    return {int(row["step"]): {k: v for k, v in row.items() if k.startswith("val_")} for row in rows}


@pytest.fixture(scope="module")
def watched(root: Path) -> Path:
    """The last checkpoint of a run `with` validation."""
    train(validated(root, "with"))
    return last(root, "with")


@pytest.mark.slow
def test_training_does_not_notice_it(root, watched):
    train(config(root, "without", 4))
    assert_same_tensors(last(root, "without"), watched)
    found = values(root, "with")
    names = {f"{kind}{part}" for kind in ("val_loss", "val_loss_ema") for part in ("", "_t1", "_t2", "_t3", "_t4")}
    assert [set(found[step]) for step in (1, 2, 3, 4)] == [set(), names, set(), names]
    assert found[2] != found[4] and found[4]["val_loss"] != found[4]["val_loss_ema"]
    for row in (found[2], found[4]):
        assert float(row["val_loss"]) == pytest.approx(sum(float(row[f"val_loss_t{i}"]) for i in (1, 2, 3, 4)) / 4)


@pytest.mark.slow
def test_it_says_nothing_of_the_run_but_its_weights(root, watched):
    """The same weights have the same loss at another step, with another seed and rate; here they are not changed."""
    for output, seed, every in (("one", 0, 1), ("two", 5, 2)):
        made = unchanged(root, output, watched)
        made.seed, made.validation.every = seed, every
        train(made)
    one, two = values(root, "one"), values(root, "two")
    assert one[1] == one[2] == two[2] and one[1]["val_loss"] == one[1]["val_loss_ema"]


def unchanged(root: Path, output: str, start: Path) -> TrainConfig:
    """A run whose weights stay those of a checkpoint."""
    made = validated(root, output, 2)
    made.optim.lr, made.optim.weight_decay = 1e-30, 0.0
    made.init.checkpoint, made.stage.predecessor = str(start), "3"
    return made


def train_on_two(rank: int, root: Path, strategy: str) -> None:
    made = validated(root, strategy)
    made.strategy.name, made.trainer.devices = strategy, 2
    train(made)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_two_ranks_see_what_one_sees(root, tmp_path, strategy):
    """Three clips on two ranks: weights and average have the losses that one process finds in the checkpoint."""
    codes, outputs = run_pair(train_on_two, tmp_path, root, strategy, seconds=200)
    assert codes == [0, 0], outputs
    recorded = values(root, strategy)[4]
    for which, name in (("raw", "val_loss"), ("ema", "val_loss_ema")):
        alone = unchanged(root, f"{strategy}-{which}", last(root, strategy))
        alone.init.weights = which
        train(alone)
        for part in ("", "_t1", "_t2", "_t3", "_t4"):
            found = values(root, f"{strategy}-{which}")[2]
            assert float(found[f"val_loss{part}"]) == pytest.approx(float(recorded[f"{name}{part}"]), rel=1e-4)


@pytest.fixture(scope="module")
def decodable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose manifest names an autoencoder that exists."""
    from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig

    root = tmp_path_factory.mktemp("decodable")
    make_start(root)
    autoencoder = Autoencoder(AutoencoderConfig(str(AUTOENCODER)))
    record_autoencoder(root / "set", {"config": {"path": str(AUTOENCODER)}, "fingerprint": autoencoder.fingerprint})
    return root


def record_autoencoder(folder: Path, autoencoder: dict[str, Any]) -> None:
    """Records another autoencoder in the manifest of a set."""
    manifest = Manifest.load(folder)
    manifest.estimators["autoencoder"] |= autoencoder
    Manifest(manifest.pools, manifest.recipe, manifest.estimators, manifest.plan).save(folder)


@pytest.mark.slow
def test_previews_are_written_and_do_not_affect_training(decodable):
    train(config(decodable, "without", 2))
    made = config(decodable, "with", 2)
    made.validation.edit_every, made.validation.edits, made.validation.edit_steps = 2, 2, 2
    train(made)
    assert_same_tensors(last(decodable, "without"), last(decodable, "with"))
    folder = decodable / "with" / "run" / "stage3" / "samples" / "step-00000002"
    assert sorted(path.name for path in folder.iterdir()) == ["clip0.mp4", "clip1.mp4"]


def test_clips_are_joined_side_by_side_in_order():
    clips = [torch.full((2, 3, 5, 3), value, dtype=torch.uint8).numpy() for value in (10, 20, 30)]
    made = side_by_side(clips)
    assert made.shape == (2, 3, 3 * 5 + 2 * GAP, 3)
    assert [made[0, 0, x, 0] for x in (0, 5, 5 + GAP, 10 + GAP, 10 + 2 * GAP)] == [10, 255, 20, 255, 30]


@pytest.mark.slow
def test_a_missing_autoencoder_is_reported_before_anything_is_written(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # where it is looked for, with patience
    made = config(root, "blind", 2)
    made.validation.edit_every = 2
    with pytest.raises(UserError, match=r"validation clips cannot be edited: .*; or set validation\.edit_every=0"):
        train(made)
    assert not (root / "blind").exists()


@pytest.mark.slow
def test_a_separate_validation_set_must_come_from_the_same_estimators(root, tmp_path):
    made = validated(root, "own")
    made.validation.root = str(make_shard_set(tmp_path / "held-out", clips=5))
    train(made)
    assert values(root, "own")[4]
    record_autoencoder(tmp_path / "held-out", {"fingerprint": "other"})
    made.output = str(root / "refused")
    with pytest.raises(UserError, match="was made with another"):
        train(made)
    assert not (root / "refused").exists()
