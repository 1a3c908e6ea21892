"""Whole files that targets start from, each made once: a shard set, checkpoints, a plan, videos."""

import tempfile
from functools import cache
from pathlib import Path

_folder = tempfile.TemporaryDirectory(prefix="gen1-fuzzing-")


def folder(name: str) -> Path:
    """Returns a path in a folder that is removed at the end of the process."""
    return Path(_folder.name) / name


@cache
def shard_set() -> Path:
    """A set of two clips and two images, in a shard each."""
    from tests.made import make_shard_set

    return make_shard_set(folder("set"), clips=2, images=2, width=16, height=16, frames=2, shards=1)


@cache
def checkpoint() -> Path:
    """A checkpoint of stage 5, with the state of its data."""
    from tests.made_checkpoint import edit_info, write_checkpoint

    path = write_checkpoint(folder("run"), frames=4)
    edit_info(path, lambda content: content.update(data=data_state(), counters={"updates": 10}))
    return path


@cache
def prior() -> Path:
    from tests.made_checkpoint import write_prior

    return write_prior(folder("prior"))


@cache
def depth_anything() -> Path:
    """A small random Depth Anything."""
    from tests.frozen.structure.tiny_depth import depth_anything, lively

    lively(depth_anything()).save_pretrained(folder("depth-anything"))
    return folder("depth-anything")


@cache
def captioner(kind: str) -> Path:
    """A small random BLIP or CoCa."""
    from tests.frozen.captions.published import make_blip, make_coca

    return make_blip(folder(kind)) if kind == "blip" else make_coca(folder(kind))


def data_state() -> dict[str, object]:
    """The state of the data at step 10, as a checkpoint records it."""
    from dataclasses import asdict

    from gen1_train.data.schedule import Schedule, Settings, Start
    from gen1_train.data.shards import ShardSet
    from gen1_train.data.state import capture

    settings = Settings(seed=0, image_ratio=0.5, clips=1, frames=2)
    return asdict(capture(Schedule(ShardSet(shard_set()), settings, Start()), 10, ("from step 5: clips 1 -> 2",)))
