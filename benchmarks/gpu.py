"""Measures in ten minutes on GPUs what cannot be measured on a CPU. JSON lines on stdout, a table on stderr.

    python benchmarks/gpu.py > gpu.jsonl 2> gpu.md       # all parts, in ten minutes at most
    python benchmarks/gpu.py --only step attention       # some
    python benchmarks/gpu.py --rehearse                  # all, at a tiny size on a CPU: the numbers mean nothing

machine        the GPU, its rate of matrix products and of copies, and the host's time for a launch
step           our UNet's step at 1 to 20 clips: device, wall and launch time, rates, share of the peak, top operators
attention      temporal attention by each way, level, size and number of clips: time and memory
norm           group norm with SiLU, likewise
single … zero2 a run under each strategy in turns with a bare loop of the same work, and where it waits for the GPU
several        ddp, zero1 to zero3 and fsdp on all GPUs, if there is more than one: the rate, and how it scales
bits           whether two runs of five steps have equal bits with trainer.deterministic=true
default_bits   the same without it
plan           the peak memory of a step compared with the memory plan
checkpointing  the step with checkpointing off, at the finest level and everywhere
edit           seconds per frame of gen1-edit's sampler and autoencoder, in half precision
bf16           a small model's stages in bfloat16 and float32: their losses
peers          the steps of diffusers' UNets on the same clips
compile        the step with its layers compiled, and how long that takes
layouts        the step with the weights of its convolutions in each layout
convolutions   convolutions in each layout
checkpoint     a full checkpoint: gathered, written, synced, hashed

Each part runs in a process of its own and has a bound of seconds: one that fails, hangs or lacks a package is named,
and the others still run; see on_gpu/runner.py. SIGTERM and Ctrl-C end it with the table of what there is. The exit code
is 1 if a part failed.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # replaces this folder, so that `benchmarks` can be imported

import argparse
import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress

BEGAN = time.monotonic()
REHEARSE = "--rehearse"
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # this process must not touch CUDA, see runner.py
if REHEARSE in sys.argv:  # libraries read these when they are imported; one thread, because the tensors are small
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

import torch

from benchmarks.on_gpu.parts import PARTS
from benchmarks.on_gpu.runner import Runner, succeeds
from benchmarks.on_gpu.scale import Scale

SECONDS = 600.0
CUDA_SECONDS = 60.0  # in which a process has to reach the GPU


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help="these parts")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts; default: %(default)g")
    parser.add_argument(REHEARSE, action="store_true", help="at a tiny size on a CPU")
    options = parser.parse_args()
    if not options.rehearse and not forks_reach_the_gpu():
        parser.error("there is no GPU that torch can use: run it on a machine with one, or with --rehearse")
    parts = [part for part in PARTS if part.name in options.only]
    if any("pytorch_lightning" in part.needs for part in parts) and (options.rehearse or forks_reach_the_gpu(preload)):
        preload()
    gc.freeze()  # what is imported is not searched for garbage in each part again
    runner = Runner(Scale.tiny() if options.rehearse else Scale.full(), options.seconds, BEGAN)
    code = runner.exit_code(runner.run(parts))
    os._exit(code)  # the table stays the last of the output: without what triton prints when Python finalizes


def forks_reach_the_gpu(before: Callable[[], None] = lambda: None) -> bool:
    """Whether a process that is forked after `before` can use the GPU. Both are tried in a fork of this process."""

    def use() -> None:
        torch.zeros(1, device="cuda")

    def fork_and_use() -> None:
        before()
        if not succeeds(use, CUDA_SECONDS):
            raise RuntimeError

    return succeeds(fork_and_use, 2 * CUDA_SECONDS)


def preload() -> None:
    """Imports what most parts need and what takes seconds, once for all their processes."""
    with suppress(ImportError):
        import benchmarks.on_gpu.trainers  # noqa: F401


if __name__ == "__main__":
    main()
