"""A target of fuzzing: something that reads a file which may be a stranger's."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from gen1_train.batch import SampleError
from gen1_train.data.index import IndexDamage
from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from tests.fuzzing.guard import ViolationError, watched

LINES = (UserError, VideoError, SampleError, IndexDamage)  # our errors, whose messages users see


@dataclass(frozen=True)
class Target:
    """A reader, a whole input, and how that is changed."""

    name: str
    seed: Callable[[], bytes]
    changed: Callable[[bytes], SearchStrategy[bytes]]  # inputs made from the seed
    read: Callable[[Path, bytes], Any]  # writes the input into an empty folder, and reads it
    allowed: tuple[type[Exception], ...] = (UserError,)  # how the reader refuses what is wrong
    examples: int = 60  # of one run in CI
    whole: Callable[[Any], bool] = lambda value: True  # what reading the seed must return

    def check(self, data: bytes, folder: Path) -> Any:
        """Reads an input. Returns what it gives, or one of our errors; anything else is raised."""
        with prepared(folder), watched(folder):
            try:
                return self.read(folder, data)
            except self.allowed as error:
                refusal: Exception = error
        for cause in causes(refusal):
            if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
                raise ViolationError(f"without a limit, it would take gigabytes: {cause}") from refusal
        message = str(refusal)
        if isinstance(refusal, LINES):  # the others are put into a line by callers
            assert message and message.isprintable(), f"not one printable line: {message!r}"
            assert len(message) < 5000, f"a line of {len(message)} characters"
            assert "Traceback" not in message
        return refusal

    @cached_property
    def data(self) -> bytes:
        return self.seed()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """A context in which temporary files go to `folder`, the working directory is there, and no bytecode is written."""
    import sys

    before = tempfile.tempdir, os.getcwd(), sys.dont_write_bytecode
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        tempfile.tempdir, directory, sys.dont_write_bytecode = before
        os.chdir(directory)
