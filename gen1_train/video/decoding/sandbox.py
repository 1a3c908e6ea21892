"""Processes unchecked files in a child process, which may hang, crash or exhaust its memory without harm to the parent.

Parent and child communicate over a pair of sockets with JSON and raw bytes, never pickles: a malicious file that takes
over the child cannot reach the parent. A message is its length, a JSON object, and the bytes of an optional array:

| from | message |
|---|---|
| parent | the request: `{"do": handler, …}` |
| child | `{"ready": true}` after its modules are imported |
| child | `{"header": {…}, "shape": […], "dtype": "\\|u1"}` and the bytes: one answer that the handler yields |
| child | `{"alive": true}`: no answer yet, but not stuck |
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

from gen1_train.system.signals import ALL
from gen1_train.video.errors import VideoError

START = 60.0  # seconds that the child may take to import its modules
HEARTBEAT = 1.0  # minimum seconds from one heartbeat to the next
MEMORY_INTERVAL = 0.05  # seconds between two checks of the memory
OUT_OF_MEMORY = 81  # exit status of a child that exceeded its memory limit
ADDRESS_SPACE = 8 << 30  # bytes of mappings beyond the limit: libraries, threads' stacks and unused mappings

Answer = tuple[dict[str, Any], np.ndarray | None]
Handler = Callable[[dict[str, Any]], Iterator[Answer]]


class SandboxError(VideoError):
    """The child crashed, timed out or exceeded its memory limit. Always transient: the file may not be the cause."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, transient=True)


class Sandbox:
    """The parent's handle of a child process, which is started when first needed and restarted after it was lost.

    The child dies with its parent, even if that is killed; a forked copy of this object starts its own child. Not
    thread-safe.

    Args:
        module: the module that the child runs; its main calls `serve`.
        deadline: maximum seconds from one answer (or heartbeat) to the next.
        memory: maximum bytes of resident memory of the child, including its libraries (about 150 MiB).
    """

    def __init__(self, module: str, deadline: float = 60.0, memory: int = 2 << 30) -> None:
        self.module = module
        self.deadline = deadline
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._stderr: IO[bytes] | None = None  # the child's standard error, for the cause of a crash
        self._owner = os.getpid()
        self._busy = False

    def stream(self, request: dict[str, Any]) -> Iterator[Answer]:
        """Yields the answers (header, array or None) of the handler `request["do"]`.

        Raises a VideoError of the handler unchanged, any other exception of it as a VideoError, and SandboxError.
        Closing the stream before its end ends the child.
        """
        if self._busy and self._owner == os.getpid():
            raise RuntimeError("another stream of this sandbox is still open")
        self._busy = True
        finished = False
        try:
            channel = self._start()
            self._exchange(self.deadline, lambda: _send(channel, request, None))
            message, array = self._receive(channel, self.deadline)
            while "header" in message:
                yield message["header"], array
                message, array = self._receive(channel, self.deadline)
            finished = "error" in message or message["resident"] < self.memory // 2  # a large child is not kept
            if "error" in message:
                raise VideoError(message["error"], message["transient"], message["unsupported"])
        finally:
            self._busy = False
            if not finished:
                self.close()

    def close(self) -> None:
        """Ends the child, if there is one."""
        is_owner = self._owner == os.getpid()  # a forked copy must not end the child
        for stream in (self._channel, self._stderr):
            if stream is not None:
                stream.close()
        if self._process is not None and is_owner:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = self._stderr = None

    def __del__(self) -> None:
        self.close()

    def _receive(self, channel: socket.socket, deadline: float) -> Answer:
        """The next message other than a heartbeat, and its array. Raises SandboxError."""
        while True:
            message, array = self._exchange(deadline, lambda: _receive(channel, deadline, self.memory))
            if "alive" not in message:
                return message, array

    def _exchange(self, deadline: float, operation: Callable[[], Any]) -> Any:
        """Runs an operation that sends or receives. Raises SandboxError."""
        assert self._channel is not None
        self._channel.settimeout(deadline)
        try:
            return operation()
        except TimeoutError:
            raise SandboxError(f"no answer from the decoding process for {deadline:g} s") from None
        except (EOFError, OSError, ValueError, TypeError, KeyError) as error:
            raise SandboxError(self._crash_reason()) from error

    def _crash_reason(self) -> str:
        assert self._process is not None and self._stderr is not None
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the decoding process sent an invalid message"
        if status == OUT_OF_MEMORY:
            return f"the decoding process used more than {self.memory >> 20} MiB of memory"
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._stderr.seek(0)
        last = self._stderr.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
        return f"the decoding process crashed ({cause}{': ' + last[:200] if last else ''})"

    def _start(self) -> socket.socket:
        """The channel to a running child, which is started if necessary."""
        running = self._owner == os.getpid() and self._process is not None and self._process.poll() is None
        if not running or self._channel is None or self._stderr is None:
            self.close()
            self._owner = os.getpid()
            try:
                self._launch()
            except OSError as error:
                raise SandboxError(f"the decoding process cannot be started: {error.strerror or error}") from error
            assert self._channel is not None and self._stderr is not None
            self._receive(self._channel, max(START, self.deadline))
        self._stderr.truncate(0)
        return self._channel

    def _launch(self) -> None:
        self._channel, child_channel = socket.socketpair()
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - `close` closes it
        with child_channel:
            command = [sys.executable, "-P", "-m", self.module, str(child_channel.fileno()), str(self.memory)]
            self._process = subprocess.Popen(
                command,
                pass_fds=[child_channel.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=_environment(),
            )


def _environment() -> dict[str, str]:
    """The parent's environment and module path, with one thread: the caller runs one child per core."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    return {**os.environ, "PYTHONPATH": path, **threads}


# The child's side.

_channel: socket.socket | None = None  # to the parent; None in a process that is not a child
_last_heartbeat = 0.0  # time.monotonic of the last heartbeat


def serve(handlers: dict[str, Handler]) -> None:
    """The child's main loop, which answers requests until the parent is gone; call it under `__name__ == "__main__"`.

    The command line is `python -m MODULE DESCRIPTOR MEMORY`. A handler takes the request and yields (header, array or
    None).
    """
    global _channel
    _channel = socket.socket(fileno=int(sys.argv[1]))
    memory = int(sys.argv[2])
    for number in ALL:  # they are meant for the parent, which ends this process itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(), memory), daemon=True).start()
    _limit_address_space(memory)
    _end_if_beyond(memory)
    _reply({"ready": True})
    while True:
        try:
            request, _ = _receive(_channel, None, memory)
        except (EOFError, ConnectionError):  # the parent is gone
            return
        answer = _answer(handlers, request)
        _end_if_beyond(memory)  # a short request may be done before the other thread has looked
        _reply(answer)


def heartbeat() -> None:
    """Tells the parent that work continues, which restarts its deadline; does nothing outside a child.

    For handlers that work for a long time before they yield.
    """
    global _last_heartbeat
    if _channel is not None and time.monotonic() - _last_heartbeat > HEARTBEAT:
        _reply({"alive": True})
        _last_heartbeat = time.monotonic()


def _answer(handlers: dict[str, Handler], request: dict[str, Any]) -> dict[str, Any]:
    """Runs a handler and sends its answers; returns the last message."""
    try:
        for header, array in handlers[request["do"]](request):
            _reply({"header": header}, array)
        return {"end": True, "resident": _resident()}
    except VideoError as error:
        return {"error": str(error), "transient": error.transient, "unsupported": error.unsupported}
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"error": reason, "transient": isinstance(error, OSError), "unsupported": False}


def _reply(message: dict[str, Any], array: np.ndarray | None = None) -> None:
    assert _channel is not None
    try:
        _send(_channel, message, array)
    except ConnectionError:  # the parent is gone, or has closed the stream
        os._exit(0)


def _watch(parent: int, memory: int) -> None:
    """Ends this process when its parent is gone or its memory exceeds the limit, even during one call into C."""
    while os.getppid() == parent:
        _end_if_beyond(memory)
        time.sleep(MEMORY_INTERVAL)
    os._exit(1)


def _end_if_beyond(memory: int) -> None:
    if _resident() > memory:
        os._exit(OUT_OF_MEMORY)


def _resident() -> int:
    """Bytes of resident memory of this process; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_address_space(memory: int) -> None:
    """Lets the system refuse allocations that are too large and too fast for `_watch`."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory + ADDRESS_SPACE, memory + ADDRESS_SPACE))
    except (ImportError, ValueError, OSError):
        pass  # not available on this system, or already lower


# Messages, for both sides.


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
            raise ValueError(f"an array of {message['shape']} {dtype} is not acceptable")
        array = np.empty(message["shape"], dtype)
        _read(channel, array.reshape(-1).view(np.uint8).data, until)
    return message, array


def _read(channel: socket.socket, into: bytearray | memoryview, until: float | None) -> None:
    """Fills `into`. Raises EOFError if the other side is gone, TimeoutError if it is silent."""
    view = memoryview(into)
    while view:
        channel.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
        count = channel.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
