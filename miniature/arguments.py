"""Command lines of the miniature's scripts: whatever is wrong ends in one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from gen1_train.errors import UserError
from gen1_train.exits import MISTAKE


class Parser(argparse.ArgumentParser):
    """argparse's without the usage that it prints before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: error: {message}\n")

    @contextmanager
    def mistakes(self) -> Iterator[None]:
        """Inside, a UserError or a file that cannot be written is the user's, too."""
        try:
            yield
        except UserError as error:
            self.error(str(error))
        except OSError as error:
            self.error(f"{error.filename or 'a file'} cannot be written: {error.strerror or error}")


def size(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT."""
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no WIDTHxHEIGHT such as 448x256")
    return int(width), int(height)
