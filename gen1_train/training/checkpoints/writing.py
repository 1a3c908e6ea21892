"""Writing checkpoints: completely or not at all. See checkpoint.py for what is in one."""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.system.files import own_folder, sync
from gen1_train.training.checkpoints.checkpoint import (
    CHECKPOINTS,
    CONFIG,
    LATEST,
    CheckpointConfig,
    read_checkpoint,
    sha256,
    step_folders,
)
from gen1_train.training.checkpoints.info import INFO, CheckpointInfo, read_info, write_info
from gen1_train.training.checkpoints.parts import INDEX, layouts


def unique_name() -> str:
    """Returns a name that no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def begin(run: Path, step: int, unique: str = "", first: bool = True) -> Path:
    """Creates the hidden folder in which a checkpoint is assembled; the `first` process of a run also removes those of
    killed processes.

    `unique`: the same in all processes that write a part of it, and in no other run; by default, a new one. So files of
    two runs can never be mixed.
    """
    temporary = own_folder(run, CHECKPOINTS) / f".step-{step:08d}.{unique or unique_name()}.tmp"
    for leftover in temporary.parent.glob(".step-*.tmp") if first else ():
        if leftover != temporary:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(exist_ok=bool(unique))
    return temporary


def commit(
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: str,
    info: CheckpointInfo,
    keep: CheckpointConfig,
) -> Path:
    """Writes a checkpoint (see `write`) and publishes it."""
    write(temporary, tensors, config, info)
    return publish(temporary, keep)


def commit_parts(
    temporary: Path,
    shapes: Mapping[str, Mapping[str, list[int]]],
    starts: Sequence[Mapping[str, Mapping[str, int]]],
    config: str,
    info: CheckpointInfo,
    keep: CheckpointConfig,
) -> Path:
    """Adds to the parts of a checkpoint what is not in parts, and publishes it.

    `shapes`: of the tensors of each file; `starts`: of the pieces in each part of each file, see parts.layouts.
    `info.files` lists the parts already. Raises OSError, and UserError if a part is not there as a whole.
    """
    if not temporary.exists():  # an attempt before this one has renamed it: see `publish`
        return publish(temporary, keep)
    files = {file: layouts(content, [part[file] for part in starts]) for file, content in shapes.items()}
    index = json.dumps({"parts": len(starts), "files": files}, separators=(",", ":"))
    for path, text in ((temporary / INDEX, index), (temporary / CONFIG, config)):
        path.write_text(text)
        sync(path)
        info.files[path.name] = entry_of(path)
    info.parts = len(starts)
    info.saved = time.time()
    write_info(temporary, info)
    read_checkpoint(temporary)
    return publish(temporary, keep)


def publish(temporary: Path, keep: CheckpointConfig) -> Path:
    """Renames a checkpoint that is written, unless an attempt before this one has; points `latest` to it, and removes
    old ones."""
    final = temporary.with_name(temporary.name.removeprefix(".").partition(".")[0])
    if temporary.exists():
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
        check_finite(file, {name: tensor.to(dtype) for name, tensor in content.items()}, info.step)
    for file, content in tensors.items():
        write_weights({name: tensor.detach().to(dtype).cpu() for name, tensor in content.items()}, temporary / file)
    (temporary / CONFIG).write_text(config)
    files = [path for path in sorted(temporary.iterdir()) if path.name != INFO]
    for path in files:
        sync(path)
    info.files = {path.name: entry_of(path) for path in files}
    info.parts = 0  # whatever the checkpoint had that these tensors come from
    info.saved = info.saved or time.time()  # an export keeps the time of its source
    write_info(temporary, info)
    read_checkpoint(temporary)


def entry_of(path: Path) -> dict[str, Any]:
    """Returns what checkpoint.json lists of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def check_finite(file: str, tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises UserError for tensors that are not finite."""
    if broken := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        found = f"{len(broken)} of {len(tensors)} tensors of {file} are not finite at step {step}"
        raise UserError(
            f"{found}, such as {broken[0]}: nothing was saved, and the previous checkpoint is kept; lower optim.lr, "
            "or resume with trainer.precision=32-true"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. If one is not, neither is their sum, which takes a twentieth of the time."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


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
    folders = [path for path in step_folders(written.parent) if path.name <= written.name]
    whole = [path for path in folders if path == written or _is_whole(path)]
    kept = {written, *whole[-keep.keep :]}
    if keep.keep_hours > 0:
        # later paths of a span replace earlier ones
        spans = {int(_saved(path) / (3600 * keep.keep_hours)): path for path in whole}
        kept |= set(spans.values())
    for old in set(folders) - kept:
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
