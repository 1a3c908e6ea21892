"""A command that is interrupted at any moment, again and again, ends as if nothing had happened. See table.py."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from gen1_train.errors import STOPPED
from tests.crashes.commands import COMMANDS, Command, Process
from tests.crashes.processes import session, wait_for
from tests.crashes.table import TABLE, Crash
from tests.forkserver import cold
from tests.running import command as command_line
from tests.running import run, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COLD = ("it imports", "the workers start")  # moments that a forked process would not have, or too briefly


def left_behind(folder: Path) -> set[Path]:
    """Locks and temporary files, except for what belongs to a set that is being made, which the next start uses."""
    found = {path for pattern in ("in_use.json", ".*.tmp", ".in_use*") for path in folder.rglob(pattern)}
    return {path for path in found if ".staging" not in path.parts}


def start(command: Command, *settings: str, is_cold: bool) -> list[str]:
    """The command line of a command; a cold one is that of its script, which listens for signals from the start."""
    if not is_cold:
        return command_line(command.module, *settings)
    return [sys.executable, "-c", f"from gen1_train.cli import start; start.{command.script}()", *settings]


def other_rank(pid: int) -> int:
    """The process of rank 1, which rank 0 has started."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "gen1_train.train"], capture_output=True, text=True).stdout
    return int(found)


def interrupt(command: Command, crash: Crash, inputs: Path, output: Path) -> None:
    """Starts a command, interrupts it, and checks how it ends."""
    before = left_behind(output.parent)
    code_if_stopped = STOPPED if command.saves and crash.when in ("it trains", "it saves") else 128 + crash.number
    words = start(command, *command.settings(inputs, output), is_cold=crash.when in COLD)
    with cold() if crash.when in COLD else nullcontext(), started(words) as (process, printed):

        def text() -> str:
            return os.pread(printed.fileno(), 1 << 20, 0).decode(errors="replace")

        ready = command.moments[crash.when](Process(process.pid, output, text))
        assert wait_until(process, ready, 120), f"it ended before {crash.when}: {text()}"
        if crash.to == "all":
            os.killpg(process.pid, crash.number)
        else:
            os.kill(process.pid if crash.to == "first" else other_rank(process.pid), crash.number)
        code = process.wait(60)
        said = text()
        assert code == {
            signal.SIGKILL: -signal.SIGKILL,
            signal.SIGINT: 128 + signal.SIGINT,
        }.get(crash.number, code_if_stopped), said
        wait_for(lambda: not session(process.pid), 20)
    if crash.number == signal.SIGKILL:
        return
    assert "Traceback" not in said
    lines = said.replace("\r", "\n").splitlines()
    by = "" if crash.number == signal.SIGINT else f" by {crash.number.name}"
    if code == STOPPED:
        assert lines[-1].startswith(f"{command.name}: ") and lines[-1].endswith("call again to resume")
    else:
        assert lines[-1] == f"{command.name}: interrupted{by}" and ": interrupted" not in "".join(lines[:-1]), said
    assert left_behind(output.parent) <= before


@pytest.mark.parametrize("name", TABLE)
def test_an_interrupted_command_ends_as_if_nothing_had_happened(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = COMMANDS[name]
    inputs = tmp_path / "inputs"
    if name.startswith("training"):
        inputs = request.getfixturevalue("run_root")
    else:
        inputs.mkdir()
        command.prepare(inputs)
    output, straight = (tmp_path / kind / command.output for kind in ("interrupted", "straight"))
    for folder in (output.parent, straight.parent):
        folder.mkdir()
    for crash in TABLE[name]:
        interrupt(command, crash, inputs, output)
    if name == "the page":
        return
    for path in (output, straight):
        done = run(command.module, *command.settings(inputs, path))
        assert done.returncode == command.success, done.stdout + done.stderr
    assert command.result(output) == command.result(straight)
    assert not left_behind(output.parent)


def test_the_table_names_what_there_is() -> None:
    assert TABLE.keys() == COMMANDS.keys()
    for name, crashes in TABLE.items():
        assert {crash.when for crash in crashes} <= COMMANDS[name].moments.keys()
