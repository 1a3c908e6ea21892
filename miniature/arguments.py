"""Command lines of the miniature's scripts: a user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from gen1_train.errors import MISTAKE, UserError
from gen1_train.system.console import console


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that prints errors without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: error: {message}\n")

    @contextmanager
    def command(self) -> Iterator[None]:
        """Opens the console for the block, and ends the process with one line on a UserError or an OSError."""
        with console(self.prog.split()[-1]):
            try:
                yield
            except UserError as error:
                self.error(str(error))
            except OSError as error:
                self.error(f"{error.filename or 'a file'} cannot be written: {error.strerror or error}")


def size(text: str) -> tuple[int, int]:
    """Parses WIDTHxHEIGHT into width and height."""
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 448x256")
    return int(width), int(height)
