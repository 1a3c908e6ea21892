"""A trained prior from its checkpoint: the door for editing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from gen1_train.diffusion.prior import CosineSchedule, PriorSamplingConfig
from gen1_train.errors import UserError
from gen1_train.frozen import autocast
from gen1_train.model.pretrained import load_weights
from gen1_train.model.prior import PriorNetwork
from gen1_train.training.checkpoint import PRIOR, Checkpoint, find_checkpoint
from gen1_train.training.prior_config import PriorTrainConfig
from gen1_train.training.prior_sampling import in_parts


@dataclass(frozen=True)
class TrainedPrior:
    """Text embeddings in, image embeddings out."""

    network: PriorNetwork
    schedule: CosineSchedule
    sampling: PriorSamplingConfig
    clip: dict[str, Any]  # what the manifest said of the CLIP whose embeddings it knows, its fingerprint above all
    path: Path  # of the checkpoint

    def __call__(self, text_embeddings: Tensor, seed: int) -> Tensor:
        """CLIP text embeddings (k, d) -> image embeddings (k, d) of real ones' mean length, float32 on the CPU.

        Each is a pure function of its text and the seed, to the bit: they are made one by one. Raises UserError for
        another width.
        """
        if text_embeddings.ndim != 2 or text_embeddings.shape[1] != self.network.dim:
            raise UserError(
                f"text embeddings of shape {tuple(text_embeddings.shape)} do not go with the prior at {self.path}, "
                f"which was trained with a CLIP of width {self.network.dim}"
            )
        with autocast(self.network.query.device):
            return in_parts(self.network, text_embeddings, lambda _: seed, self.schedule, self.sampling, part=1)


def read_prior(
    path: Path, device: torch.device | str = "cpu", weights: str = "ema", sampling: PriorSamplingConfig | None = None
) -> TrainedPrior:
    """Opens a checkpoint of a prior, or the newest of its run folder; every byte is checked.

    `weights`: as checkpoint.Checkpoint.weights_file; `sampling`: other than what it was validated with. Raises
    UserError when it is damaged or no prior's.
    """
    found = find_checkpoint(path)
    if found.info.weights != PRIOR:
        raise UserError(f"{found.path} is of stage {found.info.stage}, not of a prior: train one with stage=prior")
    config = read_config(found)
    try:
        clip = found.info.estimators["clip"]
        network = PriorNetwork(config.prior, clip["width"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{found.path / 'checkpoint.json'} does not tell of a CLIP; use another checkpoint") from error
    load_network(network, found, weights)
    network.eval().requires_grad_(False).to(device)
    schedule = CosineSchedule(config.diffusion.steps, device)
    return TrainedPrior(network, schedule, sampling or config.sampling, clip, found.path)


def read_config(checkpoint: Checkpoint) -> PriorTrainConfig:
    """The config in a checkpoint of a prior. Raises UserError when it is damaged."""
    try:
        return PriorTrainConfig.from_yaml(checkpoint.config.read_text())
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{checkpoint.config} cannot be read ({reason}); use another checkpoint") from error


def load_network(network: PriorNetwork, checkpoint: Checkpoint, weights: str) -> None:
    """Loads weights strictly. Raises UserError when they are of another network."""
    file = str(checkpoint.path / checkpoint.weights_file(weights))
    load_weights(network, checkpoint.weights(weights), file, may_be_new=())
