"""`gen1-data verify`: reads every byte of a frozen set again and lists what is not as it was frozen."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from gen1_train.children import cores
from gen1_train.cli import run_app
from gen1_train.errors import UserError
from gen1_train.exits import INCOMPLETE
from gen1_train.files import write_atomically

if TYPE_CHECKING:
    from data_tools.shard_check import Problem

VERIFIED = "verify.jsonl"
SHOWN = 20  # problems on the screen


@dataclass
class VerifyConfig:
    output: str = MISSING  # folder of the shard set
    workers: int | None = None  # processes that read shards; null: one for every core


def main() -> None:
    run_app("gen1-data verify", "verify", VerifyConfig, run)


def run(config: VerifyConfig) -> int | None:
    """Checks a set and says what was found; INCOMPLETE if something is wrong. Raises UserError if there is no set."""
    if config.workers is not None and config.workers < 1:
        raise UserError(f"workers={config.workers} is not above 0")
    from data_tools.set_check import check_set, describe, read_manifest  # here: --help need not wait for torch

    root = Path(config.output)
    manifest, problems = read_manifest(root)
    if manifest is not None:
        problems += check_set(root, manifest, config.workers or cores())
    kept = keep(root, problems)
    if manifest is not None and not problems:
        print(f"{root} is as it was frozen: {describe(manifest)}")
        return None
    shown = problems[:SHOWN] if kept else problems
    for problem in shown:
        print(problem)
    if len(problems) > len(shown):
        print(f"and {len(problems) - len(shown)} more")
    print(f"{len(problems)} problems in {root}" + (f", all in {kept}" if kept else ""))
    return INCOMPLETE


def keep(root: Path, problems: "list[Problem]") -> Path | None:
    """Writes SET/verify.jsonl, or removes an earlier one if all is well; None if the set cannot be written to."""
    path = root / VERIFIED
    with suppress(OSError):  # a set may well be read-only: then the screen has to do
        if not problems:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, "".join(json.dumps(asdict(problem)) + "\n" for problem in problems).encode())
        return path
    return None
