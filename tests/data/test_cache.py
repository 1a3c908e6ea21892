"""A node's cache: the manifest is fetched first, a process fills it, and any process may die without leaving damage."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gen1_train.data import cache as cache_module
from gen1_train.data.cache import NodeShards, Prefetcher, fetch_manifest, working_set
from gen1_train.data.index import index_path
from gen1_train.data.loader import BatchPartition
from gen1_train.data.manifest import Manifest, Shard
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import PREFETCH_ERROR, ShardSet
from gen1_train.errors import UserError
from gen1_train.system.console import console
from tests.made import make_shard_set
from tests.running import ENVIRONMENT, REPOSITORY
from tests.video.web import serve

PLENTY = 1 << 30
QUICK = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards; tests that damage something copy them first."""
    return make_shard_set(tmp_path_factory.mktemp("source"), clips=12, images=30, frames=2, shards=3)


@pytest.fixture
def cached(source: Path, tmp_path: Path) -> ShardSet:
    """The set in a cache without any shards."""
    return ShardSet(fetch_manifest(str(source), tmp_path / "cache"))


def shards_of(shards: ShardSet) -> list[Shard]:
    return [shard for pool in shards.manifest.pools.values() for shard in pool.shards]


def start(root: Path | str, cached: ShardSet, table: list[list[Shard]], budget: int = PLENTY) -> Prefetcher:
    """Starts a prefetcher for steps whose shards are given as a table; its process then imports no test module."""
    return Prefetcher(str(root), cached, table.__getitem__, 0, len(table), budget, node=3, copies=2, pauses=QUICK)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone; a zombie counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def arrived(cached: ShardSet) -> set[str]:
    return {path.name for path in (cached.root / "shards").glob("*.tar")}


def message_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_manifest_is_fetched_from_folders_and_urls(source: Path, tmp_path: Path) -> None:
    expected = tmp_path / "cache" / Manifest.load(source).hash[:16]
    MemoryFileSystem().put(str(source / "manifest.json"), "/bucket/made/manifest.json")
    with serve(source) as web:
        for root in (str(source), f"file://{source}", web.url, "memory://bucket/made"):
            assert fetch_manifest(root, tmp_path / "cache") == expected
            assert ShardSet(expected).manifest == Manifest.load(source)
            shutil.rmtree(tmp_path / "cache")


def test_all_ranks_may_fetch_the_manifest_at_once(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as ranks:
        folders = list(ranks.map(lambda _: fetch_manifest(str(source), tmp_path), range(8)))
    assert len(set(folders)) == 1 and ShardSet(folders[0]).manifest == Manifest.load(source)
    assert sorted(path.name for path in folders[0].iterdir()) == ["manifest.json", "shards"]


def test_a_manifest_that_cannot_be_fetched_is_an_error(source: Path, tmp_path: Path) -> None:
    with serve(tmp_path) as web:
        for root in (f"{web.url}/absent", str(tmp_path / "absent"), "memory://absent"):
            with pytest.raises(UserError, match=r"no shard set at data\.root=.*absent: manifest\.json is missing"):
                fetch_manifest(root, tmp_path / "cache")
    (tmp_path / "manifest.json").write_text((source / "manifest.json").read_text().replace('"made"', '"mad"'))
    with pytest.raises(UserError, match="was changed after it was frozen") as error:
        fetch_manifest(str(tmp_path), tmp_path / "cache")
    assert message_of(error).startswith(f"{tmp_path}/manifest.json")
    with pytest.raises(UserError, match=r"data\.root=https://\*\*\*@host/set: a URL must not contain a user") as error:
        fetch_manifest("https://me:secret@host/set", tmp_path / "cache")
    assert "secret" not in message_of(error)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache=.*file cannot be written \(Not a directory\)"):
        fetch_manifest(str(source), tmp_path / "file")


@pytest.mark.parametrize("order", ["global", "blocks"])
@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_shards_of_a_node_are_those_of_its_ranks(source: Path, nodes: int, order: str) -> None:
    shards = ShardSet(source)
    schedule = Schedule(shards, Settings(3, image_ratio=0.25, clips=12, order=order, window=1, lanes=6))
    per_node = 2  # ranks
    for node in range(nodes):
        node_shards = pickle.loads(pickle.dumps(NodeShards(schedule, node, nodes)))
        for number in range(12):
            step = schedule.at(number)
            read = [
                shards.locate(step.pool, schedule.sample(step, slot))[0]
                for rank in range(node * per_node, (node + 1) * per_node)
                for slot in BatchPartition(rank, nodes * per_node, 1).slots(step.size, 0)
            ]
            assert node_shards(number) == list(dict.fromkeys(read))


@pytest.mark.slow
def test_shards_are_copied_and_a_second_start_finds_them(
    source: Path, cached: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, d, *_ = shards_of(cached)
    table = [[a], [a, c], [b], [d]]
    budget = sum(shard.bytes for shard in (a, b, c)) + d.bytes // 2
    with serve(source) as web:
        with console("gen1-train"):
            prefetcher = start(web.url, cached, table, budget)
        wait_for(lambda: arrived(cached) == {a.name, b.name, c.name})
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # meant for the trainer, which saves first
            os.kill(prefetcher._process.pid, number)
        prefetcher.advance(2)
        wait_for(lambda: arrived(cached) == {b.name, c.name, d.name})  # a is longest unneeded
        wait_for(lambda: prefetcher.copied > a.bytes + b.bytes + c.bytes + d.bytes)
        prefetcher.close()
        prefetcher.close()
    line = capsys.readouterr().out
    assert line.startswith(f"gen1-train: node 3: copying shards from {web.url} to {cached.root}, up to 0.000")
    assert line.endswith("0 shards (0 GB) are already there\n") and line.count("\n") == 1
    for shard in (b, c, d):
        for path in (cached.root / "shards" / shard.name, index_path(cached.root / "shards" / shard.name)):
            assert path.read_bytes() == (source / "shards" / path.name).read_bytes()

    (cached.root / "shards" / f".{b.name}.tmp").write_text("half a shard")
    index_path(cached.root / "shards" / c.name).unlink()
    with (cached.root / "shards" / d.name).open("ab") as stream:
        stream.write(b"more")
    (cached.root / PREFETCH_ERROR).write_text("of an earlier start")
    with console("gen1-train"):
        prefetcher = start(source, cached, [[b], [c], [d]])
    assert " 1 shards (" in capsys.readouterr().out and not (cached.root / PREFETCH_ERROR).exists()
    wait_for(lambda: arrived(cached) == {b.name, c.name, d.name})
    wait_for(lambda: prefetcher.copied > c.bytes + d.bytes)
    assert prefetcher.copied < c.bytes + d.bytes + b.bytes
    prefetcher.close()
    assert len(list((cached.root / "shards").iterdir())) == 6
    read = ShardSet(cached.root).read(next(iter(cached.manifest.pools)), a.samples, ("moments",))
    assert read.moments is not None


def test_two_runs_cannot_share_a_cache(cached: ShardSet, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.3)
    prefetcher = start(source, cached, [[]])
    with pytest.raises(UserError, match=r"is in use by another run: give another data\.cache") as error:
        start(source, cached, [[]])
    assert str(cached.root) in message_of(error)
    prefetcher.close()
    start(source, cached, [[]]).close()


def test_a_budget_or_disk_that_is_too_small_is_an_error_at_the_start(
    cached: ShardSet, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, *_ = shards_of(cached)
    with pytest.raises(UserError, match=r"step 1 reads 2 shards .* set data\.cache_gigabytes=.* or lower data\.window"):
        start(source, cached, [[a], [a, b]], budget=a.bytes)
    usage = shutil.disk_usage(cached.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=a.bytes))
    with pytest.raises(UserError, match=r"the disk of .* GB free, .* set data\.cache_gigabytes=0\.0 or less"):
        start(source, cached, [[a], [a, b]])
    assert list((cached.root / "shards").iterdir()) == []
    monkeypatch.undo()
    start(source, cached, [[]]).close()  # the lock was released


@pytest.mark.slow
def test_a_source_that_fails_stops_the_trainer_and_the_loader(
    cached: ShardSet, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "2")  # the prefetcher of another node prints too
    with serve(source) as web:
        with console("gen1-train", ranks=True):
            prefetcher = start(f"{web.url}/broken", cached, [shards_of(cached)[:1]])
        wait_for(lambda: not prefetcher._process.is_alive())
    started, *retries = capfd.readouterr().out.splitlines()
    assert started.startswith("gen1-train: node 3: copying shards from ") and len(retries) == 3
    assert all(line.startswith(f"gen1-train: warning: copying {web.url}/broken/shards/") for line in retries)
    with pytest.raises(UserError, match=r"broken/shards/.* cannot be copied \(503.*tried 4 times\)") as error:
        prefetcher.advance(0)
    assert (cached.root / PREFETCH_ERROR).read_text() == message_of(error)
    assert prefetcher._process.exitcode == 1
    prefetcher.close()


@pytest.mark.slow
def test_a_killed_prefetcher_is_reported(cached: ShardSet, source: Path) -> None:
    prefetcher = start(source, cached, [[]])
    prefetcher.advance(0)
    os.kill(prefetcher._process.pid, signal.SIGKILL)
    wait_for((cached.root / PREFETCH_ERROR).exists)  # the workers see it, even while the trainer waits for them
    with pytest.raises(UserError, match=r"was killed by signal 9 .*run the same command again") as error:
        prefetcher.advance(1)
    assert (cached.root / PREFETCH_ERROR).read_text() == message_of(error)
    prefetcher.close()
    start(source, cached, [[]]).close()


PARENT = """
import sys, time
from gen1_train.data.cache import Prefetcher
from gen1_train.data.shards import ShardSet

if __name__ == "__main__":
    root, folder, end = sys.argv[1:]
    shards = ShardSet(folder)
    table = [pool.shards for pool in shards.manifest.pools.values()]
    prefetcher = Prefetcher(root, shards, table.__getitem__, 0, 1, 1 << 30)
    while not prefetcher.copied:
        time.sleep(0.02)
    print(prefetcher._process.pid, flush=True)
    if end == "killed":
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "finished"])
def test_the_prefetcher_ends_with_its_parent(cached: ShardSet, source: Path, tmp_path: Path, end: str) -> None:
    """The parent is killed, or finishes without closing its prefetcher."""
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(source), str(cached.root), end]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            if end == "killed":
                parent.kill()
            assert parent.wait(60) == (-9 if end == "killed" else 0)
        finally:
            parent.kill()
    wait_for(lambda: has_ended(child))
    start(source, cached, [[]]).close()


@pytest.mark.slow
def test_the_prefetcher_does_not_import_the_libraries_of_the_trainer() -> None:
    heavy = ("pytorch_lightning", "lightning_fabric", "deepspeed", "hydra", "fsspec")
    line = f"import sys, gen1_train.data.cache; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", line], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_the_working_set_is_the_size_of_the_windows_of_all_pools(tmp_path: Path) -> None:
    """The set has 12 shards of clips and 12 of images. A lane reads from window + 1 shards of a pool."""
    shards = ShardSet(make_shard_set(tmp_path / "set", clips=24, images=48, shards=12))
    clips, images = (sum(shard.bytes for shard in shards.pools(kind)[0].shards) for kind in ("video", "image"))
    settings = Settings(0, 0.5, 2, order="blocks", window=1, lanes=4)
    both = Schedule(shards, settings)
    assert working_set(both, nodes=4) == pytest.approx((clips + images) * 2 / 12, rel=0.01)
    assert working_set(both, nodes=2) == pytest.approx((clips + images) * 4 / 12, rel=0.01)
    assert working_set(Schedule(shards, replace(settings, image_ratio=0.0)), nodes=4) == pytest.approx(
        clips / 6, rel=0.01
    )
    assert working_set(Schedule(shards, replace(settings, window=50)), nodes=1) == pytest.approx(
        clips + images, rel=0.01
    )


def test_a_cache_of_others_removes_nothing_elsewhere(source: Path, tmp_path: Path) -> None:
    """The folder of a cache may be one that other users of a node can write to."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    folder = tmp_path / "cache" / Manifest.load(source).hash[:16]
    folder.mkdir(parents=True)
    (folder / "shards").symlink_to(victim)
    for _ in range(2):
        with pytest.raises(UserError, match="shards is a link"):
            fetch_manifest(str(source), tmp_path / "cache")
    (folder / "shards").unlink()
    folder.rmdir()
    folder.symlink_to(victim)
    with pytest.raises(UserError, match="is a link"):
        fetch_manifest(str(source), tmp_path / "cache")
    assert [path.name for path in victim.iterdir()] == ["file"]


def test_only_files_of_the_cache_are_removed_from_it(cached: ShardSet, source: Path, tmp_path: Path) -> None:
    shards = cached.root / "shards"
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("mine")
    (shards / "folder").mkdir()
    (shards / "link").symlink_to(tmp_path / "victim")
    (shards / "gone.tar").symlink_to(tmp_path / "nothing")
    (shards / "stray.tar").write_bytes(b"x")
    start(source, cached, [shards_of(cached)[:1]]).close()
    assert {"link", "gone.tar", "stray.tar"}.isdisjoint(path.name for path in shards.iterdir())
    assert (shards / "folder").is_dir() and (tmp_path / "victim" / "file").read_text() == "mine"
