"""decord behind a pipe: it may hang, crash or eat all memory, and then only its own process is lost.

decord is fast and reads most files, but it is unmaintained: it hangs on some files, cannot read AV1, gives wrong frames
after seeking in others, and decodes ahead without bound. So it runs in a child that is killed when a request takes too
long, and it is only asked for what it is known to do right: to decode a file from its start.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.video.probe import REORDERING, VideoError, VideoInfo, probe

WORKER = Path(__file__).with_name("decord_worker.py")
# pixel formats whose frames were seen to be equal, to the bit, to PyAV's; others (10 bits) differ by their conversion
FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuv444p"}


class DecordReader:
    """A VideoReader that asks a child process; the child is started when first needed and lives until `close`."""

    name = "decord"

    def __init__(self, deadline: float = 60.0, memory: int = 1 << 30) -> None:
        """`deadline`: seconds a request may take; `memory`: bytes above which the child gives a file up."""
        self.deadline = deadline
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = os.getpid()

    def clips(self, path: str | Path, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """See VideoReader.

        A window is given only after as many frames behind it as PyAVReader asks for: so where a file breaks, decord,
        whose threads notice it sooner or later, never gives a window that PyAV would not give.
        """
        info = probe(path)
        if info.pixel_format not in FORMATS:
            raise VideoError(f"decord is not asked for {info.pixel_format}")
        try:
            count = self._open(path)
            if info.frames not in (None, count):
                raise VideoError(f"the file ends early: {count} of {info.frames} frames")
            held: deque[tuple[int, np.ndarray]] = deque()  # (last index, frames)
            for window in windows:
                held.append((window[-1], self._read(list(window), info)))
                while held[0][0] + REORDERING <= window[-1]:
                    yield held.popleft()[1]
            if held:
                self._ask({"skip": REORDERING})
            for _, frames in held:
                yield frames
        finally:
            self._release()

    def count(self, path: str | Path) -> int:
        """See VideoReader: counts packets, so a broken frame counts too."""
        try:
            return self._open(path)
        finally:
            self._release()

    def close(self) -> None:
        """Ends the child process, if there is one."""
        if self._owner != os.getpid():  # a fork's copy: the child belongs to the parent
            self._process = self._connection = None
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def __del__(self) -> None:
        self.close()

    def _open(self, path: str | Path) -> int:
        return int(self._ask({"open": os.path.abspath(path)})["frames"])

    def _read(self, indices: list[int], info: VideoInfo) -> np.ndarray:
        frames = np.empty((len(indices), info.height, info.width, 3), np.uint8)
        self._ask({"read": indices, "shape": frames.shape}, into=frames)
        return frames

    def _release(self) -> None:
        """Makes the child drop the file, and with it all that was decoded ahead."""
        if self._process is not None and self._process.poll() is None:
            with suppress(VideoError):  # then the child is gone, and so is what it held
                self._ask({"open": None})

    def _ask(self, request: dict[str, Any], into: np.ndarray | None = None) -> dict[str, Any]:
        """One request and its answer, which may be followed by the bytes of an array. Raises VideoError.

        Bytes and JSON, no pickles: the child handles files that nobody has checked.
        """
        connection, process = self._start()
        timer = threading.Timer(self.deadline, process.kill)
        timer.start()
        try:
            connection.send_bytes(json.dumps(request).encode())
            answer = json.loads(connection.recv_bytes())
            if into is not None and "error" not in answer:
                connection.recv_bytes_into(into.data.cast("B"))
        except (EOFError, OSError, ValueError) as error:
            self.close()
            reason = f"decord's process crashed or took more than {self.deadline:g} s"
            raise VideoError(reason, transient=True) from error
        finally:
            timer.cancel()
        if "error" in answer:
            raise VideoError(f"decord: {answer['error']}")
        return answer

    def _start(self) -> tuple[Connection, subprocess.Popen[bytes]]:
        if self._owner != os.getpid() or self._process is None or self._process.poll() is not None:
            self.close()
            self._owner = os.getpid()
            self._connection, theirs = Pipe()
            # by file name and not by module: the child needs neither our package nor torch
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(theirs.fileno()), str(self.memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},  # modules beside the script must shadow no others
            )
            theirs.close()
        assert self._connection is not None
        return self._connection, self._process
