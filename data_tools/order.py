"""`gen1-data order`: which samples a training step reads, and where they lie."""

import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import MISSING
from PIL import Image

from data_tools.order_picture import draw_order
from gen1_train.cli import run_app
from gen1_train.errors import UserError
from gen1_train.files import write_atomically

if TYPE_CHECKING:
    from gen1_train.data.schedule import Schedule, Settings, Start
    from gen1_train.data.shards import ShardSet

COLUMNS = ("step", "kind", "pool", "epoch", "slot", "key", "shard", "row")


@dataclass
class OrderConfig:
    output: str = MISSING  # folder of the shard set
    step: int = MISSING  # the optimizer step, from 0
    steps: int = 1  # how many steps, from that one on
    run: str | None = None  # folder of a stage's run, OUTPUT/NAME/stageN: its settings hold where none is given here
    stage: str | None = None  # name of the stage, on which the order depends; null: as in run=, or 3
    seed: int | None = None  # of the run; null: as in run=, or 0
    batch_clips: int | None = None  # global batch of a video step, in clips; null: as in run=, or 1152
    image_ratio: float | None = None  # share of image steps; null: as in run=, or 0.125
    frames: int | None = None  # of a clip, where the set has no videos to tell; null: as in run=, or 8
    mix: str | None = None  # exact or independent; null: as in run=, or exact
    order: str | None = None  # global or blocks; null: as in run=, or global
    window: int | None = None  # shards, of order=blocks; null: as in run=, or 8
    lanes: int | None = None  # of order=blocks; null: as in run=, or 8
    picture: str | None = None  # a PNG to draw in place of the table: which shards are read in which step, by whom


@dataclass(frozen=True)
class Recorded:
    """What a run says of its order."""

    stage: str
    settings: "Settings"
    start: "Start | None" = None  # of the newest checkpoint's schedule
    manifest: str | None = None  # hash of the set that the newest checkpoint was trained on


def main() -> None:
    run_app("gen1-data order", "order", OrderConfig, run)


def run(config: OrderConfig) -> None:
    """Prints a header line and a line a slot, with tabs between the columns; or draws. Raises UserError."""
    for name, least in (("step", 0), ("steps", 1)):
        if getattr(config, name) < least:
            raise UserError(f"{name}={getattr(config, name)} is below {least}")
    from gen1_train.batch import SampleError  # here: --help need not wait for torch
    from gen1_train.data.schedule import Schedule
    from gen1_train.data.shards import ShardSet

    recorded = choose(config)
    shards = ShardSet(config.output)
    if recorded.manifest not in (None, shards.manifest.hash):
        raise UserError(
            f"run={config.run} was trained on another shard set than {config.output} (the manifests differ)"
        )
    start = recorded.start
    if start is not None and config.step < start.step:
        raise UserError(
            f"step={config.step} was read before the settings of {config.run} were changed at step {start.step}: give "
            "a later step, or the old settings without run="
        )
    schedule = Schedule(shards, recorded.settings, start)
    if config.picture is not None:
        save(draw_order(shards, schedule, config.step, config.steps), config.picture)
        return
    try:
        print("\t".join(COLUMNS))
        for step in range(config.step, config.step + config.steps):
            for row in rows(shards, schedule, step):
                print("\t".join(map(str, row)))
        sys.stdout.flush()
    except SampleError as error:
        raise UserError(f"output={config.output} is damaged ({error}): restore it, or see gen1-data verify") from error
    except BrokenPipeError:
        # whoever reads this, `head` say, has what it wants; Python must not find the pipe at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def save(picture: Image.Image, path: str) -> None:
    """Writes the picture as a PNG, whole or not at all. Raises UserError."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    try:
        write_atomically(Path(path), stream.getvalue())
    except OSError as error:
        raise UserError(f"picture={path} cannot be written ({error.strerror}): give a file in a folder") from error


def rows(
    shards: "ShardSet", schedule: "Schedule", number: int
) -> Iterator[tuple[int, str, str, int, int, str, str, int]]:
    """The COLUMNS of every slot of one step."""
    step = schedule.at(number)
    samples = [schedule.sample(step, slot) for slot in range(step.size)]
    places = {}
    for sample in sorted(set(samples)):  # a shard's samples one after another: its index is opened once
        shard, row = shards.locate(step.pool, sample)
        places[sample] = (shards.entry(shard, row).key, shard.name, row)
    for slot, sample in enumerate(samples):
        epoch = (step.first + slot) // step.samples  # of the pool; it may begin within a step
        yield (number, step.kind, step.pool, epoch, slot, *places[sample])


def choose(config: OrderConfig) -> Recorded:
    """What is given, else what the run recorded, else the defaults. Raises UserError for values that cannot be."""
    from gen1_train.data.schedule import Settings, stage_seed

    if config.run is None:
        recorded = Recorded(config.stage or "3", Settings(stage_seed(0, config.stage or "3"), 0.125, 1152))
    elif config.stage is None:
        recorded = read_run(Path(config.run))
    else:
        raise UserError(f"run={config.run} tells the stage: leave stage= out")
    names = {"clips": "batch_clips"}
    given = {name: getattr(config, names.get(name, name)) for name in vars(recorded.settings)}
    if config.seed is not None:
        given["seed"] = stage_seed(config.seed, recorded.stage)
    settings = replace(recorded.settings, **{name: value for name, value in given.items() if value is not None})
    if not 0 <= settings.image_ratio <= 1:
        raise UserError(f"image_ratio={settings.image_ratio} is a share: give a number from 0 to 1")
    for name in ("clips", "frames", "window", "lanes"):
        if getattr(settings, name) < 1:
            raise UserError(f"{names.get(name, name)}={getattr(settings, name)} is not above 0")
    for name, choices in (("mix", ("exact", "independent")), ("order", ("global", "blocks"))):
        if getattr(settings, name) not in choices:
            raise UserError(f"{name}={getattr(settings, name)} is not one of {', '.join(choices)}")
    return replace(recorded, settings=settings)


def read_run(folder: Path) -> Recorded:
    """What the newest checkpoint of a run says, or its config where there is none. Raises UserError."""
    from gen1_train.data.schedule import Start
    from gen1_train.data.state import DataState

    for path in sorted(folder.glob("checkpoints/step-*/checkpoint.json"))[-1:]:
        try:
            content = json.loads(path.read_bytes())
            state, stage = DataState.load(content["data"], str(path)), str(content["stage"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove that checkpoint, or leave run= out") from error
        return Recorded(stage, state.make_settings(), Start(**state.start), state.manifest)
    return read_config(folder / "config.yaml")


def read_config(path: Path) -> Recorded:
    """What the config of a run says. Raises UserError when it is not there or not whole."""
    from gen1_train.data.schedule import Settings, stage_seed

    try:
        config = yaml.safe_load(path.read_text())
        data, stage = config["data"], config["stage"]
        ratio = data["image_ratio"]
        settings = Settings(
            seed=stage_seed(_number(config["seed"], int), str(stage["name"])),
            image_ratio=_number(stage["image_ratio"] if ratio is None else ratio, float),
            clips=_number(data["batch_clips"], int),
            frames=_number(config["model"]["max_frames"], int),
            mix=str(data["mix"]),
            order=str(data["order"]),
            window=_number(data["window"], int),
            lanes=_number(data["lanes"], int),
        )
        return Recorded(str(stage["name"]), settings)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): give the folder of a stage's run, such as "
            "run=runs/gen1/stage4"
        ) from error
    except (ValueError, yaml.YAMLError, LookupError, TypeError) as error:
        what = " ".join(repr(error).split())
        raise UserError(
            f"{path} is not the config of a run ({what}): leave run= out, and give seed= and the others"
        ) from error


def _number(value: Any, kind: type) -> Any:
    """A value of the recorded config, which a person may have changed. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return kind(value)
