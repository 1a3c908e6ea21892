"""What the structure levels t_s remove, and stage 5 on their stored latents. JSON lines on stdout.

    OMP_NUM_THREADS=1 python benchmarks/structure_levels.py [--rounds 5] [--width 224 --height 128] [--device cuda]

levels  by both procedures, at five sizes: how much of the width an edge takes from 10 to 90 %, the contrast kept of
        waves of a 14th and of half of the width, and, of a map of disks, the correlation with t_s = 0 and the variance
        kept
degrade milliseconds of this process's CPU time (on a GPU wall time) for a clip of 8 frames, t_s = 1, 4, 7
size    bytes of a clip of 448x256 by member, from samples of random blobs; the latents are noise, as incompressible as
        real ones
step    forward and backward pass of a clip by both ways, alternating in one process, without loader and optimizer. UNet
        and autoencoder have the layers of Stable Diffusion 1.5's at a quarter of their width, so that their FLOPs
        have the ratio of the full size: 8.87 to 3.84 TFLOP a clip of 448x256. Seconds are this process's CPU time,
        on a GPU wall time
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # replaces this folder

import argparse
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.questions import Row, answer
from benchmarks.synthetic_sets import random_samples
from benchmarks.unet_step import commit, machine, timed
from data_tools.stats import member_kind
from gen1_train.batch import Batch, Pool, collate, encode_sample
from gen1_train.diffusion.structure import DEGRADATIONS, MAX_LEVEL, degrade
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from miniature.tiny import autoencoder

CONTENT = 768
FRAMES = 8
NARROW = {"channels": [80, 160, 320, 320], "heads": [2, 2, 2, 2], "groups": 16}
NARROW_AUTOENCODER = {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "norm_num_groups": 8}
SIZES = ((64, 112), (128, 224), (256, 448), (384, 672), (512, 896))
WAVES = (14, 2)  # in a frame


def ask_levels(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    for height, width in SIZES:
        positions = (torch.arange(width) + 0.5) / width
        maps = {
            "edge": (positions > 0.5).float().expand(height, -1),
            **{f"waves{count}": (2 * math.pi * count * positions).sin().expand(height, -1) for count in WAVES},
            "disks": disks(height, width),
        }
        for name in DEGRADATIONS:
            for level in range(1, MAX_LEVEL + 1):
                left = {key: degrade(each[None, None], [level], name)[0, 0] for key, each in maps.items()}
                row = left["edge"][height // 2].double().numpy()
                low, high = np.interp([0.1, 0.9], row, positions.double().numpy())
                middle = (height // 2, slice(width // 4, width - width // 4))
                both = torch.stack([maps["disks"].flatten(), left["disks"].flatten()])
                yield {
                    "size": f"{width}x{height}",
                    "degradation": name,
                    "t_s": level,
                    "edge_%": round(100 * float(high - low), 1),
                    **{f"waves{n}_%": round(100 * float(ratio(left, maps, f"waves{n}", middle)), 1) for n in WAVES},
                    "correlation": round(float(torch.corrcoef(both)[0, 1]), 2),
                    "variance_%": round(100 * float(both[1].var() / both[0].var())),
                }


def ratio(left: dict[str, Tensor], maps: dict[str, Tensor], name: str, part: tuple[int, slice]) -> Tensor:
    return left[name][part].std() / maps[name][part].std()


def disks(height: int, width: int, count: int = 300) -> Tensor:
    """Disks of all sizes at random places and depths, the last ones in front, as things hide each other: (h, w)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] + 0.5
    depth = np.zeros((height, width), np.float32)
    for _ in range(count):
        radius = width * 0.01 / (1 - 0.95 * rng.random())
        depth[(x - width * rng.random()) ** 2 + (y - height * rng.random()) ** 2 < radius**2] = rng.random()
    return torch.from_numpy(depth)


def ask_degrade(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    device = torch.device(arguments.device)
    for height, width in SIZES:
        clip = torch.rand(1, FRAMES, height, width, device=device)
        for name in DEGRADATIONS:
            found = {}
            for level in (1, 4, 7):
                call = partial(degrade, clip, [level], name)
                call()
                cpu = time.process_time()
                wall = sum(timed(call, device) for _ in range(arguments.rounds))
                seconds = wall if device.type == "cuda" else time.process_time() - cpu
                found[f"t_s={level}_ms"] = round(1000 * seconds / arguments.rounds, 1)
            yield {"size": f"{width}x{height}", "degradation": name, **found}


def ask_size(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    (sample,) = random_samples(Pool("video", 448, 256, FRAMES), 1, CONTENT)
    assert sample.structure_latent is not None
    sample.degraded_latents = dict.fromkeys(range(1, MAX_LEVEL + 1), sample.structure_latent)
    sizes: Counter[str] = Counter()
    for name, data in encode_sample(sample).items():
        sizes[member_kind(name)] += len(data)
    for name in ("frame", "structure", "moments", "structure_latent"):
        yield {"member": name, "megabytes": round(sizes[name] / 1e6, 2)}
    yield {"member": "all", "megabytes": round(sizes.total() / 1e6, 2)}


def ask_step(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    device = torch.device(arguments.device)
    small = autoencoder()
    type(small).from_config({**small.config, **NARROW_AUTOENCODER}).save_pretrained(folder)
    frozen = Autoencoder(AutoencoderConfig(str(folder)))
    unet = SpatioTemporalUNet(UNetConfig(**NARROW, in_channels=12, content_dim=CONTENT))
    pool = Pool("video", arguments.width, arguments.height, FRAMES)
    (sample,) = random_samples(pool, 1, CONTENT)

    def module(stored_level: int) -> Gen1Module:
        stage = StageSpec(0, frozen.scale, structure=True, max_level=MAX_LEVEL, stored_level=stored_level)
        made = Gen1Module(unet, OptimConfig(), DiffusionConfig(), stage, None if stored_level else frozen).to(device)
        made.on_fit_start()
        return made

    modules = {"encoded": module(0), "stored": module(MAX_LEVEL)}
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for number in range(arguments.rounds + 1):  # the first one warms up
        batch = collate("video", number, [0], [sample]).to(device)
        batch.structure_levels = [modules["stored"].drawing.level(number, 0)]
        for name, made in modules.items():
            made.zero_grad()
            cpu = time.process_time()
            wall = timed(partial(step, made, batch), device)
            seconds[name].append(wall if device.type == "cuda" else time.process_time() - cpu)
    encoded, stored = (values[1:] for values in seconds.values())
    ratios = [a / b for a, b in zip(encoded, stored, strict=True)]
    yield {
        "clip": f"{pool.width}x{pool.height}",
        "encoded_s": round(statistics.median(encoded), 2),
        "stored_s": round(statistics.median(stored), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": f"{min(ratios):.2f}-{max(ratios):.2f}",
    }


def step(module: Gen1Module, batch: Batch) -> None:
    module.losses(batch).mean().backward()


QUESTIONS = {"levels": ask_levels, "degrade": ask_degrade, "size": ask_size, "step": ask_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(QUESTIONS), help="one question")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--height", type=int, default=128)
    arguments = parser.parse_args()
    common = {"machine": machine(torch.device(arguments.device)), "commit": commit()}
    answer(QUESTIONS, arguments, common)


if __name__ == "__main__":
    main()
