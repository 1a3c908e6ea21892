"""The child process of decode.py: headers, windows of frames, chosen frames, audio."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gen1_train.video.audio_reader import read_audio
from gen1_train.video.frames import Frame, read_any
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.probe import VideoError, read_header
from gen1_train.video.sandbox import Answer, serve
from gen1_train.video.selection import Selection, pick


def probe(request: dict[str, Any]) -> Iterator[Answer]:
    """`{"path"}` -> the fields of a VideoInfo."""
    yield asdict(read_header(request["path"])), None


def count(request: dict[str, Any]) -> Iterator[Answer]:
    """`{"path"}` -> `{"frames"}`."""
    yield {"frames": sum(1 for _ in read_any(request["path"]))}, None


@dataclass
class _Window:
    """A window on its way: which frames are wanted, and those that came so far."""

    indices: list[int]
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def wanted(self) -> int | None:
        return self.indices[len(self.frames)] if len(self.frames) < len(self.indices) else None


def clips(request: dict[str, Any]) -> Iterator[Answer]:
    """`{"path", "windows", "decoders"}` -> `{"decoder"}` and uint8 (n, h, w, 3) for each window, in order."""
    waiting = deque(_Window(indices) for indices in request["windows"])
    active: deque[_Window] = deque()
    total = 0
    for frame in read_any(request["path"], request["decoders"]):
        total = frame.index + 1
        while waiting and waiting[0].indices[0] <= frame.index:
            active.append(waiting.popleft())
        _collect(frame, active)
        while active and active[0].wanted is None:
            yield {"decoder": frame.decoder}, np.stack(active.popleft().frames)
        if not active and not waiting:
            return
    for window in (*active, *waiting):
        raise VideoError(f"frame {window.indices[-1]} was asked for, and there are {total}")


def _collect(frame: Frame, windows: deque[_Window]) -> None:
    """Adds a frame to the windows that want it; one that none wants is never converted."""
    wanting = [window for window in windows if window.wanted == frame.index]
    if wanting:
        pixels = frame.rgb()
        for window in wanting:
            window.frames.append(pixels)


def select(request: dict[str, Any]) -> Iterator[Answer]:
    """`{"path", "selection", "size"}` -> where a chosen frame stands, and uint8 (h, w, 3), for each.

    See `gen1_train.video.stream.read_selected`.
    """
    path, (width, height) = request["path"], request["size"]
    info = read_header(path)
    index, pixels = -1, None
    for frame, seconds in pick(read_any(path), Selection(**request["selection"]), info.fps):
        if frame.index != index:  # by time a frame may be chosen several times
            index, pixels = frame.index, resize_and_crop(frame.rgb()[None], width, height, info.pixel_aspect)[0]
        yield {"seconds": seconds, "index": index, "source_seconds": frame.seconds}, pixels


def audio(request: dict[str, Any]) -> Iterator[Answer]:
    """`{"path", "start", "end", "copy"}` -> see `read_audio`."""
    yield from read_audio(request["path"], request["start"], request["end"], request["copy"])


if __name__ == "__main__":
    serve({"probe": probe, "count": count, "clips": clips, "select": select, "audio": audio})
