"""Answers the question `scale` of loader.py: the schedule at the paper's scale, from a manifest without shards.

The set has 240 M images in five buckets and 6.4 M clips in one, in shards of 512 MB, and is read by 128 nodes of 8
ranks with 8 workers each. The global batch is 1024 clips or 8192 images (the paper's 1152 is not divisible by 1024).
The number of samples in a shard follows from samples of natural size, which are written here.

plan     microseconds for a worker to determine what its rank reads in a step, including shards and rows
memory   seconds and resident MiB of ShardSet and Schedule in a new process, as in every rank and worker
index    bytes of all index files
unique   samples of some ranks over several epochs of clips; none may occur twice in an epoch
spread   share of a batch's clips whose video occurs again in the batch. The number of clips per video is geometric,
         10 on average; their positions in the pool are random, as gen1-data's freeze places them
node     shards that a node reads in 100 steps, and how many of them it did not read in the 100 steps before, which a
         prefetcher has to copy
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic_sets import bytes_per_sample, paper_pools, random_samples, save_manifest, write_set
from gen1_train.batch import Pool
from gen1_train.data.loader import BatchPartition
from gen1_train.data.schedule import Schedule, Settings, Step
from gen1_train.data.shards import ShardSet

CLIP = Pool("video", 448, 256, 8)
IMAGES = [Pool("image", w, h, 1) for w, h in ((320, 320), (384, 320), (320, 384), (448, 256), (256, 448))]
CLIPS = 1024
RANKS = 1024
NODES = 128
SHARD_BYTES = 512_000_000
CONTENT = 768  # width of the CLIP embeddings
ORDERS: dict[str, dict[str, Any]] = {
    "global": {"order": "global"},
    "blocks": {"order": "blocks", "lanes": NODES, "window": 8},
}


def ask_scale(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    samples = {CLIP: 6_400_000, **dict.fromkeys(IMAGES, 48_000_000)}
    sizes = {}
    for pool in samples:
        written = write_set(folder / pool.name, {pool: random_samples(pool, 16, CONTENT)}, shard_samples=16)
        sizes[pool] = bytes_per_sample(sorted((written / "shards").glob("*.tar")))
    per_shard = {pool: int(SHARD_BYTES / tar) for pool, (tar, _) in sizes.items()}
    root = folder / "set"
    root.mkdir()
    save_manifest(root, paper_pools(samples, per_shard, SHARD_BYTES), CONTENT)
    tars, indexes = (sum(count * sizes[pool][i] for pool, count in samples.items()) for i in (0, 1))
    yield {
        "what": "index",
        **{f"{pool.name}_bytes": [round(size) for size in sizes[pool]] for pool in (CLIP, IMAGES[0])},
        "gigabytes": round(indexes / 1e9, 1),
        "of_the_tars": round(indexes / tars, 6),
    }
    shards = ShardSet(root)
    yield {
        "what": "set",
        "shards": sum(len(pool.shards) for pool in shards.manifest.pools.values()),
        "samples_a_shard": {pool.name: per_shard[pool] for pool in (CLIP, IMAGES[0])},
        "manifest_MB": round((root / "manifest.json").stat().st_size / 1e6, 1),
    }
    videos = videos_of_clips(samples[CLIP])
    for order, settings in ORDERS.items():
        yield {"what": "memory", "order": order, **measure_memory(root, settings)}
        schedule = Schedule(shards, Settings(seed=0, image_ratio=0.125, clips=CLIPS, **settings))
        yield {"what": "plan", "order": order, **measure_plan(schedule, shards)}
        yield {"what": "unique", "order": order, **count_repeats(schedule, ranks=8, steps=40_000)}
        yield {"what": "spread", "order": order, **spread(schedule, videos)}
        yield {"what": "node", "order": order, **node_reads(schedule, shards)}


MEMORY = """
import json, os, sys, time
sys.path[0] = sys.argv[1]
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before, begin = resident(), time.perf_counter()
shards = ShardSet(sys.argv[2])
loaded = time.perf_counter() - begin
schedule = Schedule(shards, Settings(seed=0, image_ratio=0.125, clips=int(sys.argv[3]), **json.loads(sys.argv[4])))
step = schedule.at(1_000_000)
schedule.sample(step, 0)
whole = time.perf_counter() - begin
print(json.dumps({"shard_set_s": loaded, "with_schedule_s": whole, "rss_mib": resident() - before}))
"""


def measure_memory(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    call = [sys.executable, "-c", MEMORY, str(Path(__file__).parents[1]), str(root), str(CLIPS), json.dumps(settings)]
    runs = [json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def rank_slots(rank: int, step: Step) -> range:
    return BatchPartition(rank, RANKS, 1).slots(step.size, 0)


def measure_plan(schedule: Schedule, shards: ShardSet) -> dict[str, Any]:
    """Times consecutive steps, and steps at random positions, like the first one after a resume."""
    result = {}
    for name, steps in (
        ("in_a_row", range(500_000, 501_000)),
        ("anywhere", [int(step) for step in np.random.default_rng(0).integers(1_000_000, size=300)]),
    ):
        times: dict[str, list[float]] = {"image": [], "video": []}
        for number in steps:
            begin = time.perf_counter()
            step = schedule.at(number)
            for slot in rank_slots(number % RANKS, step):
                shards.locate(step.pool, schedule.sample(step, slot))
            times[step.kind].append(1e6 * (time.perf_counter() - begin))
        for kind, values in times.items():
            result[f"{name}_{kind}_us"] = round(statistics.median(values), 1)
            result[f"{name}_{kind}_worst_us"] = round(max(values), 1)
    return result


def count_repeats(schedule: Schedule, ranks: int, steps: int) -> dict[str, Any]:
    """Encodes (epoch, sample) as one number per pool and counts repeated numbers."""
    chosen = sorted(int(rank) for rank in np.random.default_rng(1).choice(RANKS, ranks, replace=False))
    uses_by_pool: dict[str, list[int]] = {}
    for number in range(steps):
        step = schedule.at(number)
        uses = uses_by_pool.setdefault(step.pool, [])
        for rank in chosen:
            for slot in rank_slots(rank, step):
                epoch = (step.first + slot) // step.samples
                uses.append(epoch * step.samples + schedule.sample(step, slot))
    total = sum(map(len, uses_by_pool.values()))
    distinct = sum(len(set(uses)) for uses in uses_by_pool.values())
    last = schedule.cursors(steps)
    return {
        "ranks": ranks,
        "steps": steps,
        "samples": total,
        "twice": total - distinct,
        "epochs_of_clips": round(last[CLIP.name] / schedule.shards.manifest.pools[CLIP.name].samples, 2),
    }


def videos_of_clips(clips: int) -> np.ndarray:
    """Returns the video of each clip of the pool, in random order."""
    rng = np.random.default_rng(2)
    lengths = rng.geometric(0.1, size=clips // 5)
    return rng.permutation(np.repeat(np.arange(len(lengths)), lengths)[:clips])


def spread(schedule: Schedule, videos: np.ndarray, batches: int = 1000) -> dict[str, Any]:
    """Measures the schedule's batches and batches from a random permutation, with the expectation for the latter."""
    steps = [step for step in map(schedule.at, range(batches * 2)) if step.kind == "video"][:batches]
    ours = [videos[[schedule.sample(step, slot) for slot in range(step.size)]] for step in steps]
    rng = np.random.default_rng(3)
    shuffled = [videos[rng.choice(len(videos), CLIPS, replace=False)] for _ in range(batches)]
    _, lengths = np.unique(videos, return_counts=True)
    others = float((lengths * (lengths - 1)).sum() / len(videos))  # other clips of a clip's video, on average
    return {
        "batches": batches,
        "share": round(float(np.mean([recurring(batch) for batch in ours])), 5),
        "of_a_permutation": round(float(np.mean([recurring(batch) for batch in shuffled])), 5),
        "expected": round(others * (CLIPS - 1) / len(videos), 5),
    }


def recurring(batch: np.ndarray) -> float:
    _, counts = np.unique(batch, return_counts=True)
    return float(counts[counts > 1].sum() / len(batch))


def node_reads(schedule: Schedule, shards: ShardSet, nodes: tuple[int, ...] = (0, 37, 127)) -> dict[str, Any]:
    """Measures ten blocks of 100 steps in the middle of training; returns medians over nodes and blocks."""
    read: list[tuple[int, int]] = []  # (shards, bytes)
    new: list[tuple[int, int]] = []
    sample_bytes: list[float] = []
    for node in nodes:
        previous: set[str] = set()
        for block in range(11):
            names: dict[str, int] = {}
            samples = 0.0
            for number in range(block * 100, block * 100 + 100):
                step = schedule.at(20_000 + number)
                for slot in range(node * step.size // NODES, (node + 1) * step.size // NODES):
                    shard, _ = shards.locate(step.pool, schedule.sample(step, slot))
                    names[shard.name] = shard.bytes
                    samples += shard.bytes / shard.samples
            if block:
                read.append((len(names), sum(names.values())))
                sizes = [size for name, size in names.items() if name not in previous]
                new.append((len(sizes), sum(sizes)))
                sample_bytes.append(samples)
            previous = set(names)
    median = {
        f"{what}_{unit}": statistics.median(pair[i] for pair in pairs)
        for what, pairs in (("read_from", read), ("new", new))
        for i, unit in enumerate(("shards", "bytes"))
    }
    return {
        "lanes": schedule.settings.lanes,
        "window": schedule.settings.window,
        **{
            name.replace("bytes", "GB"): round(value / 1e9, 2) if "bytes" in name else value
            for name, value in median.items()
        },
        "samples_GB": round(statistics.median(sample_bytes) / 1e9, 2),
    }
