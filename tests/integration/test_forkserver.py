"""Processes that the tests fork look like fresh ones: tests/forkserver.py."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.forkserver import ENVIRONMENT, PRELOADED, READ_AT_IMPORT, cold
from tests.probe import state_of_worker, worker_ranks
from tests.running import command, run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what libraries and other tests have set in this process since it started, which would mean cold starts."""
    for name in {*os.environ, *ENVIRONMENT}:
        if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH":
            if name in ENVIRONMENT:
                monkeypatch.setenv(name, ENVIRONMENT[name])
            else:
                monkeypatch.delenv(name)


def both(*words: str, **options: Any) -> list[subprocess.CompletedProcess[str]]:
    """What a forked and a fresh `python -m tests.probe` print and how they end."""
    results = []
    for how in (nullcontext(), cold()):
        with how:
            options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 240, **options}
            results.append(subprocess.run(command("tests.probe", *words), **options))
    return results


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_new_session": True},
        {"cwd": "/"},
        {"env": {**ENVIRONMENT, "RANK": "1", "MASTER_PORT": "1"}},
        {"stdin": subprocess.DEVNULL},
    ],
    ids=lambda options: " ".join(options),
)
def test_a_command_finds_what_a_fresh_one_finds(options: dict[str, Any]) -> None:
    forked, fresh = (json.loads(result.stdout) for result in both("a", "b c", **options))
    assert forked.pop("imported torch") and not fresh.pop("imported torch")
    # one more open file: the channel to the server of its own
    assert len(forked.pop("open")) == len(fresh.pop("open")) + 1
    assert forked == fresh and forked["parent"] == os.getpid()


@pytest.mark.parametrize("words", [["exit", "0"], ["exit", "3"], ["message"], ["return"]], ids=" ".join)
def test_a_command_ends_like_a_fresh_one(words: list[str]) -> None:
    forked, fresh = ((result.returncode, result.stdout, result.stderr) for result in both(*words))
    assert forked == fresh


def test_the_traceback_of_a_bug_is_printed_and_standard_output_flushed() -> None:
    forked, fresh = both("raise")
    assert forked.returncode == fresh.returncode == 1 and forked.stdout == fresh.stdout == "before"
    assert forked.stderr.count("Traceback") == 1 and forked.stderr.splitlines()[-1] == "ValueError: a bug"


def test_output_to_a_file_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with open(path, "w") as output:
        both("exit", "0", capture_output=False, stdout=output, stderr=output)
    assert path.read_text() == "exits\nexits\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    process = subprocess.Popen(
        command("tests.probe", "wait"), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def test_signals_that_its_parent_ignores_or_blocks_are_handed_on() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        forked, fresh = (json.loads(result.stdout) for result in both())
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert forked["handlers"] == fresh["handlers"] and forked["blocked"] == fresh["blocked"] == [signal.SIGUSR1]


def test_pgrep_finds_it_by_its_arguments() -> None:
    with subprocess.Popen(command("tests.probe", "wait", "for me"), env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        pattern = ["pgrep", "-P", str(os.getpid()), "-f", "tests.probe wait for me"]
        assert subprocess.run(pattern, capture_output=True, text=True).stdout.split() == [str(process.pid)]
        process.kill()


def test_a_command_starts_its_own_commands_and_workers_this_way() -> None:
    result = run("tests.probe", "start")
    assert result.returncode == 0, result.stderr
    command_pid, child, worker = (json.loads(line) for line in result.stdout.splitlines())
    for started in (child, worker):
        assert started["parent"] == command_pid and started["imported torch"]


def test_workers_of_a_spawned_pool_find_what_fresh_ones_find() -> None:
    states = []
    for how in (nullcontext(), cold()):
        with how, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            states.append(pool.submit(state_of_worker).result())
    forked, fresh = states
    assert forked.pop("imported torch") and not fresh.pop("imported torch")
    assert forked.pop("command line")[:-1] and fresh.pop("command line")  # they name pipes
    for name in {*fresh["environment"]} - {*os.environ}:  # set in C, by readline
        del fresh["environment"][name]
    assert forked == fresh and forked["parent"] == os.getpid()
    assert forked["argv"] == sys.argv


def test_workers_share_queues_and_end_with_an_exit_code() -> None:
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    workers = [context.Process(target=worker_ranks, args=(numbers, rank)) for rank in range(3)]
    for worker in workers:
        worker.start()
    assert sorted(numbers.get(timeout=60) for _ in workers) == [0, 1, 2]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 1, 2]


def test_another_environment_of_the_imports_is_a_cold_start() -> None:
    for variables in ({"OMP_NUM_THREADS": "2"}, {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:/elsewhere"}):
        result = subprocess.run(
            command("tests.probe"), env={**ENVIRONMENT, **variables}, capture_output=True, text=True, timeout=240
        )
        assert not json.loads(result.stdout)["imported torch"], result.stderr


def test_preloaded_modules_exist() -> None:
    assert [name for name in PRELOADED if importlib.util.find_spec(name) is None] == []
