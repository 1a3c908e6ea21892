"""Freezes all finished tasks into a shard set: shards in a keyed random order, indices, and last the manifest.

A sample is copied as it is in its task's tar, headers included. A shard that has its index is whole and verified, so a
freeze that was killed resumes with the next shard.
"""

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.failures import FAILURES, Failure, to_lines
from data_tools.plan import Plan
from data_tools.recipe import RecipeConfig
from data_tools.stats import merge_stats
from data_tools.task import STAGING, TaskResult, load_result, parse_staged, read_staged, task_folder
from gen1_train.batch import Pool
from gen1_train.data.manifest import MANIFEST, Manifest, PoolShards, Shard
from gen1_train.data.pack import PADDING, seal, sealed_shard, verified_tar
from gen1_train.errors import UserError
from gen1_train.system.console import progress
from gen1_train.system.files import own_folder, refuse_link, remove_leftovers, write_atomically
from gen1_train.system.names import member_name

STARTED = "freezing"  # in the staging: the hash of the samples of which the existing shards were made
PACKAGES = (
    "av",
    "decord",
    "scenedetect-headless",
    "opencv-python-headless",
    "pillow",
    "numpy",
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "ai-edge-litert",
    "webdataset",
)

# a sample in the staging: two halves of its position in the random order, and where it and its index line are
STAGED = np.dtype(
    [("high", "u8"), ("low", "u8"), ("task", "u4"), ("start", "u8"), ("size", "u8"), ("line", "u8"), ("length", "u4")]
)


def load_frozen(output: Path, plan: Plan) -> Manifest | None:
    """Returns the manifest of the set that this plan has already frozen, or None. Raises UserError."""
    if not (output / MANIFEST).exists():
        return None
    manifest = Manifest.load(output)
    if manifest.plan != plan.hash:
        raise UserError(f"output={output} holds a set of another plan: name another output, or remove it")
    return manifest


def freeze(plan: Plan, recipe: RecipeConfig, output: Path, threads: int = 1) -> Manifest:
    """Writes shards, failures, statistics and the manifest, and removes the staging. Raises UserError.

    The staging stays if there are transient failures: `retry=transient` needs it.
    """
    results = load_results(plan, output)
    estimators = common_estimators(results)
    unused = plan.read_failures(output)
    failures = [*unused, *(failure for result in results for failure in result.failures)]
    failures.sort(key=lambda failure: (failure.file, failure.start or 0.0, failure.reason))
    pools, digest = collect(results, recipe, output)
    try:
        write_atomically(output / FAILURES, to_lines(failures))
        if not pools:
            raise UserError(f"the source gave no sample; {most_common_failure(failures)}")
        stats = merge_stats(result.stats for result in results)
        for failure in unused:
            stats.add_failure(failure)
        stats.save(output)
        prepare_shard_folder(digest, output)
        shards = write_shards(pools, recipe, output, threads)
        manifest = Manifest(shards, plan.recipe, estimators, plan.hash, package_versions())
        manifest.save(output)
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror or error}): run it again, what is finished is kept"
        ) from error
    if not any(failure.transient for failure in failures):
        remove_staging(output)
    return manifest


def remove_staging(output: Path) -> None:
    """Removes the files that only a freeze needs."""
    shutil.rmtree(output / STAGING, ignore_errors=True)


def load_results(plan: Plan, output: Path) -> list[TaskResult]:
    """Returns the results of all tasks. Raises UserError if one is missing."""
    results = [load_result(output, number, plan.hash) for number in range(len(plan.tasks))]
    missing = [number for number, result in enumerate(results) if result is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(results)} tasks are not done (the first is task {missing[0]}): run step=all, or "
            f"step=task task={missing[0]}"
        )
    return [result for result in results if result is not None]


def collect(results: list[TaskResult], recipe: RecipeConfig, output: Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns pool -> all its samples (STAGED) in their final order, and a hash of all samples. Raises UserError.

    The order is that of a keyed hash of the keys, so neighbors in a shard come from different videos, and the division
    into tasks has no effect. Takes 44 bytes per sample.
    """
    pools: dict[str, list[np.ndarray]] = {}
    digest = hashlib.sha256(f"{recipe.shard_megabytes} {recipe.seed}".encode())
    for number, result in enumerate(results):
        for pool, lines, size in read_staged(output, number, result):
            digest.update(f"{pool}.index".encode() + lines)
            try:
                pools.setdefault(pool, []).append(_staged(lines, number, size, recipe.seed))
            except ValueError as error:
                folder = task_folder(output, number)
                raise UserError(f"{folder / pool}.index: {error}: remove {folder} and run the task again") from error
    ordered = {}
    for name, parts in sorted(pools.items()):
        samples = np.concatenate(parts)
        ordered[name] = samples[np.lexsort((samples["low"], samples["high"]))]
        equal = (np.diff(ordered[name]["high"]) == 0) & (np.diff(ordered[name]["low"]) == 0)
        if equal.any():
            key = _key(output, name, ordered[name][int(equal.argmax())])
            raise UserError(f"two samples of {name} have the key {key}: give the files other ids, and plan again")
    return ordered, digest.hexdigest()


def _key(output: Path, pool: str, row: np.void) -> str:
    with Staging(output, pool) as staging:
        return staging.line(row)[0]


def _staged(lines: bytes, task: int, limit: int, seed: int) -> np.ndarray:
    """Returns the samples of one tar, of `limit` bytes, of one task, read from its index. Raises ValueError."""
    rows = []
    offset = 0
    for line in lines.splitlines(keepends=True):
        key, start, size, _ = parse_staged(line, limit)
        digest = hashlib.blake2b(f"freeze {seed} {key}".encode(), digest_size=16).digest()
        high = int.from_bytes(digest[:8], "big")
        low = int.from_bytes(digest[8:], "big")
        rows.append((high, low, task, start, size, offset, len(line)))
        offset += len(line)
    return np.array(rows, STAGED)


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    pool: str
    tar: Path
    samples: np.ndarray  # STAGED


def write_shards(
    pools: dict[str, np.ndarray], recipe: RecipeConfig, output: Path, threads: int
) -> dict[str, PoolShards]:
    """Writes all missing shards, several at a time. Raises OSError."""
    jobs = [
        ShardJob(name, output / "shards" / f"{name}-{number:06d}.tar", part)
        for name, samples in pools.items()
        for number, part in enumerate(split(samples, recipe.shard_megabytes << 20))
    ]
    total = sum(int(samples["size"].sum()) for samples in pools.values())
    written: dict[str, list[Shard]] = {name: [] for name in pools}
    with (
        ThreadPoolExecutor(threads) as workers,
        progress(title="freeze", unit="B", total=total, scale=True) as bar,
    ):
        for job, shard in zip(jobs, workers.map(lambda job: write_shard(job, output), jobs)):
            written[job.pool].append(shard)
            bar.update(int(job.samples["size"].sum()))
    shards_of_pool = {}
    for name, shards in written.items():
        pool = Pool.named(name, recipe.cut.frames)
        shards_of_pool[name] = PoolShards(**asdict(pool), shards=tuple(shards))
    return shards_of_pool


def prepare_shard_folder(digest: str, output: Path) -> None:
    """Keeps the shards that a killed freeze of exactly these samples has written; removes all others."""
    marker = output / STAGING / STARTED
    refuse_link(output / "shards")
    if not marker.exists() or marker.read_text() != digest:
        shutil.rmtree(output / "shards", ignore_errors=True)
        write_atomically(marker, digest.encode())
    own_folder(output, "shards")
    remove_leftovers(output / "shards")  # a shard that was being written when the freeze was killed


def write_shard(job: ShardJob, output: Path) -> Shard:
    """Copies the samples of one shard, verifies it, and writes its index last. Raises OSError."""
    if (shard := sealed_shard(job.tar)) is not None:
        return shard
    with Staging(output, job.pool) as staging, verified_tar(job.tar) as (stream, checksums, entries):
        for row in job.samples:
            key, members = staging.line(row)
            checksums[key] = members
            stream.write(staging.sample(row))
        stream.write(PADDING)
    return seal(job.tar, entries)


class Staging:
    """Reads samples and their index lines from the tasks' folders. Use as a context."""

    def __init__(self, output: Path, pool: str) -> None:
        self.output = output
        self.pool = pool
        self._descriptors: dict[tuple[int, str], int] = {}

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def line(self, row: np.void) -> tuple[str, dict[str, tuple[int, int]]]:
        """Returns the key of a sample, and size and crc32 of its members. Raises OSError."""
        line = self._read(int(row["task"]), "index", int(row["line"]), int(row["length"]))
        try:
            key, _, _, members = parse_staged(line, sys.maxsize)
            return key, {member_name(name): (size, crc32) for name, (_, size, crc32) in members.items()}
        except (ValueError, TypeError) as error:
            folder = task_folder(self.output, int(row["task"]))
            raise OSError(
                None, f"an index in {folder} is damaged ({error}): remove {folder} and run the task again"
            ) from error

    def sample(self, row: np.void) -> bytes:
        """Returns a sample with its headers and padding, as it is in a tar."""
        return self._read(int(row["task"]), "tar", int(row["start"]), int(row["size"]))

    def _read(self, task: int, suffix: str, offset: int, size: int) -> bytes:
        if (task, suffix) not in self._descriptors:
            if len(self._descriptors) > 100:  # a process may open about a thousand files
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = task_folder(self.output, task) / f"{self.pool}.{suffix}"
            self._descriptors[task, suffix] = os.open(path, os.O_RDONLY)
        data = os.pread(self._descriptors[task, suffix], size, offset)
        if len(data) != size:
            path = task_folder(self.output, task) / f"{self.pool}.{suffix}"
            raise OSError(None, f"{path} is shorter than when it was written: remove {path.parent} and run it again")
        return data


def split(samples: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Yields runs of samples; each run is closed once it has `limit` bytes."""
    start, total = 0, 0
    for position, size in enumerate(samples["size"].tolist()):
        total += size
        if total >= limit:
            yield samples[start : position + 1]
            start, total = position + 1, 0
    if start < len(samples):
        yield samples[start:]


def common_estimators(results: list[TaskResult]) -> dict[str, dict[str, Any]]:
    """Returns the networks that made the samples. Raises UserError if the tasks did not all use the same ones."""
    described = {json.dumps(without_architecture(result.estimators), sort_keys=True) for result in results}
    if len(described) > 1:
        raise UserError(
            f"the tasks were made with different weights or precisions: remove {STAGING} in the output and run "
            "them again"
        )
    return results[0].estimators if results else {}


def without_architecture(estimators: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leaves out what tasks of an older version did not record; fingerprints name the weights."""
    return {
        name: {part: value for part, value in entry.items() if part != "architecture"}
        for name, entry in estimators.items()
    }


def most_common_failure(failures: list[Failure]) -> str:
    """Returns one clause about what went wrong most often."""
    if not failures:
        return "no file failed, and no file gave a clip"
    category, count = Counter(failure.category for failure in failures).most_common(1)[0]
    example = next(failure for failure in failures if failure.category == category)
    return f"of {len(failures)} losses {count} are: {category} (for example {example.file}: {example.reason})"


def package_versions() -> dict[str, str]:
    """Returns the versions of the decoders and libraries that processed the samples."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
