"""What reading a stranger's file must never do, watched while it is read: the system reports it by audit events."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SECONDS = 10  # of the processor, for one input; ours
GROWTH = 400 << 20  # bytes by which the resident memory may grow; ours
ADDRESS_SPACE = 2 << 30  # bytes on top of the present ones, at which an allocation fails; ours
CHILD = "gen1_train.video.decoding.worker"  # the only module that may run in a process of its own
CHANGES = {  # events that change the file system -> how many of their arguments are paths
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
}
NEVER = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.startfile",
    "os.system",
    "pickle.find_class",
    "pty.spawn",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "webbrowser.open",
)
CYTHON = b"_getframe()"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class ViolationError(BaseException):
    """Something that reading must not do. Not an Exception, so that no reader takes it for a fault of its file."""


class _Watch:
    """The folder in which files may be written now, and what was done against the rules."""

    folder: str | None = None
    violations: list[str]


_watch = _Watch()
_installed: list[bool] = []


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """A context in which this process may write to `folder` only, for a limited time and with limited memory.

    Raises ViolationError. An audit hook stays for ever, so it is installed at the first use.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    _reset_peak()
    before = _peak()
    with _limited():
        _watch.violations = []
        _watch.folder = os.path.realpath(folder)
        try:
            yield
        finally:
            _watch.folder = None
    if _watch.violations:  # the reader may have caught the error
        raise ViolationError(_watch.violations[0])
    if _peak() - before > GROWTH:
        raise ViolationError(f"its memory grew by {(_peak() - before) >> 20} MiB")


@contextmanager
def _limited() -> Iterator[None]:
    """Limits the processor's time by a timer of user time, which does not count the waiting of a busy machine."""

    def expired(number: int, frame: FrameType | None) -> None:
        raise ViolationError(f"it takes more than {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    is_main = threading.current_thread() is threading.main_thread()
    assert is_main, "signals arrive in the main thread"
    previous = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ADDRESS_SPACE, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _watch.folder
    if folder is not None and (problem := _problem(event, arguments, folder)):
        _watch.violations.append(problem)
        raise ViolationError(problem)


def _problem(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """Describes what an event does against the rules; None if it does nothing."""
    if event in CHANGES:
        outside = [path for path in arguments[: CHANGES[event]] if event != "os.symlink" and not _within(path, folder)]
        return f"{event} of {outside[0]!r}" if outside else None
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITES
        place = path if isinstance(path, int) else os.path.realpath(path)  # opening follows links
        return f"{path!r} is opened to be written" if writes and not _within(place, folder) else None
    if event == "subprocess.Popen":
        return None if CHILD in list(arguments[1]) else f"{arguments[1]!r} is started"
    if event in ("exec", "compile") and not _importing():
        return _code(event, arguments)
    if event == "socket.bind" and _importing():  # urllib3 looks whether there is IPv6
        return None
    return f"{event} {arguments!r:.200}" if event in NEVER else None


def _code(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Describes code that is compiled or run; what `ast.literal_eval` parses is never run.

    Cython compiles a constant of its own where it makes a traceback.
    """
    if event == "exec":
        (code,) = arguments
        return f"{code!r} is run" if isinstance(code, CodeType) and code.co_names != ("_getframe",) else None
    source, name = arguments
    return None if name == "<unknown>" or source == CYTHON else f"{source!r:.100} is compiled"


def _within(path: Any, folder: str) -> bool:
    if isinstance(path, int):  # a descriptor, whose opening was an event of its own
        return True
    path = os.path.abspath(os.fsdecode(path))
    place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return path == os.devnull or f"{place}/".startswith(f"{folder}/")


def _importing() -> bool:
    """Whether a module is being imported, which runs its code."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _status(name: str) -> int:
    """Returns a number of bytes that the system reports of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def _peak() -> int:
    return _status("VmHWM")


def _address_space() -> int:
    return _status("VmSize")


def _reset_peak() -> None:
    """Makes the peak of the resident memory the present one (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
