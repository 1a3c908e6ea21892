"""Calls to our commands, one after another as a user would make them, each printed and timed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gen1_train.errors import INCOMPLETE
from gen1_train.system.console import show

COMMANDS = {
    "data_tools.main": "gen1-data",
    "gen1_train.train": "gen1-train",
    "gen1_train.edit": "gen1-edit",
    "gen1_train.evaluate": "gen1-eval",
}
Runner = Callable[[str, Sequence[str]], int]  # module and arguments of a command -> its exit code

logger = logging.getLogger(__name__)


def run_in_process(module: str, arguments: Sequence[str]) -> int:
    """Runs a command in a process of its own, with the output of this one; returns its exit code."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    return subprocess.run([sys.executable, "-m", module, *arguments], env=environment).returncode


class Workflow:
    """A sequence of commands in one work folder.

    `repeat`: what the user calls to continue after a failure. `run`: how a command is run.
    """

    def __init__(self, work: Path, repeat: str = "make demo", run: Runner = run_in_process) -> None:
        self.work = work
        self.repeat = repeat
        self.run = run
        self._timings = work / "timings.json"

    def call(self, title: str, module: str, *arguments: str) -> None:
        """Runs one of our commands. If it fails, its own message says why, and this process ends with its exit code.

        Files that the command could not read (exit code INCOMPLETE) are no failure.
        """
        show(f"\n== {title}\n$ {COMMANDS.get(module, f'python -m {module}')} {' '.join(arguments)}")
        with self.timed(title):
            code = self.run(module, arguments)
        if code not in (0, INCOMPLETE):
            show("")
            logger.info("stopped at: %s. Fix it and call %s again: it continues from here.", title, self.repeat)
            sys.exit(code)

    @contextmanager
    def timed(self, title: str, description: str | None = None) -> Iterator[None]:
        """Adds the seconds that the block takes to those of a step, unless the block raises an error."""
        if description is not None:
            show(f"\n== {title}\n{description}")
        began = time.perf_counter()
        yield
        self._record(title, time.perf_counter() - began)

    def _record(self, title: str, seconds: float) -> None:
        timings = self.timings()
        timings[title] = timings.get(title, 0.0) + seconds
        self._timings.write_text(json.dumps(timings, indent=1))

    def timings(self) -> dict[str, float]:
        """The seconds that each step has taken, summed over all calls."""
        return json.loads(self._timings.read_text()) if self._timings.exists() else {}
