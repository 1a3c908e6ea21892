"""`make demo`: the whole road in miniature, by the same commands that a user calls, ending in demo/index.html.

Every command is idempotent, so this script only calls them in order: what is finished is reused, what was interrupted
goes on. What the stages have made is then compared with the checkpoint that this package carries.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from miniature.arguments import Parser
from miniature.page import DEMO, RELEASED, compared, write_page
from miniature.road import Road
from miniature.world import SEEDS, SOURCES, World, write_world

if TYPE_CHECKING:
    from gen1_train.training.checkpoint import Checkpoint

STEPS = {2: 240, 3: 160, 4: 180, 5: 100}  # optimizer steps of each stage; the paper: 15k, 75k, 25k, 10k
CLIPS, IMAGES, FRAMES = 32, 128, 40  # of the rendered world
CARRIED = "miniature"  # the released checkpoint, by the name of the package that carries it
EDITED_WORLD = 909  # its first scene is edited: one solid that bounces and turns; models are trained on lower seeds
PICTURES = (950 * SEEDS + 112, 950 * SEEDS + 29)  # scenes of the pictures: an orange box, a blue ball
EDITED, STRIDE = 16, 4  # frames of an edit, and frames of the input from one to the next
SAMPLING = ["omega=3", "steps=15", "solver=dpm++"]
PAIRS = 8  # edits of each model that are measured, and how they are made
COMPARING = ["omega=3", "steps=12", "solver=dpm++", "workers=2"]


@dataclass(frozen=True)
class Subject:
    """What is edited: a video and where to start in it, and two pictures whose content goes in."""

    video: Path
    start: int
    pictures: tuple[Path, Path]


def main() -> None:
    parser = Parser(prog="make demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, help="a folder of your own videos (default: a rendered world)")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    with parser.mistakes():
        run(arguments.source, arguments.output)


def run(source: Path | None, output: Path) -> None:
    """The road from a folder of videos to the page. Raises UserError."""
    from gen1_train.training.checkpoint import find_checkpoint

    if source is not None and not source.is_dir():
        raise UserError(f"SOURCE={source} is not a folder: give one that holds videos")
    released = find_checkpoint(Path(CARRIED))  # better missed now than after minutes of training
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
    models = {DEMO: find_checkpoint(runs / "demo" / "stage5"), RELEASED: released}
    subject = choose_subject(source, shards, work / "edits", rendered)
    edit(road, subject, models, work / "edits")
    numbers = compare(road, models, work) if rendered else None  # of a user's videos nobody knows the truth
    page = write_page(output / "index.html", work, subject.video, road.timings(), training_of(clips), numbers)
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
    raise UserError(
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

        write_world(folder / "input", World(1, 0, EDITED_WORLD, "held_out", frames=EDITED * STRIDE))
        for picture, seed in zip(pictures, PICTURES):
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


def edit(road: Road, subject: Subject, models: dict[str, Checkpoint], folder: Path) -> None:
    """Eight edits by four calls.

    The demo's model: the dial of time on one picture, the dial of structure on the other. The released one: each once.
    """
    common = [f"input={subject.video}", f"start={subject.start}", f"frames={EDITED}", f"stride={STRIDE}", *SAMPLING]
    first, second = (f"image={picture}" for picture in subject.pictures)
    time = ["t_s=0", "omega_t=0,1,1.5", first, f"output={folder}/time-${{omega_t}}.mp4"]
    structure = ["t_s=0,3,7", second, f"output={folder}/structure-${{t_s}}.mp4"]
    structure += [f"structure_output={folder}/depth-${{t_s}}.mp4"]
    calls = {
        "time": (DEMO, time),
        "structure": (DEMO, structure),
        "released-a": (RELEASED, [first, f"output={folder}/released-a.mp4"]),
        "released-b": (RELEASED, [second, f"output={folder}/released-b.mp4"]),
    }
    for name, (model, settings) in calls.items():
        sweep = ["--multirun"] if model == DEMO else []  # Hydra's flags stand before all settings
        settings = [*sweep, f"checkpoint={given(models, model)}", *common, *settings]
        once(road, f"edits: {name}", folder / f"{name}.json", identity(models[model]), "gen1_train.edit", *settings)


def compare(road: Road, models: dict[str, Checkpoint], work: Path) -> Path:
    """Measures edits of both models whose truth is known, and prints what came out.

    Returns the folder of `cases/` and `evaluation/NAME/`; other models or settings have another one.
    """
    made = json.dumps([PAIRS, COMPARING, [identity(model) for model in models.values()]])
    place = work / f"comparison-{_digest(made)}"
    place.mkdir(exist_ok=True)
    cases = place / "cases"
    once(road, "cases", place / "cases.json", "", "miniature.cases", str(cases), "--pairs", str(PAIRS))
    for name in models:
        edits = place / "evaluation" / name
        settings = [
            f"checkpoint={given(models, name)}",
            f"data={cases / 'pairs.csv'}",
            f"output={edits}",
            *("methods=[gen1]", "omega_t=[1]", "t_s=[0]", *COMPARING, "keep_videos=true"),
        ]
        once(road, f"evaluation: {name}", place / f"{name}.json", "", "gen1_train.evaluate", *settings)
        measured = place / f"{name}-measured.json"
        once(road, f"measures: {name}", measured, "", "miniature.measure", str(edits), str(cases))
    print("\n== comparison")
    lines = compared(place)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip(), flush=True)
    return place


def given(models: dict[str, Checkpoint], name: str) -> str:
    """What a user would give as checkpoint=."""
    return CARRIED if name == RELEASED else str(models[name].path)


def training_of(clips: int) -> str:
    """How the two models were trained, in a sentence."""
    from miniature import experiment

    steps, longer = sum(STEPS.values()), sum(experiment.STEPS.values())
    return (
        f"The demo's model has learnt for {steps:,} steps of {clips} clips or {8 * clips} images, the released one for "
        f"{longer:,} steps on the {experiment.TRAIN.clips} clips and {experiment.TRAIN.images:,} images of the "
        "miniature world: expect the first to be far worse."
    )


def once(road: Road, title: str, stamp: Path, model: str, module: str, *arguments: str) -> None:
    """Calls a command, unless its stamp says that it has ended well; `model`: identity of what it works on."""
    wanted = json.dumps([model, module, *arguments])
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"\n== {title}\nreused from an earlier call", flush=True)
        return
    road.call(title, module, *arguments)
    write_atomically(stamp, wanted.encode())


def identity(checkpoint: Checkpoint) -> str:
    """Changes with any file of a checkpoint: its info has their hashes."""
    from gen1_train.training.checkpoint import INFO

    return _digest((checkpoint.path / INFO).read_text())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


if __name__ == "__main__":
    main()
