"""Customization (paper section 4.4): a stage 5 model is tuned on 15 to 30 images of one subject.

Image steps read those images, video steps go on reading clips of data.root, so that the model keeps what it knows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gen1_train.errors import UserError
from gen1_train.frozen import pick_device
from gen1_train.subject import Subject, digest_of, find_images, make_subject, read_subject
from gen1_train.training.checkpoint import Checkpoint, newest, read_checkpoint

NAME = "customize"  # of the stage
POLL = 0.5  # seconds between two looks for the images that rank 0 makes


@dataclass
class CustomizeConfig:
    """For stage=customize; the paper gives no number, all are ours."""

    lora_rank: int | None = None  # of LoRA, above 0, in spatial attention; null: all weights are trained
    lora_alpha: float | None = None  # the change by LoRA is scaled by alpha / rank; null: 1
    lora_temporal: bool = False  # LoRA in temporal attention, too
    held_out: int = 8  # every so many-th image is not trained on and shows over-fitting; 0: none
    rise: float = 0.05  # share by which a validation loss may be above its best before it counts as over-fitting
    patience: int = 2  # validations in a row that are above it, until a warning


def subject_of(
    folder: Path,
    run: Path,
    start: Checkpoint,
    config: CustomizeConfig,
    accelerator: str,
    makes: bool,
    patience: float,
    say: Callable[[str], None],
) -> Subject:
    """RUN/images for the images in `folder`, made if it is not there.

    `start`: whose buckets and networks they are brought to. `makes`: this process does it; the others wait for it for
    `patience` seconds. Raises UserError.
    """
    hashes, made_by, buckets = find_images(folder), start.info.estimators, start.info.buckets
    if not buckets:
        raise UserError(f"{start.path} does not tell at which sizes it was trained: train stage 5 again")
    digest = digest_of(hashes, buckets, made_by, config.held_out)
    found = read_subject(run, digest)
    if found is None and makes:
        device = pick_device("cpu" if accelerator == "cpu" else "auto")
        where = str(start.path)
        found = make_subject(run, folder, hashes, buckets, made_by, where, config.held_out, device, say)
        say(f"{len(found.used)} images of the subject to train on, {len(found.held_out)} held out: {found.folder}")
    until = time.monotonic() + patience
    while found is None and time.monotonic() < until:
        time.sleep(POLL)
        found = read_subject(run, digest)
    if found is None:
        raise UserError(f"{run / 'images'} has not come in {patience:g} s: rank 0 has not made it; see what it says")
    return found


def start_or_newest(run: Path, start: Callable[[], Checkpoint]) -> Checkpoint:
    """The newest checkpoint of a run that goes on; of a new one what it starts from. Both know the same networks."""
    path = newest(run)
    if path is not None:
        try:
            return read_checkpoint(path)
        except UserError:
            pass  # said when the run looks for what it goes on from
    return start()
