"""Whether training repeats bit for bit: two runs of a few steps from the same weights, on the same batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.on_gpu.scale import Scale
from benchmarks.on_gpu.steps import Step, ours
from benchmarks.on_gpu.timing import release
from benchmarks.questions import Row
from gen1_train.system.device import set_determinism

STEPS = 5


def equal_bits_rows(scale: Scale, deterministic: bool) -> Iterator[Row]:
    """Yields how many weights differ after both runs, with trainer.deterministic=true or without.

    A process measures one of the two, because cuBLAS reads its settings once.
    """
    set_determinism(deterministic, cudnn_benchmark=True)
    first, second = (trained_weights(scale) for _ in range(2))
    apart = [name for name, weight in first.items() if not torch.equal(weight, second[name])]
    yield {
        "deterministic": deterministic,
        "steps": STEPS,
        "clips": scale.usual_clips,
        "equal": not apart,
        "weights": len(first),
        "differ": len(apart),
        "largest_difference": max(float((weight - second[name]).abs().max()) for name, weight in first.items()),
    }


def trained_weights(scale: Scale) -> dict[str, Tensor]:
    """Returns the weights after a few steps, as a run computes them from its start."""
    release(scale)
    step = Step(ours(scale), scale.setting(scale.usual_clips))
    for _ in range(STEPS):
        step()
    return {name: weight.detach().clone() for name, weight in step.contender.unet.named_parameters()}
