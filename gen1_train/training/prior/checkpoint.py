"""Loads a trained prior from its checkpoint, for editing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen1_train.diffusion.prior import CosineSchedule, PriorSamplingConfig
from gen1_train.errors import UserError
from gen1_train.model.pretrained import build_for, load_weights
from gen1_train.model.prior import PriorNetwork
from gen1_train.system.device import autocast
from gen1_train.system.records import reason_in
from gen1_train.training.checkpoints.checkpoint import PRIOR, Checkpoint, find_checkpoint, holds_checkpoint
from gen1_train.training.prior.config import PriorTrainConfig
from gen1_train.training.prior.sampling import in_parts


@dataclass(frozen=True)
class TrainedPrior:
    """A prior that maps CLIP text embeddings to CLIP image embeddings."""

    network: PriorNetwork
    schedule: CosineSchedule
    sampling: PriorSamplingConfig
    clip: dict[str, Any]  # the manifest's entry about the CLIP that it was trained with, including the fingerprint
    path: Path  # of the checkpoint

    def __call__(self, text_embeddings: Tensor, seed: int) -> Tensor:
        """Maps CLIP text embeddings (k, d) to image embeddings (k, d) of real ones' mean length, float32 on the CPU.

        Each is a pure function of its text and the seed, to the bit: they are computed one by one. Raises UserError for
        another width.
        """
        if text_embeddings.ndim != 2 or text_embeddings.shape[1] != self.network.dim:
            raise UserError(
                f"text embeddings of shape {tuple(text_embeddings.shape)} do not fit the prior at {self.path}, "
                f"which was trained with a CLIP of width {self.network.dim}"
            )
        with autocast(self.network.query.device, "fp32"):  # it is small, and an outer autocast must not change a bit
            return in_parts(self.network, text_embeddings, lambda _: seed, self.schedule, self.sampling, part=1)


def default_prior(checkpoint: Checkpoint) -> Path | None:
    """Finds the folder `prior` in the checkpoint's own, as in a released one, or next to its run folder."""
    folder = checkpoint.path.resolve()
    parents = (folder, *folder.parents[2:3])  # TREE/stage5/checkpoints/step-…
    return next((parent / "prior" for parent in parents if holds_checkpoint(parent / "prior")), None)


def read_prior(
    path: Path, device: torch.device | str = "cpu", weights: str = "ema", sampling: PriorSamplingConfig | None = None
) -> TrainedPrior:
    """Opens a checkpoint of a prior, or the newest of its run folder; every byte in use is checked.

    `weights`: see checkpoint.Checkpoint.weights_file; `sampling`: in place of the settings that it was validated with.
    Raises UserError when it is damaged or does not hold a prior.
    """
    checkpoint = find_checkpoint(path, weights)
    if checkpoint.info.weights != PRIOR:
        stage = checkpoint.info.stage
        raise UserError(f"{checkpoint.path} is of stage {stage}, not of a prior: train one with stage=prior")
    config = read_config(checkpoint)
    try:
        clip = checkpoint.info.estimators["clip"]
        width = clip["width"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint.path / 'checkpoint.json'} does not name its CLIP; use another checkpoint"
        ) from error
    tensors, file = checkpoint.weights(weights), str(checkpoint.path / checkpoint.weights_file(weights))
    network = build_for(lambda: PriorNetwork(config.prior, width), tensors, file)
    load_weights(network, tensors, file, may_be_new=())
    network.eval().requires_grad_(False).to(device)
    schedule = CosineSchedule(config.diffusion.steps, device)
    return TrainedPrior(network, schedule, sampling or config.sampling, clip, checkpoint.path)


def read_config(checkpoint: Checkpoint) -> PriorTrainConfig:
    """The config in a checkpoint of a prior. Raises UserError when it is damaged."""
    try:
        return PriorTrainConfig.load(checkpoint.config)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint.config} cannot be read ({reason_in(error)}); use another checkpoint") from error


def load_network(network: PriorNetwork, checkpoint: Checkpoint, weights: str) -> None:
    """Loads weights strictly. Raises UserError when they are of another network."""
    file = str(checkpoint.path / checkpoint.weights_file(weights))
    load_weights(network, checkpoint.weights(weights), file, may_be_new=())
