"""Checkpoints of a run: whole or not there.

RUN/config.yaml                   the resolved config
RUN/checkpoints/step-00000400/    one checkpoint; written under a hidden name, synced, then renamed
    unet.safetensors              all weights, float32
    optimizer.safetensors         AdamW's moments of all weights, float32 (not in a checkpoint that was not trained)
    config.yaml                   the resolved config that made them: editing rebuilds the model from it
    checkpoint.json               stage, step, finished, sizes of the files, the data's estimators and state

Nothing in a checkpoint depends on the number of processes or on the strategy: see gen1_train.training.state.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.files import sync, write_atomically
from gen1_train.model.pretrained import load_safetensors

UNET, OPTIMIZER, CONFIG, INFO = "unet.safetensors", "optimizer.safetensors", "config.yaml", "checkpoint.json"


@dataclass
class CheckpointConfig:
    every: int = 1000  # optimizer steps between checkpoints; the last step always makes one
    keep: int = 2  # newest checkpoints that stay in the run folder


@dataclass
class CheckpointInfo:
    """What checkpoint.json says."""

    stage: str
    step: int  # optimizer steps done
    finished: bool  # the stage's last
    data: dict[str, Any] = field(default_factory=dict)  # DataState; empty for a checkpoint that was not trained
    estimators: dict[str, Any] = field(default_factory=dict)  # the manifest's: what editing has to load
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT of the clips it was trained on
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of every other file, by path in the checkpoint


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    info: CheckpointInfo

    def weights(self) -> dict[str, Tensor]:
        return load_safetensors(self.path / UNET)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments by name; only what is used of them is read. Raises UserError when there are none."""
        if not (self.path / OPTIMIZER).exists():
            raise UserError(f"{self.path} has no {OPTIMIZER}, so no run goes on from it: start a new one with name=")
        return load_safetensors(self.path / OPTIMIZER)

    @property
    def config(self) -> Path:
        return self.path / CONFIG


def checkpoints_dir(run: Path) -> Path:
    return run / "checkpoints"


def begin(run: Path, step: int) -> Path:
    """The hidden folder in which a checkpoint is put together; those of processes that were killed are removed."""
    temporary = checkpoints_dir(run) / f".step-{step:08d}.tmp"
    for killed in temporary.parent.glob(".step-*.tmp"):
        shutil.rmtree(killed, ignore_errors=True)
    return temporary


def commit(
    temporary: Path,
    weights: dict[str, Tensor],
    config: str,
    info: CheckpointInfo,
    keep: int,
    moments: dict[str, Tensor] | None = None,
) -> Path:
    """Adds the tensors, syncs everything, gives the checkpoint its name, and removes all but the newest `keep`.

    `moments` are AdamW's. Raises UserError, and keeps what was there, when a weight or a moment is not finite.
    """
    for kind, tensors in (("weights", weights), ("moments", moments or {})):
        broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if broken:
            raise UserError(
                f"{len(broken)} of {len(tensors)} {kind} are not finite at step {info.step}, {broken[0]} among them: "
                "nothing was saved, the checkpoint before is kept; lower optim.lr, or go on in 32-true"
            )
    temporary.mkdir(parents=True, exist_ok=True)
    write_weights({name: tensor.detach().float().cpu() for name, tensor in weights.items()}, temporary / UNET)
    if moments is not None:
        write_weights(moments, temporary / OPTIMIZER)
    (temporary / CONFIG).write_text(config)
    files = [path for path in sorted(temporary.rglob("*")) if path.is_file() and path.name != INFO]
    info.sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
    for path in files:
        sync(path)
    write_atomically(temporary / INFO, json.dumps(asdict(info), indent=1).encode())
    final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".tmp"))
    if final.exists():  # of an earlier life of this run that was resumed from before it
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync(final.parent)
    for old in _named(final.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file for all who may read its folder: the library itself writes for the owner alone."""
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint folder. Raises UserError when it is none, or not whole."""
    try:
        info = CheckpointInfo(**json.loads((path / INFO).read_text()))
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}: give a folder such as runs/gen1/stage5/checkpoints/step-…") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path / INFO} cannot be read ({error}); use another checkpoint") from error
    for name, size in info.sizes.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"checkpoint {path} is not whole: {name} is missing or cut off; use an earlier one")
    return Checkpoint(path, info)


def latest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; damaged ones are passed over, and said."""
    for path in reversed(_named(checkpoints_dir(run))):
        try:
            return read_checkpoint(path)
        except UserError as error:
            print(f"gen1-train: warning: {error}", flush=True)
    return None


def find_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint by its own folder or by its run's folder (then the newest). Raises UserError."""
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: there is no such folder")
    if checkpoints_dir(path).is_dir():
        found = latest(path)
        if found is None:
            raise UserError(f"the run {path} has no whole checkpoint yet: train it first")
        return found
    return read_checkpoint(path)


def _named(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
