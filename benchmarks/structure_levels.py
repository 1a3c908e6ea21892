"""A training step of stage 5 on stored latents of all structure levels, and one that encodes. JSON lines on stdout.

    OMP_NUM_THREADS=1 python benchmarks/structure_levels.py [--rounds 5] [--width 224 --height 128] [--device cuda]

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
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.questions import Row, answer
from benchmarks.synthetic_sets import random_samples
from benchmarks.unet_step import commit, machine, timed
from data_tools.stats import member_kind
from gen1_train.batch import Batch, Pool, collate, encode_sample
from gen1_train.diffusion.structure import MAX_LEVEL
from gen1_train.frozen.autoencoder import Autoencoder, AutoencoderConfig
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec
from gen1_train.training.network import OptimConfig
from miniature.tiny import autoencoder

CONTENT = 768
FRAMES = 8
NARROW = {"channels": [80, 160, 320, 320], "heads": [2, 2, 2, 2], "groups": 16}
NARROW_AUTOENCODER = {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "norm_num_groups": 8}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["size", "step"], help="one question")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--height", type=int, default=128)
    arguments = parser.parse_args()
    common = {"machine": machine(torch.device(arguments.device)), "commit": commit()}
    answer({"size": ask_size, "step": ask_step}, arguments, common)


if __name__ == "__main__":
    main()
