"""checkpoint.json: what a checkpoint is, with a hash over it, so that a damaged one is never believed."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.system.files import write_atomically
from gen1_train.system.records import check_format, make_record, read_json, require
from gen1_train.training.checkpoints.counters import Counters
from gen1_train.training.checkpoints.parts import INDEX, part_name

UNET = "unet.safetensors"  # the weights of a stage
PRIOR = "prior.safetensors"  # the weights of the prior
INFO = "checkpoint.json"
FORMAT = 2  # of checkpoint.json; older versions wrote neither this nor HASH, and are still read
WHOLE = 1  # the format of a checkpoint that is not in parts, which older versions read, too
VERSION = "format"  # its entry
HASH = "sha256"  # the entry of the hash over all other entries
STEP = re.compile(r"step-(\d{8,})")  # the name of a checkpoint's folder
FILE = re.compile(r"(?!\.)[A-Za-z0-9_.+-]{1,200}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NORMS = {"count", "mean", "variance"}  # the fields of guard.Norms
BUCKET = re.compile(r"\d{1,6}x\d{1,6}")


@dataclass
class CheckpointInfo:
    """The contents of checkpoint.json."""

    stage: str
    step: int  # optimizer steps done
    finished: bool  # the last checkpoint of the stage
    data: dict[str, Any] = field(default_factory=dict)  # DataState; empty for a checkpoint without training
    estimators: dict[str, Any] = field(default_factory=dict)  # those of the manifest, which editing loads
    buckets: list[str] = field(default_factory=list)  # WIDTHxHEIGHT of the clips that it was trained on
    image_buckets: list[str] = field(default_factory=list)  # and of the images; []: as the clips, or not recorded
    frames: int = 0  # in the clips that it was trained on; 0: on none, or not recorded (by older versions)
    lengths: list[int] = field(default_factory=list)  # of these clips, up to `frames`; []: all have `frames`
    fps: float | None = None  # of these clips, about; null: not by time, but by a stride, or on none
    counters: dict[str, Any] = field(default_factory=dict)  # counters.Counters
    lora: dict[str, Any] = field(default_factory=dict)  # the settings and base of a LoRA run
    weights: str = UNET  # the file of the weights: UNET or PRIOR
    parts: int = 0  # in how many parts each file of tensors is, see parts.py; 0: each is in one piece
    code: str = ""  # agreement.code_hash of the code that wrote it
    saved: float = 0.0  # time of saving, in seconds since 1970
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # every other file by name: bytes and sha256

    @property
    def trained_lengths(self) -> list[int]:
        """The frames in the clips of each length that it was trained on; none if they are not recorded."""
        return self.lengths or ([self.frames] if self.frames else [])

    def names(self, file: str) -> list[str]:
        """Returns the names of a file of tensors: its own, or those of its parts; none if the checkpoint has no such
        file."""
        names = [part_name(file, number, self.parts) for number in range(self.parts)] or [file]
        return names if self.files.keys() >= set(names) else []


class NewerError(UserError):
    """A file that is intact, and that only a newer version of the code can read."""


def write_info(folder: Path, info: CheckpointInfo) -> None:
    """Writes checkpoint.json. Raises OSError."""
    # as JSON gives it back: tuples as lists
    content = {VERSION: FORMAT if info.parts else WHOLE, **json.loads(json.dumps(asdict(info)))}
    if not info.parts:
        del content["parts"]
    for name in ("fps", "image_buckets", "lengths"):
        if not content[name]:
            del content[name]  # so that older versions read what they know
    write_atomically(folder / INFO, json.dumps({**content, HASH: digest(content)}, indent=1).encode())


def read_info(folder: Path) -> CheckpointInfo:
    """Reads and checks checkpoint.json.

    Raises FileNotFoundError, other OSErrors, ValueError if anything in it is not what was written or not valid, and
    NewerError.
    """
    content = read_json(folder / INFO)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    version, expected = content.pop(VERSION, None), content.pop(HASH, None)
    if version is not None or expected is not None:
        if digest({VERSION: version, **content}) != expected:
            raise ValueError("its hash differs: it is not what was written")
        try:
            check_format(version, FORMAT, folder / INFO, "use another checkpoint", oldest=WHOLE)
        except UserError as error:
            raise NewerError(str(error)) from error
    info = make_record(CheckpointInfo, content)
    check(info)
    named = STEP.fullmatch(folder.resolve().name)
    require(named is None or int(named[1]) == info.step, f"it is of step {info.step}, unlike its folder")
    return info


def digest(content: Mapping[str, Any]) -> str:
    """Returns the sha256 of the content of checkpoint.json without HASH, whatever the layout of the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(info: CheckpointInfo) -> None:
    """Raises ValueError for values that no checkpoint has."""
    require(info.stage != "" and info.stage.isprintable(), "its stage has no name")
    for name, number in (("step", info.step), ("frames", info.frames), ("saved", info.saved)):
        require(number >= 0, f"its {name} is negative")
    lengths = [0, *info.lengths]
    ascending = lengths == sorted(set(lengths)) and lengths[-1] == (info.frames if info.lengths else 0)
    require(ascending, "the lengths of its clips are not in order, up to its frames")
    require(info.fps is None or 0 < info.fps < math.inf, "its frames a second are not above 0")
    require(info.weights in (UNET, PRIOR), f"its weights are neither {UNET} nor {PRIOR}")
    buckets = (*info.buckets, *info.image_buckets)
    require(all(BUCKET.fullmatch(bucket) for bucket in buckets), "a bucket is not WIDTHxHEIGHT")
    require(all(isinstance(made_by, dict) for made_by in info.estimators.values()), "an estimator is not an object")
    for name, file in info.files.items():
        require(FILE.fullmatch(name) is not None, "it lists a file whose name is not plain")
        size, sha256 = file.get("bytes"), file.get("sha256")
        require(type(size) is int and size >= 0, f"it has no size of {name}")
        require(isinstance(sha256, str) and SHA256.fullmatch(sha256) is not None, f"it has no sha256 of {name}")
    counters = make_record(Counters, info.counters, "counters")
    counted = [counters.updates, counters.skipped, counters.in_a_row, *counters.averaged.values()]
    require(min(counted) >= 0, "a counter is negative")
    require(set(counters.norms) <= NORMS, "its statistics of the gradient norm are not those of the guard")
    require(0 <= info.parts <= len(info.files), f"it has {info.parts} parts, and lists {len(info.files)} files")
    needed = [info.weights, *(f"{average}.safetensors" for average in counters.averaged)]
    missing = [file for file in needed if not info.names(file)] + [INDEX] * (info.parts > 0 and INDEX not in info.files)
    require(not missing, f"it does not list {', '.join(sorted(missing))}")
