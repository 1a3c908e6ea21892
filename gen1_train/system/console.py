"""The terminal output of the commands: every line and every progress bar, on top of Python's logging.

Modules write with `logging.getLogger(__name__)` and do not know where the lines go. A command opens
`console("gen1-train")`; from then on, the records of this project's loggers appear on the terminal as `gen1-train:
…`, or as JSON with one object per line. In a library call, no console is open and nothing is printed.
"""

import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, TypeVar

from typing_extensions import override

from gen1_train.errors import check_choice, one_line
from gen1_train.system.remote import without_secrets
from gen1_train.system.signals import interrupts_deferred

Item = TypeVar("Item")

FORMATS = ("text", "json")
LAYOUT = {ord("\n"): None, ord("\t"): None}  # characters that lines and tables have
LOGGERS = ("gen1_train", "data_tools", "miniature", "__main__")  # __main__: the module of `python -m MODULE`
EVERY_RANK = {
    "every_rank": True
}  # logger.warning(…, extra=EVERY_RANK): the rank that logs it is the only one to know it
RANK_VARIABLES = ("RANK", "SLURM_PROCID")  # set by launchers, the most reliable first

logger = logging.getLogger(__name__)
for _name in LOGGERS:  # without a handler, Python would print warnings to standard error in a library call
    logging.getLogger(_name).addHandler(logging.NullHandler())


@dataclass
class ConsoleConfig:
    format: str = "text"  # of the lines on the terminal: text; or json, one object per line and no progress bars

    def check(self) -> None:
        """Raises UserError for an unknown format."""
        check_choice("log.format", self.format, FORMATS)


@dataclass(frozen=True)
class Console:
    """The name and the format under which a command prints.

    A process hands its console to the worker processes that it starts, and each of them calls `open`.
    """

    command: str
    format: str = "text"
    ranks: bool = False  # the processes of a launcher are one run, and only rank 0 prints

    @property
    def quiet(self) -> bool:
        """Whether another process prints for this one."""
        return self.ranks and rank() != 0

    def open(self) -> None:
        """Prints the records of this project's loggers from now on, in place of any console that was open before."""
        global _current
        if _current is not None:
            _current.close()
        _current = self
        accept_any_text()
        sys.excepthook = print_traceback  # also for an error that leaves the console
        handler = ConsoleHandler(self)
        for project_logger in map(logging.getLogger, LOGGERS):
            project_logger.addHandler(handler)
            project_logger.setLevel(logging.INFO)
            project_logger.propagate = False  # a root handler, added by some library, would print each line again

    def close(self) -> None:
        """Stops printing."""
        global _current
        _current = None
        for project_logger in map(logging.getLogger, LOGGERS):
            for handler in [each for each in project_logger.handlers if isinstance(each, ConsoleHandler)]:
                project_logger.removeHandler(handler)
            project_logger.setLevel(logging.NOTSET)
            project_logger.propagate = True


_current: Console | None = None  # one per process, as is the terminal


def current() -> Console | None:
    """The console that is open in this process; None in a library call."""
    return _current


@contextmanager
def console(command: str, format: str = "text", ranks: bool = False) -> Iterator[Console]:
    """Opens the console of a command for the length of a block, then restores the one that was open before."""
    outer = _current
    opened = Console(command, format, ranks)
    opened.open()
    try:
        yield opened
    finally:
        opened.close()
        if outer is not None:
            outer.open()


class ConsoleHandler(logging.Handler):
    """Prints log records: errors to standard error, all others to standard output, without breaking progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return not self.console.quiet or getattr(record, "every_rank", False)

    @override
    def format(self, record: logging.LogRecord) -> str:
        plain = getattr(record, "plain", False)
        is_text = self.console.format == "text"
        text = record.getMessage()
        if is_text and not plain:
            text = " " * (len(text) - len(text.lstrip(" "))) + one_line(text)  # what belongs to a line is indented
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if not getattr(record, "public", False):
            text = without_secrets(text)
        if not is_text:
            return self._as_json(record, text, "result" if plain else record.levelname.lower())
        label = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = without_controls(text)
        return text if plain else f"{self.console.command}: {getattr(record, 'label', label)}{text}"

    def _as_json(self, record: logging.LogRecord, text: str, level: str) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        source = {"time": time, "command": self.console.command, **({"rank": rank()} if self.console.ranks else {})}
        return json.dumps({**source, "level": level, "message": text})

    @override
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        try:
            if record.levelno >= logging.ERROR:
                _close_bars()  # a command ends with its error; a bar that is drawn again would hide the line
            with _bars_hidden(stream):
                _print(self.format(record), stream)
        except BrokenPipeError:  # `gen1-data … | head`: the reader is gone, and the work continues
            if getattr(record, "plain", False):
                raise  # for a result, which may be all that the command was run for
        except Exception:
            self.handleError(record)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of a bug, without the secrets of URLs and without control characters."""
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    _print(without_controls(without_secrets(text)), sys.stderr)


def _print(text: str, stream: IO[str]) -> None:
    """Writes a text and its end of line at once; `print` writes them one after the other, and a signal's line or that
    of another rank could come between them."""
    stream.write(f"{text}\n")
    stream.flush()


def without_controls(text: str) -> str:
    """Returns lines, which may have tabs, as a terminal may show them: they may quote names and texts of strangers.

    Other control characters, such as those that move the cursor or set the title, are escaped.
    """
    if text.translate(LAYOUT).isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


def show(text: str, public: bool = False) -> None:
    """Prints the result of a command (a table, a path) without a prefix, so that other programs can read it.

    `public`: the URLs in it hold no secrets and are printed with their query strings.
    """
    logger.info("%s", text, extra={"plain": True, "public": public})


def progress(
    items: Iterable[Item] | None = None,
    *,
    title: str,
    unit: str,
    total: float | None = None,
    initial: int = 0,
    keep: bool = True,
    scale: bool = False,
    shape: str | None = None,
    in_library: bool = False,
    delay: float = 0.0,
) -> Any:
    """A tqdm bar over `items`, or one that the caller updates.

    It is disabled without a console (in a library call), with JSON lines, and on ranks other than 0. A log file, which
    keeps every redraw, gets one every 15 seconds.

    Args:
        total, initial: in units.
        keep: leaves the bar on the terminal when it is done.
        scale: shows units with SI prefixes.
        shape: tqdm's `bar_format`.
        in_library: also shows the bar without a console, if standard error is a terminal.
        delay: seconds after which it is shown.
    """
    is_disabled = _current is None or _current.format == "json" or _current.quiet
    if _current is None and in_library:
        is_disabled = not sys.stderr.isatty()
    from tqdm import tqdm  # here, because a process that only logs does not need it

    # a bar that a signal interrupts while it is drawn could not be closed, and the last line would follow it
    with nullcontext() if is_disabled else interrupts_deferred():
        bar = tqdm(
            items,
            desc=title,
            unit=unit,
            total=total,
            initial=initial,
            leave=keep,
            unit_scale=scale,
            bar_format=shape,
            mininterval=0.2 if sys.stderr.isatty() else 15.0,
            dynamic_ncols=True,
            delay=delay,
            disable=is_disabled,
        )
    return bar


def rank() -> int:
    """The rank of this process in the run, from the launcher's variables; 0 without a launcher.

    Some launchers only number the processes of each node (LOCAL_RANK) and the nodes (NODE_RANK). Their ranks are unique
    within a node, and only the first process of the first node has rank 0.
    """
    for name in RANK_VARIABLES:
        if (number := _number(name)) is not None:
            return number
    local_rank = _number("LOCAL_RANK") or 0
    return local_rank or (1 if _number("NODE_RANK") else 0)


def accept_any_text() -> None:
    """Lets standard output and error print every string: file names may hold bytes that are not text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else None


def _close_bars() -> None:
    """Ends all progress bars of this process, each on a line of its own."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", None) or ()):
        bar.close()


def _bars_hidden(stream: IO[str]) -> AbstractContextManager[None]:
    """A block in which no progress bar is on the screen; imports nothing if no bar has been made."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return nullcontext()
    return tqdm.external_write_mode(file=stream)
