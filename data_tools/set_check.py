"""A whole frozen set against its manifest: the shards, what stands beside them, and the keys over each pool."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.shard_check import Problem, Rules, ShardReport, check_shard, key_hash
from gen1_train.children import SPAWN, worker_pool
from gen1_train.data.index import index_path, read_index
from gen1_train.data.shards import MANIFEST, Manifest, Shard
from gen1_train.errors import UserError

Job = tuple[Path, Shard, Rules]


def read_manifest(root: Path) -> tuple[Manifest | None, list[Problem]]:
    """The manifest, or what is wrong with it. Raises UserError when there is none."""
    path = root / MANIFEST
    try:
        return Manifest.load(root), []
    except UserError as error:
        if not os.path.exists(path):
            raise
        # the shards are not looked at: nothing says what they should hold
        return None, [Problem(MANIFEST, str(error).removeprefix(f"{path} "))]


def describe(manifest: Manifest) -> str:
    """One clause about the size of a set."""
    counts = ", ".join(f"{name}: {pool.samples} samples" for name, pool in sorted(manifest.pools.items()))
    shards = [shard for pool in manifest.pools.values() for shard in pool.shards]
    return f"{counts}; {sum(shard.bytes for shard in shards) / 1e6:.1f} MB in {len(shards)} shards"


def check_set(root: Path, manifest: Manifest, workers: int) -> list[Problem]:
    """All problems of a set: files that are too many, what is wrong in each shard, keys that a pool has twice."""
    problems = leftovers(root, manifest)
    pools = [pool for _, pool in sorted(manifest.pools.items())]
    jobs = [(root, shard, Rules.of(manifest, pool.pool)) for pool in pools for shard in pool.shards]
    reports = check_shards(jobs, workers)
    for report in reports:
        problems += report.problems
        if report.unlisted:
            problems.append(Problem(f"shards/{report.shard.name}", f"has {report.unlisted} more problems"))
    remaining = iter(reports)
    for pool in pools:
        problems += duplicates(root, [next(remaining) for _ in pool.shards])
    return problems


def leftovers(root: Path, manifest: Manifest) -> list[Problem]:
    """What stands in SET/shards and is not named by the manifest."""
    shards = [Path(shard.name) for pool in manifest.pools.values() for shard in pool.shards]
    known = {str(path) for tar in shards for path in (tar, index_path(tar))}
    try:
        found = sorted(path.name for path in (root / "shards").iterdir())
    except OSError as error:
        return [Problem("shards", f"cannot be listed ({error.strerror or error})")]
    return [Problem(f"shards/{name}", "is not named by the manifest: remove it") for name in found if name not in known]


def duplicates(root: Path, reports: list[ShardReport]) -> list[Problem]:
    """Keys that stand in one pool twice; those whose hashes say so are looked up in the indices."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(report.keys for report in reports)])
    values, counts = np.unique(keys, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    problems: list[Problem] = []
    first: dict[str, str] = {}  # key -> the shard where it stands first
    for report in reports:
        if not repeated.intersection(report.keys.tolist()):
            continue
        shard = report.shard
        for entry in read_index(root / "shards" / shard.name, shard.crc32):
            if key_hash(entry.key) not in repeated:
                continue
            if entry.key in first:
                reason = f"its key is that of another sample too, in shards/{first[entry.key]}"
                problems.append(Problem(f"shards/{shard.name}", reason, entry.key))
            first.setdefault(entry.key, shard.name)
    return problems


def check_shards(jobs: list[Job], workers: int) -> list[ShardReport]:
    """Checks shards, here or in several processes, with a bar of the bytes on a terminal; the reports in order."""
    workers = min(workers, len(jobs))
    total = sum(shard.bytes for _, shard, _ in jobs)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=None) as bar:
        if workers <= 1:
            return [check(job, bar.update) for job in jobs]
        return list(in_processes(jobs, workers, lambda done: bar.update(done - bar.n)))


def in_processes(jobs: list[Job], workers: int, show: Callable[[int], Any]) -> Iterator[ShardReport]:
    """Yields the reports in order; `show` is told every now and then how many bytes have been read by all."""
    done = SPAWN.Value("Q", 0)
    with worker_pool(work, jobs, workers, "use fewer workers", start_worker, done) as futures:
        for future in futures:
            while True:
                try:
                    report = future.result(timeout=0.2)
                    break
                except TimeoutError:
                    show(done.value)
            show(done.value)
            yield report


_done: Any = None  # in a worker process: the counter of bytes that all share


def start_worker(done: Any) -> None:
    global _done
    _done = done


def work(job: Job) -> ShardReport:
    """One shard in a worker process."""

    def advance(count: int) -> None:
        with _done.get_lock():
            _done.value += count

    return check(job, advance)


def check(job: Job, advance: Callable[[int], Any]) -> ShardReport:
    """One shard; in the end `advance` has been told all of its bytes, also when they could not be read."""
    root, shard, rules = job
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size
        advance(size)

    report = check_shard(root, shard, rules, count)
    advance(max(0, shard.bytes - read))
    return report
