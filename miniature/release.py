"""The checkpoint that this package ships: `python -m miniature.release RUN_FOLDER PRIOR_FOLDER`.

Writes `miniature/released/`, which `gen1-edit checkpoint=miniature` loads, and its prior in `prior/`. A release holds
the averaged weights in half precision (they load as float32), the config sections that a model is rebuilt from, and the
dials and prompts that edits start from. Its estimators are those of `miniature/weights`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from gen1_train.editing.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.system.console import show
from gen1_train.system.packages import RELEASED
from gen1_train.training.checkpoints.checkpoint import PRIOR, RECOMMENDED, UNET, Checkpoint, find_checkpoint
from gen1_train.training.checkpoints.writing import write
from miniature.arguments import Parser

OUTPUT = Path(__file__).parent / RELEASED
MEGABYTES = 20  # the largest size of a released checkpoint
STAGES = {UNET: "5", PRIOR: "prior"}  # the stage that each file of weights comes from
# the config sections that a network is rebuilt from; the others describe a machine and its data
SECTIONS = ("stage", "model", "prior", "diffusion", "sampling")
# the settings of the measured edits (miniature/experiment.py), and prompts of the world
RECOMMENDATION = """\
# The dials that edits with this checkpoint start from, and example prompts: see docs/editing.md.
omega: 3
solver: dpm++
steps: 12
prompts:
  - a striped red box on green ground
  - a dotted yellow ball on blue ground
  - a checkered purple cone on white ground
  - a green cylinder and a pink torus on brown ground
"""
ABSOLUTE = re.compile(r"^(local-dir:)?/.*/(?=miniature/weights/)")


def release(run: Path, prior: Path, output: Path = OUTPUT) -> int:
    """Makes the folder `output` from two finished runs, replacing an existing one; returns its size in bytes.

    The release is loaded once, as for editing, before it gets its name: the folder is complete or does not exist.
    Raises UserError for runs that are not finished, that are not of stage 5 and a prior, or that do not belong
    together, and for a model that is too large.
    """
    model, text = _finished_checkpoint(run, UNET), _finished_checkpoint(prior, PRIOR)
    temporary, replaced = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        for checkpoint, folder in ((model, temporary), (text, temporary / "prior")):
            folder.mkdir(parents=True)
            write_half(checkpoint, folder)
        (temporary / RECOMMENDED).write_text(RECOMMENDATION)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        if size > MEGABYTES * 1e6:
            raise UserError(f"{run} and {prior} take {size / 1e6:.1f} MB, above {MEGABYTES}: train a smaller model=")
        Gen1Editor.from_pretrained(temporary, "cpu")
        if output.exists():
            output.rename(replaced)
        temporary.rename(output)
    finally:
        for left in (temporary, replaced):
            shutil.rmtree(left, ignore_errors=True)
    return size


def write_half(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a checkpoint's averaged weights in half precision, and the parts of its config and info for editing.

    Raises UserError if a path of this machine remains in them.
    """
    config = yaml.safe_load(checkpoint.config.read_text())
    kept = {name: config[name] for name in SECTIONS if name in config}
    estimators = portable(checkpoint.info.estimators)
    for text in strings([kept, estimators, checkpoint.info.buckets]):
        if os.path.isabs(text.removeprefix("local-dir:")):
            raise UserError(
                f"{checkpoint.path} names {text}, which is not in miniature/weights: train with recipe=tiny"
            )
    info = replace(checkpoint.info, data={}, estimators=estimators, counters={}, lora={}, files={})
    weights = {checkpoint.info.weights: checkpoint.weights()}
    write(folder, weights, yaml.safe_dump(kept, sort_keys=False), info, torch.float16)


def portable(value: Any) -> Any:
    """The same settings, with absolute paths of the miniature's weights replaced by paths within this package."""
    if isinstance(value, dict):
        return {name: portable(each) for name, each in value.items()}
    return ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def strings(value: Any) -> Iterator[str]:
    """Yields all strings in a tree of dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def _finished_checkpoint(run: Path, weights: str) -> Checkpoint:
    """The last checkpoint of a run. Raises UserError if it is not finished, or not of the stage of these weights."""
    checkpoint = find_checkpoint(run)
    info = checkpoint.info
    if info.weights != weights or info.stage != STAGES[weights]:
        raise UserError(f"{checkpoint.path} is of stage {info.stage}: give a run of stage={STAGES[weights]}")
    if not info.finished:
        raise UserError(f"the run {run} is at step {info.step} and not finished: train it to its end first")
    return checkpoint


def main() -> None:
    parser = Parser(prog="python -m miniature.release", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a finished run of stage 5")
    parser.add_argument("prior", type=Path, metavar="PRIOR_FOLDER", help="a finished run of stage=prior")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    with parser.command():
        size = release(arguments.run, arguments.prior, arguments.output)
        show(f"{arguments.output}: {size / 1e6:.1f} MB in total")


if __name__ == "__main__":
    main()
