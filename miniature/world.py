"""The world on disk: `python -m miniature.world FOLDER --clips 32 --images 128 [--split train] [--truth]`.

H.264 clips, PNG images, and `sources.csv`, the list of both with their captions, which gen1-data takes
(`source=FOLDER/sources.csv`) like that of any other footage. With --truth also `truth/NAME.npz`: `depth` and `solids`
of every frame, as they come from the renderer.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from miniature.render import FRAME_RATE, render_clip
from miniature.scene import SPLITS, sample_scene

SOURCES = "sources.csv"
IMAGE_SEEDS = 50_000  # the images' scenes begin so far behind the clips'
SEEDS = 100_000  # scenes of one seed of a world


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encode (n, h, w, 3) uint8 as an H.264 yuv420p MP4, complete under its name or not there at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def write_image(path: Path, frame: np.ndarray) -> None:
    """Write (h, w, 3) uint8 as PNG, complete under its name or not there at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(frame).save(partial, format="png")
    partial.replace(path)


@dataclass(frozen=True)
class World:
    """What is written: so many clips and images of a split, all of other scenes."""

    clips: int
    images: int
    seed: int = 0
    split: str = "train"
    frames: int = 40  # of a clip
    height: int = 256
    width: int = 448
    fps: int = FRAME_RATE  # of the files; scenes always move by 1 / 24 s a frame

    def files(self) -> dict[str, int]:
        """The scene's seed of every file."""
        first = self.seed * SEEDS
        clips = {f"clip-{i:04d}.mp4": first + i for i in range(self.clips)}
        return clips | {f"image-{i:04d}.png": first + IMAGE_SEEDS + i for i in range(self.images)}


def write_world(folder: str | Path, world: World, truth: bool = False) -> None:
    """Write `clip-0000.mp4`, `image-0000.png`, … and the list of them; files already there are kept.

    Threads suffice: numpy and the encoder work outside the interpreter lock.
    """
    folder = Path(folder)
    (folder / "truth" if truth else folder).mkdir(parents=True, exist_ok=True)

    def write(job: tuple[str, int]) -> None:
        path, known = folder / job[0], folder / "truth" / f"{Path(job[0]).stem}.npz"
        if path.exists() and (known.exists() or not truth):
            return
        frames = world.frames if path.suffix == ".mp4" else 1
        clip = render_clip(job[1], frames, world.height, world.width, split=world.split)
        if truth:
            partial = known.with_name(f".{known.name}.{os.getpid()}")
            with open(partial, "wb") as stream:
                np.savez_compressed(stream, depth=clip.depth, solids=clip.solids)
            partial.replace(known)
        if path.suffix == ".mp4":
            write_video(path, clip.frames, world.fps)
        else:
            write_image(path, clip.frames[0])

    files = world.files()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        written = pool.map(write, files.items())
        list(tqdm(written, "world", len(files), unit="file", disable=not sys.stderr.isatty()))
    partial = folder / f".{SOURCES}.{os.getpid()}"
    with open(partial, "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "caption"])
        rows.writerows([name, sample_scene(seed, world.split).caption] for name, seed in files.items())
    partial.replace(folder / SOURCES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.world", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", default="448x256", metavar="WIDTHxHEIGHT")
    parser.add_argument("--truth", action="store_true", help="also depth and object masks, in truth/")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    try:
        world = World(args.clips, args.images, args.seed, args.split, args.frames, height, width)
        write_world(args.folder, world, args.truth)
    except OSError as error:
        print(f"miniature.world: error: {args.folder} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
