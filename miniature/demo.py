"""`make demo`: everything from raw videos to edits in miniature, with the commands that a user calls.

The result is demo/index.html. Every command is idempotent, so this script only calls them in order: finished steps are
reused, and interrupted ones continue. The model that the stages have trained is compared with the checkpoint that this
package ships.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gen1_train.errors import UserError
from gen1_train.system.console import show
from gen1_train.system.files import write_atomically
from miniature.arguments import Parser
from miniature.page import DEMO, RELEASED, comparison_table, write_page
from miniature.workflow import Runner, Workflow, run_in_process
from miniature.world.world import SCENES_PER_SEED, SOURCES, World, write_world

if TYPE_CHECKING:
    from gen1_train.training.checkpoints.checkpoint import Checkpoint

STEPS = {2: 240, 3: 160, 4: 180, 5: 100}  # optimizer steps of each stage; the paper: 15k, 75k, 25k, 10k
FOOTAGE = World(clips=32, images=128, frames=40)
RELEASED_CHECKPOINT = "miniature"  # named after the package that ships it
EDITED_WORLD = 909  # its first scene is edited: one solid that bounces and turns; models are trained on lower seeds
PICTURES = (950 * SCENES_PER_SEED + 112, 950 * SCENES_PER_SEED + 29)  # scenes: an orange box, a blue ball
EDIT_FRAMES = 16
STRIDE = 4  # frames of the input from one frame of an edit to the next
SAMPLING = ["omega=3", "steps=15", "solver=dpm++"]
PAIRS = 8  # edits of each model that are measured
COMPARING = ["omega=3", "steps=12", "solver=dpm++", "workers=2"]  # settings of the measured edits


@dataclass(frozen=True)
class Subject:
    """The input of the edits: a video, the frame to start from, and two pictures that give the content."""

    video: Path
    start: int
    pictures: tuple[Path, Path]


def main() -> None:
    parser = Parser(prog="make demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, help="a folder of your own videos (default: a rendered world)")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    with parser.command():
        run(arguments.source, arguments.output)


def run(source: Path | None, output: Path, run_command: Runner = run_in_process) -> None:
    """Runs everything from a folder of videos to the page. Raises UserError."""
    from gen1_train.training.checkpoints.checkpoint import find_checkpoint

    if source is not None and not source.is_dir():
        raise UserError(f"SOURCE={source} is not a folder: give one that holds videos")
    released = find_checkpoint(Path(RELEASED_CHECKPOINT))  # if it is missing, fail before minutes of training
    work = output / ("world" if source is None else f"{source.resolve().name}-{_digest(str(source.resolve()))}")
    work.mkdir(parents=True, exist_ok=True)
    workflow = Workflow(work, run=run_command)
    rendered = source is None
    if source is None:
        source = work / "videos"
        render(workflow, source)
    shards, runs = work / "shards", work / "runs"
    footage = source / SOURCES if rendered else source  # the list contains the captions
    workflow.call("data", "data_tools.main", f"source={footage}", f"output={shards}", "recipe=tiny", "workers=2")
    clips = batch_clips(shards)
    pretrained(work / "stable-diffusion")
    train(workflow, work, shards, runs, clips)
    models = {DEMO: find_checkpoint(runs / "demo" / "stage5"), RELEASED: released}
    subject = choose_subject(source, shards, work / "edits", rendered)
    edit(workflow, subject, models, work / "edits")
    comparison = compare(workflow, models, work) if rendered else None  # a user's videos have no known truth
    timings, training = workflow.timings(), training_of(clips)
    page = write_page(output / "index.html", work, subject.video, timings, training, comparison)
    show(f"\ndemo: finished. Open {page} in a browser.")


def render(workflow: Workflow, folder: Path) -> None:
    """Renders the demo's own footage: clips and images of moving solids with captions, as real MP4 and PNG files."""
    with workflow.timed("world", f"rendering {FOOTAGE.clips} clips and {FOOTAGE.images} images into {folder}"):
        write_world(folder, FOOTAGE)


def batch_clips(shards: Path) -> int:
    """The global batch, in clips, that the set is large enough for: an image step reads eight images per clip."""
    from gen1_train.data.shards import ShardSet

    pools = ShardSet(shards).manifest.pools.values()
    images = min((pool.samples for pool in pools if pool.kind == "image"), default=0)
    videos = min((pool.samples for pool in pools if pool.kind == "video"), default=0)
    for clips in (4, 2):
        if images >= 8 * clips and videos >= clips:
            return clips
    raise UserError(
        f"the source gave {videos} clips and {images} images, and the demo needs at least 2 and 16: add footage, at "
        "least 20 seconds in total (a clip is 8 frames, 4 apart)"
    )


def pretrained(folder: Path) -> None:
    """Writes a Stable Diffusion of the tiny model's size with random weights, since the demo downloads none."""
    if not (folder / "unet" / "config.json").exists():
        from miniature.tiny import write_stable_diffusion

        write_stable_diffusion(folder, widths=(32, 64, 64, 64), layers=1, heads=2)


def train(workflow: Workflow, work: Path, shards: Path, runs: Path, clips: int) -> None:
    common = ["experiment=demo", f"output={runs}"]
    workflow.call("stage 1", "gen1_train.train", "stage=1", *common, f"init.from={work / 'stable-diffusion'}")
    for stage, steps in STEPS.items():
        settings = [f"data.root={shards}", f"data.batch_clips={clips}", f"stage.steps={steps}"]
        workflow.call(f"stage {stage}", "gen1_train.train", f"stage={stage}", *common, *settings)


def choose_subject(source: Path, shards: Path, folder: Path, rendered: bool) -> Subject:
    """Chooses the video and the pictures, and writes the pictures.

    In the rendered world, these show pairs of color and shape that no training has seen. A user's folder gives its own.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pictures = (folder / "content-a.png", folder / "content-b.png")
    if rendered:
        from miniature.world.render import render_image

        write_world(folder / "input", World(1, 0, EDITED_WORLD, "held_out", frames=EDIT_FRAMES * STRIDE))
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


def edit(workflow: Workflow, subject: Subject, models: dict[str, Checkpoint], folder: Path) -> None:
    """Makes eight edits in four calls.

    The demo's model sweeps omega_t with one picture and t_s with the other; the released model edits with each once.
    """
    common = [f"input={subject.video}", f"start={subject.start}", f"frames={EDIT_FRAMES}", f"stride={STRIDE}"]
    common += [*SAMPLING, "overwrite=true"]  # a call that was killed may have left some of its edits
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
        sweep = ["--multirun"] if model == DEMO else []  # Hydra's flags come before all settings
        settings = [*sweep, f"checkpoint={checkpoint_setting(models, model)}", *common, *settings]
        stamp = folder / f"{name}.json"
        call_once(workflow, f"edits: {name}", stamp, identity(models[model]), "gen1_train.edit", *settings)


def compare(workflow: Workflow, models: dict[str, Checkpoint], work: Path) -> Path:
    """Measures edits of both models whose truth is known, and prints the results.

    Returns the folder that holds `cases/` and `evaluation/NAME/`; its name depends on the models and the settings.
    """
    inputs = json.dumps([PAIRS, COMPARING, [identity(model) for model in models.values()]])
    folder = work / f"comparison-{_digest(inputs)}"
    folder.mkdir(exist_ok=True)
    cases = folder / "cases"
    call_once(workflow, "cases", folder / "cases.json", "", "miniature.cases", str(cases), "--pairs", str(PAIRS))
    for name in models:
        edits = folder / "evaluation" / name
        settings = [
            f"checkpoint={checkpoint_setting(models, name)}",
            f"data={cases / 'pairs.csv'}",
            f"output={edits}",
            "methods=[gen1]",
            "omega_t=[1]",
            "t_s=[0]",
            *COMPARING,
            "keep_videos=true",
        ]
        call_once(workflow, f"evaluation: {name}", folder / f"{name}.json", "", "gen1_train.evaluate", *settings)
        stamp = folder / f"{name}-measured.json"
        call_once(workflow, f"measures: {name}", stamp, "", "miniature.measure", str(edits), str(cases))
    show("\n== comparison")
    rows = comparison_table(folder)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return folder


def checkpoint_setting(models: dict[str, Checkpoint], name: str) -> str:
    """The value of checkpoint= for a model."""
    return RELEASED_CHECKPOINT if name == RELEASED else str(models[name].path)


def training_of(clips: int) -> str:
    """A sentence on how the two models were trained."""
    from miniature import experiment

    steps, longer = sum(STEPS.values()), sum(experiment.STEPS.values())
    return (
        f"The demo's model was trained for {steps:,} steps of {clips} clips or {8 * clips} images, the released one "
        f"for {longer:,} steps on the {experiment.TRAIN.clips} clips and {experiment.TRAIN.images:,} images of the "
        "miniature world: expect the first to be far worse."
    )


def call_once(workflow: Workflow, title: str, stamp: Path, model: str, module: str, *arguments: str) -> None:
    """Calls a command unless its stamp file shows that it has succeeded; `model`: identity of the model it uses."""
    call = json.dumps([model, module, *arguments])
    if stamp.exists() and stamp.read_text() == call:
        show(f"\n== {title}\nreused from an earlier call")
        return
    workflow.call(title, module, *arguments)
    write_atomically(stamp, call.encode())


def identity(checkpoint: Checkpoint) -> str:
    """A digest that changes with any file of a checkpoint, since its info contains their hashes."""
    from gen1_train.training.checkpoints.checkpoint import INFO

    return _digest((checkpoint.path / INFO).read_text())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


if __name__ == "__main__":
    main()
