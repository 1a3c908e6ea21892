"""Our commands, called one after another as a user would, each printed and timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gen1_train.exits import INCOMPLETE

COMMANDS = {
    "data_tools.main": "gen1-data",
    "gen1_train.train": "gen1-train",
    "gen1_train.edit": "gen1-edit",
    "gen1_train.evaluate": "gen1-eval",
}


class Road:
    """The commands of one work folder; `name` says whose messages these are."""

    def __init__(self, work: Path, name: str = "demo", again: str = "make demo") -> None:
        self.work, self.name, self.again = work, name, again
        self._timings = work / "timings.json"

    def call(self, title: str, module: str, *arguments: str) -> None:
        """Runs one of our commands; its own message explains a failure, and this process ends with its exit code.

        Files that cannot be read are no reason to stop.
        """
        print(f"\n== {title}\n$ {COMMANDS.get(module, f'python -m {module}')} {' '.join(arguments)}", flush=True)
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
        with self.timed(title):
            result = subprocess.run([sys.executable, "-m", module, *arguments], env=environment)
        if result.returncode not in (0, INCOMPLETE):
            mend = f"Mend it and call {self.again} again: it goes on from here."
            print(f"\n{self.name}: stopped at: {title}. {mend}", flush=True)
            sys.exit(result.returncode)

    @contextmanager
    def timed(self, title: str, said: str | None = None) -> Iterator[None]:
        """Adds the seconds of the block to those that the step has taken before, if it ends well."""
        if said is not None:
            print(f"\n== {title}\n{said}", flush=True)
        began = time.perf_counter()
        yield
        self.record(title, time.perf_counter() - began)

    def record(self, title: str, seconds: float) -> None:
        """Adds to the seconds that a step has taken over all calls of the demo."""
        timings = self.timings()
        timings[title] = timings.get(title, 0.0) + seconds
        self._timings.write_text(json.dumps(timings, indent=1))

    def timings(self) -> dict[str, float]:
        return json.loads(self._timings.read_text()) if self._timings.exists() else {}
