"""What is interrupted, when, and how; tests/crashes/test_crashes.py generates its tests from this table.

Each command is started, interrupted as its first row says, started again, interrupted as the next row says, and so on,
and in the end it runs to its end. What must hold is the same everywhere:

- SIGKILL to all its processes: nothing, but what follows.
- Any other signal: one line, no traceback, the documented exit code, no process and no temporary file left.
- A training that has made a step saves a checkpoint and ends with 75, unless it was Ctrl-C.
- The last start ends with the result of a command that was never interrupted, bit for bit.
"""

import signal
from dataclasses import dataclass
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1


@dataclass(frozen=True)
class Crash:
    """A row of the table."""

    when: str  # a moment of the command, see tests/crashes/commands.py
    number: signal.Signals
    to: str = "all"  # its processes, as a terminal and Slurm do; "first": the one that was started; "rank 1": of two


TABLE = {
    "training on one process": [Crash("it imports", SIGINT), Crash("it trains", SIGKILL), Crash("it trains", SIGTERM)],
    "training with ddp": [Crash("it saves", SIGKILL), Crash("it trains", SIGHUP)],
    "training with zero1": [Crash("it has begun", SIGTERM), Crash("it trains", SIGKILL), Crash("it saves", SIGTERM)],
    "training with zero2": [
        Crash("it has begun", SIGKILL),
        Crash("it trains", SIGINT),
        Crash("it trains", SIGUSR1, to="rank 1"),
    ],
    "training with zero3": [Crash("it saves", SIGKILL), Crash("it trains", SIGTERM, to="first")],
    "training with fsdp": [Crash("it saves", SIGKILL)],
    "customization": [Crash("it imports", SIGTERM), Crash("it trains", SIGINT), Crash("it saves", SIGKILL)],
    "the prior": [Crash("it saves", SIGKILL), Crash("it trains", SIGHUP), Crash("it has begun", SIGINT)],
    "gen1-data": [
        Crash("it imports", SIGHUP),
        Crash("it plans", SIGKILL),
        Crash("the workers start", SIGINT),
        Crash("the workers work", SIGTERM, to="first"),
        Crash("the workers work", SIGKILL),
        Crash("the workers work", SIGHUP),
    ],
    "gen1-edit": [
        Crash("it imports", SIGINT),
        Crash("it samples", SIGTERM),
        Crash("it samples", SIGKILL),
        Crash("it samples", SIGHUP, to="first"),
    ],
    "gen1-eval": [
        Crash("it imports", SIGTERM),
        Crash("it has begun", SIGINT),
        Crash("it has results", SIGKILL),
        Crash("it has results", SIGTERM),
    ],
    "gen1-export": [Crash("it imports", SIGHUP), Crash("it writes", SIGKILL), Crash("it writes", SIGINT)],
    "the page": [
        Crash("it imports", SIGINT),
        Crash("it serves", SIGTERM),
        Crash("it serves", SIGKILL),
        Crash("it serves", SIGHUP, to="first"),
    ],
}
