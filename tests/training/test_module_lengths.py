"""Trainings on clips of several lengths: resumed equals straight, and micro-batches and ranks change nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor

from gen1_train.data.schedule import Schedule
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import latest
from gen1_train.training.config import TrainConfig
from gen1_train.training.module import Gen1Module
from gen1_train.training.preflight import schedule_settings
from gen1_train.training.run import train
from tests.made import make_shard_set
from tests.tensors_of import assert_same_tensors
from tests.training.alone import config, last, make_start, rows
from tests.training.pair import run_pair
from tests.training.runs import assert_close

STEPS = 8  # the set has clips of 4 and of 8 frames


def settings_of(root: Path, output: str, steps: int = STEPS) -> TrainConfig:
    made = config(root, output, steps)
    made.data.root = str(root / "lengths")
    made.data.image_ratio = 0.25
    made.validation.every = 5
    made.validation.clips = 4
    return made


@contextmanager
def recorded_shapes() -> Iterator[list[tuple[int, ...]]]:
    """Collects samples and frames of the UNet's inputs in training."""
    shapes: list[tuple[int, ...]] = []
    step = Gen1Module.predict_step

    def record(module: Gen1Module, latents: Tensor, *inputs: Tensor, **options: bool) -> Tensor:
        if torch.is_grad_enabled():
            shapes.append(tuple(latents.shape[:2]))
        return step(module, latents, *inputs, **options)

    with MonkeyPatch.context() as patch:
        patch.setattr(Gen1Module, "predict_step", record)
        yield shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with a set of two lengths, and a straight run on it."""
    root = tmp_path_factory.mktemp("lengths")
    make_start(root)
    make_shard_set(root / "lengths", longer={8: 7})
    with recorded_shapes() as shapes:
        train(settings_of(root, "straight"))
    assert set(shapes) == {(4, 4), (2, 8), (16, 1)}  # steps of one cost; images without the temporal layers
    schedule = Schedule(ShardSet(root / "lengths"), schedule_settings(settings_of(root, "straight")))
    assert len(shapes) == STEPS and [size for size, _ in shapes] == [schedule.at(step).size for step in range(STEPS)]
    return root


def test_the_lengths_are_recorded(root: Path) -> None:
    found = latest(root / "straight" / "run" / "stage3")
    assert found is not None
    assert (found.info.frames, found.info.lengths, found.info.buckets) == (8, [4, 8], ["32x16"])


def test_resumed_equals_straight(root: Path) -> None:
    for steps in (1, 3, 4, STEPS):
        train(settings_of(root, "resumed", steps))
    assert rows(root, "resumed") == rows(root, "straight")
    assert_same_tensors(last(root, "resumed"), last(root, "straight"))


@pytest.mark.slow
def test_micro_batches_take_the_same_steps(root: Path) -> None:
    accumulated = settings_of(root, "accumulated")
    accumulated.trainer.accumulate = 2
    with recorded_shapes() as shapes:
        train(accumulated)
    assert set(shapes) == {(2, 4), (1, 8), (8, 1)} and len(shapes) == 2 * STEPS
    assert_same_steps(root, "accumulated")


@pytest.mark.slow
def test_two_ranks_equal_one(root: Path) -> None:
    codes, errors = run_pair(train_as_rank, root, root)
    assert codes == [0, 0], errors
    assert_same_steps(root, "pair")


def train_as_rank(rank: int, root: Path) -> None:
    pair = settings_of(root, "pair")
    pair.trainer.devices = 2
    pair.strategy.name = "ddp"
    train(pair)


def assert_same_steps(root: Path, output: str) -> None:
    """Up to the rounding of sums in another order."""
    assert_close(last(root, output), last(root, "straight"))
    for (_, loss, _), (_, straight, _) in zip(rows(root, output), rows(root, "straight"), strict=True):
        assert float(loss) == pytest.approx(float(straight), rel=1e-4)


def test_a_batch_that_cannot_be_divided_is_refused_before_the_start(root: Path) -> None:
    refused = settings_of(root, "refused")
    refused.trainer.accumulate = 4
    with pytest.raises(
        UserError, match=r"data\.batch_clips=4 .* in each of 4 micro-batches: give a multiple of 8, such as 8"
    ):
        train(refused)
    refused.data.image_ratio = 1.0  # reads no clips
    train(refused)
