"""What a depth network costs by MiDaS's two rules of resizing, see `depth.resize`. JSON lines on stdout.

    python benchmarks/frozen/depth_size.py [--frames 2 --repeats 3 --width 448 --height 256 --device cpu]

Time and FLOPs per frame, and the tokens of the vision transformer, with networks of the published sizes and random
weights: DPT-Large, DPT-Hybrid, Depth Anything V2 Small. On a GPU in fp16, as gen1-data estimates there.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # replaces this folder

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)

from benchmarks.questions import Row, answer
from benchmarks.unet_step import commit, machine
from gen1_train.frozen.structure.depth import RESIZES, DepthConfig, DepthEstimator, network_size
from gen1_train.system.device import autocast


def networks() -> dict[str, Any]:
    """The configs of the published networks, as far as they affect the cost."""
    large = DPTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        backbone_out_indices=[5, 11, 17, 23],
        neck_hidden_sizes=[256, 512, 1024, 1024],
    )
    bit = BitConfig(
        layer_type="bottleneck",
        depths=[3, 4, 9],
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    hybrid = DPTConfig(
        is_hybrid=True,
        backbone_config=bit.to_dict(),
        backbone_featmap_shape=[1, 1024, 24, 24],
        backbone_out_indices=[2, 5, 8, 11],
        neck_hidden_sizes=[256, 512, 768, 768],
        reassemble_factors=[1, 1, 1, 0.5],
    )
    dino = Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, out_indices=[3, 6, 9, 12], reshape_hidden_states=False
    )
    return {
        "DPT-Large": large,
        "DPT-Hybrid": hybrid,
        "Depth-Anything-V2-Small": DepthAnythingConfig(backbone_config=dino),
    }


def ask_cost(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    device = torch.device(arguments.device)
    frames = torch.randint(0, 256, (arguments.frames, arguments.height, arguments.width, 3), dtype=torch.uint8)
    for name, config in networks().items():
        kind = DepthAnythingForDepthEstimation if isinstance(config, DepthAnythingConfig) else DPTForDepthEstimation
        kind(config).save_pretrained(folder / name)
        for resize in RESIZES:
            settings = DepthConfig(str(folder / name), chunk=arguments.chunk, resize=resize)
            estimator = DepthEstimator(settings, device)
            height, width = network_size(arguments.height, arguments.width, estimator.size, estimator.multiple, resize)
            patch = estimator.family.patch_size(estimator.network)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                estimator(frames[:1])
            with autocast(device):
                wall, processor = map(
                    min, zip(*(timed(estimator, frames) for _ in range(arguments.repeats)), strict=True)
                )
            yield {
                "network": name,
                "resize": resize,
                "input": f"{width}x{height}",
                "tokens": height // patch * (width // patch) + 1,
                "gflop": round(counter.get_total_flops() / 1e9),
                "ms_per_frame": round(1000 * wall / arguments.frames, 1),
                "processor_ms_per_frame": round(1000 * processor / arguments.frames, 1),
            }


def timed(estimator: DepthEstimator, frames: Tensor) -> tuple[float, float]:
    """Seconds, and seconds of processor time, which depends less on other work of the machine."""
    wall, processor = time.perf_counter(), time.process_time()
    estimator(frames)  # its result is on the CPU, so that a GPU is done
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=DepthConfig.chunk, help="frames per call of the network")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(only=None)
    arguments = parser.parse_args()
    where = machine(torch.device(arguments.device))
    answer({"cost": ask_cost}, arguments, {"machine": where, "commit": commit()})


if __name__ == "__main__":
    main()
