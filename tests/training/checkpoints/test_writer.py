"""A checkpoint is written while training continues, by one rank or by all, and retried while the disk is full."""

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistError, TCPStore

from gen1_train.errors import UserError
from gen1_train.system import files
from gen1_train.training.checkpoints import writer as module
from gen1_train.training.checkpoints import writing
from gen1_train.training.checkpoints.checkpoint import (
    OPTIMIZER,
    UNET,
    CheckpointConfig,
    CheckpointInfo,
    checkpoints_dir,
    latest,
    read_checkpoint,
)
from gen1_train.training.checkpoints.info import INFO
from gen1_train.training.checkpoints.parts import INDEX, Piece, part_name
from gen1_train.training.checkpoints.reports import Reports
from gen1_train.training.checkpoints.writer import Writer

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def info(step: int) -> CheckpointInfo:
    return CheckpointInfo("3", step, finished=False)


TENSORS = {UNET: {"w": torch.ones(3)}}


def full_for(times: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the first `times` writes find a full disk. Returns the waits between attempts, which take no time here."""
    left, waits, write = [times], list[float](), writing.write_weights

    def failing(weights: dict[str, torch.Tensor], path: Path) -> None:
        if left[0]:
            left[0] -= 1
            path.write_bytes(b"half")
            raise DISK_FULL
        write(weights, path)

    monkeypatch.setattr(writing, "write_weights", failing)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


def test_writing_is_retried_while_the_disk_is_full_and_leaves_no_partial_files(tmp_path, monkeypatch, capsys):
    waits, failures = full_for(3, monkeypatch), list[UserError]()
    writer = Writer(tmp_path, CheckpointConfig(patience_seconds=100), "stage: {}\n", failures.append)
    writer.write(TENSORS, info(5), dict, 0.0)
    writer.wait()
    assert not failures and len(waits) == 3
    assert latest(tmp_path).info.step == 5
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "step 5 cannot be written" in warnings[0] and "(No space left on device)" in warnings[0]


def test_a_bug_in_the_thread_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would end the thread otherwise, and training would continue without checkpoints."""
    failures = list[UserError]()
    monkeypatch.setattr(writing, "commit", lambda *_: {}["a bug"])  # type: ignore[misc]
    writer = Writer(tmp_path, CheckpointConfig(), "stage: {}\n", failures.append)
    writer.write(TENSORS, info(5), None, 0.0)
    writer.wait()
    assert (
        str(failures.pop())
        == f"no checkpoint can be written to {tmp_path} (KeyError: 'a bug'): this is a bug, please report it"
    )
    assert not failures and "Traceback" in capsys.readouterr().err
    assert latest(tmp_path) is None


def test_a_disk_that_stays_full_fails_the_run_and_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    failures = list[UserError]()
    writer = Writer(tmp_path, CheckpointConfig(patience_seconds=0), "stage: {}\n", failures.append)
    writer.write(TENSORS, info(5), dict, 0.0)
    writer.wait()
    full_for(10, monkeypatch)
    writer.write(TENSORS, info(6), dict, 0.0)
    writer.wait()
    (failure,) = failures
    assert "free some space or fix the disk" in str(failure) and str(tmp_path) in str(failure)
    assert latest(tmp_path).info.step == 5
    assert sorted(path.name for path in checkpoints_dir(tmp_path).iterdir()) == ["latest", "step-00000005"]


WHOLE = {
    UNET: {"a": torch.arange(15.0).view(3, 5), "b": torch.arange(7.0), "c": torch.tensor(2.0)},
    OPTIMIZER: {"a.exp_avg": torch.arange(15.0).view(3, 5) / 3},
}
# rank -> file -> the pieces that it holds: a tensor in one part, in both, and a rank that holds nothing of a file
HELD = [
    {UNET: [("a", 0, 15), ("b", 0, 3)], OPTIMIZER: [("a.exp_avg", 0, 15)]},
    {UNET: [("b", 3, 7), ("c", 0, 1)], OPTIMIZER: []},
]
SHAPES = {file: {name: list(tensor.shape) for name, tensor in content.items()} for file, content in WHOLE.items()}


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("localhost", 0, 2, is_master=True, wait_for_workers=False)


def pieces(rank: int) -> dict[str, list[Piece]]:
    return {
        file: [Piece(name, start, WHOLE[file][name].flatten()[start:end].clone()) for name, start, end in held]
        for file, held in HELD[rank].items()
    }


def write_both(
    run: Path, store: TCPStore, step: int, ranks: tuple[int, ...] = (1, 0), **changes: Any
) -> list[UserError]:
    """Writes a checkpoint as two ranks do; returns what failed."""
    failures: list[UserError] = []
    config = CheckpointConfig(patience_seconds=changes.pop("patience", 100))
    held = [pieces(0), pieces(1)]
    held[1].update(changes)
    writers = []
    for rank in ranks:
        writer = Writer(run, config, "stage: {}\n", failures.append)
        writers.append(writer)
        reports = Reports(store.clone(), rank, 2)
        writer.write_parts(held[rank], SHAPES, step, None if rank else info(step), "unique", reports, 0.0)
    for writer in writers:
        writer.wait()
    return failures


def test_the_parts_of_two_ranks_are_one_checkpoint_whoever_is_faster(tmp_path: Path, store: TCPStore) -> None:
    for step, ranks in ((5, (0, 1)), (6, (1, 0))):
        assert not write_both(tmp_path, store, step, ranks)
        found = latest(tmp_path)  # which verifies all hashes
        assert found is not None and (found.info.step, found.info.parts) == (step, 2)
        for tensors, expected in ((found.weights("raw"), WHOLE[UNET]), (found.moments(), WHOLE[OPTIMIZER])):
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert sorted(path.name for path in checkpoints_dir(tmp_path).iterdir()) == [
        "latest",
        "step-00000005",
        "step-00000006",
    ]


def test_an_older_version_is_told_to_update(tmp_path: Path, store: TCPStore) -> None:
    write_both(tmp_path, store, 5)
    assert json.loads((checkpoints_dir(tmp_path) / "latest" / INFO).read_text())["format"] == 2
    writing.commit(writing.begin(tmp_path, 6), WHOLE, "stage: {}\n", info(6), CheckpointConfig())
    whole = json.loads((checkpoints_dir(tmp_path) / "latest" / INFO).read_text())
    assert whole["format"] == 1 and "parts" not in whole  # which older versions read


def test_every_tensor_that_is_not_finite_is_found() -> None:
    for size in (1, 7, 10_000):
        for position in (0, size // 2, size - 1):
            for bad in (torch.nan, torch.inf, -torch.inf):
                tensor = torch.randn(size)
                assert writing.is_finite(tensor)
                tensor[position] = bad
                assert not writing.is_finite(tensor)
    assert not writing.is_finite(torch.tensor([torch.inf, -torch.inf]))
    assert writing.is_finite(torch.full((4,), 3e38))  # whose sum is not
    assert writing.is_finite(torch.zeros(0))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "reverse"])
@pytest.mark.parametrize("file", [part_name(UNET, 1, 2), part_name(OPTIMIZER, 0, 2), INDEX])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path, store: TCPStore, damage: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (5, 6):
        write_both(tmp_path, store, step)
    path = checkpoints_dir(tmp_path) / "step-00000006" / file
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "reverse":
        path.write_bytes(data[:-8] + data[:-9:-1])
    else:
        path.unlink()
    found = latest(tmp_path)
    assert found is not None and found.info.step == 5
    assert file in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_with_a_full_disk_is_waited_for(
    tmp_path: Path, store: TCPStore, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, write = [2], module.write_part

    def failing(path: Path, pieces: list[Piece]) -> dict[str, Any]:
        if f"{rank:05d}-of" in path.name and left[0]:
            left[0] -= 1
            path.write_bytes(b"half")
            raise DISK_FULL
        return write(path, pieces)

    monkeypatch.setattr(module, "write_part", failing)
    monkeypatch.setattr(files, "RETRY", 0.01)
    assert not write_both(tmp_path, store, 5)
    found = latest(tmp_path)
    assert found is not None and torch.equal(found.weights("raw")["b"], WHOLE[UNET]["b"])


def test_a_rank_that_cannot_write_or_is_not_finite_leaves_the_checkpoint_before(
    tmp_path: Path, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(tmp_path, store, 5)
    monkeypatch.setattr("gen1_train.training.checkpoints.writer.LATE", 0.0)
    monkeypatch.setattr("gen1_train.training.checkpoints.reports.SLICE", 0.01)
    broken = write_both(tmp_path, store, 6, patience=0, **{UNET: [Piece("b", 3, torch.full((4,), torch.nan))]})
    assert any("1 of 1 tensors of unet.safetensors are not finite at step 6, such as b" in str(e) for e in broken)
    assert any("rank 1 has not written its part of checkpoint" in str(error) for error in broken)
    found = latest(tmp_path)
    assert found is not None and found.info.step == 5


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_whose_store_is_gone_ends_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The store is in rank 0's process, and what ended that one is reported elsewhere."""
    failures: list[UserError] = []
    store = TCPStore("localhost", 0, 1, is_master=True)
    other = TCPStore("localhost", store.port, 1, is_master=False)
    del store
    with suppress(DistError):  # the first request only fills a buffer
        other.set("any", "")
        other.get("any")
    writer = Writer(tmp_path, CheckpointConfig(), "stage: {}\n", failures.append)
    writer.write_parts(pieces(1), SHAPES, 5, None, "unique", Reports(other, 1, 2), 0.0)
    writer.wait()
    assert not failures and "Traceback" not in capsys.readouterr().err


def test_publishing_is_continued_where_it_stopped(
    tmp_path: Path, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, point = [1], writing.point

    def failing(final: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise DISK_FULL
        point(final)

    monkeypatch.setattr(writing, "point", failing)
    monkeypatch.setattr(files, "RETRY", 0.01)
    assert not write_both(tmp_path, store, 5)
    assert read_checkpoint(checkpoints_dir(tmp_path) / "latest").info.step == 5


def test_too_little_room_for_all_is_noticed_before_anything_is_written(
    tmp_path: Path, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gen1_train.training.checkpoints.writer.LATE", 0.0)
    monkeypatch.setattr("gen1_train.training.checkpoints.reports.SLICE", 0.01)
    needed = 4 * sum(tensor.numel() for content in WHOLE.values() for tensor in content.values())

    class Usage:
        free = needed - 1

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    failures = write_both(tmp_path, store, 5, patience=0)
    assert all("are free there" in str(error) for error in failures) and len(failures) == 2
    assert not list(checkpoints_dir(tmp_path).glob(".step-*/*"))
