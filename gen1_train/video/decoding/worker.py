"""The child process of decode.py, which reads headers, windows of frames, selected frames and audio."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gen1_train.video.decoding.audio_reader import read_audio
from gen1_train.video.decoding.frames import Frame
from gen1_train.video.decoding.pictures import image_size, read_image
from gen1_train.video.decoding.probe import read_header
from gen1_train.video.decoding.reading import read_any
from gen1_train.video.decoding.sandbox import Answer, serve
from gen1_train.video.errors import VideoError
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.selection import Selection, pick


def probe(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path"}` with the fields of a VideoInfo."""
    yield asdict(read_header(request["path"])), None


def size(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path"}` of an image with `{"size"}`: width and height."""
    yield {"size": image_size(request["path"])}, None


def image(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path"}` of an image with uint8 (h, w, 3)."""
    yield {}, read_image(request["path"])


def count(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path"}` with `{"frames"}`."""
    yield {"frames": sum(1 for _ in read_any(request["path"]))}, None


@dataclass
class _Window:
    """A window that is being filled: the indices of its frames, and the frames read so far."""

    indices: list[int]
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def next_index(self) -> int | None:
        return self.indices[len(self.frames)] if len(self.frames) < len(self.indices) else None


def clips(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path", "windows", "decoders"}` with `{"decoder"}` and uint8 (n, h, w, 3) for each window, in order."""
    waiting = deque(_Window(indices) for indices in request["windows"])
    active: deque[_Window] = deque()
    total = 0
    for frame in read_any(request["path"], request["decoders"]):
        total = frame.index + 1
        while waiting and waiting[0].indices[0] <= frame.index:
            active.append(waiting.popleft())
        _collect(frame, active)
        while active and active[0].next_index is None:
            yield {"decoder": frame.decoder}, np.stack(active.popleft().frames)
        if not active and not waiting:
            return
    for window in (*active, *waiting):
        raise VideoError(f"frame {window.indices[-1]} is beyond the end: the video has {total} frames")


def _collect(frame: Frame, windows: deque[_Window]) -> None:
    """Adds a frame to the windows that include it; a frame that no window includes is never converted."""
    including = [window for window in windows if window.next_index == frame.index]
    if including:
        pixels = frame.rgb()
        for window in including:
            window.frames.append(pixels)


def select(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path", "selection", "size"}` with the times and index of each selected frame, and uint8 (h, w, 3).

    See `gen1_train.video.stream.read_selected`.
    """
    path, (width, height) = request["path"], request["size"]
    info = read_header(path)
    selection = Selection(**request["selection"])
    if info.is_image:
        if selection.start > 0:
            raise VideoError(f"start={selection.start} is beyond the end: an image is a video of 1 frame")
        selection = replace(selection, fps=None)  # one frame at any rate
    index = -1
    pixels = None
    for frame, seconds in pick(read_any(path), selection, info.fps):
        if frame.index != index:  # a selection by time may contain a frame several times
            index = frame.index
            pixels = resize_and_crop(frame.rgb()[None], width, height, info.pixel_aspect)[0]
        yield {"seconds": seconds, "index": index, "source_seconds": frame.seconds}, pixels


def audio(request: dict[str, Any]) -> Iterator[Answer]:
    """Answers `{"path", "start", "end", "copy"}`; see `read_audio`."""
    yield from read_audio(request["path"], request["start"], request["end"], request["copy"])


if __name__ == "__main__":
    videos = {"probe": probe, "count": count, "clips": clips, "select": select, "audio": audio}
    serve({**videos, "image_size": size, "image": image})
