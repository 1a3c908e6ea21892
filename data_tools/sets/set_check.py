"""Checks a whole frozen set against its manifest: the shards, the files next to them, and the keys of each pool."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.sets.shard_check import Problem, Rules, ShardReport, check_shard, key_hash
from gen1_train.data.index import index_path, read_index
from gen1_train.data.manifest import MANIFEST, Manifest, Shard
from gen1_train.errors import UserError
from gen1_train.system.console import progress
from gen1_train.system.processes import spawn_context, worker_pool

Job = tuple[Path, Shard, Rules]


def read_manifest(root: Path) -> tuple[Manifest | None, list[Problem]]:
    """Returns the manifest, or what is wrong with it. Raises UserError if there is none."""
    path = root / MANIFEST
    try:
        return Manifest.load(root), []
    except UserError as error:
        if not os.path.exists(path):
            raise
        # the shards are not checked: nothing describes what they should hold
        return None, [Problem(MANIFEST, str(error).removeprefix(f"{path} "))]


def describe(manifest: Manifest) -> str:
    """Returns one clause about the size of a set."""
    counts = ", ".join(f"{name}: {pool.samples} samples" for name, pool in sorted(manifest.pools.items()))
    shards = [shard for pool in manifest.pools.values() for shard in pool.shards]
    return f"{counts}; {sum(shard.bytes for shard in shards) / 1e6:.1f} MB in {len(shards)} shards"


def check_set(root: Path, manifest: Manifest, workers: int) -> list[Problem]:
    """Returns all problems of a set: stray files, errors in each shard, duplicate keys in a pool."""
    problems = stray_files(root, manifest)
    pools = [pool for _, pool in sorted(manifest.pools.items())]
    jobs = [(root, shard, Rules.of(manifest, pool.pool)) for pool in pools for shard in pool.shards]
    reports = check_shards(jobs, workers)
    for report in reports:
        problems += report.problems
        if report.unlisted:
            problems.append(Problem(f"shards/{report.shard.name}", f"has {report.unlisted} more problems"))
    remaining = iter(reports)
    for pool in pools:
        problems += duplicate_keys(root, [next(remaining) for _ in pool.shards])
    return problems


def stray_files(root: Path, manifest: Manifest) -> list[Problem]:
    """Returns the files in SET/shards that the manifest does not name."""
    shards = [Path(shard.name) for pool in manifest.pools.values() for shard in pool.shards]
    known = {str(path) for tar in shards for path in (tar, index_path(tar))}
    try:
        names = sorted(path.name for path in (root / "shards").iterdir())
    except OSError as error:
        return [Problem("shards", f"cannot be listed ({error.strerror or error})")]
    return [Problem(f"shards/{name}", "is not named by the manifest: remove it") for name in names if name not in known]


def duplicate_keys(root: Path, reports: list[ShardReport]) -> list[Problem]:
    """Returns the keys that occur twice in a pool; keys with equal hashes are looked up in the indices."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(report.keys for report in reports)])
    values, counts = np.unique(keys, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    problems: list[Problem] = []
    first: dict[str, str] = {}  # key -> the first shard that holds it
    for report in reports:
        if not repeated.intersection(report.keys.tolist()):
            continue
        shard = report.shard
        for entry in read_index(root / "shards" / shard.name, shard.crc32):
            if key_hash(entry.key) not in repeated:
                continue
            if entry.key in first:
                reason = f"another sample has the same key, in shards/{first[entry.key]}"
                problems.append(Problem(f"shards/{shard.name}", reason, entry.key))
            first.setdefault(entry.key, shard.name)
    return problems


def check_shards(jobs: list[Job], workers: int) -> list[ShardReport]:
    """Checks shards in this process or in several, with a progress bar in bytes; returns the reports in order."""
    workers = min(workers, len(jobs))
    total = sum(shard.bytes for _, shard, _ in jobs)
    with progress(title="verify", unit="B", total=total, scale=True) as bar:
        if workers <= 1:
            return [check_job(job, bar.update) for job in jobs]
        return list(check_in_processes(jobs, workers, bar.update))


def check_in_processes(jobs: list[Job], workers: int, advance: Callable[[int], Any]) -> Iterator[ShardReport]:
    """Yields the reports in order; calls `advance` from time to time with the bytes read since the last call."""
    done = spawn_context().Value("Q", 0)
    reported = 0
    with worker_pool(check_in_worker, jobs, workers, "use fewer workers", start_worker, done) as futures:
        for future in futures:
            report: ShardReport | None = None
            while report is None:
                with suppress(TimeoutError):
                    report = future.result(timeout=0.2)
                total = done.value
                advance(total - reported)
                reported = total
            yield report


_done: Any = None  # in a worker process: the counter of bytes that all share


def start_worker(done: Any) -> None:
    global _done
    _done = done


def check_in_worker(job: Job) -> ShardReport:
    """Checks one shard in a worker process."""

    def advance(count: int) -> None:
        with _done.get_lock():
            _done.value += count

    return check_job(job, advance)


def check_job(job: Job, advance: Callable[[int], Any]) -> ShardReport:
    """Checks one shard. In total `advance` is called with all of its bytes, even if they could not be read."""
    root, shard, rules = job
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size
        advance(size)

    report = check_shard(root, shard, rules, count)
    advance(max(0, shard.bytes - read))
    return report
