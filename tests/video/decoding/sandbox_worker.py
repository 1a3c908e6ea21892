"""A child for the tests of the sandbox, whose handlers do everything that a decoder may do."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from gen1_train.video.decoding.sandbox import Answer, heartbeat, serve
from gen1_train.video.errors import VideoError

_allocated: list[bytes] = []


def echo(request: dict[str, Any]) -> Iterator[Answer]:
    yield request, None


def arrays(request: dict[str, Any]) -> Iterator[Answer]:
    for i, dtype in enumerate(request["dtypes"]):
        yield {"i": i}, np.arange(24).astype(dtype).reshape(2, 3, 4)[:, ::-1]
    yield {}, np.zeros((0, 5), np.uint8)


def many(request: dict[str, Any]) -> Iterator[Answer]:
    for i in range(request["count"]):
        yield {"i": i, "pid": os.getpid()}, np.full(1 << 20, i % 256, np.uint8)


def fail(request: dict[str, Any]) -> Iterator[Answer]:
    yield {}, None
    if request["with"] == "VideoError":
        raise VideoError("it is green", request["transient"], request["unsupported"])
    raise {"KeyError": KeyError, "OSError": OSError}[request["with"]]("it is blue")


def crash(request: dict[str, Any]) -> Iterator[Answer]:
    yield {}, None
    ctypes.string_at(0)


def stuck(request: dict[str, Any]) -> Iterator[Answer]:
    yield {}, None
    os.kill(os.getpid(), signal.SIGSTOP)


def slow(request: dict[str, Any]) -> Iterator[Answer]:
    deadline = time.monotonic() + request["seconds"]
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if request["alive"]:
            heartbeat()
    yield {}, None


def allocate(request: dict[str, Any]) -> Iterator[Answer]:
    """Allocates memory and then sleeps inside one call into C."""
    _allocated.append(b"x" * request["bytes"])
    ctypes.CDLL(None).sleep(request["sleep"])
    yield {"pid": os.getpid()}, None


def reserve(request: dict[str, Any]) -> Iterator[Answer]:
    yield {}, np.zeros(request["bytes"], np.uint8)[:1]


if __name__ == "__main__":
    serve({f.__name__: f for f in (echo, arrays, many, fail, crash, stuck, slow, allocate, reserve)})
