"""Work on files that nobody has checked, in a child process: it may hang, crash or eat all memory, and only it is lost.

Parent and child talk over a pair of sockets, in bytes and JSON, no pickles: whoever takes the child over by a file that
was made to do so gets no further. A message is its length, a JSON object, and the bytes of an array if there is one:

| from | message |
|---|---|
| parent | the request: `{"do": handler, …}` |
| child | `{"ready": true}` once its modules are imported |
| child | `{"header": {…}, "shape": […], "dtype": "\\|u1"}` and the bytes: one thing that the handler yields |
| child | `{"alive": true}`: nothing to give yet, and not stuck |
| child | `{"end": true, "resident": bytes}` or `{"error": reason, "transient": …, "unsupported": …}` |
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from gen1_train.video.probe import VideoError

START = 60.0  # seconds that the child may take to import its modules
ALIVE = 1.0  # seconds from one sign of life to the next
WATCH = 0.05  # seconds between two looks at the memory
TOO_MUCH = 81  # exit status of a child that took more memory than it may
ADDRESS_SPACE = 8 << 30  # bytes of mappings beyond the cap: libraries, threads' stacks and what is mapped but not used

Answer = tuple[dict[str, Any], np.ndarray | None]
Handler = Callable[[dict[str, Any]], Iterator[Answer]]


class SandboxError(VideoError):
    """The child crashed, took too long or took too much memory. Always transient: the file may be innocent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, transient=True)


class Sandbox:
    """A child process, seen from its parent: started when first needed, and again after it was lost.

    It dies with its parent, even a killed one; a fork's copy of this object starts a child of its own. Not for two
    threads at once.
    """

    def __init__(self, module: str, deadline: float = 60.0, memory: int = 2 << 30) -> None:
        """`module`: its main calls `serve`; `deadline`: seconds from one answer (or sign of life) to the next;
        `memory`: bytes that the child may hold, its libraries included (about 150 MiB)."""
        self.module = module
        self.deadline = deadline
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._said: IO[bytes] | None = None  # the child's standard error, for the reason of a crash
        self._owner = os.getpid()
        self._busy = False

    def stream(self, request: dict[str, Any]) -> Iterator[Answer]:
        """Yields (header, array or None) as the handler `request["do"]` gives them.

        Raises the handler's VideoError as it was raised there, any other exception of it as a VideoError, and
        SandboxError. A stream that is closed before its end costs the child.
        """
        if self._busy and self._owner == os.getpid():
            raise RuntimeError("another stream of this sandbox is still open")
        self._busy = True
        finished = False
        try:
            channel = self._start()
            self._talk(self.deadline, lambda: _send(channel, request, None))
            message, array = self._receive(channel, self.deadline)
            while "header" in message:
                yield message["header"], array
                message, array = self._receive(channel, self.deadline)
            finished = "error" in message or message["resident"] < self.memory // 2  # one that has grown is not kept
            if "error" in message:
                raise VideoError(message["error"], message["transient"], message["unsupported"])
        finally:
            self._busy = False
            if not finished:
                self.close()

    def close(self) -> None:
        """Ends the child, if there is one."""
        mine = self._owner == os.getpid()  # a fork's copy must leave the child to the parent
        for end in (self._channel, self._said):
            if end is not None:
                end.close()
        if self._process is not None and mine:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = self._said = None

    def __del__(self) -> None:
        self.close()

    def _receive(self, channel: socket.socket, deadline: float) -> Answer:
        """The next message that is no sign of life, and its array. Raises SandboxError."""
        while True:
            message, array = self._talk(deadline, lambda: _receive(channel, deadline, self.memory))
            if "alive" not in message:
                return message, array

    def _talk(self, deadline: float, exchange: Callable[[], Any]) -> Any:
        """Sends or receives. Raises SandboxError."""
        assert self._channel is not None
        self._channel.settimeout(deadline)
        try:
            return exchange()
        except TimeoutError:
            raise SandboxError(f"no answer from the decoding process for {deadline:g} s") from None
        except (EOFError, OSError, ValueError, TypeError, KeyError) as error:
            raise SandboxError(self._obituary()) from error

    def _obituary(self) -> str:
        """What the child died of."""
        assert self._process is not None and self._said is not None
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the decoding process sent nonsense"
        if status == TOO_MUCH:
            return f"the decoding process took more than {self.memory >> 20} MiB of memory"
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._said.seek(0)
        last = self._said.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
        return f"the decoding process crashed ({cause}{': ' + last[:200] if last else ''})"

    def _start(self) -> socket.socket:
        """The channel to a living child."""
        alive = self._owner == os.getpid() and self._process is not None and self._process.poll() is None
        if not alive or self._channel is None or self._said is None:
            self.close()
            self._owner = os.getpid()
            try:
                self._launch()
            except OSError as error:
                raise SandboxError(f"the decoding process cannot be started: {error.strerror or error}") from error
            assert self._channel is not None and self._said is not None
            self._receive(self._channel, max(START, self.deadline))
        self._said.truncate(0)
        return self._channel

    def _launch(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - `close` closes it
        with theirs:
            command = [sys.executable, "-P", "-m", self.module, str(theirs.fileno()), str(self.memory)]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=_environment(),
            )


def _environment() -> dict[str, str]:
    """The parent's, so that the child finds the same modules, and one thread: the caller has a child for each core."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    return {**os.environ, "PYTHONPATH": path, **threads}


# From here on: the child's side.

_channel: socket.socket | None = None  # to the parent; None in a process that is no child
_last_sign = 0.0  # when `alive` last told the parent


def serve(handlers: dict[str, Handler]) -> None:
    """The child's main loop: answers requests until the parent is gone. Call it under `if __name__ == "__main__":`.

    `python -m MODULE DESCRIPTOR MEMORY`. A handler takes the request and yields (header, array or None).
    """
    global _channel
    _channel, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the parent, which ends this process itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(), memory), daemon=True).start()
    _limit_address_space(memory)
    _tell({"ready": True})
    while True:
        try:
            request, _ = _receive(_channel, None, memory)
        except (EOFError, ConnectionError):  # the parent is gone
            return
        _tell(_answer(handlers, request))


def alive() -> None:
    """Tells the parent that work goes on, so that its deadline starts anew; does nothing outside of a child.

    For handlers that work long without anything to yield.
    """
    global _last_sign
    if _channel is not None and time.monotonic() - _last_sign > ALIVE:
        _tell({"alive": True})
        _last_sign = time.monotonic()


def _answer(handlers: dict[str, Handler], request: dict[str, Any]) -> dict[str, Any]:
    """Runs a handler and sends what it yields; returns the last message."""
    try:
        for header, array in handlers[request["do"]](request):
            _tell({"header": header}, array)
        return {"end": True, "resident": _resident()}
    except VideoError as error:
        return {"error": str(error), "transient": error.transient, "unsupported": error.unsupported}
    except MemoryError:
        os._exit(TOO_MUCH)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"error": reason, "transient": isinstance(error, OSError), "unsupported": False}


def _tell(message: dict[str, Any], array: np.ndarray | None = None) -> None:
    assert _channel is not None
    try:
        _send(_channel, message, array)
    except ConnectionError:  # the parent is gone, or wants no more of this
        os._exit(0)


def _watch(parent: int, memory: int) -> None:
    """Ends this process when its parent is gone or its memory is used up, even in the midst of one call into C."""
    while os.getppid() == parent:
        if _resident() > memory:
            os._exit(TOO_MUCH)
        time.sleep(WATCH)
    os._exit(1)


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_address_space(memory: int) -> None:
    """The last resort: what is taken faster than `_watch` looks is refused by the system."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory + ADDRESS_SPACE, memory + ADDRESS_SPACE))
    except (ImportError, ValueError, OSError):
        pass  # not on this system, or already below


# The messages, for both sides.


def _send(channel: socket.socket, message: dict[str, Any], array: np.ndarray | None) -> None:
    if array is not None:
        array = np.ascontiguousarray(array)
        message = {**message, "shape": array.shape, "dtype": array.dtype.str}
    text = json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(text)) + text)
    if array is not None:
        channel.sendall(array.reshape(-1).view(np.uint8).data)


def _receive(channel: socket.socket, deadline: float | None, limit: int) -> Answer:
    """The next message and its array, of at most `limit` bytes. Raises EOFError, OSError, ValueError."""
    until = None if deadline is None else time.monotonic() + deadline
    prefix = bytearray(4)
    _read(channel, prefix, until)
    (length,) = struct.unpack("!I", prefix)
    text = bytearray(min(length, limit))
    _read(channel, text, until)
    message = json.loads(text)
    array = None
    if "shape" in message:
        dtype = np.dtype(message["dtype"])
        if dtype.kind not in "biuf" or np.prod(message["shape"], dtype=float) * dtype.itemsize > limit:
            raise ValueError(f"an array of {message['shape']} {dtype} was not to be expected")
        array = np.empty(message["shape"], dtype)
        _read(channel, array.reshape(-1).view(np.uint8).data, until)
    return message, array


def _read(channel: socket.socket, into: bytearray | memoryview, until: float | None) -> None:
    """Fills `into`. Raises EOFError when the other side is gone, TimeoutError when it is silent."""
    view = memoryview(into)
    while view:
        channel.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
        count = channel.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
