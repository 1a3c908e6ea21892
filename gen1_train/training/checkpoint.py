"""Checkpoints of a run: whole or not there.

RUN/config.yaml                   the resolved config
RUN/checkpoints/step-00000400/    one checkpoint; written under a hidden name, synced, read back, then renamed
    unet.safetensors              all weights, float32 (prior.safetensors in a checkpoint of the prior)
    ema_0.9999.safetensors        their average of this decay, float32; one file for each of ema.decays
    optimizer.safetensors         AdamW's moments of all weights, float32 (not in a checkpoint that was not trained)
    lora.safetensors, lora_ema_…  of a LoRA run what was trained, see gen1_train.training.lora
    config.yaml                   the resolved config that made them: editing rebuilds the model from it
    checkpoint.json               stage, step, finished, counters, the data's estimators and state, the code's hash, and
                                  of every other file its bytes and sha256
RUN/checkpoints/latest            link to the newest

Nothing in a checkpoint depends on the number of processes or on the strategy: see gen1_train.training.state.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.files import sync, write_atomically
from gen1_train.model.pretrained import load_safetensors
from gen1_train.resources import locate, places, releases
from gen1_train.training.counters import Counters

UNET, PRIOR = "unet.safetensors", "prior.safetensors"  # the weights, by what they are of
OPTIMIZER, CONFIG, INFO = "optimizer.safetensors", "config.yaml", "checkpoint.json"
LATEST = "latest"


@dataclass
class CheckpointConfig:
    every: int = 1000  # optimizer steps between checkpoints; the last step always makes one
    keep: int = 2  # newest checkpoints that stay in the run folder
    keep_hours: float = 0.0  # besides, the newest of every so many hours stays for good; 0: none does
    asynchronous: bool = True  # train on while a checkpoint is written, from a copy in rank 0's memory
    patience_seconds: float = 600.0  # for how long writing is tried again while a disk is full or away


@dataclass
class CheckpointInfo:
    """What checkpoint.json says."""

    stage: str
    step: int  # optimizer steps done
    finished: bool  # the stage's last
    data: dict[str, Any] = field(default_factory=dict)  # DataState; empty for a checkpoint that was not trained
    estimators: dict[str, Any] = field(default_factory=dict)  # the manifest's: what editing has to load
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT of the clips it was trained on
    counters: dict[str, Any] = field(default_factory=dict)  # state.Counters
    lora: dict[str, Any] = field(default_factory=dict)  # of a LoRA run: its settings and base
    weights: str = UNET  # the file of the weights themselves: UNET or PRIOR
    code: str = ""  # agreement.code_hash of the code that wrote it
    saved: float = 0.0  # when, in seconds since 1970
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # of every other file, by name: bytes and sha256


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    info: CheckpointInfo

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def counters(self) -> Counters:
        return Counters(**self.info.counters)

    @property
    def averages(self) -> list[str]:
        """The names of the averages in it; the first is the one that is used where nothing else is said."""
        return list(self.counters.averaged)

    def weights_file(self, which: str = "ema") -> str:
        """The name of the file of a kind of weights.

        `which` is `ema` (the first average, or the weights themselves where there is none), `raw`, or the decay of an
        average. Raises UserError when there is no such average.
        """
        if which == "raw" or (which == "ema" and not self.averages):
            return self.info.weights
        average = self.averages[0] if which == "ema" else f"ema_{which}"
        if average not in self.averages:
            choices = ", ".join(["raw", *(name.removeprefix("ema_") for name in self.averages)])
            raise UserError(f"{self.path} has no weights={which}: choose from {choices}")
        return f"{average}.safetensors"

    def weights(self, which: str = "ema") -> dict[str, Tensor]:
        """Weights by name, see `weights_file`; what is used of them is read, from a mapped file."""
        return load_safetensors(self.path / self.weights_file(which))

    def trained(self, which: str = "raw") -> dict[str, Tensor]:
        """What a run goes on with: weights, or an average, as training holds them; in a LoRA run the adapter alone."""
        if not self.info.lora:
            return self.weights(which)
        return load_safetensors(self.path / adapter_file(self.weights_file(which)))

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments by name; only what is used of them is read. Raises UserError when there are none."""
        if not (self.path / OPTIMIZER).exists():
            raise UserError(f"{self.path} has no {OPTIMIZER}, so no run goes on from it: start a new one with name=")
        return load_safetensors(self.path / OPTIMIZER)

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Reads files (all, if none are named) and compares their hashes. Raises UserError that names a damaged one."""
        names = list(self.info.files if files is None else files)
        with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
            hashes = list(pool.map(lambda name: sha256(self.path / name), names))
        for name, found in zip(names, hashes):
            if found != self.info.files[name]["sha256"]:
                raise UserError(f"checkpoint {self.path} is damaged: {name} is not what was written; use another one")


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_file(file: str) -> str:
    """The file of the adapter that is merged in a file of weights or of an average."""
    return "lora.safetensors" if file == UNET else f"lora_{file}"


def checkpoints_dir(run: Path) -> Path:
    return run / "checkpoints"


def begin(run: Path, step: int) -> Path:
    """The hidden folder in which a checkpoint is put together; those of processes that were killed are removed."""
    temporary = checkpoints_dir(run) / f".step-{step:08d}.tmp"
    for killed in temporary.parent.glob(".step-*.tmp"):
        shutil.rmtree(killed, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit(
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: str,
    info: CheckpointInfo,
    keep: CheckpointConfig,
) -> Path:
    """Writes a checkpoint (see `write`), gives it its name, lets `latest` point to it, and removes old ones."""
    write(temporary, tensors, config, info)
    final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".tmp"))
    if final.exists():  # of an earlier life of this run that was resumed from before it
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync(final.parent)
    point(final)
    prune(final.parent, keep)
    return final


def write(
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: str,
    info: CheckpointInfo,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fills a folder with a checkpoint, syncs it and reads it back.

    `tensors` by file, `config` as YAML; `info.files` is filled in, with what lies there already, too. `dtype` is that
    of the files: networks take weights of any as float32. Raises UserError when a tensor is not finite in it, before
    anything is written, and OSError when the disk is full or away.
    """
    for file, content in tensors.items():
        broken = [name for name, tensor in content.items() if not tensor.to(dtype).isfinite().all()]
        if broken:
            raise UserError(
                f"{len(broken)} of {len(content)} tensors of {file} are not finite at step {info.step}, {broken[0]} "
                "among them: nothing was saved, the checkpoint before is kept; lower optim.lr, or go on in 32-true"
            )
    for file, content in tensors.items():
        write_weights({name: tensor.detach().to(dtype).cpu() for name, tensor in content.items()}, temporary / file)
    (temporary / CONFIG).write_text(config)
    files = [path for path in sorted(temporary.iterdir()) if path.name != INFO]
    for path in files:
        sync(path)
    info.files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    info.saved = info.saved or time.time()  # an export says when its source was saved
    write_atomically(temporary / INFO, json.dumps(asdict(info), indent=1).encode())
    read_checkpoint(temporary)


def discard(temporary: Path) -> None:
    """Frees what a checkpoint that could not be written takes."""
    shutil.rmtree(temporary, ignore_errors=True)


def point(final: Path) -> None:
    """Lets the link `latest` point to a checkpoint; at no moment is there none."""
    link, old = final.with_name(f".{LATEST}.tmp"), final.with_name(LATEST)
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    if old.is_dir() and not old.is_symlink():  # somebody copied the run, and what the link pointed to with it
        shutil.rmtree(old)
    os.replace(link, old)


def prune(folder: Path, keep: CheckpointConfig) -> None:
    """Removes all checkpoints but the newest, and the newest of each span of hours."""
    named = _named(folder)
    kept = set(named[-keep.keep :])
    if keep.keep_hours > 0:
        spans = {int(_saved(path) / (3600 * keep.keep_hours)): path for path in named}  # the last of each is its newest
        kept |= set(spans.values())
    for old in set(named) - kept:
        shutil.rmtree(old, ignore_errors=True)


def _saved(path: Path) -> float:
    """When a checkpoint was saved; a damaged one counts as old."""
    try:
        return float(json.loads((path / INFO).read_text())["saved"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file for all who may read its folder: the library itself writes for the owner alone."""
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it hides the system's own
        raise OSError(f"{path.name}: {error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint folder. Raises UserError when it is none, or a file of it is missing or cut off."""
    try:
        info = CheckpointInfo(**json.loads((path / INFO).read_text()))
        checkpoint, sizes = Checkpoint(path, info), {name: file["bytes"] for name, file in info.files.items()}
        wanted = {info.weights, *(f"{average}.safetensors" for average in checkpoint.averages)} - set(info.files)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}: give a folder such as runs/gen1/stage5/checkpoints/step-…") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path / INFO} cannot be read ({error}); use another checkpoint") from error
    if wanted:
        raise UserError(f"{path / INFO} does not tell of {', '.join(sorted(wanted))}; use another checkpoint")
    for name, size in sizes.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"checkpoint {path} is not whole: {name} is missing or cut off; use an earlier one")
    return checkpoint


def latest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, every byte of it read; damaged ones are passed over, and said."""
    for path in reversed(_named(checkpoints_dir(run))):
        try:
            found = read_checkpoint(path)
            found.verify()
            return found
        except UserError as error:
            print(f"gen1-train: warning: {error}", flush=True)
    return None


def newest(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint, whether it is whole or not."""
    return next(reversed(_named(checkpoints_dir(run))), None)


def find_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint by its own folder or its run's (then the newest); every byte of it is read. Raises UserError.

    Either may lie in an installed package (resources.locate); a package's name alone is the one that it carries.
    """
    path = _find_folder(path)
    if checkpoints_dir(path).is_dir():
        found = latest(path)
        if found is None:
            raise UserError(f"the run {path} has no whole checkpoint yet: train it first")
        return found
    found = read_checkpoint(path)
    found.verify()
    return found


def holds_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint's or a run's; it may be damaged all the same."""
    return (path / INFO).exists() or checkpoints_dir(path).is_dir()


def _find_folder(path: Path) -> Path:
    """The folder that a path or a package's name means. Raises UserError that names all places without one."""
    here, carried = Path(locate(str(path))), releases(str(path))
    for folder in (here, *carried):
        if holds_checkpoint(folder):
            return folder
    if others := [*places(str(path))[1:], *map(str, carried)]:
        raise UserError(f"no checkpoint at {path}, nor at {' or '.join(others)}: train one, or give its folder")
    if not here.exists():
        package = f", and no installed package {path} that carries one" if len(path.parts) == 1 else ""
        raise UserError(f"no checkpoint at {path}: there is no such folder{package}")
    return here


def _named(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
