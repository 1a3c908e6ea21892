"""All finished tasks -> the frozen shard set: shards in a keyed random order, indices, and last of all the manifest.

A sample is copied as it lies in its task's tar, headers and all. A shard that has its index is whole and verified, so a
freeze that was killed goes on with the next one.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.failures import FAILURES, Failure, to_lines
from data_tools.plan import Plan
from data_tools.progress import seconds_between
from data_tools.recipe import RecipeConfig
from data_tools.stats import merged
from data_tools.task import STAGING, TaskResult, load_result, task_folder
from gen1_train.data.pack import PADDING, place, seal, sealed
from gen1_train.data.shards import MANIFEST, Manifest, PoolShards, Shard
from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.video.geometry import parse_bucket

STARTED = "freezing"  # in the staging: the hash of what the shards that are there already were made of
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
    "webdataset",
)

# a sample in the staging: two halves of its place in the random order, and where it and its index line lie
STAGED = np.dtype(
    [("high", "u8"), ("low", "u8"), ("task", "u4"), ("start", "u8"), ("size", "u8"), ("line", "u8"), ("length", "u4")]
)


def frozen(output: Path, plan: Plan) -> Manifest | None:
    """The manifest of a set that this plan has already frozen, if there is one."""
    if not (output / MANIFEST).exists():
        return None
    manifest = Manifest.load(output)
    if manifest.plan != plan.hash:
        raise UserError(f"output={output} holds a set that another plan made: name another output, or remove it")
    return manifest


def freeze(plan: Plan, recipe: RecipeConfig, output: Path, threads: int = 1) -> Manifest:
    """Writes shards, failures, numbers and the manifest, and removes the staging. Raises UserError.

    The staging stays if some failures may pass: `retry=transient` needs it.
    """
    results = finished(plan, output)
    estimators = same_estimators(results)
    untouched = plan.read_failures(output)
    failures = [*untouched, *(failure for result in results for failure in result.failures)]
    failures.sort(key=lambda failure: (failure.file, failure.start or 0.0, failure.reason))
    pools, digest = collect(plan, recipe, output)
    try:
        write_atomically(output / FAILURES, to_lines(failures))
        if not pools:
            raise UserError(f"not one sample came out of the source; {commonest(failures)}")
        stats = merged(result.stats for result in results)
        for failure in untouched:
            stats.add_failure(failure)
        stats.save(output)
        keep_or_clear(digest, output)
        shards = write_shards(pools, recipe, output, threads)
        manifest = Manifest(shards, plan.recipe, estimators, plan.hash, versions())
        manifest.save(output)
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written ({error.strerror or error}); run it again, what is finished is kept"
        ) from error
    if not any(failure.transient for failure in failures):
        remove_staging(output)
    return manifest


def remove_staging(output: Path) -> None:
    """Frees what only a freeze needs."""
    shutil.rmtree(output / STAGING, ignore_errors=True)


def finished(plan: Plan, output: Path) -> list[TaskResult]:
    """The results of all tasks. Raises UserError when one is missing."""
    results = [load_result(output, number, plan.hash) for number in range(len(plan.tasks))]
    missing = [number for number, result in enumerate(results) if result is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(results)} tasks are not done (the first is task {missing[0]}): run step=all, or "
            f"step=task task={missing[0]}"
        )
    return [result for result in results if result is not None]


def collect(plan: Plan, recipe: RecipeConfig, output: Path) -> tuple[dict[str, np.ndarray], str]:
    """Pool -> all its samples (STAGED) in their final order: that of a keyed hash of their keys; and a hash of it all.

    So neighbours in a shard come from different videos, and the cut into tasks leaves no trace. 44 bytes a sample.
    """
    pools: dict[str, list[np.ndarray]] = {}
    everything = hashlib.sha256(f"{recipe.shard_megabytes} {recipe.seed}".encode())
    for number in range(len(plan.tasks)):
        for index in sorted(task_folder(output, number).glob("*.index")):
            lines = index.read_bytes()
            everything.update(index.name.encode() + lines)
            pools.setdefault(index.stem, []).append(_staged(lines, number, recipe.seed))
    ordered = {}
    for name, parts in sorted(pools.items()):
        samples = np.concatenate(parts)
        ordered[name] = samples[np.lexsort((samples["low"], samples["high"]))]
        same = (np.diff(ordered[name]["high"]) == 0) & (np.diff(ordered[name]["low"]) == 0)
        if same.any():
            key = _key(output, name, ordered[name][int(same.argmax())])
            raise UserError(f"two samples of {name} have the key {key}: give the files other ids, and plan again")
    return ordered, everything.hexdigest()


def _key(output: Path, pool: str, row: np.void) -> str:
    with Staging(output, pool) as staging:
        return staging.line(row)[0]


def _staged(lines: bytes, task: int, seed: int) -> np.ndarray:
    """The samples of one tar of one task, by its index."""
    rows = []
    offset = 0
    for line in lines.splitlines(keepends=True):
        key, start, size, _ = json.loads(line)
        digest = hashlib.blake2b(f"freeze {seed} {key}".encode(), digest_size=16).digest()
        high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        rows.append((high, low, task, start, size, offset, len(line)))
        offset += len(line)
    return np.array(rows, STAGED)


@dataclass(frozen=True)
class Work:
    """One shard to write."""

    pool: str
    tar: Path
    samples: np.ndarray  # STAGED


def write_shards(
    pools: dict[str, np.ndarray], recipe: RecipeConfig, output: Path, threads: int
) -> dict[str, PoolShards]:
    """Writes all shards that are not there yet, several at a time. Raises OSError."""
    works = [
        Work(name, output / "shards" / f"{name}-{number:06d}.tar", part)
        for name, samples in pools.items()
        for number, part in enumerate(split(samples, recipe.shard_megabytes << 20))
    ]
    total = sum(int(samples["size"].sum()) for samples in pools.values())
    made: dict[str, list[Shard]] = {name: [] for name in pools}
    with (
        ThreadPoolExecutor(threads) as workers,
        tqdm(total=total, desc="freeze", unit="B", unit_scale=True, mininterval=seconds_between()) as progress,
    ):
        for work, shard in zip(works, workers.map(lambda work: write_shard(work, output), works)):
            made[work.pool].append(shard)
            progress.update(int(work.samples["size"].sum()))
    described = {}
    for name, shards in made.items():
        kind, _, bucket = name.partition("-")
        frames = recipe.cut.frames if kind == "video" else 1
        described[name] = PoolShards(kind, *parse_bucket(bucket), frames, tuple(shards))
    return described


def keep_or_clear(digest: str, output: Path) -> None:
    """Keeps the shards of a freeze of exactly these samples that was killed; removes any others."""
    marker = output / STAGING / STARTED
    if not marker.exists() or marker.read_text() != digest:
        shutil.rmtree(output / "shards", ignore_errors=True)
        write_atomically(marker, digest.encode())
    (output / "shards").mkdir(exist_ok=True)


def write_shard(work: Work, output: Path) -> Shard:
    """Copies the samples of one shard, verifies it, and writes its index last. Raises OSError."""
    if (shard := sealed(work.tar)) is not None:
        return shard
    with Staging(output, work.pool) as staging, place(work.tar) as (stream, checksums, entries):
        for row in work.samples:
            key, members = staging.line(row)
            checksums[key] = {name: (size, crc32) for name, (_, size, crc32) in members.items()}
            stream.write(staging.sample(row))
        stream.write(PADDING)
    return seal(work.tar, entries)


class Staging:
    """Reads samples and their index lines out of the tasks' folders. Use as a context."""

    def __init__(self, output: Path, pool: str) -> None:
        self.output, self.pool = output, pool
        self._descriptors: dict[tuple[int, str], int] = {}

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def line(self, row: np.void) -> tuple[str, dict[str, list[int]]]:
        """Key and members of a sample."""
        key, _, _, members = json.loads(self._read(int(row["task"]), "index", int(row["line"]), int(row["length"])))
        return key, members

    def sample(self, row: np.void) -> bytes:
        """A sample with its headers and padding, as it stands in a tar."""
        return self._read(int(row["task"]), "tar", int(row["start"]), int(row["size"]))

    def _read(self, task: int, suffix: str, offset: int, size: int) -> bytes:
        if (task, suffix) not in self._descriptors:
            if len(self._descriptors) > 100:  # a process may have about a thousand
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = task_folder(self.output, task) / f"{self.pool}.{suffix}"
            self._descriptors[task, suffix] = os.open(path, os.O_RDONLY)
        data = os.pread(self._descriptors[task, suffix], size, offset)
        if len(data) != size:
            path = task_folder(self.output, task) / f"{self.pool}.{suffix}"
            raise OSError(None, f"{path} is shorter than it was: remove {path.parent} and run it again")
        return data


def split(samples: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Runs of samples; each is closed once it has `limit` bytes."""
    start, total = 0, 0
    for position, size in enumerate(samples["size"].tolist()):
        total += size
        if total >= limit:
            yield samples[start : position + 1]
            start, total = position + 1, 0
    if start < len(samples):
        yield samples[start:]


def same_estimators(results: list[TaskResult]) -> dict[str, dict[str, Any]]:
    """The networks that made the samples. Raises UserError when the tasks were not all made by the same."""
    described = {json.dumps(result.estimators, sort_keys=True) for result in results}
    if len(described) > 1:
        raise UserError(
            f"the tasks were made with different weights or precisions: remove {STAGING} in the output and run "
            "them again"
        )
    return results[0].estimators if results else {}


def commonest(failures: list[Failure]) -> str:
    """One clause about what went wrong most often."""
    if not failures:
        return "no file failed, and none gave a clip"
    kind, count = Counter(failure.category for failure in failures).most_common(1)[0]
    example = next(failure for failure in failures if failure.category == kind)
    return f"of {len(failures)} losses {count} are: {kind} (for example {example.file}: {example.reason})"


def versions() -> dict[str, str]:
    """The decoders and libraries that the samples passed through."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
