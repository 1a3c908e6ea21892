"""The prior of an exported checkpoint, from where gen1-edit takes it: OUTPUT/gen1/prior."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from gen1_train import keyed
from gen1_train.errors import UserError
from gen1_train.training.checkpoints.checkpoint import PRIOR, Checkpoint, find_checkpoint
from gen1_train.training.checkpoints.writing import write
from gen1_train.training.prior.checkpoint import default_prior, read_prior

FOLDER = "prior"


def find_prior(checkpoint: Checkpoint, path: str | None) -> Checkpoint | None:
    """Opens the prior at `path`, by default the one that gen1-edit finds for the checkpoint; None if there is none.

    Raises UserError for a path without a prior, and for a prior of another CLIP than the checkpoint's.
    """
    found = path or default_prior(checkpoint)
    clip = checkpoint.info.estimators.get("clip")
    if found is None or (clip is None and path is None):  # stage 1 knows no CLIP yet
        return None
    prior = find_checkpoint(Path(found))
    if prior.info.weights != PRIOR:
        raise UserError(f"prior={found} is of stage {prior.info.stage}: give a run of stage=prior")
    if clip is None or prior.info.estimators.get("clip", {}).get("fingerprint") != clip["fingerprint"]:
        raise UserError(
            f"the prior {prior.path} belongs to another CLIP than {checkpoint.path}: give prior= of one that was "
            "trained on the same data, or prior=none"
        )
    return prior


def write_prior(prior: Checkpoint, whole: Path) -> None:
    """Writes the prior's averaged weights into the exported checkpoint's folder, and compares it with the source.

    Raises UserError if it differs in any bit.
    """
    folder = whole / FOLDER
    temporary = folder.with_name(f".{FOLDER}.tmp")
    temporary.mkdir()
    info = replace(prior.info, counters={}, files={})
    write(temporary, {PRIOR: prior.weights()}, prior.shared_config(), info)
    os.replace(temporary, folder)
    source = read_prior(prior.path)
    texts = keyed.normal((2, source.network.dim), "export", "texts")
    if not torch.equal(read_prior(folder)(texts, seed=0), source(texts, seed=0)):
        raise UserError(f"{FOLDER}/ is not the prior in {prior.path}; nothing was exported: please report this bug")
