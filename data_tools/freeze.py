"""All finished tasks -> the frozen shard set: shards in a keyed random order, indices, and last of all the manifest."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_tools.pack import open_tar
from data_tools.plan import Plan
from data_tools.recipe import RecipeConfig
from data_tools.scan import Failure
from data_tools.task import STAGING, TaskResult, load_result, task_folder
from gen1_train.data.shards import (
    MANIFEST,
    Entry,
    Manifest,
    PoolShards,
    Shard,
    build_index,
    read_members,
    write_atomically,
    write_index,
)
from gen1_train.errors import UserError
from gen1_train.keyed import permute
from gen1_train.video.geometry import parse_bucket

FAILURES = "failures.jsonl"
PACKAGES = ("av", "decord", "pillow", "numpy", "torch", "diffusers", "transformers", "open_clip_torch", "webdataset")

Staged = tuple[Path, Entry]  # the tar of a task, and one sample in it


def frozen(output: Path, plan: Plan) -> Manifest | None:
    """The manifest of a set that this plan has already frozen, if there is one."""
    if not (output / MANIFEST).exists():
        return None
    manifest = Manifest.load(output)
    if manifest.plan != plan.hash:
        raise UserError(f"output={output} holds a set that another plan made: name another output, or remove it")
    return manifest


def freeze(plan: Plan, recipe: RecipeConfig, output: Path) -> Manifest:
    """Writes shards, failures and manifest, and removes the staging. Raises UserError if tasks are missing."""
    results = finished(plan, output)
    failures = sorted(plan.failures + [f for result in results for f in result.failures], key=lambda f: f.file)
    try:
        lines = "".join(json.dumps(asdict(failure), sort_keys=True) + "\n" for failure in failures)
        write_atomically(output / FAILURES, lines.encode())
        staged = collect(plan, output)
        if not staged:
            raise UserError(f"not one sample came out of the source; {commonest(failures)}")
        shutil.rmtree(output / "shards", ignore_errors=True)  # of a freeze that was killed
        (output / "shards").mkdir()
        pools = {name: write_pool(name, entries, recipe, output) for name, entries in sorted(staged.items())}
        manifest = Manifest(pools, plan.recipe, same_estimators(results), plan.hash, versions())
        manifest.save(output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error.strerror or error}); run it again") from error
    shutil.rmtree(output / STAGING, ignore_errors=True)
    return manifest


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


def collect(plan: Plan, output: Path) -> dict[str, list[Staged]]:
    """Pool -> its samples over all tasks, sorted by key: the cut into tasks leaves no trace in the set."""
    pools: dict[str, list[Staged]] = {}
    for number in range(len(plan.tasks)):
        for tar in sorted(task_folder(output, number).glob("*.tar")):
            pools.setdefault(tar.stem, []).extend((tar, entry) for entry in build_index(tar))
    return {name: sorted(staged, key=lambda item: item[1].key) for name, staged in pools.items()}


def write_pool(name: str, staged: list[Staged], recipe: RecipeConfig, output: Path) -> PoolShards:
    """Writes the shards of one pool in a random order, so that neighbours in a shard come from different videos."""
    order = [staged[permute(i, len(staged), "freeze", recipe.seed, name)] for i in range(len(staged))]
    shards = []
    for number, part in enumerate(split(order, recipe.shard_megabytes << 20)):
        tar = output / "shards" / f"{name}-{number:06d}.tar"
        with open_tar(tar) as write:
            for source, entry in part:
                write(entry.key, read_members(source, entry, list(entry.members)))
        entries = build_index(tar)  # from the tar as it lies there: this also checks that it can be read
        shards.append(Shard(tar.name, len(entries), os.path.getsize(tar), write_index(tar, entries)))
    kind, _, bucket = name.partition("-")
    width, height = parse_bucket(bucket)
    return PoolShards(kind, width, height, recipe.frames if kind == "video" else 1, shards)


def split(order: list[Staged], limit: int) -> Iterator[list[Staged]]:
    """Runs of samples; each is closed once its members have `limit` bytes."""
    part: list[Staged] = []
    total = 0
    for tar, entry in order:
        part.append((tar, entry))
        total += sum(size for _, size, _ in entry.members.values())
        if total >= limit:
            yield part
            part, total = [], 0
    if part:
        yield part


def same_estimators(results: list[TaskResult]) -> dict[str, dict[str, Any]]:
    """The networks that made the samples. Raises UserError when the tasks were not all made by the same."""
    described = {json.dumps(result.estimators, sort_keys=True) for result in results}
    if len(described) > 1:
        raise UserError(
            f"the tasks were made with different weights (their fingerprints differ): remove {STAGING} in the output "
            "and run them again"
        )
    return results[0].estimators


def commonest(failures: list[Failure]) -> str:
    """One clause about what went wrong most often."""
    if not failures:
        return "no file failed, and none gave a clip"
    reason, count = Counter(failure.reason for failure in failures).most_common(1)[0]
    example = next(failure.file for failure in failures if failure.reason == reason)
    return f"{len(failures)} files failed, {count} of them because: {reason} (for example {example})"


def versions() -> dict[str, str]:
    """The decoders and libraries that the samples passed through."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
