"""Batches are the same with and without workers, from any step on, and with damaged samples."""

import os
import sys
from collections import Counter
from dataclasses import replace
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from multiprocessing.process import current_process
from pathlib import Path
from socket import AF_UNIX, socket

import pytest
import torch

from gen1_train.batch import Batch, collate
from gen1_train.data.index import read_index
from gen1_train.data.loader import (
    MAX_BAD_SAMPLES,
    BatchDataset,
    BatchPartition,
    StepSampler,
    build_loader,
    print_unless_hung_up,
)
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.system.console import console
from tests.made import make_shard_set

FIELDS = ("moments", "image_embedding", "structure")
VIDEO = "video-32x16"
STEPS = 8
WHOLE = BatchPartition(rank=0, world=1, accumulate=1)


def make_dataset(root: Path, partition: BatchPartition = WHOLE, ratio: float = 0.25, clips: int = 4) -> BatchDataset:
    shards = ShardSet(root)
    return BatchDataset(shards, Schedule(shards, Settings(3, ratio, clips)), partition, FIELDS)


def batches(dataset: BatchDataset, start: int = 0, stop: int = STEPS, workers: int = 0) -> list[Batch]:
    return list(build_loader(dataset, start, stop, workers, pin=False))


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two):
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("set"), clips=9, images=20, frames=4)


def test_a_batch_holds_the_samples_of_the_schedule(root: Path) -> None:
    dataset = make_dataset(root)
    for number, batch in enumerate(batches(dataset)):
        step = dataset.schedule.at(number)
        assert (batch.kind, batch.step, batch.slots) == (step.kind, number, list(range(step.size)))
        indices = [dataset.schedule.sample(step, slot) for slot in batch.slots]
        assert batch.keys == [f"{step.kind}-{index:03d}" for index in indices]
        assert batch.moments.shape == ((16, 1, 8, 2, 4) if step.kind == "image" else (4, 4, 8, 2, 4))
        assert batch.structure is not None and batch.structure_latents is None
        sample = dataset.shards.read(step.pool, indices[-1], FIELDS)
        assert torch.equal(batch.moments[-1], torch.from_numpy(sample.moments))


def test_workers_and_a_later_start_change_nothing(root: Path) -> None:
    straight = batches(make_dataset(root))
    assert {batch.kind for batch in straight[3:]} == {"image", "video"}
    assert_equal(batches(make_dataset(root), start=3), straight[3:])
    assert_equal(batches(make_dataset(root), start=3, workers=2), straight[3:])


def test_ranks_and_accumulation_divide_the_global_batch(root: Path) -> None:
    straight = batches(make_dataset(root))
    partitions = [BatchPartition(rank, 2, 2) for rank in range(2)]
    for number, whole in enumerate(straight):
        parts = [make_dataset(root, partition)[(number, micro)] for partition in partitions for micro in range(2)]
        assert {part.kind for part in parts} == {whole.kind}
        assert [slot for part in parts for slot in part.slots] == whole.slots
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.moments for part in parts]), whole.moments)


def test_steps_and_micro_batches_come_in_order() -> None:
    assert list(StepSampler(5, 7, 2)) == [(5, 0), (5, 1), (6, 0), (6, 1)]
    assert list(StepSampler(7, 7, 2)) == []
    assert not hasattr(StepSampler(0, 7, 1), "__len__")  # with one, Lightning would skip batches again on a resume


def damage(root: Path, samples: list[int]) -> None:
    """Flips a byte in the moments of these samples of the video pool (one shard)."""
    tar = root / "shards" / f"{VIDEO}-000000.tar"
    data = bytearray(tar.read_bytes())
    for sample in samples:
        offset, size, _ = read_index(tar)[sample].members["moments.npy"]
        data[offset + size - 1] ^= 1
    tar.write_bytes(data)


def test_a_bad_sample_is_replaced_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_shard_set(tmp_path, clips=8, images=0, shards=1)
    before = batches(make_dataset(root, ratio=0), stop=2)  # 2 batches of 4: one epoch, every clip once
    damage(root, [5])
    with console("gen1-train"):
        after = batches(make_dataset(root, ratio=0), stop=2)
    printed = capsys.readouterr().out
    bad = f"sample 5 of {VIDEO} (shard {VIDEO}-000000.tar, row 5), key video-005"
    assert printed.count("\n") == 1 and printed.startswith(f"gen1-train: warning: {bad} is replaced by sample ")
    substitute = int(printed.partition(" is replaced by sample ")[2].partition(":")[0])
    for old, new in zip(before, after):
        assert new.slots == old.slots
        assert new.keys == [f"video-{substitute:03d}" if key == "video-005" else key for key in old.keys]
        assert new.replaced_samples == [(bad, "checksum")] * old.keys.count("video-005")
        for row, key in enumerate(new.keys):
            sample = ShardSet(root).read(VIDEO, int(key[-3:]), ("moments",))
            assert torch.equal(new.moments[row], torch.from_numpy(sample.moments).float())  # the data of its key
    assert_equal(batches(make_dataset(root, ratio=0), stop=2), after)  # always with the same substitute


def test_a_worker_of_any_rank_prints_a_warning_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_shard_set(tmp_path, clips=8, images=0, shards=1)
    damage(root, [5])
    monkeypatch.setenv("RANK", "1")
    with console("gen1-train", ranks=True):
        batches(make_dataset(root, ratio=0), stop=2, workers=1)
    printed = capfd.readouterr()
    assert printed.out.startswith(f"gen1-train: warning: sample 5 of {VIDEO} (shard ") and printed.out.count("\n") == 1
    assert printed.err == ""


def test_in_blocks_a_substitute_is_from_the_same_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a cache, this node's disk may have no other shard."""
    root = make_shard_set(tmp_path, clips=12, images=0, shards=3)
    damage(root, [1])
    shards = ShardSet(root)
    settings = Settings(3, 0.0, 12, order="blocks", window=1, lanes=2)
    for seed in range(8):
        dataset = BatchDataset(shards, Schedule(shards, replace(settings, seed=seed)), WHOLE, FIELDS)
        (batch,) = batches(dataset, stop=1)
        assert len(batch.replaced_samples) == 1 and "video-001" not in batch.keys
        counts = Counter(batch.keys)
        assert len(counts) == 11 and {key for key, n in counts.items() if n == 2} < {f"video-{n:03d}" for n in range(4)}
    assert sum("is replaced by sample" in message for message in caplog.messages) == 8


def test_a_damaged_set_is_refused_after_a_few_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_shard_set(tmp_path, clips=8, images=0, shards=1)
    damage(root, list(range(8)))
    with pytest.raises(UserError) as error:
        batches(make_dataset(root, ratio=0))
    assert len(caplog.messages) == MAX_BAD_SAMPLES - 1  # the last one is not replaced
    assert f"{MAX_BAD_SAMPLES} samples of {VIDEO} in a row" in str(error.value) and str(root) in str(error.value)


def test_an_error_in_a_worker_has_the_same_message(tmp_path: Path) -> None:
    """torch puts the worker's traceback before the message of its error, but the user should only see the message."""
    root = make_shard_set(tmp_path, clips=8, images=0, shards=1)
    damage(root, list(range(8)))
    with pytest.raises(UserError) as in_process:
        batches(make_dataset(root, ratio=0))
    with pytest.raises(UserError) as in_worker:
        batches(make_dataset(root, ratio=0), workers=1)
    assert str(in_worker.value) == str(in_process.value) and str(in_process.value).endswith("copy it again")


LAYOUTS = [(1, 0, 0), (2, 2, 0), (4, 1, 0), (3, 3, 0), (1, 0, 3), (2, 2, 3), (3, 3, 3)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("large"), clips=30, images=60, frames=4, shards=4)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers", "start"), LAYOUTS)
def test_all_layouts_read_the_same_stream(large: Path, ranks: int, workers: int, start: int) -> None:
    """The global batches, concatenated from those of all ranks, are the schedule's, from any step on."""
    size = 12
    whole_batches = make_dataset(large, clips=size)
    partitions = [BatchPartition(rank, ranks, 1) for rank in range(ranks)]
    datasets = [make_dataset(large, partition, clips=size) for partition in partitions]
    parts = [batches(dataset, start, start + 6, workers) for dataset in datasets]
    assert {batch.kind for batch in parts[0]} == {"image", "video"}
    for number, step_parts in enumerate(zip(*parts, strict=True), start):
        step = whole_batches.schedule.at(number)
        assert {(part.step, part.kind) for part in step_parts} == {(number, step.kind)}
        assert [slot for part in step_parts for slot in part.slots] == list(range(step.size))
        indices = [whole_batches.schedule.sample(step, slot) for slot in range(step.size)]
        assert [key for part in step_parts for key in part.keys] == [f"{step.kind}-{i:03d}" for i in indices]
        samples = [whole_batches.shards.read(step.pool, index, FIELDS) for index in indices]
        whole = collate(step.kind, number, list(range(step.size)), samples)
        for name in ("moments", "embeddings", "structure"):
            assert torch.equal(torch.cat([getattr(part, name) for part in step_parts]), getattr(whole, name)), name


def test_a_reader_that_hangs_up_is_no_bug_of_a_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", print_unless_hung_up)
    sharer = resource_sharer._ResourceSharer()  # type: ignore[attr-defined]
    address, _ = sharer.register(lambda *_: None, lambda: None)
    with socket(AF_UNIX) as reader:
        reader.connect(address)
    with Client(address, authkey=current_process().authkey) as unknown:
        unknown.send((7, os.getpid()))
    sharer.stop()
    said = capsys.readouterr().err
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyError: 7")
