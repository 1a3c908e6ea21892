"""Runs the parts of a benchmark, each bounded in time, so that one that fails or hangs costs only its own results.

Every part runs in a process of its own, forked from this one. A thread or an alarm would not do: nothing in a process
can interrupt a hanging CUDA kernel, and after an illegal memory access every later call of CUDA fails. A fork is ready
at once, because it inherits the imports; this process never touches the GPU, whose state a fork cannot inherit.

Standard output gets a JSON line for every row as soon as it is there, and one at the end of each part:

    {"part": "step", "clips": 1, "wall_ms": …}
    {"part": "step", "state": "done", "reason": "", "seconds": 12.3, "rows": 5}

`state` is done, failed, skipped (for lack of a package or of time) or stopped (by a signal). Rows survive whatever
happens to their part later. A row with the key `error` makes its part fail.
"""

import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import FrameType
from typing import Any, NoReturn

import torch

from benchmarks.on_gpu.scale import Scale
from benchmarks.questions import Row, tables
from gen1_train.system.device import set_determinism, set_tf32, use_expandable_segments

OURS = ("benchmarks", "gen1_train")
LEAST_SECONDS = 5.0  # in which no part would give a result
AFTER_KILL = 15.0  # seconds in which a killed process has to end: the driver may have to reset its kernels
STACK = 1.0  # seconds in which a process that is too slow writes where it is
PR_SET_PDEATHSIG = 1  # of prctl(2)


class Skip(Exception):
    """The part cannot run here, for the reason in the message."""


@dataclass(frozen=True)
class Part:
    name: str
    rows: Callable[[Scale], Iterable[Row]]
    seconds: float  # at most
    needs: tuple[str, ...] = ()  # packages besides torch


@dataclass
class Outcome:
    part: str
    state: str = "done"
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class Runner:
    """Runs parts one after the other within a number of seconds, until SIGTERM or SIGINT asks it to stop."""

    def __init__(self, scale: Scale, seconds: float, began: float | None = None) -> None:
        """`seconds`: for all parts, since the time `began` of time.monotonic, by default from now on."""
        self.scale = scale
        self.seconds = seconds
        self._end = seconds + (time.monotonic() if began is None else began)
        self.signal: int | None = None  # the one that asked to stop

    def run(self, parts: Sequence[Part]) -> list[Outcome]:
        """Prints the JSON lines on standard output and, in the end, a table on standard error."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        outcomes: list[Outcome] = []
        try:
            for part in parts:
                began = time.monotonic()
                outcome = self._outcome(part, self._end - began)
                outcome.seconds = round(time.monotonic() - began, 1)
                outcomes.append(outcome)
                end_line = {name: value for name, value in vars(outcome).items() if name != "rows"}
                _print_line({**end_line, "rows": len(outcome.rows)})
            print("\n".join(table(outcomes)), file=sys.stderr, flush=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return outcomes

    def exit_code(self, outcomes: Sequence[Outcome]) -> int:
        """Returns 0, 1 if a part failed, or 128 + the signal that stopped it."""
        if self.signal is not None:
            return 128 + self.signal
        return int(any(outcome.state == "failed" for outcome in outcomes))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number  # an exception could be raised in the middle of a line

    def _outcome(self, part: Part, left: float) -> Outcome:
        if self.signal is not None:
            return Outcome(part.name, "stopped", f"by {signal.Signals(self.signal).name} before it began")
        if missing := [package for package in part.needs if not _is_installed(package)]:
            return Outcome(part.name, "skipped", f"{', '.join(missing)} is not installed")
        if left < LEAST_SECONDS:
            return Outcome(part.name, "skipped", f"nothing is left of the {self.seconds:g} seconds")
        return self._run(part, min(part.seconds, left))

    def _run(self, part: Part, seconds: float) -> Outcome:
        child = Child(part, self.scale)
        deadline = time.monotonic() + seconds
        outcome = Outcome(part.name)
        try:
            while child.messages(outcome):
                if self.signal is not None:
                    outcome.state, outcome.reason = "stopped", f"by {signal.Signals(self.signal).name}"
                    return outcome
                if time.monotonic() > deadline:
                    child.show_stack()
                    outcome.state, outcome.reason = "failed", f"it took longer than {seconds:.0f} s"
                    return outcome
        finally:
            child.end()
        errors = [row["error"] for row in outcome.rows if "error" in row]
        if outcome.state == "done" and errors:
            outcome.state, outcome.reason = "failed", f"{len(errors)} of {len(outcome.rows)} rows: {errors[0]}"
        return outcome


class Child:
    """The process of a part, the leader of a group of its own, and the pipe through which it sends its rows."""

    def __init__(self, part: Part, scale: Scale) -> None:
        self.part = part
        self._pipe, sending = os.pipe()
        self._unread = b""
        self._ended = False  # the part has sent its end
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._pipe)
            _run_in_child(part, scale, sending)
        os.close(sending)
        os.set_blocking(self._pipe, False)

    def messages(self, outcome: Outcome) -> bool:
        """Waits a moment for messages and adds them to the outcome; returns whether more may come."""
        select.select([self._pipe], [], [], 0.1)
        status = self._status()
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, 1 << 16):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._take(json.loads(line), outcome)
        if status is not None and not self._ended:
            by = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            outcome.state, outcome.reason = "failed", f"its process ended with {by}"
        return status is None and not self._ended

    def show_stack(self) -> None:
        """Lets the process write to standard error where its threads are, even inside a hanging call."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(STACK)

    def end(self) -> None:
        """Kills the process and those that it started, if there are any left."""
        os.close(self._pipe)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            if self._status() is None:  # it may not lead a group yet
                os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + AFTER_KILL
        while self._status() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._status() is None:
            print(f"{self.part.name}: process {self.pid} does not end after SIGKILL", file=sys.stderr, flush=True)

    def _take(self, message: dict[str, Any], outcome: Outcome) -> None:
        if "row" in message:
            outcome.rows.append(message["row"])
            _print_line({"part": self.part.name, **message["row"]})
        else:
            self._ended = True
            outcome.state, outcome.reason = message["state"], message["reason"]

    def _status(self) -> int | None:
        """Returns the exit code, or minus the signal; None while the process runs."""
        if not hasattr(self, "_code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return None
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


def succeeds(call: Callable[[], object], seconds: float) -> bool:
    """Whether a call in a fork of this process returns in time and without an exception."""
    pid = os.fork()
    if not pid:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False


def _run_in_child(part: Part, scale: Scale, pipe: int) -> NoReturn:
    try:
        parent = os.getppid()
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        os.dup2(2, 1)  # what libraries print; standard output is for JSON lines
        for message in _messages(part, scale):
            line = f"{json.dumps(message, default=str)}\n".encode()
            while line:
                line = line[os.write(pipe, line) :]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)  # without finalizers, which may hang in CUDA or NCCL


def _messages(part: Part, scale: Scale) -> Iterable[dict[str, Any]]:
    try:
        if scale.device.type == "cuda" and torch.cuda._is_in_bad_fork():
            raise RuntimeError("the process that started this one has used CUDA")
        use_expandable_segments()  # this and the next two as in training, by default
        set_determinism(False, cudnn_benchmark=True)
        set_tf32(True)
        for row in part.rows(scale):
            yield {"row": row}
    except Skip as reason:
        yield {"state": "skipped", "reason": str(reason)}
    except BaseException as error:
        traceback.print_exc()
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package not in OURS:
            yield {"state": "skipped", "reason": f"{package} is not installed"}
        else:
            yield {"state": "failed", "reason": in_one_line(error)}
    else:
        yield {"state": "done", "reason": ""}


def attempt(labels: Row, measure: Callable[[], Row]) -> Row:
    """Returns a row of the labels and what was measured, or why that failed, so that other rows follow.

    A row that does not fit into the GPU's memory is a result, not an error.
    """
    try:
        return {**labels, **measure()}
    except torch.OutOfMemoryError:
        return {**labels, "fits": False}
    except ModuleNotFoundError as error:
        return {**labels, "skipped": f"{error.name} is not installed"}
    except Exception as error:
        traceback.print_exc()
        return {**labels, "error": in_one_line(error)}


def in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the lines of Markdown tables: one of all parts, and those of each part's rows."""
    parts = [{name: value for name, value in vars(outcome).items() if name != "rows"} for outcome in outcomes]
    lines = tables(parts)
    for outcome in outcomes:
        if outcome.rows:
            lines += ["", f"### {outcome.part}", *tables(outcome.rows)]
    return lines


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # it is marked as absent
        return False


def _print_line(row: Row) -> None:
    print(json.dumps(row), flush=True)
