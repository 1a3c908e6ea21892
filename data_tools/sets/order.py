"""The command `gen1-data order`: prints which samples a training step reads, and where they are stored."""

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING
from PIL import Image

from data_tools.sets.order_picture import draw_order
from gen1_train.cli.app import run_app
from gen1_train.errors import UserError, check_choice, check_not_negative, check_positive, check_share
from gen1_train.system.console import ConsoleConfig, show
from gen1_train.system.files import check_new, write_atomically
from gen1_train.system.records import read_json, read_yaml, reason_in

if TYPE_CHECKING:
    from gen1_train.data.schedule import Schedule, Settings, Start
    from gen1_train.data.shards import ShardSet

COLUMNS = ("step", "kind", "pool", "epoch", "slot", "key", "shard", "row")


@dataclass
class OrderConfig:
    output: str = MISSING  # folder of the shard set
    step: int = MISSING  # first optimizer step, from 0
    steps: int = 1  # number of steps
    run: str | None = None  # folder of a stage's run, OUTPUT/NAME/stageN: its settings are the defaults for those here
    stage: str | None = None  # name of the stage, on which the order depends; null: as in run=, or 3
    seed: int | None = None  # of the run; null: as in run=, or 0
    batch_clips: int | None = None  # global batch of a video step, in the shortest clips; null: as in run=, or 1152
    image_ratio: float | None = None  # share of image steps; null: as in run=, or 0.125
    frames: int | None = None  # of a clip, if the set has no videos; null: as in run=, or 8
    mix: str | None = None  # exact or independent; null: as in run=, or exact
    order: str | None = None  # global or blocks; null: as in run=, or global
    window: int | None = None  # shards, of order=blocks; null: as in run=, or 8
    lanes: int | None = None  # of order=blocks; null: as in run=, or 8
    picture: str | None = None  # PNG file to draw instead of the table: which shards each step reads, and which ranks
    overwrite: bool = False  # replace a picture= that exists already
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The picture, if there is one, and the setting that names it."""
        return [("picture", Path(self.picture))] if self.picture is not None else []

    def check(self) -> None:
        """Raises UserError for a setting that cannot be; the message names it and the remedy."""
        check_not_negative(step=self.step)
        check_positive(steps=self.steps)
        if self.picture is not None:
            if not self.picture.endswith(".png"):  # as a file of the set, which overwrite=true would replace
                raise UserError(f"picture={self.picture} must end with .png")
            check_new("picture", Path(self.picture), self.overwrite)
        if self.run is not None and self.stage is not None:
            raise UserError(f"run={self.run} already gives the stage: leave stage= out")


@dataclass(frozen=True)
class RecordedOrder:
    """The settings and the state that determine the order of a run."""

    stage: str
    settings: "Settings"
    start: "Start | None" = None  # of the schedule of the newest checkpoint
    manifest: str | None = None  # hash of the set that the newest checkpoint was trained on


def main() -> None:
    run_app("gen1-data order", "order", OrderConfig, run)


def run(config: OrderConfig) -> None:
    """Prints a header and a line for each slot, with tabs between the columns; or draws a picture. Raises UserError."""
    config.check()
    from gen1_train.batch import SampleError  # here: --help must not wait for torch
    from gen1_train.data.schedule import Schedule
    from gen1_train.data.shards import ShardSet

    recorded = resolve_settings(config)
    shards = ShardSet(config.output)
    if recorded.manifest not in (None, shards.manifest.hash):
        raise UserError(
            f"run={config.run} was trained on another shard set than output={config.output} (the manifests differ): "
            "give the one that it was trained on"
        )
    start = recorded.start
    if start is not None and config.step < start.step:
        raise UserError(
            f"step={config.step} was read before the settings of {config.run} were changed at step {start.step}: give "
            "a later step, or the old settings without run="
        )
    schedule = Schedule(shards, recorded.settings, start)
    if config.picture is not None:
        save_picture(draw_order(shards, schedule, config.step, config.steps), config.picture)
        return
    try:
        show("\t".join(COLUMNS))
        for step in range(config.step, config.step + config.steps):
            show("\n".join("\t".join(map(str, row)) for row in rows(shards, schedule, step)))
    except SampleError as error:
        raise UserError(f"output={config.output} is damaged ({error}): restore it, or see gen1-data verify") from error
    except BrokenPipeError:
        # the reader, such as `head`, has closed the pipe; Python must not meet the closed pipe again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def save_picture(picture: Image.Image, path: str) -> None:
    """Writes the picture as a PNG, atomically. Raises UserError."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    try:
        write_atomically(Path(path), stream.getvalue())
    except OSError as error:
        raise UserError(f"picture={path} cannot be written ({error.strerror}): give a file in a folder") from error


def rows(
    shards: "ShardSet", schedule: "Schedule", number: int
) -> Iterator[tuple[int, str, str, int, int, str, str, int]]:
    """Yields the COLUMNS of every slot of one step."""
    step = schedule.at(number)
    samples = [schedule.sample(step, slot) for slot in range(step.size)]
    stored_at = {}
    for sample in sorted(set(samples)):  # shard by shard, so that each index is opened once
        shard, row = shards.locate(step.pool, sample)
        stored_at[sample] = (shards.entry(shard, row).key, shard.name, row)
    for slot, sample in enumerate(samples):
        epoch = (step.first + slot) // step.samples  # of the pool; an epoch may begin within a step
        yield (number, step.kind, step.pool, epoch, slot, *stored_at[sample])


def resolve_settings(config: OrderConfig) -> RecordedOrder:
    """Returns the given settings, completed by those of the run or by the defaults. Raises UserError."""
    from gen1_train.data.schedule import Settings, stage_seed

    if config.run is None:
        recorded = RecordedOrder(config.stage or "3", Settings(stage_seed(0, config.stage or "3"), 0.125, 1152))
    else:
        recorded = read_run(Path(config.run))
    names = {"clips": "batch_clips"}
    overrides = {name: getattr(config, names.get(name, name)) for name in vars(recorded.settings)}
    if config.seed is not None:
        overrides["seed"] = stage_seed(config.seed, recorded.stage)
    settings = replace(recorded.settings, **{name: value for name, value in overrides.items() if value is not None})
    check_share(image_ratio=settings.image_ratio)
    check_positive(
        batch_clips=settings.clips,
        frames=settings.frames,
        window=settings.window,
        lanes=settings.lanes,
    )
    check_choice("mix", settings.mix, ("exact", "independent"))
    check_choice("order", settings.order, ("global", "blocks"))
    return replace(recorded, settings=settings)


def read_run(folder: Path) -> RecordedOrder:
    """Returns the order of a run's newest checkpoint, or of its config if it has no checkpoint. Raises UserError."""
    from gen1_train.data.schedule import Start
    from gen1_train.data.state import DataState

    for path in sorted(folder.glob("checkpoints/step-*/checkpoint.json"))[-1:]:
        try:
            content = read_json(path)
            state, stage = DataState.load(content["data"], str(path)), str(content["stage"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove that checkpoint, or leave run= out") from error
        return RecordedOrder(stage, state.make_settings(), Start(**state.start), state.manifest)
    return read_config(folder / "config.yaml")


def read_config(path: Path) -> RecordedOrder:
    """Returns the order that the config of a run gives. Raises UserError if it is missing or incomplete."""
    from gen1_train.data.schedule import Settings, stage_seed
    from gen1_train.data.state import AUTO

    try:
        config = read_yaml(path)
        data, stage = config["data"], config["stage"]
        ratio = data["image_ratio"]
        settings = Settings(
            seed=stage_seed(_number(config["seed"], int), str(stage["name"])),
            image_ratio=_number(stage["image_ratio"] if ratio is None else ratio, float),
            clips=_number(data["batch_clips"], int),
            frames=_number(config["model"]["max_frames"], int),
            mix=str(data["mix"]),
            order="global" if data["order"] == AUTO else str(data["order"]),
            window=_number(data["window"], int),
            lanes=_number(data["lanes"], int),
        )
        return RecordedOrder(str(stage["name"]), settings)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): give the folder of a stage's run, such as "
            "run=runs/gen1/stage4"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        reason = reason_in(error)
        raise UserError(
            f"{path} is not the config of a run ({reason}): leave run= out, and give seed= and the others"
        ) from error


def _number(value: Any, kind: type) -> Any:
    """Returns a number of the recorded config, which the user may have changed. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return kind(value)
