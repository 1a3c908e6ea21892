"""Starts the project's commands and worker processes in milliseconds: forks of a process that has imported torch.

`install()` makes this process start `[sys.executable, "-m", MODULE, ...]`, for modules of ours, and the workers of
`multiprocessing`'s spawn method from a fork server: a child process of this one that has imported everything and
computed nothing (it has one thread, or it refuses to serve). The new process is a child of this one and looks like a
fresh Python: arguments, environment, folder, session, open files, signals, `__main__`. A command has a fork server of
its own, which starts its workers and, for Lightning, the other ranks. Everything else, and everything within `cold()`,
starts the usual way.

Four things differ: forked processes share the seed of Python's string hashes, they end with the functions of
`atexit`, without tearing down all modules, which takes seconds, they know which of its operators DeepSpeed can build
here, and they remember what others have traced and measured for their plans (tests/training/plans.py).
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import inspect
import multiprocessing.process
import multiprocessing.util
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
OURS = ("benchmarks", "data_tools", "gen1_train", "miniature", "tests")
PLUGINS = ("bash_completion", "basic_launcher", "basic_sweeper", "file_config_source", "fish_completion")
PLUGINS += ("importlib_resources_config_source", "structured_config_source", "zsh_completion")  # of hydra
# No command is among them: runpy would warn that it has been imported already.
PRELOADED = [
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # torch.compile with it
    "hydra._internal.hydra",
    *(f"hydra._internal.core_plugins.{name}" for name in PLUGINS),
    "peft",
    "pytest",
    "torch._dynamo",
    "data_tools.prepare",
    "diffusers.models.autoencoders.autoencoder_kl",
    "open_clip",
    "transformers.models.dpt.modeling_dpt",
    "gen1_train.editing.run",
    "gen1_train.evaluation.run",
    "gen1_train.exporting.folder",
    "gen1_train.training.prior.run",
    "gen1_train.training.run",
]
ENVIRONMENT = {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
}
TRACES = "GEN1_TEST_TRACES"  # a variable: the folder of what tests/training/plans.py remembers for forked processes
# Libraries read these variables when they are imported: a process for which they differ starts cold.
READ_AT_IMPORT = ("PYTHON", "OMP_", "OPENBLAS_", "MKL_", "LD_PRELOAD", "DS_", "HF_", "TRANSFORMERS_", "MPL", "XDG_")
SPAWN = "from multiprocessing.spawn import spawn_main; "
SERVE = "from tests.forkserver import serve_and_run; serve_and_run()"
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored by every Python process
RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # ignored by the server
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None)
ColdPopen, cold_spawn = subprocess.Popen, multiprocessing.util.spawnv_passfds


@dataclass(frozen=True)
class Request:
    """A process to start: `python options… -m module words…`, or with -c and code."""

    options: list[str]
    how: str  # -m or -c
    program: str
    words: list[str]
    folder: str
    environment: dict[str, str]
    new_session: bool
    files: list[int]  # the numbers of the open files that it is given
    ignored: list[int]  # signals
    blocked: list[int]

    @property
    def command_line(self) -> list[str]:
        return [sys.executable, *self.options, self.how, self.program, *self.words]


class Popen(ColdPopen):
    """`subprocess.Popen` that has our commands forked."""

    def _execute_child(self, *arguments: Any) -> None:
        call = inspect.signature(super()._execute_child).bind(*arguments).arguments
        unusual = any(call[name] for name in ("preexec_fn", "pass_fds", "shell", "executable"))
        unusual |= any(call[name] is not None for name in ("uid", "gid", "gids"))
        unusual |= any(call[name] != -1 for name in ("umask", "process_group"))
        words = call["args"] if isinstance(call["args"], (list, tuple)) and not unusual else []
        streams = [call["p2cread"], call["c2pwrite"], call["errwrite"]]
        streams = [number if fd == -1 else fd for number, fd in enumerate(streams)]
        request = request_for(words, range(3), call["cwd"], call["env"], call["start_new_session"])
        if request is None or request.how != "-m":
            return super()._execute_child(*arguments)
        self.pid = SERVER.fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*(call[name] for name in PIPES))


def spawn(path: Any, arguments: Sequence[Any], files: Iterable[int]) -> int:
    """`multiprocessing.util.spawnv_passfds` that has workers forked."""
    numbers = [0, 1, 2, *sorted({int(fd) for fd in files} - {0, 1, 2})]
    request = request_for(arguments, numbers)
    if request is None or not (request.how == "-c" and request.program.startswith(SPAWN)):
        return cold_spawn(path, arguments, files)
    return SERVER.fork(request, numbers)


def request_for(
    command_line: Sequence[Any],
    files: Iterable[int],
    folder: Any = None,
    environment: Mapping[Any, Any] | None = None,
    new_session: bool = False,
) -> Request | None:
    """The request for a process; None if it has to start cold."""
    python, *words = map(os.fsdecode, command_line) if command_line else [""]
    options = []
    while words and (words[0].startswith("-W") or (words[0] == "-B" and sys.dont_write_bytecode)):
        options.append(words.pop(0))
    variables = {
        os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if environment is None else environment).items()
    }
    folder = os.path.abspath(folder or os.getcwd())
    ours = words[:1] == ["-c"] or (words[:1] == ["-m"] and words[1].partition(".")[0] in OURS)
    if python != sys.executable or not ours or not SERVER.serves or not has_same_imports(variables):
        return None
    if not os.path.isdir(folder):
        return None
    return Request(
        options=options,
        how=words[0],
        program=words[1],
        words=words[2:],
        folder=folder,
        environment=variables,
        new_session=new_session,
        files=list(files),
        ignored=[n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN and n not in RESTORED],
        blocked=list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )


def has_same_imports(environment: dict[str, str]) -> bool:
    """Whether a process with this environment would import what the server has imported."""
    server, process = (
        {name: value for name, value in variables.items() if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"}
        for variables in (ENVIRONMENT, environment)
    )
    return server == process and environment.get("PYTHONPATH") in (None, str(REPOSITORY))


class Server:
    """The fork server of this process, as seen from here. It is started with the first request."""

    def __init__(self) -> None:
        self.owner = 0  # the process whose server it is; a fork of that has none
        self.channel: socket.socket | None = None
        self.cold_blocks = 0
        self.lock = threading.Lock()

    @property
    def serves(self) -> bool:
        return self.owner == os.getpid() and not self.cold_blocks

    def start(self) -> None:
        self.channel, theirs = socket.socketpair()
        errors = os.dup(2)
        ColdPopen(
            [sys.executable, "-c", SERVE, str(errors), " " * 8192],  # room for other command lines
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdin=theirs,  # Python's streams for a socket suit files as well as pipes; those for a file do not
            stdout=theirs,
            stderr=theirs,
            pass_fds=[errors],
        )
        theirs.close()
        os.close(errors)

    def fork(self, request: Request, files: list[int]) -> int:
        """Starts a process that is given these open files; returns its process id."""
        content = pickle.dumps(request)
        with self.lock:
            if self.channel is None:
                self.start()
            assert self.channel is not None
            # The server forks twice, and the process between ends: this process becomes the parent.
            LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self.channel, [len(content).to_bytes(8, "big")], files)
                self.channel.sendall(content)
                answer = self.channel.recv(8)
            finally:
                LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert answer, "the fork server has ended; its standard error tells why"
        return int.from_bytes(answer, "big")


SERVER = Server()


def install(channel: socket.socket | None = None) -> None:
    """Makes this process use a fork server: the one at the other end of `channel`, or one that it starts."""
    SERVER.owner = os.getpid()
    SERVER.channel = channel
    subprocess.Popen = Popen  # type: ignore[misc]
    multiprocessing.util.spawnv_passfds = spawn


@contextmanager
def cold() -> Iterator[None]:
    """A block in which this process starts fresh Python processes."""
    SERVER.cold_blocks += 1
    try:
        yield
    finally:
        SERVER.cold_blocks -= 1


class Status:
    """The exit code of what runs in the block."""

    def __init__(self) -> None:
        self.code: int | None = None  # None: Python ends as usual

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, KeyboardInterrupt):
            code = error.code or 0 if isinstance(error, SystemExit) else int(error is not None)
            self.code = code if isinstance(code, int) else 1

    def leave(self) -> None:
        """Ends the process."""
        if self.code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            LIBC.fflush(None)
            os._exit(self.code & 0xFF)
        gc.unfreeze()


def serve_and_run() -> None:
    """Imports and serves; each forked process leaves that behind and runs what it was started for."""
    status = Status()
    atexit.unregister(multiprocessing.util._exit_function)
    atexit.register(status.leave)  # the first one, which is called last
    atexit.register(multiprocessing.util._exit_function)  # it removes semaphores; our imports registered it earlier
    channel = socket.socket(fileno=os.dup(0))
    move([os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY), int(sys.argv[1])], range(3))
    for module in PRELOADED:
        with suppress(ImportError):  # the command that needs it will say so
            importlib.import_module(module)
    from tests.training.plans import remember_plans

    probe_operators()
    remember_plans()
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread, and a fork would not have it"
    signal.pthread_sigmask(signal.SIG_BLOCK, RESET)  # a forked process gets those that come before it is ready
    gc.collect()
    gc.freeze()  # else a collection would copy the memory that processes share
    request = wait_for_request(channel)
    with status:
        if request.how == "-m":
            runpy._run_module_as_main(request.program)  # type: ignore[attr-defined]
        else:
            exec(request.program, vars(sys.modules["__main__"]))


def probe_operators() -> None:
    """Lets DeepSpeed find out, with compilers, which operators it can build here; undoes what else that changes."""
    from deepspeed import ops

    files, path = open_files(), sys.path.copy()
    assert ops.__compatible_ops__
    sys.path[:] = path  # setuptools has added its own
    for fd in open_files() - files:
        os.close(fd)


def open_files() -> set[int]:
    found = os.listdir("/proc/self/fd")  # and the folder itself, which is closed by now
    return {int(fd) for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}


def wait_for_request(channel: socket.socket) -> Request:
    """Serves, and returns the request in a process that looks as if it had been started for it."""
    request, files, report = serve(channel)
    if request.new_session:
        os.setsid()
    own_channel = None
    if request.how == "-m":
        own_channel, theirs = socket.socketpair()
        if os.fork() == 0:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            own_channel.close()
            for fd in (*files, report):
                os.close(fd)
            return wait_for_request(theirs)
        theirs.close()
    (report,) = above([report], request.files)
    move(files, request.files)
    become(request)
    if own_channel is not None:
        install(own_channel)
    os.write(report, os.getpid().to_bytes(8, "big"))
    os.close(report)
    return request


def serve(channel: socket.socket) -> tuple[Request, list[int], int]:
    """Forks a process for each request until the channel is closed. Returns in the forked ones: the request, the open
    files, and the file to which the process has to write its id as soon as it is ready.
    """
    while True:
        head, files, *_ = socket.recv_fds(channel, 8, 250)
        if not head:
            os._exit(0)
        content = b""
        while len(content) < int.from_bytes(head, "big"):
            content += channel.recv(2**20)
        reports, report = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.001)
            channel.close()
            os.close(reports)
            return pickle.loads(content), files, report
        os.close(report)
        os.waitpid(between, 0)
        channel.sendall(os.read(reports, 8))
        for fd in (reports, *files):
            os.close(fd)


def move(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Gives open files other numbers, whatever has these so far."""
    for fd, number in zip(above(files, numbers), numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def above(files: Sequence[int], numbers: Sequence[int]) -> list[int]:
    """Gives open files numbers that are larger than all these; returns them."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for fd in files]
    for fd in files:
        os.close(fd)
    return moved


def become(request: Request) -> None:
    """Makes this process what a fresh Python is before its first line, but for its imports."""
    for stream in (sys.stdout, sys.stderr):
        lines = stream.isatty() or (stream is sys.stderr and not stream.write_through)  # type: ignore[union-attr]
        stream.reconfigure(line_buffering=lines)  # type: ignore[union-attr]
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    first = request.folder if request.how == "-m" else ""
    path = request.environment.get("PYTHONPATH")
    sys.path[:] = [first, *([path] if path else []), *(p for p in sys.path if p not in ("", str(REPOSITORY)))]
    sys.argv = [request.how, *request.words]
    sys.orig_argv = request.command_line
    sys.warnoptions[:] = [option.removeprefix("-W") for option in request.options if option.startswith("-W")]
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    show_command_line(request.command_line)
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__annotations__ = {}
    multiprocessing.process.ORIGINAL_DIR = request.folder  # type: ignore[attr-defined]
    tempfile.tempdir = None
    read_rank()
    for number in RESET:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request.ignored else usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)


def read_rank() -> None:
    """Lightning asks the environment for the rank when it is imported."""
    from lightning_fabric.utilities import rank_zero

    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0


def show_command_line(words: list[str]) -> None:
    """Lets ps and pgrep show this command line: overwrites the arguments that the process was started with."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    line = b"\0".join(os.fsencode(word) for word in words)[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)
