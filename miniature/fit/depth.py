"""The depth estimator's fit, as in MiDaS: relative inverse depth, compared after removing shift and scale."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import DPTForDepthEstimation

from gen1_train.frozen.structure.dpt import dpt_inverse_depth
from miniature.data import FIT_SEED, HELD_OUT_SEED
from miniature.fit.loop import Fit
from miniature.fit.variants import SMALL, Variant
from miniature.tiny import depth_estimator

BATCH = 8
ANCHOR_SCALE = 20.0  # brings 1 / depth to about 1..5, the order of magnitude of DPT outputs
ANCHOR_WEIGHT = 0.1


def without_affine(depth: torch.Tensor) -> torch.Tensor:
    """Removes median and mean absolute deviation of each frame, (n, h, w) (MiDaS, arXiv 1907.01341, Eq. 5 and 6)."""
    flat = depth.flatten(1)
    flat = flat - flat.median(1, keepdim=True).values
    return (flat / flat.abs().mean(1, keepdim=True).clamp_min(1e-3)).view_as(depth)


def depth_loss(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Affine-invariant L1 loss, plus gradient matching and a weak anchor to the true scale.

    The anchor keeps the frames of a clip comparable, and the output off the dead side of the head's last ReLU.
    """
    error = without_affine(predicted) - without_affine(truth)
    edges = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
    anchor = functional.l1_loss(predicted, ANCHOR_SCALE * truth)
    return error.abs().mean() + 0.5 * edges + ANCHOR_WEIGHT * anchor


def measure(model: DPTForDepthEstimation, count: int = 128, variant: Variant = SMALL) -> dict[str, float]:
    """Measures agreement with the true inverse depth of unseen scenes, after a least-squares fit of each frame."""
    frames = variant.pictures.rendered(count, HELD_OUT_SEED)
    with torch.no_grad():
        predicted = torch.cat([dpt_inverse_depth(model, part / 127.5 - 1) for part in frames.pixels.split(32)])
    predicted, truth = predicted.flatten(1), frames.inverse_depth.flatten(1)
    p, t = predicted - predicted.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True)
    scale = (p * t).sum(1, keepdim=True) / p.square().sum(1, keepdim=True)
    aligned = scale * p + truth.mean(1, keepdim=True)
    correlation = (p * t).sum(1) / (p.norm(dim=1) * t.norm(dim=1))
    return {
        "relative_error": round(float(((aligned - truth).abs() / truth).mean()), 4),
        "correlation": round(float(correlation.mean()), 4),
    }


def start(model: DPTForDepthEstimation) -> DPTForDepthEstimation:
    """Applies fan-in initialization: with transformers' std of 0.02, little signal passes so narrow a neck and head."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            module.reset_parameters()
    nn.init.ones_(model.head.head[-2].bias)  # the last ReLU starts alive
    return model


def fit(
    steps: int, variant: Variant = SMALL, state: Path | None = None
) -> tuple[DPTForDepthEstimation, dict[str, float]]:
    """Fits the depth estimator; returns it and its held-out quality."""
    torch.manual_seed(0)
    model = start(depth_estimator(variant.depth_size))
    frames = variant.pictures.rendered(6000, FIT_SEED)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,), generator=generator)
        images, truth = frames.pixels[chosen] / 127.5 - 1, frames.inverse_depth[chosen]
        if torch.rand((), generator=generator) < 0.5:
            images, truth = images.flip(3), truth.flip(2)
        gain = 0.7 + 0.6 * torch.rand((len(images), 3, 1, 1), generator=generator)
        return depth_loss(dpt_inverse_depth(model, ((images + 1) * gain - 1).clamp(-1, 1)), truth)

    Fit("depth", steps, 2e-3, state).minimize(model, loss_of)
    return model, measure(model, variant=variant)
