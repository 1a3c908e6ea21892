"""A small source folder with one file of every kind, and a quick recipe."""

import os
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from PIL import Image

from data_tools import workers
from data_tools.clips import read
from data_tools.clips.cut import CutConfig
from data_tools.clips.read import FileEnd, Item
from data_tools.prepare import DataToolsConfig
from data_tools.recipe import RecipeConfig
from gen1_train.frozen.autoencoder import AutoencoderConfig
from gen1_train.frozen.clip import ClipConfig
from gen1_train.frozen.structure.depth import DepthConfig
from tests.running import WEIGHTS
from tests.video.files import make_video, picture


def quick_recipe(**changes: object) -> RecipeConfig:
    """Returns a recipe: at most 3 clips per video, of 2 frames, 2 apart, at 64x48, with the miniature's estimators."""
    cut = {"frames": 2, "stride": 2, "clips_per_video": 3}
    cut |= {entry.name: changes.pop(entry.name) for entry in fields(CutConfig) if entry.name in changes}  # type: ignore[misc]
    values: dict[str, object] = {
        "cut": CutConfig(**cut),
        "video_buckets": ["64x48"],
        "image_buckets": ["48x48", "64x48"],
        "task_seconds": 2.0,
        "autoencoder": AutoencoderConfig(path=str(WEIGHTS / "autoencoder")),
        "depth": DepthConfig(path=str(WEIGHTS / "depth"), size=48, multiple=16),
        "clip": ClipConfig(model=f"local-dir:{WEIGHTS / 'clip'}", pretrained=None),
    }
    return RecipeConfig(**{**values, **changes})  # type: ignore[arg-type]


def config(source: Path | str, output: Path, **changes: object) -> DataToolsConfig:
    settings = {entry.name: changes.pop(entry.name) for entry in fields(DataToolsConfig) if entry.name in changes}
    return DataToolsConfig(str(source), str(output), quick_recipe(**changes), **settings)  # type: ignore[arg-type]


def make_source(folder: Path) -> Path:
    """Writes two good videos and an image, two of them with captions; broken, short and tiny files; and other files."""
    (folder / "sub").mkdir(parents=True)
    make_video(folder / "a.mp4", frames=60)
    make_video(folder / "sub" / "b.c.mkv", frames=40)
    (folder / "sub" / "b.c.txt").write_text("a noise\nthat wanders \n")
    Image.fromarray(picture(7)).save(folder / "photo.png")
    (folder / "photo.txt").write_text("a noise")
    (folder / "broken.mp4").write_text("I am no video")
    make_video(folder / "short.mp4", frames=2)
    Image.fromarray(picture(0)[:20, :20]).save(folder / "tiny.png")
    (folder / "notes.md").write_text("not for training")
    (folder / ".hidden.mp4").write_text("must be skipped")
    return folder


def do_task_and_die(settings: workers.Settings, number: int) -> None:
    """Replaces `do_task_in_worker`: kills its process in the middle of task 1, after the task's first file."""
    original = read.FileReader.read

    def read_and_die(reader: read.FileReader, *arguments: object) -> Iterator[Item]:
        for item in original(reader, *arguments):  # type: ignore[arg-type]
            if number == 1 and isinstance(item, FileEnd):
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    read.FileReader.read = read_and_die  # type: ignore[method-assign]
    workers.do_task(settings, number, lambda progress: None)
