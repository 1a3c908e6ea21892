"""What it costs to encode several planes of structure as one picture. JSON lines on stdout.

    OMP_NUM_THREADS=1 python benchmarks/frozen/planes.py [--media FOLDER --clips 8 --width 112 --height 64]

Each plane is compared with itself after encoding and decoding, alone as a gray picture and packed with others as red,
green and blue: the root of the mean squared error, as a share of the plane's range; the share of the variance that this
is (above 100 % if the decoder adds more than there was); and the share that is left unexplained by the best linear
combination of the three decoded channels, whose weights are fitted over all clips: what cannot be read back so easily.
Depth and the autoencoder are the miniature's; clips of 8 frames are of the miniature world and, with --media,
of real videos, --clips of each at most.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # replaces this folder

import argparse
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.questions import Row, answer
from benchmarks.unet_step import commit, machine
from gen1_train.diffusion.planes import kinds_of
from gen1_train.diffusion.structure import degrade
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.frozen.structure.depth import DepthConfig
from gen1_train.frozen.structure.kinds import STRUCTURES, StructureEstimator, build_structure
from gen1_train.video.errors import VideoError
from gen1_train.video.selection import Selection
from gen1_train.video.stream import read_selected
from miniature.world.render import render_clip

FRAMES = 8
STRIDE = 4
WEIGHTS = Path(__file__).parents[2] / "miniature" / "weights"
PACKED = ("depth", "edges", "soft_edges", "face", "depth+edges", "depth+soft_edges", "depth+face", "depth+edges+face")
LEVELS = (0, 4)


def clips_of(arguments: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """Yields where clips come from, and their frames, uint8 (n, h, w, 3)."""
    width, height = arguments.width, arguments.height
    for seed in range(arguments.clips):
        yield "miniature world", render_clip(seed, FRAMES, height, width).frames
    for path in sorted(Path(arguments.media).glob("*.m[pok][4v]*")) if arguments.media else ():
        for part in range(arguments.clips):
            selection = Selection(part * FRAMES * STRIDE, FRAMES, STRIDE)
            try:
                frames = [frame.pixels for frame in read_selected(str(path), selection, width, height)]
            except (VideoError, UserError) as error:
                logging.warning("%s: %s", path.name, error)
                break
            if len(frames) < FRAMES:
                break
            yield "real videos", np.stack(frames)


def ask_cost(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    configs = {kind: config() for kind, (config, _) in STRUCTURES.items()}
    configs["depth"] = DepthConfig(str(WEIGHTS / "depth"), size=64, multiple=16)
    estimators = {kind: build_structure(kind, config) for kind, config in configs.items()}
    autoencoder = Autoencoder(AutoencoderConfig(str(WEIGHTS / "autoencoder")))
    maps: dict[str, list[dict[str, Tensor]]] = {}
    for source, frames in clips_of(arguments):
        maps.setdefault(source, []).append({kind: map_of(estimators[kind], frames) for kind in estimators})
    for source, clips in maps.items():
        for level in LEVELS:
            for packed in PACKED:
                yield from cost_of(packed, source, level, clips, autoencoder)


def map_of(estimator: StructureEstimator, frames: np.ndarray) -> Tensor:
    return estimator.normalise(estimator(torch.from_numpy(frames)))[0]


def cost_of(
    packed: str, source: str, level: int, clips: list[dict[str, Tensor]], autoencoder: Autoencoder
) -> Iterator[Row]:
    """Yields a row for each plane. Clips without anything in one of the planes are left out."""
    kinds = kinds_of(packed)
    alone = len(kinds) == 1
    planes_of: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    pictures: list[Tensor] = []
    for clip in clips:
        if not all(clip[kind].any() for kind in kinds):
            continue
        planes = degrade(torch.stack([clip[kind] for kind in kinds], dim=1)[None], [level])[0]  # n p h w
        latents = autoencoder.encode_structure(planes[:, 0] if alone else planes, several=not alone)
        decoded = (autoencoder.decode(latents) + 1) / 2  # n 3 h w
        pictures.append(decoded.movedim(1, -1).reshape(-1, 3))
        for number, kind in enumerate(kinds):
            planes_of[kind].append(planes[:, number].reshape(-1))
    if not pictures:
        return
    picture = torch.cat(pictures).double()  # (pixels, 3)
    for number, kind in enumerate(kinds):
        wanted = torch.cat(planes_of[kind]).double()
        seen = picture.mean(dim=1) if alone else picture[:, number]
        error, variance = float((seen - wanted).square().mean()), float(wanted.var(unbiased=False))
        yield {
            "source": source,
            "t_s": level,
            "packed": packed,
            "plane": kind,
            "clips": len(pictures),
            "rms_percent": round(100 * error**0.5, 1),
            "of_variance_percent": round(100 * error / variance, 1),
            "unexplained_percent": round(100 * unexplained(picture, wanted) / variance, 1),
        }


def unexplained(picture: Tensor, wanted: Tensor) -> float:
    """The mean squared error of the best linear combination of channels (pixels, 3) and a constant."""
    inputs = torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1)
    weights = torch.linalg.lstsq(inputs, wanted[:, None]).solution
    return float((inputs @ weights - wanted[:, None]).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", help="a folder of videos")
    parser.add_argument("--clips", type=int, default=8, help="of the miniature world, and of each video")
    parser.add_argument("--width", type=int, default=112)
    parser.add_argument("--height", type=int, default=64)
    parser.set_defaults(only=None)
    arguments = parser.parse_args()
    answer({"planes": ask_cost}, arguments, {"machine": machine(torch.device("cpu")), "commit": commit()})


if __name__ == "__main__":
    main()
