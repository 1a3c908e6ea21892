"""Opens what an edit needs besides the UNet: the checkpoint's config, its estimators, and its prior."""

from pathlib import Path

import torch

from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.clip import ClipEncoder
from gen1_train.frozen.networks import Networks
from gen1_train.frozen.structure.kinds import StructureEstimator
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.prior.checkpoint import TrainedPrior, default_prior, read_prior
from gen1_train.training.stages import Recorded, read_recorded


def open_prior(checkpoint: Checkpoint, path: str | Path | None, device: torch.device) -> TrainedPrior | None:
    """Opens the prior at `path`, by default that of `default_prior`; None if there is none.

    Raises UserError when it is not a prior, or was trained on embeddings of another CLIP.
    """
    path = path or default_prior(checkpoint)
    if path is None:
        return None
    prior = read_prior(Path(path), device)
    clip = checkpoint.info.estimators["clip"]
    if clip["fingerprint"] != prior.clip["fingerprint"]:
        raise UserError(
            f"the prior {path} was trained with the CLIP {prior.clip['config']}, and {checkpoint.path} with "
            f"{clip['config']} (their fingerprints differ): give prior= of one that was trained on the same data"
        )
    return prior


def read_editable(checkpoint: Checkpoint, structure: bool) -> Recorded:
    """Reads a checkpoint's config. Raises UserError if its stage is too early, see `Gen1Editor.from_pretrained`."""
    recorded = read_recorded(checkpoint)
    if not recorded.stage.structure and (structure or not recorded.stage.temporal):
        raise UserError(
            f"{checkpoint.path} is of stage {checkpoint.info.stage}, which has not learned structure yet: give a "
            f"checkpoint of stage {'4 or 5' if structure else '3, 4 or 5'}"
        )
    return recorded


def load_estimators(
    checkpoint: Checkpoint, device: torch.device
) -> tuple[Autoencoder, StructureEstimator, ClipEncoder]:
    """Loads the estimators that made the checkpoint's data. Raises UserError when one is missing or has changed."""
    networks = Networks.recorded(checkpoint.info.estimators, str(checkpoint.path), device)
    return networks.autoencoder, networks.structure, networks.clip
