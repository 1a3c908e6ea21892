"""Video files in: headers, and windows of frames. All decoding is done by child processes that may be lost."""

import atexit
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.remote import is_url
from gen1_train.video.frames import DECODERS
from gen1_train.video.probe import VideoError, VideoInfo
from gen1_train.video.sandbox import Answer, Sandbox, SandboxError

__all__ = ["DECODERS", "VideoError", "VideoInfo", "absolute", "ask", "count", "probe", "read_clips"]

_idle: list[Sandbox] = []  # children of this process that wait for work; as many as were ever needed at once


def probe(path: str | Path) -> VideoInfo:
    """Reads the header and decodes the first frame. Raises VideoError.

    `path`: a local file, or an address with "://" that fsspec opens: only what is needed is fetched.
    """
    ((info, _),) = ask({"do": "probe", "path": absolute(path)})
    return VideoInfo(**info)


def count(path: str | Path) -> int:
    """The number of frames, found by decoding them all. Raises VideoError."""
    ((answer, _),) = ask({"do": "count", "path": absolute(path)})
    return int(answer["frames"])


def read_clips(
    path: str | Path, windows: Sequence[Sequence[int]], decoders: Sequence[str] = DECODERS
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name of the decoder that served, uint8 RGB (n, h, w, 3)) for each window of n ascending frame indices.

    Windows ascend by their start. At the first one that cannot be given whole and right VideoError is raised; those
    that came before it are whole. Where decord fails, PyAV goes on from the same window; see `read_any`.
    """
    remaining = [list(window) for window in windows]
    decoders = list(decoders)
    while remaining:
        request = {"do": "clips", "path": absolute(path), "windows": list(remaining), "decoders": decoders}
        try:
            for header, frames in ask(request):
                assert frames is not None
                remaining.pop(0)
                yield header["decoder"], frames
            return
        except SandboxError:
            if decoders[0] == "pyav" or len(decoders) == 1:
                raise
            decoders = decoders[1:]


def ask(request: dict[str, Any]) -> Generator[Answer, None, None]:
    """The answers of a child that nobody else is using, from the handlers in worker.py. Raises VideoError."""
    try:
        sandbox = _idle.pop()
    except IndexError:
        sandbox = Sandbox("gen1_train.video.worker")
    try:
        yield from sandbox.stream(request)
    finally:
        _idle.append(sandbox)


def absolute(path: str | Path) -> str:
    """The child may have been started in another working directory."""
    return str(path) if is_url(path) else os.path.abspath(path)


@atexit.register
def close() -> None:
    """Ends the idle children."""
    while _idle:
        _idle.pop().close()
