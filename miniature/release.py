"""`python -m miniature.release RUN_FOLDER PRIOR_FOLDER`: a trained model as this package carries it.

Writes `miniature/released/`, a checkpoint that `gen1-edit checkpoint=miniature` takes, with its prior in `prior/`: the
averaged weights in half precision, which are computed with in float32 all the same, and of the configs what a model is
rebuilt from. The estimators are those of `miniature/weights`.
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

from gen1_train.editor import Gen1Editor
from gen1_train.errors import UserError
from gen1_train.resources import RELEASED
from gen1_train.training.checkpoint import PRIOR, UNET, Checkpoint, find_checkpoint, write
from miniature.arguments import Parser

OUTPUT = Path(__file__).parent / RELEASED
MEGABYTES = 20  # the most that a released checkpoint may take
STAGES = {UNET: "5", PRIOR: "prior"}  # of which stage a release's weights are
# the sections of a config that a network is rebuilt from; the others tell of a machine and its data
SECTIONS = ("stage", "model", "prior", "diffusion", "sampling")
ABSOLUTE = re.compile(r"^(local-dir:)?/.*/(?=miniature/weights/)")


def release(run: Path, prior: Path, output: Path = OUTPUT) -> int:
    """Makes the folder `output`, in place of one that is there, of two finished runs; returns its bytes.

    It is whole, and opened once as editing does, or not there. Raises UserError for runs that are not finished, not of
    stage 5 and a prior, or do not go together, and for a model that is too large.
    """
    model, text = _finished(run, UNET), _finished(prior, PRIOR)
    temporary, replaced = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        for checkpoint, folder in ((model, temporary), (text, temporary / "prior")):
            folder.mkdir(parents=True)
            write_half(checkpoint, folder)
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
    """Writes a checkpoint's averaged weights in half precision, and of its config and info what editing reads.

    Raises UserError when a path of this machine is left in them.
    """
    config = yaml.safe_load(checkpoint.config.read_text())
    kept = {name: config[name] for name in SECTIONS if name in config}
    estimators = portable(checkpoint.info.estimators)
    for text in texts([kept, estimators, checkpoint.info.buckets]):
        if os.path.isabs(text.removeprefix("local-dir:")):
            raise UserError(
                f"{checkpoint.path} names {text}, which is not in miniature/weights: train with recipe=tiny"
            )
    info = replace(checkpoint.info, data={}, estimators=estimators, counters={}, lora={}, files={})
    weights = {checkpoint.info.weights: checkpoint.weights()}
    write(folder, weights, yaml.safe_dump(kept, sort_keys=False), info, torch.float16)


def portable(value: Any) -> Any:
    """The same settings, with absolute paths of the miniature's weights as paths into this package."""
    if isinstance(value, dict):
        return {name: portable(each) for name, each in value.items()}
    return ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def texts(value: Any) -> Iterator[str]:
    """All texts in a tree of dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def _finished(run: Path, weights: str) -> Checkpoint:
    """The last checkpoint of a run. Raises UserError when it is not finished or not of the stage of these weights."""
    found = find_checkpoint(run)
    if found.info.weights != weights or found.info.stage != STAGES[weights]:
        raise UserError(f"{found.path} is of stage {found.info.stage}: give a run of stage={STAGES[weights]}")
    if not found.info.finished:
        raise UserError(f"the run {run} is at step {found.info.step} and not finished: train it to its end first")
    return found


def main() -> None:
    parser = Parser(prog="python -m miniature.release", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="of stage 5")
    parser.add_argument("prior", type=Path, metavar="PRIOR_FOLDER", help="of stage=prior")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    with parser.mistakes():
        size = release(given.run, given.prior, given.output)
    print(f"{given.output}: {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
