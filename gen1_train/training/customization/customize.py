"""Customization, as in the paper: a stage 5 model is fine-tuned on 15 to 30 images of one subject.

Image steps read those images; video steps keep reading clips of data.root, so that the model keeps what it has learned.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from gen1_train.errors import UserError, check_positive
from gen1_train.system.device import pick_device
from gen1_train.training.checkpoints.checkpoint import Checkpoint
from gen1_train.training.customization.subject import Subject, find_images, make_subject, read_subject, subject_digest

NAME = "customize"  # of the stage
POLL = 0.5  # seconds between two checks for the images that rank 0 prepares

logger = logging.getLogger(__name__)


@dataclass
class CustomizeConfig:
    """For stage=customize. The paper gives no numbers; all values are ours."""

    lora_rank: int | None = None  # of LoRA, above 0, in spatial attention; null: all weights are trained
    lora_alpha: float | None = None  # LoRA's change of the weights is scaled by alpha / rank; null: 1
    lora_temporal: bool = False  # LoRA in temporal attention, too
    held_out: int = 8  # every Nth image is held out from training and shows over-fitting; 0: none
    rise: float = 0.05  # share by which a validation loss may exceed its best before it counts as over-fitting
    patience: int = 2  # validations in a row above that limit before a warning

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_positive(
            customize__lora_rank=self.lora_rank,
            customize__lora_alpha=self.lora_alpha,
            customize__rise=self.rise,
            customize__patience=self.patience,
        )
        if self.held_out < 0 or self.held_out == 1:
            raise UserError(
                f"customize.held_out={self.held_out}: give a number N of 2 or above, to hold out every Nth image, or 0 "
                "for none"
            )


def prepare_subject(
    *,
    folder: Path,
    run: Path,
    start: Checkpoint,
    config: CustomizeConfig,
    degradation: str,
    accelerator: str,
    writes: bool,
    patience: float,
) -> Subject:
    """Returns RUN/images for the images in `folder`, and writes it first if it does not exist.

    `start`: the checkpoint whose networks are used, and the sizes of whose images. `degradation`: what t_s above 0
    does. `writes`: this process writes; the others wait for it for at most `patience` seconds. Raises UserError.
    """
    hashes, estimators = find_images(folder), start.info.estimators
    clip_buckets, buckets = start.info.buckets, start.info.image_buckets or start.info.buckets
    if not clip_buckets:
        raise UserError(f"{start.path} does not record the sizes that it was trained at: train stage 5 again")
    digest = subject_digest(hashes, buckets, estimators, config.held_out, degradation)
    subject = read_subject(run, digest)
    if subject is None and writes:
        subject = make_subject(
            run=run,
            folder=folder,
            hashes=hashes,
            buckets=buckets,
            clip_buckets=clip_buckets,
            estimators=estimators,
            source=str(start.path),
            every=config.held_out,
            degradation=degradation,
            device=pick_device("cpu" if accelerator == "cpu" else "auto"),
        )
        held_out = f"{len(subject.held_out)} held out"
        logger.info(f"{len(subject.used)} images of the subject to train on, {held_out}: {subject.folder}")
    deadline = time.monotonic() + patience
    while subject is None and time.monotonic() < deadline:
        time.sleep(POLL)
        subject = read_subject(run, digest)
    if subject is None:
        raise UserError(f"rank 0 has not written {run / 'images'} within {patience:g} s: see its error message")
    return subject
