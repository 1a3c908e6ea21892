"""The world on disk: `python -m miniature.world FOLDER --clips 32 --images 128 [--style rich] [--truth]`.

Writes H.264 clips, PNG images, and `sources.csv`, the list of both with their captions, which gen1-data reads like the
list of any other footage (`source=FOLDER/sources.csv`). With --truth it also writes `truth/NAME.npz`, the renderer's
`depth` and `solids` of every frame.
"""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gen1_train.errors import UserError
from gen1_train.system.console import progress
from gen1_train.system.files import atomic_file
from gen1_train.video.encode import write_video
from miniature.arguments import Parser, size
from miniature.world.render import FRAME_RATE, render_scene
from miniature.world.scene import PLAIN, SPLITS, STYLES, sample_scene

SOURCES = "sources.csv"
IMAGE_SEEDS = 50_000  # offset of the images' scenes from those of the clips
SCENES_PER_SEED = 100_000  # scenes that belong to one seed of a world


def write_image(path: Path, frame: np.ndarray) -> None:
    """Writes (h, w, 3) uint8 as PNG. The file appears under its name only when it is complete."""
    with atomic_file(path) as partial:
        Image.fromarray(frame).save(partial, format="png")


@dataclass(frozen=True)
class World:
    """The contents of a world: clips and images of a split, each of a scene of its own."""

    clips: int
    images: int
    seed: int = 0
    split: str = "train"
    frames: int = 40  # per clip
    height: int = 256
    width: int = 448
    fps: int = FRAME_RATE  # of the files
    stride: int = 1  # scenes advance by stride / 24 s from one frame to the next
    supersample: int = 1  # rays per pixel and direction
    style: str = PLAIN

    def __post_init__(self) -> None:
        """Raises UserError for values out of range."""
        for name, most in (("clips", IMAGE_SEEDS), ("images", SCENES_PER_SEED - IMAGE_SEEDS)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)} is out of range: give 0 to {most}")
        if self.seed < 0 or min(self.frames, self.fps, self.stride, self.supersample) < 1:
            raise UserError(
                f"seed={self.seed}, frames={self.frames}, fps={self.fps}, stride={self.stride}, "
                f"supersample={self.supersample}: need 0, 1, 1, 1, 1 or more"
            )
        if self.split not in SPLITS:
            raise UserError(f"split={self.split} is not one of {', '.join(SPLITS)}")
        if self.style not in STYLES:
            raise UserError(f"style={self.style} is not one of {', '.join(STYLES)}")
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise UserError(f"size={self.width}x{self.height}: both sides must be even (H.264) and 16 or more")

    def files(self) -> dict[str, int]:
        """Maps every file name to the seed of its scene."""
        first = self.seed * SCENES_PER_SEED
        clips = {f"clip-{i:04d}.mp4": first + i for i in range(self.clips)}
        return clips | {f"image-{i:04d}.png": first + IMAGE_SEEDS + i for i in range(self.images)}


def write_world(folder: str | Path, world: World, truth: bool = False) -> None:
    """Writes `clip-0000.mp4`, `image-0000.png`, … and their list; existing files are kept.

    Raises UserError for a folder that holds another world, and OSError.
    """
    folder, files = Path(folder), world.files()
    captions = {name: sample_scene(seed, world.split, world.style).caption for name, seed in files.items()}
    for name, caption in read_captions(folder / SOURCES).items():
        if captions.get(name, caption) != caption:
            raise UserError(f"{folder} holds another world, of another seed, split or style: give a folder of its own")
    (folder / "truth" if truth else folder).mkdir(parents=True, exist_ok=True)

    def write(job: tuple[str, int]) -> None:
        name, seed = job
        path = folder / name
        truth_path = folder / "truth" / f"{path.stem}.npz"
        missing = [file for file in ((path, truth_path) if truth else (path,)) if not file.exists()]
        if not missing:
            return
        frames = world.frames if path.suffix == ".mp4" else 1
        scene = sample_scene(seed, world.split, world.style)
        clip = render_scene(scene, frames, world.height, world.width, world.supersample, world.stride)
        if truth_path in missing:
            with atomic_file(truth_path) as partial, open(partial, "wb") as stream:
                np.savez_compressed(stream, depth=clip.depth, solids=clip.solids)
        if path in missing and path.suffix == ".mp4":
            write_video(path, clip.frames, world.fps)
        elif path in missing:
            write_image(path, clip.frames[0])

    # threads suffice: numpy and the encoder work outside the interpreter lock
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(progress(pool.map(write, files.items()), title="world", unit="file", total=len(files)))
    with atomic_file(folder / SOURCES) as partial, open(partial, "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "caption"])
        rows.writerows(captions.items())


def read_captions(path: Path) -> dict[str, str]:
    """Maps file names to captions, from a list that `write_world` wrote; empty if there is no list."""
    if not path.exists():
        return {}
    with open(path, newline="") as stream:
        return {row["path"]: row["caption"] for row in csv.DictReader(stream)}


def main() -> None:
    parser = Parser(prog="python -m miniature.world", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--style", choices=STYLES, default=PLAIN)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", type=size, default="448x256", metavar="WIDTHxHEIGHT")
    parser.add_argument("--truth", action="store_true", help="also write depth and object masks, to truth/")
    arguments = parser.parse_args()
    width, height = arguments.size
    with parser.command():
        world = World(
            clips=arguments.clips,
            images=arguments.images,
            seed=arguments.seed,
            split=arguments.split,
            style=arguments.style,
            frames=arguments.frames,
            height=height,
            width=width,
        )
        write_world(arguments.folder, world, arguments.truth)


if __name__ == "__main__":
    main()
