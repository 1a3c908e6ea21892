"""Checkpoints of a run, which are written completely or not at all.

RUN/config.yaml                   the resolved config
RUN/checkpoints/step-00000400/    one checkpoint; written under a hidden name, synced, read back, then renamed
    unet.safetensors              all weights, float32 (prior.safetensors in a checkpoint of the prior)
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
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gen1_train.errors import UserError, check_not_negative, check_positive
from gen1_train.formats.plain_yaml import MAX_BYTES as MAX_YAML
from gen1_train.model.pretrained import load_safetensors
from gen1_train.system.files import own_folder, read_regular, sync
from gen1_train.system.packages import candidates, locate, released_folders
from gen1_train.system.remote import without_secrets
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.info import INFO as INFO
from gen1_train.training.checkpoints.info import PRIOR as PRIOR
from gen1_train.training.checkpoints.info import UNET as UNET
from gen1_train.training.checkpoints.info import CheckpointInfo as CheckpointInfo
from gen1_train.training.checkpoints.info import NewerError, read_info, write_info

OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.yaml"
RECOMMENDED = "recommended.yaml"
CHECKPOINTS = "checkpoints"  # the folder in a run's
LATEST = "latest"

logger = logging.getLogger(__name__)


@dataclass
class CheckpointConfig:
    every: int = 1000  # optimizer steps between checkpoints; the last step always has one
    keep: int = 2  # the newest checkpoints that stay in the run folder
    keep_hours: float = 0.0  # also keeps the newest checkpoint of every span of this many hours; 0: none
    asynchronous: bool = True  # continue training while a checkpoint is written, from a copy in rank 0's memory
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

    def weights(self, which: str = "ema") -> dict[str, Tensor]:
        """Returns tensors by name from a memory-mapped file, so that only those in use are read; see `weights_file`."""
        return load_safetensors(self.path / self.weights_file(which))

    def trained(self, which: str = "raw") -> dict[str, Tensor]:
        """Returns the tensors to resume with: weights, or an average; of a LoRA run only the adapter."""
        if not self.info.lora:
            return self.weights(which)
        return load_safetensors(self.path / adapter_file(self.weights_file(which)))

    def moments(self) -> dict[str, Tensor]:
        """Returns AdamW's moments by name, memory-mapped. Raises UserError if the checkpoint has none."""
        if not (self.path / OPTIMIZER).exists():
            raise UserError(f"{self.path} has no {OPTIMIZER}, so no run can resume from it: start a new one with name=")
        return load_safetensors(self.path / OPTIMIZER)

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Reads files (by default all) and compares their hashes. Raises UserError that names a damaged one."""
        names = list(self.info.files if files is None else files)
        try:
            with ThreadPoolExecutor() as pool:  # hashing releases the GIL
                hashes = list(pool.map(lambda name: sha256(self.path / name), names))
        except OSError as error:
            raise UserError(f"checkpoint {self.path} cannot be read ({error}); use another one") from error
        for name, digest in zip(names, hashes):
            if digest != self.info.files[name]["sha256"]:
                raise UserError(f"checkpoint {self.path} is damaged: {name} is not what was written; use another one")


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_file(file: str) -> str:
    """Returns the name of the file with the adapter that is merged into a file of weights or an average."""
    return "lora.safetensors" if file == UNET else f"lora_{file}"


def checkpoints_dir(run: Path) -> Path:
    return run / CHECKPOINTS


def begin(run: Path, step: int) -> Path:
    """Creates the hidden folder in which a checkpoint is assembled, and removes those of killed processes.

    Its name is unique, so that files of two runs can never be mixed in it.
    """
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = own_folder(run, CHECKPOINTS) / f".step-{step:08d}.{unique}.tmp"
    for leftover in temporary.parent.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    return temporary


def commit(
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: str,
    info: CheckpointInfo,
    keep: CheckpointConfig,
) -> Path:
    """Writes a checkpoint (see `write`), renames it, points `latest` to it, and removes old ones."""
    write(temporary, tensors, config, info)
    final = temporary.with_name(temporary.name.removeprefix(".").partition(".")[0])
    if final.exists():  # a damaged one of this step: never without either of the two
        replaced = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old.tmp")
        os.replace(final, replaced)
        os.replace(temporary, final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.replace(temporary, final)
    sync(final.parent)
    point(final)
    prune(final, keep)
    return final


def write(
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: str,
    info: CheckpointInfo,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a checkpoint into a folder, syncs it and reads it back.

    `tensors`: by file; `config`: as YAML. `info.files` is filled in, including files that are already in the folder.
    `dtype`: of the files; networks load weights of any dtype as float32. Raises UserError if a tensor is not finite in
    this dtype, before anything is written, and OSError if the disk is full or unreachable.
    """
    for file, content in tensors.items():
        broken = [name for name, tensor in content.items() if not tensor.to(dtype).isfinite().all()]
        if broken:
            raise UserError(
                f"{len(broken)} of {len(content)} tensors of {file} are not finite at step {info.step}, for example "
                f"{broken[0]}: nothing was saved, and the previous checkpoint is kept; lower optim.lr, or resume with "
                "trainer.precision=32-true"
            )
    for file, content in tensors.items():
        write_weights({name: tensor.detach().to(dtype).cpu() for name, tensor in content.items()}, temporary / file)
    (temporary / CONFIG).write_text(config)
    files = [path for path in sorted(temporary.iterdir()) if path.name != INFO]
    for path in files:
        sync(path)
    info.files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    info.saved = info.saved or time.time()  # an export keeps the time of its source
    write_info(temporary, info)
    read_checkpoint(temporary)


def discard(temporary: Path) -> None:
    """Removes the folder of a checkpoint that could not be written."""
    shutil.rmtree(temporary, ignore_errors=True)


def point(final: Path) -> None:
    """Points the link `latest` to a checkpoint, atomically."""
    link, old = final.with_name(f".{LATEST}.{secrets.token_hex(4)}.tmp"), final.with_name(LATEST)
    for leftover in final.parent.glob(f".{LATEST}.*tmp"):
        leftover.unlink(missing_ok=True)
    link.symlink_to(final.name)
    if old.is_dir() and not old.is_symlink():  # the run was copied, and the link was followed
        shutil.rmtree(old)
    os.replace(link, old)


def prune(written: Path, keep: CheckpointConfig) -> None:
    """Removes old checkpoints next to the one that was just written, which always stays.

    Of those up to its step, the newest `keep` stay that are whole, and the newest of each span of `keep_hours`. Those
    of later steps are not old, and stay.
    """
    named = [path for path in _named(written.parent) if path.name <= written.name]
    whole = [path for path in named if path == written or _is_whole(path)]
    kept = {written, *whole[-keep.keep :]}
    if keep.keep_hours > 0:
        # later paths of a span replace earlier ones
        spans = {int(_saved(path) / (3600 * keep.keep_hours)): path for path in whole}
        kept |= set(spans.values())
    for old in set(named) - kept:
        shutil.rmtree(old, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Whether all files of a checkpoint have their size; their content is not read."""
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def _saved(path: Path) -> float:
    """Returns the time at which a checkpoint was saved; 0 for a damaged one."""
    try:
        return read_info(path).saved
    except (OSError, ValueError, UserError):
        return 0.0


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file with the permissions of its folder; the library would restrict it to the owner."""
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it hides the system's error
        raise OSError(f"{path.name}: {error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)


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


def latest(run: Path) -> Checkpoint | None:
    """Returns the newest intact checkpoint of a run, with every byte verified; warns about damaged ones.

    Raises UserError for one that is intact and was made by a newer version: earlier ones are no substitute for it.
    """
    for path in reversed(_named(checkpoints_dir(run))):
        try:
            checkpoint = read_checkpoint(path)
            checkpoint.verify()
            return checkpoint
        except NewerError:
            raise
        except UserError as error:
            logger.warning("%s", error)
    return None


def newest(run: Path) -> Path | None:
    """Returns the folder of a run's newest checkpoint, intact or not."""
    return next(reversed(_named(checkpoints_dir(run))), None)


def find_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint by its own folder or its run's (then the newest), and verifies every byte. Raises UserError.

    Either may be in an installed package (packages.locate); a package's name alone means the checkpoint in it.
    """
    path = _find_folder(path)
    if checkpoints_dir(path).is_dir():
        checkpoint = latest(path)
        if checkpoint is None:
            raise UserError(f"the run {path} has no intact checkpoint yet: train it first")
        return checkpoint
    checkpoint = read_checkpoint(path)
    checkpoint.verify()
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


def _named(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
