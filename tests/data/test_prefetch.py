"""What the prefetcher copies, in which order, what it evicts, and how it fails; all in this process, turn by turn."""

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
from gen1_train.data.prefetch import AHEAD, Copier, Job, Plan
from gen1_train.data.shards import Manifest, Shard
from gen1_train.errors import UserError
from tests.made import make_shard_set
from tests.video.web import serve

PLENTY = 1 << 40


@dataclass
class Count:
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


def job_of(source: Path | str, cache: Path, table: list[list[Shard]], budget: int = PLENTY, copies: int = 1) -> Job:
    return Job(
        str(source), cache, table.__getitem__, 0, len(table), budget, present={}, copies=copies, pauses=(0.0, 0.0, 0.0)
    )


def there(cache: Path) -> set[str]:
    return {path.name for path in (cache / "shards").glob("*.tar")}


def taken(cache: Path) -> int:
    """Bytes of all files there. Copies go on meanwhile, and a file that is just renamed is counted once."""
    sizes = {}
    for path in (cache / "shards").iterdir():
        with suppress(FileNotFoundError):
            facts = path.stat()
            sizes[facts.st_ino] = facts.st_size
    return sum(sizes.values())


def turns(copier: Copier) -> Iterator[None]:
    """Takes turns until there is nothing to do, and stops for a look after each."""
    while True:
        busy = copier.turn()
        yield
        if not busy:
            if not copier.coming:
                return
            copier.wait()


def finish(copier: Copier) -> None:
    for _ in turns(copier):
        pass


@contextmanager
def caught() -> Iterator[list[str]]:
    """The one line of the UserError that the block must raise."""
    lines: list[str] = []
    with pytest.raises(UserError) as error:
        yield lines
    lines.append(str(error.value))
    assert "\n" not in lines[0]


def test_shards_come_in_the_order_of_need_and_are_those_of_the_source(source: Path, cache: Path) -> None:
    a, b, c, d, *_ = shards_of(source)
    copier = Copier(job_of(source, cache, [[c, a], [a, d], [c], [b, d]]), Count(), copied := Count())
    order: list[str] = []
    for _ in turns(copier):
        order += sorted(there(cache) - set(order))
        for name in there(cache):
            assert index_path(cache / "shards" / name).exists()  # a reader that waits for the tar finds the index
    assert order == [shard.name for shard in (c, a, d, b)]
    for path in (cache / "shards").iterdir():
        assert path.read_bytes() == (source / "shards" / path.name).read_bytes()
    assert copied.value == sum(path.stat().st_size for path in (cache / "shards").iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_is_kept_and_nothing_needed_goes(source: Path, cache: Path, seed: int) -> None:
    chance = random.Random(seed)
    shards = shards_of(source)
    table = [chance.sample(shards, chance.randint(1, 3)) for _ in range(25)]
    least = max(sum(size_of(source, shard) for shard in step) for step in table)
    budget = least + chance.choice([0, size_of(source, shards[0])])
    step = Count()
    copier = Copier(job_of(source, cache, table, budget, copies=chance.randint(1, 3)), step, Count())
    before: set[str] = set()
    for step.value in range(len(table)):
        for _ in turns(copier):
            assert taken(cache) <= budget
            needed = {shard.name for wanted in table[step.value : copier.plan.horizon] for shard in wanted}
            assert not (before - there(cache)) & needed
            before = there(cache)
        assert {shard.name for shard in table[step.value]} <= there(cache)


def test_it_copies_as_far_ahead_as_the_budget_allows(source: Path, cache: Path) -> None:
    shards = shards_of(source)
    budget = sum(size_of(source, shard) for shard in shards[:4]) + shards[0].bytes // 2
    step = Count()
    copier = Copier(job_of(source, cache, [[shard] for shard in shards], budget), step, Count())
    finish(copier)
    assert there(cache) == {shard.name for shard in shards[:4]}
    step.value = 1
    finish(copier)
    assert there(cache) == {shard.name for shard in shards[1:5]}


def test_what_is_longest_unneeded_goes_first() -> None:
    a, b, c, d = (Shard(name, 1, 10, 0) for name in "abcd")
    plan = Plan([[b], [a], [a, c], [d]].__getitem__, 0, 4, 35, present={"a": 10, "b": 10, "c": 10})
    while plan.missing is None and plan.walk():
        pass
    assert plan.missing == d
    assert plan.begin(d, 10) is None  # steps 0 to 3 read all of it
    plan.advance(2)
    assert plan.begin(d, 10) == ["b"]
    assert plan.used == 30


def test_a_shard_that_is_needed_again_stays() -> None:
    a, b, c = (Shard(name, 1, 10, 0) for name in "abc")
    plan = Plan([[a], [b], [a], [c]].__getitem__, 0, 4, 20, present={"a": 10, "b": 10})
    while plan.missing is None and plan.walk():
        pass
    plan.advance(1)
    assert plan.begin(c, 10) is None
    plan.advance(2)
    assert plan.begin(c, 10) == ["b"]


def test_the_walk_ends_where_it_must() -> None:
    a = Shard("a", 1, 10, 0)
    plan = Plan(lambda step: [a], 5, 10**9, 20, present={"a": 10})
    while plan.walk():
        pass
    assert plan.horizon == 5 + AHEAD
    plan.advance(6)
    assert plan.walk() and not plan.walk()
    plan = Plan(lambda step: [a], 5, 9, 20, present={"a": 10})
    while plan.walk():
        pass
    assert plan.horizon == 9


def test_a_trainer_that_leaps_ahead_is_followed() -> None:
    a, b, c = (Shard(name, 1, 10, 0) for name in "abc")
    plan = Plan([[a], [b], [c], [c]].__getitem__, 0, 4, 10, present={"a": 10})
    assert plan.walk() and plan.walk() and plan.missing == b
    plan.advance(3)
    assert plan.missing is None
    assert plan.walk() and plan.missing == c
    assert plan.begin(c, 10) == ["a"]


def test_what_is_there_is_not_copied_again(source: Path, cache: Path) -> None:
    a, b, c, *_ = shards_of(source)
    for path in (source / "shards").iterdir():
        shutil.copy(path, cache / "shards")
    job = job_of("/nowhere", cache, [[a], [b], [c]])
    finish(Copier(replace(job, present={shard.name: shard.bytes for shard in (a, b, c)}), Count(), copied := Count()))
    assert copied.value == 0


def test_a_bucket_will_do(source: Path, cache: Path) -> None:
    MemoryFileSystem().put(str(source), "/bucket/set", recursive=True)
    shard = shards_of(source)[0]
    finish(Copier(job_of("memory://bucket/set", cache, [[shard]]), Count(), Count()))
    assert (cache / "shards" / shard.name).read_bytes() == (source / "shards" / shard.name).read_bytes()


def test_a_failing_server_is_tried_again_and_then_told(
    source: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(source) as web, caught() as lines:
        finish(Copier(job_of(f"{web.url}/broken", cache, [shards_of(source)[:1]]), Count(), Count()))
    assert capsys.readouterr().out.count("is tried again in 0 s: 503") == 3
    assert "broken/shards/" in lines[0] and "503" in lines[0] and "tried 4 times" in lines[0]


def fail_then_copy(monkeypatch: pytest.MonkeyPatch, failures: list[OSError | None]) -> None:
    """copy_file raises these errors, one at each call, and cuts a file off for None; then it works."""
    copy = prefetch.copy_file

    def failing(place: str, target: Path) -> None:
        failure = failures.pop(0) if failures else False
        if isinstance(failure, OSError):
            target.write_bytes(b"half")
            raise failure
        copy(place, target)
        if failure is None:
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(prefetch, "copy_file", failing)


def test_a_passing_failure_costs_another_try(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.EIO, "Input/output error"), None]
    fail_then_copy(monkeypatch, failures)
    shard = shards_of(source)[0]
    finish(Copier(job_of(source, cache, [[shard]]), Count(), Count()))
    assert failures == []
    assert (cache / "shards" / shard.name).read_bytes() == (source / "shards" / shard.name).read_bytes()


def test_a_copy_that_is_cut_off_never_gets_its_name(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_then_copy(monkeypatch, [None] * 4)
    shard = shards_of(source)[0]
    with caught() as lines:
        finish(Copier(job_of(source, cache, [[shard]]), Count(), Count()))
    assert f"{shard.bytes - 1} bytes and should have {shard.bytes}" in lines[0] and shard.name in lines[0]
    assert [path.name for path in (cache / "shards").iterdir()] == [index_path(Path(shard.name)).name]


def test_another_index_than_the_frozen_one_is_refused(source: Path, cache: Path) -> None:
    shard = replace(shards_of(source)[0], crc32=1)
    with caught() as lines:
        finish(Copier(job_of(source, cache, [[shard]]), Count(), Count()))
    assert ".index cannot be copied (its crc32 differs" in lines[0]


def test_a_full_disk_is_said_as_such(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENOSPC, "No space left on device"), None]
    fail_then_copy(monkeypatch, failures)
    with caught() as lines:
        finish(Copier(job_of(source, cache, [shards_of(source)[:1]]), Count(), Count()))
    assert f"the disk of {cache} is full" in lines[0] and "data.cache_gigabytes" in lines[0]
    assert failures == [None]  # waiting would not make room


def test_a_step_beyond_the_budget_is_told_with_what_it_takes(source: Path, cache: Path) -> None:
    gigabytes = [replace(shard, bytes=3 * 10**9) for shard in shards_of(source)[:2]]
    with caught() as lines:
        finish(Copier(job_of(source, cache, [[], [], gigabytes], 5 * 10**9), Count(), Count()))
    assert "step 2 reads 2 shards of 6 GB" in lines[0] and "data.cache_gigabytes=5 " in lines[0]
    assert "set data.cache_gigabytes=6.0 or more, or lower data.window or data.lanes" in lines[0]


def test_a_budget_without_room_for_the_index_is_too_small(source: Path, cache: Path) -> None:
    a, b, *_ = shards_of(source)
    budget = size_of(source, a) + size_of(source, b) - 1
    step = Count()
    copier = Copier(job_of(source, cache, [[a], [a, b]], budget), step, Count())
    finish(copier)  # step 0 can be taken
    step.value = 1
    with caught() as lines:
        finish(copier)
    assert "step 1 reads 2 shards" in lines[0]
