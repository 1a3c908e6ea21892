"""The terminal output of the commands: lines as text and as JSON, progress bars, ranks, and worker processes."""

import io
import json
import logging
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from gen1_train.errors import UserError
from gen1_train.system.console import (
    EVERY_RANK,
    LOGGERS,
    Console,
    ConsoleConfig,
    console,
    current,
    print_traceback,
    progress,
    rank,
    show,
)
from gen1_train.system.processes import worker_pool
from tests.running import ENVIRONMENT, REPOSITORY

logger = logging.getLogger("gen1_train.some.module")
LAUNCHER_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def loggers_are_restored() -> Iterator[None]:
    yield
    assert current() is None
    for name in LOGGERS:
        project_logger = logging.getLogger(name)
        assert (project_logger.level, project_logger.propagate) == (logging.NOTSET, True)
        assert all(isinstance(handler, logging.NullHandler) for handler in project_logger.handlers)


def write_all_levels() -> None:
    logger.debug("not shown")
    logger.info("step %d of %d", 3, 10)
    logger.warning("the disk is almost full")
    logger.error("seed=x is not a number")
    show("a | b\n1 | 2")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_text_lines_name_the_command_and_only_errors_go_to_standard_error(capsys: Capture) -> None:
    with console("gen1-train"):
        write_all_levels()
    out, err = capsys.readouterr()
    assert out == "gen1-train: step 3 of 10\ngen1-train: warning: the disk is almost full\na | b\n1 | 2\n"
    assert err == "gen1-train: error: seed=x is not a number\n"


def test_a_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes between a line and its end, such as the line that a signal or another rank prints."""
    written: list[str] = []
    for name in ("stdout", "stderr"):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "write", written.append)
        monkeypatch.setattr(sys, name, stream)
    with console("gen1-data"):
        logger.info("a line")
        logger.error("an error")
        show("a result")
    error = ValueError("a bug")
    print_traceback(type(error), error, None)
    assert written == ["gen1-data: a line\n", "gen1-data: error: an error\n", "a result\n", "ValueError: a bug\n"]


def test_json_lines_are_objects_with_time_command_level_and_message(capsys: Capture) -> None:
    with console("gen1-train", "json"):
        write_all_levels()
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in (*out.splitlines(), *err.splitlines())]
    assert all(datetime.fromisoformat(line.pop("time")).utcoffset() is not None for line in lines)
    assert lines == [
        {"command": "gen1-train", "level": "info", "message": "step 3 of 10"},
        {"command": "gen1-train", "level": "warning", "message": "the disk is almost full"},
        {"command": "gen1-train", "level": "result", "message": "a | b\n1 | 2"},
        {"command": "gen1-train", "level": "error", "message": "seed=x is not a number"},
    ]


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_line_shows_credentials(capsys: Capture, format: str) -> None:
    """Any setting may hold a URL with some, and a message may name any setting."""
    with console("gen1-train", format):
        logger.error("validation.root=https://user:hidden@host/set?signature=hidden has no manifest")
        try:
            raise OSError("s3://user:hidden@bucket/x")
        except OSError:
            logger.exception("no file")
    printed = capsys.readouterr().err
    assert "hidden" not in printed and "validation.root=https://***@host/set?*** has no manifest" in printed


def test_a_label_may_replace_the_level(capsys: Capture) -> None:
    with console("gen1-edit"):
        logger.error("interrupted", extra={"label": ""})
    assert capsys.readouterr() == ("", "gen1-edit: interrupted\n")


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_printed_with_its_traceback(capsys: Capture, format: str) -> None:
    with console("gen1-train", format):
        try:
            raise ValueError("a bug")
        except ValueError:
            logger.exception("it failed")
    err = capsys.readouterr().err
    text = json.loads(err)["message"] if format == "json" else err
    assert "it failed\nTraceback" in text and text.rstrip().endswith("ValueError: a bug")


@pytest.mark.parametrize("format", ["text", "json"])
def test_file_names_that_are_not_text_are_printed(format: str) -> None:
    code = (
        "import logging; from gen1_train.system.console import console\n"
        f"with console('gen1-data', {format!r}): logging.getLogger('data_tools.x').info('clip \\udcff.mp4')"
    )
    done = run_python(code)
    assert "clip \\udcff.mp4" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("call", "ending"), [("logging.getLogger('data_tools.x').info", "finished"), ("show", "BrokenPipeError")]
)
def test_a_closed_pipe_stops_a_command_at_its_result_and_not_at_a_line(call: str, ending: str) -> None:
    code = (
        "import logging, os; from gen1_train.system.console import console, show\n"
        "try:\n"
        "    with console('gen1-data'):\n"
        f"        for number in range(20_000): {call}('a line')\n"
        "    os.write(2, b'finished')\n"
        "except BrokenPipeError: os.write(2, b'BrokenPipeError')\n"
        "os._exit(0)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().endswith(b"a line\n")
    process.stdout.close()
    assert process.stderr.read() == ending.encode() and process.wait(60) == 0
    process.stderr.close()


def test_nothing_is_printed_in_a_library_call(capsys: Capture) -> None:
    write_all_levels()
    assert list(progress(range(3), title="reading", unit="file")) == [0, 1, 2]
    assert current() is None and capsys.readouterr() == ("", "")


def test_nothing_is_printed_in_a_library_call_without_any_logging_set_up() -> None:
    """In a fresh process: pytest adds handlers to the root logger, and Python prints warnings when there are none."""
    code = (
        "import logging; from gen1_train.system.console import LOGGERS, progress, show\n"
        "for name in LOGGERS: logging.getLogger(name).getChild('x').error('an error')\n"
        "show('a table'); list(progress(range(3), title='reading', unit='file'))"
    )
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")


def test_an_application_still_receives_the_records(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning("the disk is almost full")
    assert caplog.messages == ["the disk is almost full"]


def test_the_lines_of_other_libraries_are_not_printed(capsys: Capture) -> None:
    with console("gen1-train"):
        logging.getLogger("lightning").info("GPU available")
    assert capsys.readouterr() == ("", "")


def test_a_root_handler_does_not_print_a_line_again(capsys: Capture) -> None:
    root_handler = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(root_handler)
    try:
        with console("gen1-train"):
            logger.warning("once")
    finally:
        logging.getLogger().removeHandler(root_handler)
    assert capsys.readouterr().out == "gen1-train: warning: once\n"


def test_lines_of_the_main_module_are_printed() -> None:
    code = (
        "import logging; from gen1_train.system.console import console\n"
        "with console('gen1-train'): logging.getLogger(__name__).info('started')"
    )
    assert run_python(code).stdout == "gen1-train: started\n"


def test_a_nested_console_restores_the_outer_one(capsys: Capture) -> None:
    with console("gen1-train") as outer:
        with pytest.raises(KeyError), console("gen1-data", "json") as inner:
            assert current() == inner
            logger.info("inside")
            raise KeyError
        assert current() == outer
        logger.info("outside")
    logger.info("after")
    inside, outside = capsys.readouterr().out.splitlines()
    assert json.loads(inside)["command"] == "gen1-data" and outside == "gen1-train: outside"


def test_opening_a_second_console_replaces_the_first(capsys: Capture) -> None:
    with console("gen1-train"):
        Console("gen1-data").open()
        logger.info("once")
    assert capsys.readouterr().out == "gen1-data: once\n"


@pytest.mark.parametrize(
    ("variables", "number"),
    [
        ({}, 0),
        ({"RANK": "3", "SLURM_PROCID": "0", "LOCAL_RANK": "0"}, 3),
        ({"RANK": "0", "SLURM_PROCID": "3", "LOCAL_RANK": "3", "NODE_RANK": "1"}, 0),
        ({"SLURM_PROCID": "5", "LOCAL_RANK": "1"}, 5),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 0),
        ({"LOCAL_RANK": "2"}, 2),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, 0),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1),
        ({"NODE_RANK": "1"}, 1),  # the process that launches the others of its node
        ({"RANK": "", "SLURM_PROCID": "-1", "LOCAL_RANK": "one"}, 0),
    ],
)
def test_the_rank_comes_from_the_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, variables: dict[str, str], number: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank() == number
    with console("gen1-train", ranks=True):
        logger.info("from rank 0")
        logger.warning("from this rank", extra=EVERY_RANK)
        assert progress(title="training", unit="step").disable is (number != 0)
    expected = ["gen1-train: from rank 0"] * (number == 0) + ["gen1-train: warning: from this rank"]
    assert capsys.readouterr().out.splitlines() == expected


def test_launchers_are_ignored_by_commands_without_ranks(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Each task of a job array of gen1-data is a separate run."""
    monkeypatch.setenv("SLURM_PROCID", "3")
    with console("gen1-data"):
        logger.info("a line")
    assert capsys.readouterr().out == "gen1-data: a line\n"


def test_json_lines_of_a_launched_run_name_the_rank(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RANK", "3")
    with console("gen1-train", "json", ranks=True):
        logger.info("from rank 0")
        logger.warning("from this rank", extra=EVERY_RANK)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["rank"] == 3


def test_a_line_clears_the_bar_and_draws_it_again(capsys: Capture) -> None:
    with console("gen1-train"):
        bar = progress(title="training", unit="step", total=10)
        bar.update(4)
        bar.refresh()
        capsys.readouterr()
        logger.info("a line")
        out, err = capsys.readouterr()
        bar.close()
    assert out == "gen1-train: a line\n"
    parts = [part for part in err.split("\r") if part]
    assert parts[0].isspace() and "4/10" in parts[-1] and "\n" not in err


def test_a_signal_that_comes_while_a_bar_is_drawn_has_a_line_of_its_own() -> None:
    code = (
        "import logging, os, signal; from tqdm import tqdm\n"
        "from gen1_train.system.console import console, progress\n"
        "refresh = tqdm.refresh\n"
        "def refresh_and_interrupt(*arguments, **settings):\n"
        "    refresh(*arguments, **settings)\n"
        "    tqdm.refresh = refresh\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "tqdm.refresh = refresh_and_interrupt\n"
        "with console('gen1-edit'):\n"
        "    try:\n"
        "        with progress(total=5, title='sampling', unit='step', keep=False): pass\n"
        "    except KeyboardInterrupt:\n"
        "        logging.getLogger('gen1_train.x').error('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, timeout=120
    )
    lines = done.stderr.decode().replace("\r", "\n").splitlines()
    assert lines[-1] == "gen1-edit: error: interrupted" and any("sampling" in line for line in lines), lines


def test_lines_and_bars_of_one_terminal_do_not_mix() -> None:
    """Both streams into one file, as on a terminal: no line contains a part of a bar."""
    code = (
        "import logging, time; from gen1_train.system.console import console, progress\n"
        "log = logging.getLogger('gen1_train.x')\n"
        "with console('gen1-train'):\n"
        "    for step in progress(range(3), title='training', unit='step'):\n"
        "        log.info('step %d is done', step)\n"
        "    with progress(total=5, title='copying', unit='B') as bar:\n"
        "        bar.update(2)\n"
        "        log.error('the disk is done')\n"
        "        bar.update(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
        timeout=120,
    )
    printed = [line.rpartition("\r")[2] for line in done.stdout.decode().splitlines() if "done" in line]
    assert printed == [
        "gen1-train: step 0 is done",
        "gen1-train: step 1 is done",
        "gen1-train: step 2 is done",
        "gen1-train: error: the disk is done",
    ]
    assert "3/3" in done.stdout.decode()
    assert done.stdout.decode().endswith("error: the disk is done\n")  # no bar is drawn after an error


def test_a_bar_shows_title_unit_and_total_and_can_be_updated(capsys: Capture) -> None:
    with console("gen1-train"):
        assert list(progress(range(3), title="reading", unit="file")) == [0, 1, 2]
        with progress(title="copying", unit="B", total=2000, initial=1000, keep=False, scale=True) as bar:
            bar.update(500)
            bar.set_postfix_str("a.tar")
            assert (bar.n, bar.leave, bar.disable) == (1500, False, False)
        with progress(title="tasks", unit="s", total=3, shape="{desc}: {n}") as bar:
            bar.update(2)
    out, err = capsys.readouterr()
    assert out == "" and "reading: 100%" in err and "3/3" in err and "file/s" in err
    assert "1.50k/2.00k" in err and "a.tar" in err and "tasks: 2" in err


def test_json_lines_have_no_bars(capsys: Capture) -> None:
    with console("gen1-train", "json"):
        assert list(progress(range(3), title="reading", unit="file")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def log_in_worker(job: int) -> bool:
    """Runs in a worker process."""
    logging.getLogger("gen1_train.worker").info("job %d", job)
    return current() is not None


def pool_output(code: str) -> str:
    script = (
        "from gen1_train.system.console import console\n"
        "from gen1_train.system.processes import worker_pool\n"
        "from tests.system.test_console import log_in_worker\n"
        "if __name__ == '__main__':\n"
    ) + "".join(f"    {line}\n" for line in code.splitlines())
    return run_python(script).stdout


def test_workers_of_a_pool_print_as_their_parent() -> None:
    pool = "with worker_pool(log_in_worker, [1, 2], 1, 'start again', int) as futures:\n"
    results = "    print([future.result() for future in futures], flush=True)\n"
    opened = pool_output(f"with console('gen1-data'):\n    {pool}    {results}")
    assert opened.splitlines() == ["gen1-data: job 1", "gen1-data: job 2", "[True, True]"]
    assert pool_output(pool + results) == "[False, False]\n"


def test_workers_of_other_ranks_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with console("gen1-train", ranks=True), worker_pool(operator.call, [is_quiet], 1, "start again", int) as (future,):
        assert future.result()


def is_quiet() -> bool:
    """Runs in a worker process."""
    opened = current()
    return opened is not None and opened.quiet and os.environ["RANK"] == "1"


def test_an_unknown_format_is_refused() -> None:
    ConsoleConfig("json").check()
    with pytest.raises(UserError, match=r"^log\.format=xml is not one of text, json$"):
        ConsoleConfig("xml").check()


def test_the_console_imports_neither_tqdm_nor_torch() -> None:
    code = (
        "import sys, logging; from gen1_train.system.console import console\n"
        "with console('gen1-train'): logging.getLogger('gen1_train.x').info('a line')\n"
        "print(sorted({'tqdm', 'torch', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    assert run_python(code).stdout == "gen1-train: a line\n[]\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_names_of_strangers_do_not_control_the_terminal(capsys: Capture, form: str) -> None:
    name = "a\x1b]0;title\x07\x1b[2J\r\ngen1-train: error: forged\u202e.png"
    with console("gen1-train", form):
        logger.warning(f"{name} is left out: it is damaged")
        show(f"a\tb\n{name}\tc")
        try:
            raise ValueError(name)
        except ValueError:
            logger.exception("a bug")
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text) and "is left out: it is damaged" in text
    if form == "text":
        warning, *shown = printed.out.splitlines()
        assert warning.startswith("gen1-train: warning: a\\x1b]0;title") and warning.endswith("it is damaged")
        assert shown[0] == "a\tb"


def test_the_traceback_of_a_bug_shows_no_secret() -> None:
    code = (
        "from gen1_train.system.console import console\n"
        "with console('gen1-data'): raise ValueError('https://me:hush@host/a?token=hush \\x1b[2J')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ValueError: https://***@host/a?***" in done.stderr
    assert "hush" not in done.stderr.partition("ValueError:")[2] and "\x1b" not in done.stderr
