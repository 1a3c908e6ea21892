"""Checkpoints of a run, which are written completely or not at all.

RUN/config.yaml                   the resolved config
RUN/checkpoints/step-00000400/    one checkpoint; written under a hidden name, synced, read back, then renamed
    unet.safetensors              all weights, float32 (prior.safetensors in a checkpoint of the prior)
    unet.00000-of-00008.safet…    or one of its parts: a run of several processes writes every file so, see parts.py
    index.json                    where the tensors are in the parts
    ema_0.9999.safetensors        their average with this decay, float32; one file for each of ema.decays
    optimizer.safetensors         AdamW's moments of all weights, float32 (not in a checkpoint without training)
    lora.safetensors, lora_ema_…  the trained adapter of a LoRA run, see gen1_train.training.customization.lora
    config.yaml                   the resolved config of the run: editing rebuilds the model from it
    recommended.yaml              optional, or in RUN: dials and prompts that edits start from; not hashed, to be edited
    checkpoint.json               stage, step, finished, counters, the data's estimators and state, the code's hash, the
                                  size and sha256 of every other file, and a sha256 of all this: see info.py
RUN/checkpoints/latest            link to the newest

Nothing in a checkpoint depends on the number of processes or on the strategy: see
gen1_train.training.checkpoints.state.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from gen1_train.errors import UserError, check_not_negative, check_positive
from gen1_train.formats.plain_yaml import MAX_BYTES as MAX_YAML
from gen1_train.model.pretrained import load_safetensors
from gen1_train.system.console import progress
from gen1_train.system.files import read_regular
from gen1_train.system.packages import candidates, locate, released_folders
from gen1_train.system.remote import without_secrets
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.info import INFO as INFO
from gen1_train.training.checkpoints.info import PRIOR as PRIOR
from gen1_train.training.checkpoints.info import UNET as UNET
from gen1_train.training.checkpoints.info import CheckpointInfo as CheckpointInfo
from gen1_train.training.checkpoints.info import NewerError, read_info
from gen1_train.training.checkpoints.parts import INDEX, Index, Tensors

OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.yaml"
RECOMMENDED = "recommended.yaml"
CHECKPOINTS = "checkpoints"  # the folder in a run's
LATEST = "latest"
SOON = 2.0  # seconds of verifying after which a bar is shown

logger = logging.getLogger(__name__)


@dataclass
class CheckpointConfig:
    every: int = 1000  # optimizer steps between checkpoints; the last step always has one
    keep: int = 2  # the newest checkpoints that stay in the run folder
    keep_hours: float = 0.0  # also keeps the newest checkpoint of every span of this many hours; 0: none
    asynchronous: bool = True  # continue training while a checkpoint is written, from a copy in each rank's memory
    patience_seconds: float = 600.0  # how long to retry writing while a disk is full or unreachable

    def check(self) -> None:
        """Raises UserError for an invalid setting; the message names it and the remedy."""
        check_positive(checkpoint__every=self.every, checkpoint__keep=self.keep)
        check_not_negative(checkpoint__keep_hours=self.keep_hours, checkpoint__patience_seconds=self.patience_seconds)


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    info: CheckpointInfo

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    def shared_config(self) -> str:
        """Returns the text of config.yaml as others may see it: older versions recorded the secrets of URLs.

        Raises OSError and ValueError.
        """
        return without_secrets(read_regular(self.config, MAX_YAML).decode())

    @property
    def recommended(self) -> Path | None:
        """The file of recommended settings (gen1_train.diffusion.recommended), in its folder or its run's, if any."""
        run = self.path.absolute().parents[1:2] if self.path.absolute().parent.name == CHECKPOINTS else ()
        return next((folder / RECOMMENDED for folder in (self.path, *run) if (folder / RECOMMENDED).exists()), None)

    @property
    def counters(self) -> Counters:
        return Counters(**self.info.counters)

    @property
    def averages(self) -> list[str]:
        """The names of its averages; the first is the default for editing, export and the next stage."""
        return list(self.counters.averaged)

    def weights_file(self, which: str = "ema") -> str:
        """Returns the file name for a kind of weights.

        `which`: `ema` (the first average, or the weights if there is none), `raw`, or the decay of an average. Raises
        UserError if there is no such average.
        """
        if which == "raw" or (which == "ema" and not self.averages):
            return self.info.weights
        average = self.averages[0] if which == "ema" else f"ema_{which}"
        if average not in self.averages:
            choices = ", ".join(["raw", *(name.removeprefix("ema_") for name in self.averages)])
            raise UserError(f"{self.path} has no weights={which}: choose from {choices}")
        return f"{average}.safetensors"

    def weights(self, which: str = "ema") -> Mapping[str, Tensor]:
        """Returns tensors by name from memory-mapped files, so that only those in use are read; see `weights_file`."""
        return self.tensors(self.weights_file(which))

    def trained(self, which: str = "raw") -> Mapping[str, Tensor]:
        """Returns the tensors to resume with: weights, or an average; of a LoRA run only the adapter."""
        if not self.info.lora:
            return self.weights(which)
        return self.tensors(adapter_file(self.weights_file(which)))

    def moments(self) -> Mapping[str, Tensor]:
        """Returns AdamW's moments by name, memory-mapped. Raises UserError if the checkpoint has none."""
        if not self.info.names(OPTIMIZER):
            raise UserError(f"{self.path} has no {OPTIMIZER}, so no run can resume from it: start a new one with name=")
        return self.tensors(OPTIMIZER)

    def tensors(self, file: str) -> Mapping[str, Tensor]:
        """Returns the tensors of a file by name, under its name in a checkpoint of one process. Raises UserError."""
        if not self.info.parts:
            return load_safetensors(self.path / file)
        if file not in self._index.files:
            raise UserError(f"{self.path / INDEX} does not list {file}; use another checkpoint")
        return Tensors(self.path, file, self.info.parts, self._index.files[file])

    @cached_property
    def _index(self) -> Index:
        index = Index.read(self.path)
        if index.parts != self.info.parts:
            raise UserError(
                f"{self.path / INDEX} is of {index.parts} parts, not {self.info.parts}; use another checkpoint"
            )
        return index

    def files_for(self, which: str | None) -> list[str]:
        """Returns the names of the files in use for a kind of weights, see `weights_file`; None: all, to train on.

        Raises UserError if there is no such average.
        """
        if which is None:
            return list(self.info.files)
        averages = [f"{name}.safetensors" for name in self.averages]
        weights = [self.info.weights, *averages, *map(adapter_file, (self.info.weights, *averages))]
        used = self.weights_file(which)
        unused = {OPTIMIZER, *weights} - {used, adapter_file(used)}
        left_out = {name for file in unused for name in self.info.names(file)}
        return [name for name in self.info.files if name not in left_out]

    def verify(self, which: str | None = None) -> None:
        """Reads the files and compares their hashes. Raises UserError that names a damaged one.

        `which`: see `files_for`; what is not in use is not read.
        """
        names = self.files_for(which)
        size = sum(self.info.files[name]["bytes"] for name in names)
        bar = progress(total=size, title="verifying", unit="B", scale=True, keep=False, delay=SOON)
        try:
            with bar, ThreadPoolExecutor() as pool:  # hashing releases the GIL
                hashes = pool.map(lambda name: sha256(self.path / name), names)
                for name, digest in zip(names, hashes):
                    if digest != self.info.files[name]["sha256"]:
                        pool.shutdown(cancel_futures=True)
                        raise UserError(
                            f"checkpoint {self.path} is damaged: {name} is not what was written; use another one"
                        )
                    bar.update(self.info.files[name]["bytes"])
        except OSError as error:
            raise UserError(f"checkpoint {self.path} cannot be read ({error}); use another one") from error


Verify = Callable[[Checkpoint, str | None], None]  # Checkpoint.verify, or one that asks another process


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_file(file: str) -> str:
    """Returns the name of the file with the adapter that is merged into a file of weights or an average."""
    return "lora.safetensors" if file == UNET else f"lora_{file}"


def checkpoints_dir(run: Path) -> Path:
    return run / CHECKPOINTS


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint folder. Raises UserError if it is not one, or if a file is missing or truncated."""
    try:
        info = read_info(path)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}: give a folder such as runs/gen1/stage5/checkpoints/step-…") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / INFO} cannot be read ({error}); use another checkpoint") from error
    for name, file in info.files.items():
        if not is_file_of(path / name, file["bytes"]):
            raise UserError(f"checkpoint {path} is incomplete: {name} is missing or truncated; use an earlier one")
    return Checkpoint(path, info)


def is_file_of(path: Path, size: int) -> bool:
    """Whether a path is a file of this many bytes."""
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def latest(run: Path, which: str | None = None, verify: Verify = Checkpoint.verify) -> Checkpoint | None:
    """Returns the newest intact checkpoint of a run, verified (see `Checkpoint.verify`); warns about damaged ones.

    Raises UserError for one that is intact and was made by a newer version: earlier ones are no substitute for it.
    Raises it also for an average that it does not have.
    """
    for path in reversed(step_folders(checkpoints_dir(run))):
        try:
            checkpoint = read_checkpoint(path)
        except NewerError:
            raise
        except UserError as error:
            logger.warning("%s", error)
            continue
        checkpoint.files_for(which)
        try:
            verify(checkpoint, which)
            return checkpoint
        except UserError as error:
            logger.warning("%s", error)
    return None


def newest(run: Path) -> Path | None:
    """Returns the folder of a run's newest checkpoint, intact or not."""
    return next(reversed(step_folders(checkpoints_dir(run))), None)


def find_checkpoint(path: Path, which: str | None = "ema", verify: Verify = Checkpoint.verify) -> Checkpoint:
    """Opens a checkpoint by its own folder or its run's (then the newest), and verifies what is in use of it: see
    `Checkpoint.files_for`. Raises UserError.

    Either may be in an installed package (packages.locate); a package's name alone means the checkpoint in it.
    """
    path = _find_folder(path)
    if checkpoints_dir(path).is_dir():
        checkpoint = latest(path, which, verify)
        if checkpoint is None:
            raise UserError(f"the run {path} has no intact checkpoint yet: train it first")
        return checkpoint
    checkpoint = read_checkpoint(path)
    verify(checkpoint, which)
    return checkpoint


def holds_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint or a run; it may still be damaged."""
    return (path / INFO).exists() or checkpoints_dir(path).is_dir()


def _find_folder(path: Path) -> Path:
    """Returns the folder for a path or a package's name. Raises UserError that names all folders that were tried."""
    local, released = Path(locate(str(path))), released_folders(str(path))
    for folder in (local, *released):
        if holds_checkpoint(folder):
            return folder
    if others := [*candidates(str(path))[1:], *map(str, released)]:
        raise UserError(f"no checkpoint at {path}, nor at {' or '.join(others)}: train one, or give its folder")
    if not local.exists():
        package = f", and no installed package {path} with a checkpoint" if len(path.parts) == 1 else ""
        raise UserError(f"no checkpoint at {path}: there is no such folder{package}")
    return local


def step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
