"""The child of DecordReader: `python decord_worker.py DESCRIPTOR MEMORY`, requests and answers over one socket.

| request | answer |
|---|---|
| `{"open": path}` | `{"frames": n}`; the path null drops the file |
| `{"read": indices, "shape": [n, h, w, 3]}` | `{}`, and then the bytes of frames of that shape |
| `{"skip": count}` | `{}` once that many more frames, or all that are left, have been decoded |
| any that fails | `{"error": reason}` |
"""

import json
import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

ADDRESS_SPACE = 16 << 30  # bytes; a file that makes decord ask for more kills this process and nothing else


def main() -> None:
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    _limit_address_space()
    video: Video | None = None
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:  # the parent closed its end
            return
        try:
            if "open" in request:
                video = None  # first, so that two are never held
                video = Video(request["open"], memory) if request["open"] else None
                _send(connection, {"frames": video.count if video else 0})
            elif video is None:
                _send(connection, {"error": "no file is open"})
            elif "read" in request:
                frames = video.read(request["read"])
                if list(frames.shape) != request["shape"]:  # for some widths decord gives four channels
                    raise ValueError(f"frames of {frames.shape}, and the header tells {request['shape']}")
                _send(connection, {})
                connection.send_bytes(memoryview(frames).cast("B"))
            else:
                video.skip(min(request["skip"], video.count - video.position))
                _send(connection, {})
        except Exception as error:
            _send(connection, {"error": _reason(error)})


class Video:
    """A file that is decoded once, from its start, frame by frame.

    Not by decord's indices and not by its skip_frames: both seek, and a seek in a video with open GOPs (H.265 cameras),
    or whose timestamps repeat, silently gives other frames than those asked for.
    """

    def __init__(self, path: str, memory: int) -> None:
        import decord
        import numpy as np

        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol: not one frame may be replaced by its neighbour; one thread: our own processes use the cores
        self.reader = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)
        self.memory = memory
        self.count = len(self.reader)
        self.position = 0  # of the frame that comes next
        starts = self.reader.get_frame_timestamp(range(self.count))[:, 0]
        if not (np.diff(starts) > 0).all():
            raise ValueError("the timestamps do not ascend")

    def read(self, indices: list[int]) -> Any:
        """uint8 (n, h, w, 3) of ascending frame indices, none before `position`."""
        import numpy as np

        if indices[0] < self.position or indices[-1] >= self.count:
            raise ValueError(f"frames {indices[0]}..{indices[-1]} are not among {self.position}..{self.count - 1}")
        frames = []
        for index in indices:
            self.skip(index - self.position)
            frames.append(self._next())
        return np.stack(frames)

    def skip(self, count: int) -> None:
        for _ in range(count):
            self._next()

    def _next(self) -> Any:
        if _resident() > self.memory:  # decord decodes ahead while nobody asks
            raise MemoryError(f"more than {self.memory >> 20} MiB in use")
        frame = self.reader.next().asnumpy()
        self.position += 1
        return frame


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def _reason(error: Exception) -> str:
    """decord's messages are long and begin with its source path; the last clause says what happened."""
    lines = str(error).strip().splitlines()
    return lines[0].rpartition("Check failed: ")[2][:200] if lines else type(error).__name__


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_address_space() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    except (ImportError, ValueError, OSError):
        pass  # not on this system, or already below


def _die_with_parent(parent: int) -> None:
    """Ends this process when its parent is gone, even in the middle of a decode that never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
