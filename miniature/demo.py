"""`make demo`: the whole road in miniature, by the same commands that a user calls, ending in demo/index.html.

Every command is idempotent, so this script only calls them in order: what is finished is reused, what was interrupted
goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from miniature.page import write_page
from miniature.road import Road
from miniature.world import SOURCES, World, write_world

STEPS = {2: 240, 3: 160, 4: 180, 5: 100}  # optimizer steps of each stage; the paper: 15k, 75k, 25k, 10k
CLIPS, IMAGES, FRAMES = 32, 128, 40  # of the rendered world
HELD_OUT = 1  # seed of what is edited; the rendered world has seed 0
EDITED, STRIDE = 16, 4  # frames of an edit, and frames of the input from one to the next
OMEGA, SAMPLING_STEPS = 3.0, 20


class DemoError(Exception):
    """What the user can mend; printed as one line, exit code 2."""


@dataclass(frozen=True)
class Subject:
    """What is edited: a video and where to start in it, and two pictures whose content goes in."""

    video: Path
    start: int
    pictures: tuple[Path, Path]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--source", type=Path, help="a folder of your own videos (default: a rendered world)")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    try:
        run(arguments.source, arguments.output)
    except DemoError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(source: Path | None, output: Path) -> None:
    """The road from a folder of videos to the page."""
    if source is not None and not source.is_dir():
        raise DemoError(f"SOURCE={source} is not a folder: give one that holds videos")
    work = output / ("world" if source is None else f"{source.resolve().name}-{_digest(str(source.resolve()))}")
    work.mkdir(parents=True, exist_ok=True)
    road = Road(work)
    rendered = source is None
    if source is None:
        source = work / "videos"
        render(road, source)
    shards, runs = work / "shards", work / "runs"
    footage = source / SOURCES if rendered else source  # the list has the captions
    road.call("data", "data_tools.main", f"source={footage}", f"output={shards}", "recipe=tiny", "workers=2")
    clips = batch_clips(shards)
    pretrained(road, work / "stable-diffusion")
    train(road, work, shards, runs, clips)
    subject = choose_subject(source, shards, work / "edits", rendered)
    edit(road, subject, runs / "demo" / "stage5", work / "edits")
    page = write_page(output / "index.html", work, subject.video, road.timings())
    print(f"\ndemo: finished. Open {page} in a browser.", flush=True)


def render(road: Road, folder: Path) -> None:
    """The demo's own footage: clips and images of moving solids with captions, real MP4 and PNG files."""
    with road.timed("world", f"rendering {CLIPS} clips and {IMAGES} images into {folder}"):
        write_world(folder, World(CLIPS, IMAGES, frames=FRAMES))


def batch_clips(shards: Path) -> int:
    """The global batch that the set allows: an image step reads eight images for every clip of a video step."""
    from gen1_train.data.shards import ShardSet

    pools = ShardSet(shards).manifest.pools.values()
    images = min((pool.samples for pool in pools if pool.kind == "image"), default=0)
    videos = min((pool.samples for pool in pools if pool.kind == "video"), default=0)
    for clips in (4, 2):
        if images >= 8 * clips and videos >= clips:
            return clips
    raise DemoError(
        f"the source gave {videos} clips and {images} images, and the demo needs at least 2 and 16: add footage, at "
        "least 20 seconds in all (a clip is 8 frames, 4 apart)"
    )


def pretrained(road: Road, folder: Path) -> None:
    """A Stable Diffusion of the tiny model's size with random weights: none can be downloaded for a demo."""
    if not (folder / "unet" / "config.json").exists():
        from miniature.tiny import write_stable_diffusion

        write_stable_diffusion(folder, widths=(32, 64, 64, 64), layers=1, heads=2)


def train(road: Road, work: Path, shards: Path, runs: Path, clips: int) -> None:
    common = ["experiment=demo", f"output={runs}"]
    road.call("stage 1", "gen1_train.train", "stage=1", *common, f"init.from={work / 'stable-diffusion'}")
    for stage, steps in STEPS.items():
        settings = [f"data.root={shards}", f"data.batch_clips={clips}", f"stage.steps={steps}"]
        road.call(f"stage {stage}", "gen1_train.train", f"stage={stage}", *common, *settings)


def choose_subject(source: Path, shards: Path, folder: Path, rendered: bool) -> Subject:
    """From the rendered world a clip and pictures of colours and shapes that no training has seen together.

    From a user's folder some of its own.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pictures = (folder / "content-a.png", folder / "content-b.png")
    if rendered:
        from miniature.render import render_image

        write_world(folder / "input", World(1, 0, HELD_OUT, "held_out", frames=EDITED * STRIDE))
        for picture, seed in zip(pictures, (200_002, 200_008)):
            Image.fromarray(render_image(seed, 256, 448, split="held_out").frames[0]).save(picture)
        return Subject(folder / "input" / "clip-0000.mp4", 0, pictures)
    from gen1_train.data.shards import ShardSet

    shard_set = ShardSet(shards)
    pool = shard_set.pools("video")[0]
    samples = [shard_set.read(pool.pool.name, i, ("frames", "meta")) for i in range(min(pool.samples, 64))]
    metas = [sample.meta or {} for sample in samples]
    others = [i for i, meta in enumerate(metas) if meta["source"] != metas[0]["source"]] or list(range(len(samples)))
    for picture, i in zip(pictures, (others[0], others[-1])):
        frames = samples[i].frames
        assert frames is not None
        Image.fromarray(frames[0]).save(picture)
    return Subject(source / metas[0]["source"], int(metas[0]["first_frame"]), pictures)


def edit(road: Road, subject: Subject, run_folder: Path, folder: Path) -> None:
    """Six edits by two calls: the dial of time on one picture, the dial of structure on the other."""
    from gen1_train.training.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(run_folder).path
    common = [
        "--multirun",
        f"checkpoint={checkpoint}",
        f"input={subject.video}",
        f"start={subject.start}",
        f"frames={EDITED}",
        f"stride={STRIDE}",
        f"omega={OMEGA}",
        f"steps={SAMPLING_STEPS}",
    ]
    sweeps = {
        "time": ["t_s=0", "omega_t=0,1,1.5", f"image={subject.pictures[0]}", f"output={folder}/time-${{omega_t}}.mp4"],
        "structure": [
            "t_s=0,3,7",
            f"image={subject.pictures[1]}",
            f"output={folder}/structure-${{t_s}}.mp4",
            f"structure_output={folder}/depth-${{t_s}}.mp4",
        ],
    }
    for name, settings in sweeps.items():
        stamp, wanted = folder / f"{name}.json", json.dumps([*common, *settings])
        if stamp.exists() and stamp.read_text() == wanted:
            print(f"\n== edits: {name}\nreused from an earlier call", flush=True)
            continue
        road.call(f"edits: {name}", "gen1_train.edit", *common, *settings)
        stamp.write_text(wanted)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


if __name__ == "__main__":
    main()
