"""Training of a small model in bfloat16 compared with float32: stages 2 to 4 on data that it can learn.

It has the size of the miniature's model. The miniature's own data need its estimators, which machines with GPUs may not
have; these batches are waves that the content describes.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.on_gpu.batches import Clips, PreparedBatches, with_structure
from benchmarks.on_gpu.runner import attempt
from benchmarks.on_gpu.scale import Scale, model_config
from benchmarks.questions import Row
from gen1_train.model.kernels import Latents, choose
from gen1_train.model.pretrained import load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.system.device import autocast
from gen1_train.training.module import DiffusionConfig, Gen1Module, StageSpec, fill_missing_gradients
from gen1_train.training.network import OptimConfig

OPTIM = OptimConfig(lr=3e-4, warmup_steps=20)
SIZE = (8, 14)  # of the latents: 112x64 pixels
LAST = 0.2  # share of the steps whose losses are compared


def half_precision_rows(scale: Scale) -> Iterator[Row]:
    """Yields the mean losses at the start and the end of each stage, in both precisions, and the ratio of the ends."""
    base = model_config("tiny" if scale.rehearsal else "miniature")
    frames, clips = scale.frames, 1 if scale.rehearsal else 8
    stages = {
        "2, images": (replace(base, temporal=False), Clips(4 * clips, 1, *SIZE)),
        "3, clips": (base, Clips(clips, frames, *SIZE)),
        "4, structure": (with_structure(base), Clips(clips, frames, *SIZE)),
    }
    steps = 5 if scale.rehearsal else 150
    weights: dict[str, dict[str, Tensor]] = {"fp32": {}, "bf16": {}}
    for stage, (config, batch) in stages.items():

        def measure(config: UNetConfig = config, batch: Clips = batch) -> Row:
            curves = {precision: train(scale, config, batch, precision, weights, steps) for precision in weights}
            row: Row = {"steps": steps}
            for precision, losses in curves.items():
                count = max(1, round(LAST * steps))
                row[f"{precision}_first"] = round(statistics.mean(losses[:count]), 4)
                row[f"{precision}_last"] = round(statistics.mean(losses[-count:]), 4)
            return {**row, "bf16_per_fp32": round(row["bf16_last"] / row["fp32_last"], 4)}

        yield attempt({"stage": stage}, measure)


def train(
    scale: Scale, config: UNetConfig, clips: Clips, precision: str, weights: dict[str, dict[str, Tensor]], steps: int
) -> list[float]:
    """Trains a stage from the weights of the one before, which its own replace; returns the loss of each step."""
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(config)
    if weights[precision]:
        load_weights(unet, weights[precision], "the stage before")
    stage = StageSpec(seed=0, latent_scale=1.0, structure=config.in_channels > config.out_channels, steps=steps)
    module = Gen1Module(unet, OPTIM, DiffusionConfig(), stage)
    batches = PreparedBatches(module, clips, steps, different=steps)
    module.to(scale.device).on_fit_start()
    choose(unet, [Latents(clips.samples, clips.frames, *SIZE)], scale.device, torch.bfloat16, compiled=False)
    optimizers = module.adamw(OPTIM, 0, steps)
    optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    losses = []
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        with autocast(scale.device, precision):
            loss = module.losses(batch.to(scale.device)).mean()
        loss.backward()
        fill_missing_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), OPTIM.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    weights[precision] = {name: weight.detach().cpu() for name, weight in unet.state_dict().items()}
    return torch.stack(losses).tolist()
