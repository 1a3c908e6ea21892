"""Measures how well gen1-data uses a machine. JSON lines on stdout, a table on stderr.

    python benchmarks/data_tools.py                        # on a synthetic video, with the miniature's estimators
    python benchmarks/data_tools.py --video FILE.mp4       # decodes one of your files
    python benchmarks/data_tools.py --device cuda --recipe paper

There are four questions, each a ratio of measurements that alternate in one run:

decode   CPU seconds of plain decord in a loop relative to our reader, which also computes the small image for the shot
         detector from every frame and the pixels of every fourth
pipeline clips per second of a whole task (decode, networks, encoding, tar) relative to its slowest stage alone, and to
         the bound of the cores: the work of all stages on all cores without gaps
workers  seconds of a set with one worker process relative to two
memory   resident memory of a task on a video, and on videos that are 4, 16 and 64 times as long
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # replaces this folder, in which this file would hide the package data_tools

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import torch

from benchmarks.questions import answer
from data_tools.clips.read import FileReader, ReaderPool
from data_tools.estimate import Estimators
from data_tools.pipeline import Clip
from data_tools.plan import make_plan
from data_tools.recipe import RecipeConfig
from data_tools.source.examine import MediaFile, examine
from data_tools.source.sources import open_source
from data_tools.task import run_task
from gen1_train.batch import Sample, encode_sample
from gen1_train.frozen.autoencoder import AutoencoderConfig
from gen1_train.frozen.clip import ClipConfig
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.system.processes import cores

WEIGHTS = ROOT / "miniature" / "weights"
WIDTH = 1280
HEIGHT = 720
FPS = 25
STAGES = ("read", "structure", "clip", "latents", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="decode this file instead of a synthetic one")
    parser.add_argument("--recipe", choices=("miniature", "paper"), default="miniature")
    parser.add_argument("--bucket", default="448x256")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=int, default=20, help="length of the synthetic videos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("decode", "pipeline", "workers", "memory"))
    arguments = parser.parse_args()
    questions = {"decode": decode, "pipeline": pipeline, "workers": workers, "memory": memory}
    answer(questions, arguments, {"device": arguments.device, "cores": cores()})


# decode


def decode(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields CPU milliseconds per frame; the contenders alternate, each in a separate process."""
    path = arguments.video or make_video(folder / "synthetic.mp4", arguments.seconds)
    contenders = {"decord": PLAIN_DECORD, "pyav": OUR_READER, "decord in our reader": OUR_READER}
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        names = list(contenders)
        for name in names[number % 3 :] + names[: number % 3]:
            decoder = "pyav" if name == "pyav" else "decord"
            call = [sys.executable, "-c", contenders[name], str(path), decoder]
            costs[name].append(float(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
    for name, values in costs.items():
        ratios = [plain / cost for plain, cost in zip(costs["decord"], values)]
        yield {"reader": name, "cpu_ms_per_frame": rounded(values), "decord_over_it": rounded(ratios)}


CPU = """
import resource, sys
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
"""
PLAIN_DECORD = (
    CPU
    + """
import decord
decord.logging.set_level(decord.logging.QUIET)
before = cpu()
reader = decord.VideoReader(sys.argv[1], num_threads=1)
for _ in range(len(reader)):
    reader.next().asnumpy()
print(1000 * (cpu() - before) / len(reader))
"""
)
OUR_READER = (
    CPU
    + """
from gen1_train.video.decoding.reading import read_frames
if sys.argv[2] == "decord":
    import decord
before = cpu()
for frame in read_frames(sys.argv[1], sys.argv[2]):
    frame.small()
    if frame.index % 4 == 0:
        frame.rgb()
print(1000 * (cpu() - before) / (frame.index + 1))
"""
)


# pipeline


def pipeline(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Times each stage alone on the same clips, with one thread, and then a whole task."""
    source = make_source(folder / "source", 1, arguments.seconds)
    recipe = make_recipe(arguments)
    estimators = Estimators(recipe, arguments.device)
    clips, first_read = timed(lambda: read_all(source, recipe))
    alone: dict[str, list[float]] = {name: [] for name in STAGES}
    tasks: list[float] = []
    torch.set_num_threads(1)
    for _ in range(arguments.rounds):
        for name, seconds in stages_alone(source, recipe, estimators, clips).items():
            alone[name].append(seconds)
        tasks.append(one_task(source, recipe, estimators, folder)[0])
    medians = {name: statistics.median(values) for name, values in alone.items()}
    slowest = max(medians, key=lambda name: medians[name])
    task = statistics.median(tasks)
    work = sum(medians.values())
    yield {
        "clips": len(clips),
        "first_read_s": round(first_read, 2),
        **{f"{name}_s": round(value, 2) for name, value in medians.items()},
        "task_s": round(task, 2),
        "slowest": slowest,
        "over_slowest": round(medians[slowest] / task, 3),
        "over_bound": round(max(medians[slowest], work / cores()) / task, 3),
    }


def stages_alone(source: Path, recipe: RecipeConfig, estimators: Estimators, clips: list[Clip]) -> dict[str, float]:
    """Returns the seconds of each stage on all clips, one after the other."""
    seconds = dict.fromkeys(STAGES, 0.0)
    _, seconds["read"] = timed(lambda: read_all(source, recipe))
    for clip in clips:
        structure, taken = timed(lambda frames=clip.frames: estimators.maps(frames[None])[0])
        assert isinstance(structure, tuple), structure
        seconds["structure"] += taken
        embedding, taken = timed(lambda frames=clip.frames: estimators.image_embeddings(frames[None])[0])
        seconds["clip"] += taken
        moments, taken = timed(lambda frames=clip.frames: estimators.moments(frames[None])[0])
        latent, more = timed(lambda stored=structure[0]: estimators.structure_latents(stored))
        seconds["latents"] += taken + more
        sample = Sample(clip.key, clip.frames, structure[0], moments, latent, embedding, meta=clip.meta)
        seconds["encode"] += timed(lambda sample=sample: encode_sample(sample, recipe.jpeg_quality))[1]
    return seconds


def read_all(source: Path, recipe: RecipeConfig) -> list[Clip]:
    """Reads every clip of the source: decoding, shots, cropping, and the pipe to this process."""
    opened = open_source(str(source))
    reader = FileReader(opened, recipe, stills=False)
    clips: list[Clip] = []
    try:
        for file in opened.scan(source / "nowhere").files:
            media = examine(opened, recipe, file)
            assert isinstance(media, MediaFile), media
            clips += [item for item in reader.read(media) if isinstance(item, Clip)]
    finally:
        reader.close()
    return clips


def one_task(source: Path, recipe: RecipeConfig, estimators: Estimators, folder: Path) -> tuple[float, int]:
    """Runs a task over the whole source; returns its seconds and the peak of its decoding process in MiB."""
    output = folder / "task"
    shutil.rmtree(output, ignore_errors=True)
    opened = open_source(str(source))
    plan = make_plan(opened, output, recipe, 1)
    reader = FileReader(opened, recipe, stills=False)
    readers = ReaderPool([reader])
    try:
        _, seconds = timed(lambda: run_task(plan, 0, output, readers, estimators))
        assert reader.sandbox._process is not None
        return seconds, peak(reader.sandbox._process.pid)
    finally:
        readers.close()


def peak(process: int) -> int:
    """Returns the peak memory of a process so far, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


# workers


def workers(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Times the command with one worker and with two."""
    source = make_source(folder / "source", 4, arguments.seconds)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(arguments.rounds):
        for count in (1, 2) if number % 2 == 0 else (2, 1):
            output = folder / "set"
            shutil.rmtree(output, ignore_errors=True)
            settings = [f"source={source}", f"output={output}", "recipe=tiny", f"workers={count}"]
            settings += [f'recipe.video_buckets=["{arguments.bucket}"]', "recipe.stills=never"]
            settings += [f"recipe.task_seconds={arguments.seconds}", f"device={arguments.device}"]
            call = [sys.executable, "-m", "data_tools.main", *settings]
            result, taken = timed(lambda call=call: subprocess.run(call, cwd=ROOT, capture_output=True, text=True))
            assert result.returncode == 0, result.stderr
            seconds[count].append(taken)
    gain = [one / two for one, two in zip(seconds[1], seconds[2])]
    yield {"one_s": rounded(seconds[1]), "two_s": rounded(seconds[2]), "gain": rounded(gain)}
    alone, together = (statistics.median(side_by_side(count) for _ in range(3)) for count in (1, 2))
    yield {"what": "two processes of plain products", "gain": round(2 * alone / together, 3)}


def side_by_side(count: int) -> float:
    """Times this many processes that each run the same convolutions on one thread: the limit of the cores."""
    code = (
        "import time, torch; torch.set_num_threads(1); x = torch.ones(8, 64, 128, 224); w = torch.ones(64, 64, 3, 3)\n"
        "torch.conv2d(x, w); input(); t = time.perf_counter()\n"
        "for _ in range(20): torch.conv2d(x, w)\n"
        "print(time.perf_counter() - t)"
    )
    call = [sys.executable, "-c", code]
    processes = [subprocess.Popen(call, stdin=-1, stdout=-1, text=True) for _ in range(count)]
    time.sleep(10)  # until all of them wait for input
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


# memory


def memory(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the peaks of this process and of its decoding child in a task, for videos of several lengths."""
    arguments.bucket = "112x64"  # larger ones would take hours
    recipe = make_recipe(arguments)
    estimators = Estimators(recipe, arguments.device)
    video = make_video(folder / "synthetic.mp4", arguments.seconds)
    for times in (1, 4, 16, 64):
        source = folder / f"source-{times}"
        source.mkdir(exist_ok=True)
        repeat(video, source / "video.mp4", times)
        _, child = one_task(source, recipe, estimators, folder)
        yield {"seconds_of_video": times * arguments.seconds, "peak_mib": peak(os.getpid()), "decoder_mib": child}


# synthetic inputs


def make_recipe(arguments: argparse.Namespace) -> RecipeConfig:
    recipe = RecipeConfig(video_buckets=[arguments.bucket], image_buckets=[arguments.bucket], stills="never")
    recipe.task_seconds = 1e9
    if arguments.recipe == "miniature":
        recipe.autoencoder = AutoencoderConfig(path=str(WEIGHTS / "autoencoder"))
        recipe.depth = DepthConfig(path=str(WEIGHTS / "depth"), size=192, multiple=16)
        recipe.clip = ClipConfig(model=f"local-dir:{WEIGHTS / 'clip'}", pretrained=None)
    return recipe


def make_source(folder: Path, videos: int, seconds: int) -> Path:
    folder.mkdir()
    first = make_video(folder / "0.mp4", seconds)
    for number in range(1, videos):
        shutil.copy(first, folder / f"{number}.mp4")
    return folder


def make_video(path: Path, seconds: int) -> Path:
    """Writes a 720p H.264 video with a camera's bit rate: moving soft blobs and grain, a cut every five seconds."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast"})
        stream.width = WIDTH
        stream.height = HEIGHT
        stream.pix_fmt = "yuv420p"
        for number in range(seconds * FPS):
            if number % (5 * FPS) == 0:
                coarse = rng.integers(0, 256, (12, 40, 3), np.uint8)
                scene = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(2 * WIDTH, HEIGHT).to_ndarray()
                grain = rng.integers(-6, 7, scene.shape, np.int16)
                scene = np.clip(scene + grain, 0, 255).astype(np.uint8)
            left = 6 * (number % (5 * FPS))
            frame = np.ascontiguousarray(scene[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def repeat(path: Path, target: Path, times: int) -> None:
    """Writes the packets of a video several times in a row: a long video without hours of encoding."""
    with av.open(str(target), "w") as output, av.open(str(path)) as first:
        stream = output.add_stream_from_template(first.streams.video[0])
        length = first.streams.video[0].duration or 0
        for number in range(times):
            with av.open(str(path)) as source:
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:
                        packet.pts = (packet.pts or 0) + number * length
                        packet.dts = (packet.dts or 0) + number * length
                        packet.stream = stream
                        output.mux(packet)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


if __name__ == "__main__":
    main()
