"""The prefetcher: its copies, their order, evictions and failures; in this process, the copier one step at a time."""

import errno
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gen1_train.data import prefetch
from gen1_train.data.index import index_path
from gen1_train.data.manifest import Manifest, Shard
from gen1_train.data.prefetch import LOOK_AHEAD, Copier, CopyPlan, PrefetchJob
from gen1_train.errors import UserError
from gen1_train.system.console import console
from tests.made import make_shard_set
from tests.video.web import serve

PLENTY = 1 << 40


@dataclass
class Value:
    value: int = 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards; tests that damage something copy them first."""
    return make_shard_set(tmp_path_factory.mktemp("source"), clips=12, images=18, frames=2, shards=6)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    return tmp_path / "cache"


def shards_of(source: Path) -> list[Shard]:
    return [shard for pool in Manifest.load(source).pools.values() for shard in pool.shards]


def size_of(source: Path, shard: Shard) -> int:
    return shard.bytes + index_path(source / "shards" / shard.name).stat().st_size


def job_of(
    source: Path | str, cache: Path, table: list[list[Shard]], budget: int = PLENTY, copies: int = 1
) -> PrefetchJob:
    return PrefetchJob(
        root=str(source),
        folder=cache,
        step_shards=table.__getitem__,
        start=0,
        stop=len(table),
        budget=budget,
        present={},
        copies=copies,
        pauses=(0.0, 0.0, 0.0),
    )


def arrived(cache: Path) -> set[str]:
    return {path.name for path in (cache / "shards").glob("*.tar")}


def disk_usage(cache: Path) -> int:
    """Bytes of all files in the cache. Copies may be running, so a file that is renamed meanwhile is counted once."""
    sizes = {}
    for path in (cache / "shards").iterdir():
        with suppress(FileNotFoundError):
            stat = path.stat()
            sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def run_steps(copier: Copier) -> Iterator[None]:
    """Runs the copier until there is nothing to do, and yields after each of its steps."""
    while True:
        busy = copier.run_once()
        yield
        if not busy:
            if not copier.in_flight:
                return
            copier.wait()


def finish(copier: Copier) -> None:
    for _ in run_steps(copier):
        pass


@contextmanager
def raises_user_error() -> Iterator[list[str]]:
    """Expects a UserError from the block, and yields a list that then holds its message, which must be one line."""
    lines: list[str] = []
    with pytest.raises(UserError) as error:
        yield lines
    lines.append(str(error.value))
    assert "\n" not in lines[0]


def test_shards_are_copied_exactly_and_in_the_order_of_need(source: Path, cache: Path) -> None:
    a, b, c, d, *_ = shards_of(source)
    copier = Copier(job_of(source, cache, [[c, a], [a, d], [c], [b, d]]), Value(), copied := Value())
    order: list[str] = []
    for _ in run_steps(copier):
        order += sorted(arrived(cache) - set(order))
        for name in arrived(cache):
            assert index_path(cache / "shards" / name).exists()  # a reader that waits for the tar finds the index
    assert order == [shard.name for shard in (c, a, d, b)]
    for path in (cache / "shards").iterdir():
        assert path.read_bytes() == (source / "shards" / path.name).read_bytes()
    assert copied.value == sum(path.stat().st_size for path in (cache / "shards").iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_holds_and_no_needed_shard_is_evicted(source: Path, cache: Path, seed: int) -> None:
    rng = random.Random(seed)
    shards = shards_of(source)
    table = [rng.sample(shards, rng.randint(1, 3)) for _ in range(25)]
    minimum = max(sum(size_of(source, shard) for shard in step) for step in table)
    budget = minimum + rng.choice([0, size_of(source, shards[0])])
    step = Value()
    copier = Copier(job_of(source, cache, table, budget, copies=rng.randint(1, 3)), step, Value())
    before: set[str] = set()
    for step.value in range(len(table)):
        for _ in run_steps(copier):
            assert disk_usage(cache) <= budget
            needed = {shard.name for known in table[step.value : copier.plan.horizon] for shard in known}
            assert not (before - arrived(cache)) & needed
            before = arrived(cache)
        assert {shard.name for shard in table[step.value]} <= arrived(cache)


def test_it_copies_as_far_ahead_as_the_budget_allows(source: Path, cache: Path) -> None:
    shards = shards_of(source)
    budget = sum(size_of(source, shard) for shard in shards[:4]) + shards[0].bytes // 2
    step = Value()
    copier = Copier(job_of(source, cache, [[shard] for shard in shards], budget), step, Value())
    finish(copier)
    assert arrived(cache) == {shard.name for shard in shards[:4]}
    step.value = 1
    finish(copier)
    assert arrived(cache) == {shard.name for shard in shards[1:5]}


def test_the_shard_that_is_unneeded_for_longest_is_evicted_first() -> None:
    a, b, c, d = (Shard(name, 1, 10, 0) for name in "abcd")
    plan = CopyPlan([[b], [a], [a, c], [d]].__getitem__, 0, 4, 35, present={"a": 10, "b": 10, "c": 10})
    while plan.next_missing is None and plan.look_ahead():
        pass
    assert plan.next_missing == d
    assert plan.begin_copy(d, 10) is None  # steps 0 to 3 read all that is held
    plan.advance(2)
    assert plan.begin_copy(d, 10) == ["b"]
    assert plan.used == 30


def test_a_shard_that_is_needed_again_stays() -> None:
    a, b, c = (Shard(name, 1, 10, 0) for name in "abc")
    plan = CopyPlan([[a], [b], [a], [c]].__getitem__, 0, 4, 20, present={"a": 10, "b": 10})
    while plan.next_missing is None and plan.look_ahead():
        pass
    plan.advance(1)
    assert plan.begin_copy(c, 10) is None
    plan.advance(2)
    assert plan.begin_copy(c, 10) == ["b"]


def test_looking_ahead_ends_at_the_limit_and_at_the_last_step() -> None:
    a = Shard("a", 1, 10, 0)
    plan = CopyPlan(lambda step: [a], 5, 10**9, 20, present={"a": 10})
    while plan.look_ahead():
        pass
    assert plan.horizon == 5 + LOOK_AHEAD
    plan.advance(6)
    assert plan.look_ahead() and not plan.look_ahead()
    plan = CopyPlan(lambda step: [a], 5, 9, 20, present={"a": 10})
    while plan.look_ahead():
        pass
    assert plan.horizon == 9


def test_the_plan_follows_a_trainer_that_skips_ahead() -> None:
    a, b, c = (Shard(name, 1, 10, 0) for name in "abc")
    plan = CopyPlan([[a], [b], [c], [c]].__getitem__, 0, 4, 10, present={"a": 10})
    assert plan.look_ahead() and plan.look_ahead() and plan.next_missing == b
    plan.advance(3)
    assert plan.next_missing is None
    assert plan.look_ahead() and plan.next_missing == c
    assert plan.begin_copy(c, 10) == ["a"]


def test_present_shards_are_not_copied_again(source: Path, cache: Path) -> None:
    a, b, c, *_ = shards_of(source)
    for path in (source / "shards").iterdir():
        shutil.copy(path, cache / "shards")
    job = job_of("/nowhere", cache, [[a], [b], [c]])
    finish(Copier(replace(job, present={shard.name: shard.bytes for shard in (a, b, c)}), Value(), copied := Value()))
    assert copied.value == 0


def test_shards_are_copied_from_a_bucket(source: Path, cache: Path) -> None:
    MemoryFileSystem().put(str(source), "/bucket/set", recursive=True)
    shard = shards_of(source)[0]
    finish(Copier(job_of("memory://bucket/set", cache, [[shard]]), Value(), Value()))
    assert (cache / "shards" / shard.name).read_bytes() == (source / "shards" / shard.name).read_bytes()


def test_a_failing_server_is_retried_and_then_an_error(
    source: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(source) as web, raises_user_error() as lines, console("gen1-train"):
        finish(Copier(job_of(f"{web.url}/broken", cache, [shards_of(source)[:1]]), Value(), Value()))
    printed = capsys.readouterr().out
    assert printed.count("gen1-train: warning: copying ") == printed.count(" is retried in 0 s: 503") == 3
    assert "broken/shards/" in lines[0] and "503" in lines[0] and "tried 4 times" in lines[0]


def fail_then_copy(monkeypatch: pytest.MonkeyPatch, failures: list[OSError | None]) -> None:
    """Makes copy_file raise these errors, one per call, and truncate the file for None. Then it works again."""
    copy = prefetch.copy_file

    def failing(location: str, target: Path, most: int) -> None:
        failure = failures.pop(0) if failures else False
        if isinstance(failure, OSError):
            target.write_bytes(b"half")
            raise failure
        copy(location, target, most=most)
        if failure is None:
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(prefetch, "copy_file", failing)


def test_transient_failures_are_retried(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.EIO, "Input/output error"), None]
    fail_then_copy(monkeypatch, failures)
    shard = shards_of(source)[0]
    finish(Copier(job_of(source, cache, [[shard]]), Value(), Value()))
    assert failures == []
    assert (cache / "shards" / shard.name).read_bytes() == (source / "shards" / shard.name).read_bytes()


def test_a_truncated_copy_never_gets_its_final_name(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_then_copy(monkeypatch, [None] * 4)
    shard = shards_of(source)[0]
    with raises_user_error() as lines:
        finish(Copier(job_of(source, cache, [[shard]]), Value(), Value()))
    assert f"arrived with {shard.bytes - 1} bytes instead of {shard.bytes}" in lines[0] and shard.name in lines[0]
    assert [path.name for path in (cache / "shards").iterdir()] == [index_path(Path(shard.name)).name]


def test_an_index_that_does_not_match_the_manifest_is_refused(source: Path, cache: Path) -> None:
    shard = replace(shards_of(source)[0], crc32=1)
    with raises_user_error() as lines:
        finish(Copier(job_of(source, cache, [[shard]]), Value(), Value()))
    assert ".index cannot be copied (its crc32 differs" in lines[0]


def test_a_full_disk_is_an_error_without_a_retry(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENOSPC, "No space left on device"), None]
    fail_then_copy(monkeypatch, failures)
    with raises_user_error() as lines:
        finish(Copier(job_of(source, cache, [shards_of(source)[:1]]), Value(), Value()))
    assert f"the disk of {cache} is full" in lines[0] and "data.cache_gigabytes" in lines[0]
    assert failures == [None]  # a retry would not help


def test_a_step_that_exceeds_the_budget_is_an_error_with_the_needed_size(source: Path, cache: Path) -> None:
    gigabytes = [replace(shard, bytes=3 * 10**9) for shard in shards_of(source)[:2]]
    with raises_user_error() as lines:
        finish(Copier(job_of(source, cache, [[], [], gigabytes], 5 * 10**9), Value(), Value()))
    assert "step 2 reads 2 shards (6 GB)" in lines[0] and "data.cache_gigabytes=5 " in lines[0]
    assert "set data.cache_gigabytes=6.0 or more, or lower data.window or data.lanes" in lines[0]


def test_a_budget_without_room_for_the_index_is_too_small(source: Path, cache: Path) -> None:
    a, b, *_ = shards_of(source)
    budget = size_of(source, a) + size_of(source, b) - 1
    step = Value()
    copier = Copier(job_of(source, cache, [[a], [a, b]], budget), step, Value())
    finish(copier)  # there is room for step 0
    step.value = 1
    with raises_user_error() as lines:
        finish(copier)
    assert "step 1 reads 2 shards" in lines[0]
