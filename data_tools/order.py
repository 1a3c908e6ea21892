"""`gen1-data order`: which samples a training step reads, and where they lie."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import MISSING

from gen1_train.cli import run_app
from gen1_train.errors import UserError

if TYPE_CHECKING:
    from gen1_train.data.schedule import Schedule
    from gen1_train.data.shards import ShardSet

COLUMNS = ("step", "kind", "pool", "epoch", "slot", "key", "shard", "row")


@dataclass
class OrderConfig:
    output: str = MISSING  # folder of the shard set
    step: int = MISSING  # the optimizer step, from 0
    steps: int = 1  # how many steps, from that one on
    run: str | None = None  # folder of a stage's run, OUTPUT/NAME/stageN: its settings hold where none is given here
    seed: int | None = None  # of the run; null: as in run=, or 0
    batch_clips: int | None = None  # global batch of a video step, in clips; null: as in run=, or 1152
    image_ratio: float | None = None  # share of image steps; null: as in run=, or 0.125
    frames: int | None = None  # of a clip, where the set has no videos to tell; null: as in run=, or 8


@dataclass(frozen=True)
class Settings:
    """What of a run's config decides the order; the defaults are those of gen1-train."""

    seed: int = 0
    batch_clips: int = 1152
    image_ratio: float = 0.125
    frames: int = 8


def main() -> None:
    run_app("gen1-data order", "order", OrderConfig, run)


def run(config: OrderConfig) -> None:
    """Prints a header line and a line a slot, with tabs between the columns. Raises UserError."""
    for name, least in (("step", 0), ("steps", 1)):
        if getattr(config, name) < least:
            raise UserError(f"{name}={getattr(config, name)} is below {least}")
    settings = choose(config)
    from gen1_train.data.schedule import Schedule  # here: --help need not wait for torch
    from gen1_train.data.shards import ShardSet

    shards = ShardSet(config.output)
    if config.run is not None:
        refuse_another_set(Path(config.run), config.output, shards.manifest.hash)
    schedule = Schedule(shards, settings.seed, settings.image_ratio, settings.batch_clips, settings.frames)
    try:
        print("\t".join(COLUMNS))
        for step in range(config.step, config.step + config.steps):
            for row in rows(shards, schedule, step):
                print("\t".join(map(str, row)))
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # whoever reads this, `head` say, has what it wants; Python must not find the pipe at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rows(
    shards: "ShardSet", schedule: "Schedule", number: int
) -> Iterator[tuple[int, str, str, int, int, str, str, int]]:
    """The COLUMNS of every slot of one step."""
    step = schedule.at(number)
    samples = [schedule.sample(step, slot) for slot in range(step.size)]
    places = {}
    for sample in sorted(set(samples)):  # a shard's samples one after another: its index is read once
        shard, row = shards.locate(step.pool, sample)
        places[sample] = (shards.entry(shard, row).key, shard.name, row)
    for slot, sample in enumerate(samples):
        epoch = (step.first + slot) // step.samples  # of the pool; it may begin within a step
        yield (number, step.kind, step.pool, epoch, slot, *places[sample])


def choose(config: OrderConfig) -> Settings:
    """What is given, else what the run recorded, else the defaults. Raises UserError for values that cannot be."""
    recorded = Settings() if config.run is None else read_settings(Path(config.run))
    given = {name: getattr(config, name) for name in vars(recorded)}
    settings = Settings(**{name: old if given[name] is None else given[name] for name, old in vars(recorded).items()})
    if not 0 <= settings.image_ratio <= 1:
        raise UserError(f"image_ratio={settings.image_ratio} is a share: give a number from 0 to 1")
    for name in ("batch_clips", "frames"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name}={getattr(settings, name)} is not above 0")
    return settings


def read_settings(folder: Path) -> Settings:
    """The settings in a run's recorded config. Raises UserError when it is not there or not whole."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
        ratio = config["data"]["image_ratio"]
        return Settings(
            seed=_number(config["seed"], int),
            batch_clips=_number(config["data"]["batch_clips"], int),
            image_ratio=_number(config["stage"]["image_ratio"] if ratio is None else ratio, float),
            frames=_number(config["model"]["max_frames"], int),
        )
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


def refuse_another_set(folder: Path, output: str, manifest: str) -> None:
    """Raises UserError when the newest checkpoint of the run says that it was trained on another set."""
    for path in sorted(folder.glob("checkpoints/step-*/checkpoint.json"))[-1:]:
        try:
            trained_on = json.loads(path.read_bytes())["data"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): remove that checkpoint, or leave run= out") from error
        if trained_on not in ("", manifest):
            raise UserError(f"run={folder} was trained on another shard set than {output} (the manifests differ)")


def _number(value: Any, kind: type) -> Any:
    """A value of the recorded config, which a person may have changed. Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return kind(value)
