"""The command `gen1-data verify`: reads every byte of a frozen set and lists what differs from what was frozen."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from gen1_train.cli.app import run_app
from gen1_train.errors import INCOMPLETE, check_positive
from gen1_train.system.console import ConsoleConfig, show
from gen1_train.system.files import write_atomically
from gen1_train.system.processes import cores

if TYPE_CHECKING:
    from data_tools.sets.shard_check import Problem

VERIFIED = "verify.jsonl"
SHOWN = 20  # problems printed on the terminal

logger = logging.getLogger(__name__)


@dataclass
class VerifyConfig:
    output: str = MISSING  # folder of the shard set
    workers: int | None = None  # processes that read shards; null: one for every core
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def check(self) -> None:
        """Raises UserError for a setting that cannot be; the message names it and the remedy."""
        check_positive(workers=self.workers)


def main() -> None:
    run_app("gen1-data verify", "verify", VerifyConfig, run)


def run(config: VerifyConfig) -> int | None:
    """Checks a set and prints its problems; returns INCOMPLETE if there are any. Raises UserError without a set."""
    config.check()
    from data_tools.sets.set_check import check_set, describe, read_manifest  # here: --help must not wait for torch

    root = Path(config.output)
    manifest, problems = read_manifest(root)
    if manifest is not None:
        problems += check_set(root, manifest, config.workers or cores())
    listing = write_problems(root, problems)
    if manifest is not None and not problems:
        logger.info(f"{root} is as it was frozen: {describe(manifest)}")
        return None
    shown = problems[:SHOWN] if listing else problems
    for problem in shown:
        show(str(problem))
    if len(problems) > len(shown):
        show(f"and {len(problems) - len(shown)} more")
    logger.info(f"{len(problems)} problems in {root}" + (f", all in {listing}" if listing else ""))
    return INCOMPLETE


def write_problems(root: Path, problems: "list[Problem]") -> Path | None:
    """Writes SET/verify.jsonl, or removes an old one if there are no problems; returns None if the set is read-only."""
    path = root / VERIFIED
    with suppress(OSError):  # on a read-only set the problems are printed only
        if not problems:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, "".join(json.dumps(asdict(problem)) + "\n" for problem in problems).encode())
        return path
    return None
