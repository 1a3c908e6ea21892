"""Reads headers and windows of frames from video files. All decoding happens in child processes, which may be lost."""

import atexit
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.system.remote import is_url
from gen1_train.video.decoding.frames import DECODERS
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.decoding.sandbox import Answer, Sandbox, SandboxError
from gen1_train.video.errors import VideoError

__all__ = ["DECODERS", "VideoError", "VideoInfo", "absolute", "count", "probe", "read_clips", "run_in_child"]

_idle: list[Sandbox] = []  # idle children of this process; as many as were ever needed at once


def probe(path: str | Path) -> VideoInfo:
    """Reads the header and decodes the first frame. Raises VideoError.

    `path`: a local file, or a URL that fsspec opens; only the bytes that are needed are fetched.
    """
    ((info, _),) = run_in_child({"do": "probe", "path": absolute(path)})
    return VideoInfo(**info)


def count(path: str | Path) -> int:
    """Counts the frames by decoding all of them. Raises VideoError."""
    ((answer, _),) = run_in_child({"do": "count", "path": absolute(path)})
    return int(answer["frames"])


def read_clips(
    path: str | Path, windows: Sequence[Sequence[int]], decoders: Sequence[str] = DECODERS
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name of the decoder used, uint8 RGB (n, h, w, 3)) for each window of n ascending frame indices.

    Windows are in order of their first index. Raises VideoError at the first window that cannot be read completely and
    correctly; all windows before it are complete. If decord fails, PyAV continues from the same window; see `read_any`.
    """
    remaining = [list(window) for window in windows]
    decoders = list(decoders)
    while remaining:
        request = {"do": "clips", "path": absolute(path), "windows": list(remaining), "decoders": decoders}
        try:
            for header, frames in run_in_child(request):
                assert frames is not None
                remaining.pop(0)
                yield header["decoder"], frames
            return
        except SandboxError:
            if decoders[0] == "pyav" or len(decoders) == 1:
                raise
            decoders = decoders[1:]


def run_in_child(request: dict[str, Any]) -> Generator[Answer, None, None]:
    """Sends a request to an idle child and yields the answers of its handler in worker.py. Raises VideoError."""
    try:
        sandbox = _idle.pop()
    except IndexError:
        sandbox = Sandbox("gen1_train.video.decoding.worker")
    try:
        yield from sandbox.stream(request)
    finally:
        _idle.append(sandbox)


def absolute(path: str | Path) -> str:
    """The absolute path, for a child that may have been started in another working directory; URLs are unchanged."""
    return str(path) if is_url(path) else os.path.abspath(path)


@atexit.register
def close() -> None:
    """Ends the idle children."""
    while _idle:
        _idle.pop().close()
