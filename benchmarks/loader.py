"""Measures the loader, and its schedule at the paper's scale. JSON lines on stdout, a table on stderr.

    python benchmarks/loader.py --only read --video FILE.mp4 FILE.mp4   # their frames; default: a synthetic video
    python benchmarks/loader.py --only wait
    python benchmarks/loader.py --only start
    python benchmarks/loader.py --only scale

read     samples and bytes per second of one loader worker, and CPU milliseconds per sample, for our loader and for
         webdataset.WebDataset streaming the same shards: as most people use it (everything is decoded), with unneeded
         members dropped before they are decoded, and the latter with our decoder, so that only the reading differs.
         All return the same tensors. They alternate, each round in another order; ratios are within a round
wait     share of the demo's stage 4 in which training waited for data: random latents, two processes, one worker each
start    seconds from the start of a process to its first batch, alternating between step 0 and step 1 000 000
scale    240 M images in five buckets and 6.4 M clips, 1024 ranks: see paper_scale.py
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # replaces this folder, so that `benchmarks` can be imported

import argparse
import io
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.paper_scale import ask_scale
from benchmarks.questions import answer
from benchmarks.synthetic_sets import natural_samples, random_samples, read_video, write_set
from gen1_train.batch import Batch, Pool, Sample, collate, decode_member, members_of
from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet

CLIP = Pool("video", 448, 256, 8)
CLIPS = 8  # in a batch
AHEAD = 3  # batches that a worker may have started or finished when one of its batches is taken
FIELDS = {
    "frames": ("frames", "image_embedding"),
    "frames, structure": ("frames", "image_embedding", "structure"),
    "latents": ("moments", "image_embedding", "structure_latent"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="+", help="read: frames of these files instead of a synthetic one")
    parser.add_argument("--clips", type=int, default=256, help="read: clips in the set, 2 MB each")
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=list(FIELDS), help="read: only these fields")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="wait: optimizer steps")
    parser.add_argument("--only", choices=("read", "wait", "start", "scale"))
    arguments = parser.parse_args()
    answer({"read": ask_read, "wait": ask_wait, "start": ask_start, "scale": ask_scale}, arguments, {})


# read


@dataclass
class Contender:
    name: str
    load: Callable[[tuple[str, ...], int], DataLoader[Any]]  # (fields, epochs) -> a loader of one worker


def ask_read(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Compares on full shards, warm and cold, and on shards with only latents, where nothing is skipped."""
    from benchmarks.data_tools import make_video  # a local import because every loader worker imports this file

    torch.set_num_threads(1)
    files = arguments.video or [make_video(folder / "synthetic.mp4", 20)]
    videos = [read_video(file, CLIP) for file in files]
    clips = partial(natural_samples, videos, CLIP, arguments.clips, 768)
    full = write_set(folder / "full", {CLIP: clips()}, shard_samples=64)
    lean = write_set(folder / "lean", {CLIP: clips()}, shard_samples=64, pixels=False)
    check_same(full)
    os.sync()  # pages that are not on the disk yet cannot be dropped from memory
    yield {"set": "full", "clips": arguments.clips, **bytes_of_members(full)}
    for kind in arguments.fields:
        yield from compare(full, kind, "full", arguments)
    if "latents" in arguments.fields:
        yield from compare(lean, "latents", "lean", arguments)
    for kind in arguments.fields:
        yield from compare(full, kind, "full", arguments, cold=True)


def contenders(root: Path, shards: str) -> list[Contender]:
    all_contenders = [
        Contender("ours, global", partial(our_loader, root, "global")),
        Contender("ours, blocks", partial(our_loader, root, "blocks")),
        Contender("webdataset, everything decoded", partial(webdataset_loader, root, False, pillow)),
        Contender("webdataset, wanted members", partial(webdataset_loader, root, True, pillow)),
        Contender("webdataset, wanted members, our decoder", partial(webdataset_loader, root, True, our_decoder)),
    ]
    return all_contenders if shards == "full" else all_contenders[:2] + all_contenders[3:]


def compare(
    root: Path, kind: str, shards: str, arguments: argparse.Namespace, cold: bool = False
) -> Iterator[dict[str, Any]]:
    """Compares the contenders over one epoch; over four for latents in memory, whose epochs are too short."""
    fields = FIELDS[kind]
    epochs = 4 if kind == "latents" and not cold else 1
    batches = epochs * arguments.clips // CLIPS
    sizes = bytes_of_members(root)
    sample_bytes = sum(sizes[field] for field in fields)
    all_contenders = contenders(root, shards)
    results: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in all_contenders}
    for number in range(arguments.rounds):
        turn = number % len(all_contenders)
        for contender in all_contenders[turn:] + all_contenders[:turn]:
            if cold:
                drop_from_memory(root)
            results[contender.name].append(run(contender.load(fields, epochs), batches))
    for name, figures in results.items():
        cpu, wall = ([figure[i] for figure in figures] for i in (0, 1))
        row: dict[str, Any] = {"fields": kind, "shards": shards, "cache": "cold" if cold else "warm", "loader": name}
        row |= {"samples_per_s": round(1 / statistics.median(wall), 1)}
        row |= {"MB_per_s": round(sample_bytes / statistics.median(wall) / 1e6, 1)}
        row |= {"cpu_ms_per_sample": round(1e3 * statistics.median(cpu), 3)}
        for clock, i in (("cpu", 0), ("wall", 1)):
            ratios = [other[i] / own[i] for other, own in zip(figures, results["ours, global"])]
            row[f"ours_faster_{clock}"] = [round(ratio, 2) for ratio in sorted(ratios)]
        yield row


def run(loader: DataLoader[Any], batches: int) -> tuple[float, float]:
    """Returns CPU and wall seconds per sample, from the first batch to one of the last.

    The CPU seconds are those of the worker and of this process, which copies the batches as if to a device.
    """
    iterator = iter(loader)
    next(iterator)
    [worker] = multiprocessing.active_children()
    assert worker.pid is not None
    worker_clock = (~worker.pid) << 3 | 2  # POSIX's CPU clock of another process, see clock_getcpuclockid(3)

    def clocks() -> tuple[float, float]:
        return time.clock_gettime(worker_clock) + time.process_time(), time.perf_counter()

    device: dict[str, torch.Tensor] = {}
    start = clocks()
    count = 0
    for batch in islice(iterator, batches - AHEAD - 1):
        count += len(batch.keys)
        for name, tensor in vars(batch).items():
            if isinstance(tensor, torch.Tensor):
                dtype = torch.uint8 if tensor.dtype == torch.uint8 else torch.float32
                device.setdefault(name, torch.empty(tensor.shape, dtype=dtype)).copy_(tensor)
    cpu, wall = ((end - begin) / count for end, begin in zip(clocks(), start))
    assert sum(1 for _ in iterator) == AHEAD  # to the end: a worker that is stopped early may abort (torch 2.15)
    return cpu, wall


def our_loader(root: Path, order: str, fields: tuple[str, ...], epochs: int) -> DataLoader[Any]:
    shards = ShardSet(root)
    schedule = Schedule(shards, Settings(seed=0, image_ratio=0, clips=CLIPS, order=order))
    steps = epochs * shards.manifest.pools[CLIP.name].samples // CLIPS
    return build_loader(BatchDataset(shards, schedule, BatchPartition(0, 1, 1), fields), 0, steps, workers=1, pin=False)


def webdataset_loader(
    root: Path, select: bool, image: Callable[[str, bytes], Any], fields: tuple[str, ...], epochs: int
) -> DataLoader[Any]:
    """Builds the usual pipeline: expand tars, group by key, decode, stack. `image` decodes images."""
    tars = sorted(str(path) for path in (root / "shards").glob("video-*.tar"))
    names = {name for field in fields for name in members_of(field, CLIP.frames)}
    selection = partial(is_selected, names) if select else None
    dataset = webdataset.WebDataset(tars, shardshuffle=False, select_files=selection).repeat(epochs)
    dataset = dataset.decode(image).batched(CLIPS, collation_fn=partial(stack, fields))
    return DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")


def is_selected(names: set[str], path: str) -> bool:
    return path.partition(".")[2] in names


def pillow(key: str, data: bytes) -> np.ndarray | None:
    """Decodes a JPEG like decode("rgb8"), and 16-bit PNGs, which "rgb8" would convert to 8-bit colors."""
    if not key.endswith((".jpg", ".png")):
        return None
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    image.load()
    return np.asarray(image.convert("RGB") if key.endswith(".jpg") else image)


def our_decoder(key: str, data: bytes) -> np.ndarray | None:
    return decode_member(key, data) if key.endswith((".jpg", ".png")) else None


def stack(fields: tuple[str, ...], samples: list[dict[str, Any]]) -> Batch:
    """Builds the tensors of our loader in the most direct way."""
    columns = {}
    for field in fields:
        names = members_of(field, CLIP.frames)
        arrays = [np.stack([s[n] for n in names]) if len(names) > 1 else s[names[0]] for s in samples]
        columns[field] = torch.from_numpy(np.stack(arrays))
    return Batch(
        kind="video",
        step=0,
        slots=list(range(len(samples))),
        keys=[sample["__key__"] for sample in samples],
        moments=columns["moments"].float() if "moments" in columns else None,
        embeddings=columns["image_embedding"].float(),
        structure_latents=columns["structure_latent"].float() if "structure_latent" in columns else None,
        structure=columns["structure"].float() / 65535 if "structure" in columns else None,
        frames=columns.get("frames"),
    )


def check_same(root: Path) -> None:
    """Checks that all contenders return the same tensors for the same keys."""
    fields = ("frames", "structure", *FIELDS["latents"])
    others = contenders(root, "full")[2:]
    batches: list[Batch] = [next(iter(contender.load(fields, 1).dataset)) for contender in others]
    shards = ShardSet(root)
    ours = [shards.read(CLIP.name, index, fields) for index in range(CLIPS)]
    assert [sample.key for sample in ours] == batches[0].keys
    for name, tensor in vars(collate("video", 0, list(range(CLIPS)), ours).to(torch.device("cpu"))).items():
        assert all(torch.equal(getattr(batch, name), tensor) for batch in batches if isinstance(tensor, torch.Tensor))


def bytes_of_members(root: Path) -> dict[str, float]:
    """Returns the bytes of a sample's members by field."""
    shards = ShardSet(root)
    shard, _ = shards.locate(CLIP.name, 0)
    entries = [shards.entry(shard, row) for row in range(shard.samples)]
    fields = [name for name in vars(Sample("")) if name != "key"]
    members = {field: members_of(field, CLIP.frames) for field in fields}
    return {
        field: round(sum(e.members[n][1] for e in entries for n in names if n in e.members) / len(entries))
        for field, names in members.items()
    }


def drop_from_memory(root: Path) -> None:
    for path in (root / "shards").iterdir():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def small_set(folder: Path) -> Path:
    """Writes a set with the demo's shapes."""
    clip, image = Pool("video", 112, 64, 8), Pool("image", 112, 64, 1)
    pools = {clip: random_samples(clip, 256, 64), image: random_samples(image, 512, 64)}
    return write_set(folder / "set", pools, shard_samples=64)


# wait


def ask_wait(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs stages 1 to 4 as `make demo` does, the first three for two steps; the shares are those of metrics.csv."""
    from gen1_train.reporting.rows import read_metrics
    from miniature.tiny import write_stable_diffusion

    root = small_set(folder)
    write_stable_diffusion(folder / "sd", widths=(32, 64, 64, 64), layers=1, heads=2)
    for stage in (1, 2, 3, 4):
        steps = arguments.steps if stage == 4 else 2
        settings = ["experiment=demo", f"stage={stage}", f"output={folder / 'run'}", "log.wandb=disabled"]
        settings += [f"init.from={folder / 'sd'}"] if stage == 1 else [f"data.root={root}", f"stage.steps={steps}"]
        settings.append("checkpoint.every=1000")  # in metrics.csv saving a checkpoint counts as waiting
        call = [sys.executable, "-m", "gen1_train.train", *settings]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        result = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    rows = read_metrics(folder / "run" / "demo" / "stage4" / "metrics.csv")
    waited = [float(row["data_wait"]) * float(row["seconds"]) for row in rows]
    seconds = [float(row["seconds"]) for row in rows]
    yield {
        "steps": arguments.steps,
        "steps_per_row": arguments.steps // len(rows),
        "share_of_each_row": [round(float(row["data_wait"]), 5) for row in rows],
        "first_row_waited_s": round(waited[0], 2),
        "share_after_the_first": round(sum(waited[1:]) / sum(seconds[1:]), 5),
        "share_in_all": round(sum(waited) / sum(seconds), 5),
    }


# start


FIRST_BATCH = """
import sys
from pathlib import Path
sys.path[0] = sys.argv[1]
from gen1_train.data.loader import BatchDataset, BatchPartition, build_loader
from gen1_train.data.schedule import Schedule, Settings
from gen1_train.data.shards import ShardSet
if __name__ == "__main__":
    shards, step = ShardSet(sys.argv[2]), int(sys.argv[3])
    schedule = Schedule(shards, Settings(seed=0, image_ratio=0.125, clips=8, order=sys.argv[4]))
    fields = ("moments", "image_embedding", "structure_latent")
    dataset = BatchDataset(shards, schedule, BatchPartition(0, 1, 1), fields)
    print(next(iter(build_loader(dataset, step, step + 4, 1, pin=False))).step, flush=True)
"""


def ask_start(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    root = small_set(folder)
    for order in ("global", "blocks"):
        seconds: dict[int, list[float]] = {0: [], 1_000_000: []}
        for number in range(arguments.rounds + 1):  # the first round loads the libraries into memory
            for step in sorted(seconds, reverse=number % 2 == 1):
                call = [sys.executable, "-c", FIRST_BATCH, str(ROOT), str(root), str(step), order]
                start = time.perf_counter()
                with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline() == f"{step}\n"
                    seconds[step].append(time.perf_counter() - start)
        figures = {step: values[1:] for step, values in seconds.items()}
        ratios = [late / early for early, late in zip(*figures.values())]
        yield {
            "order": order,
            **{f"step_{step}_s": round(statistics.median(values), 2) for step, values in figures.items()},
            "late_over_early": [round(ratio, 3) for ratio in sorted(ratios)],
        }


if __name__ == "__main__":
    main()
