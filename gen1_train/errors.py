"""The error for bad input, checks of single settings that raise it, and the exit codes of the commands.

slurm/train.bash and other launchers decide by the exit code what to do next.
"""

from collections.abc import Sequence

MISTAKE = 2  # bad input, reported in one line
INCOMPLETE = 3  # the command finished, but part of the work failed
STOPPED = 75  # asked to stop, after a step of this start and with a complete checkpoint: run it again (EX_TEMPFAIL)
INTERRUPTED = 130  # by Ctrl-C
# a rank was lost after this start had written a checkpoint: run it again. Larger than the code of any killed process
# (128 + signal), because srun returns the highest code of the ranks
LOST = 200
LONGEST_LINE = 4000  # characters of a message: two paths of 255 characters a part fit; ours

MAX_LAYERS = 256  # of a network; ours
MAX_WIDTH = 1 << 16  # channels of a network, steps of a noise schedule; ours


class UserError(Exception):
    """Bad input; the message is one line that names the thing and the remedy, see `one_line`.

    Entry points print it without a traceback and exit with code 2 (see `gen1_train.cli.app`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Returns a message as one line that a terminal may show: it may quote what a stranger's file contains.

    Its lines are joined, and what cannot be printed is escaped. A message of more than LONGEST_LINE characters loses
    its middle.
    """
    message = " ".join(line.strip() for line in message.splitlines() if line.strip()) or message
    if len(message) > LONGEST_LINE:
        message = f"{message[: LONGEST_LINE // 2]} … {message[-LONGEST_LINE // 2 :]}"
    if message.isprintable():
        return message
    shown = (c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in message.strip())
    return "".join(shown)


def check_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError for a value that is not one of the choices."""
    if value not in choices:
        raise UserError(f"{setting}={value} is not one of {', '.join(choices)}")


def check_positive(**settings: float | None) -> None:
    """Raises UserError for a value of 0 or below. Setting names have `__` in place of dots; None is not checked."""
    for name, value in settings.items():
        if value is not None and value <= 0:
            raise UserError(f"{_dotted(name)}={value} must be above 0")


def check_not_negative(**settings: float) -> None:
    """Raises UserError for a value below 0. Setting names are as in `check_positive`."""
    for name, value in settings.items():
        if value < 0:
            raise UserError(f"{_dotted(name)}={value} must be 0 or above")


def check_share(**settings: float | None) -> None:
    """Raises UserError for a value outside 0..1. Setting names are as in `check_positive`; None is not checked."""
    for name, value in settings.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{_dotted(name)}={value} is a share: give a number from 0 to 1")


def check_size(**settings: Sequence[int]) -> None:
    """Raises UserError for sizes of a model beyond all that is in use. Setting names are as in `check_positive`.

    It bounds the time that building one takes, since its config may be a stranger's.
    """
    for name, values in settings.items():
        most = MAX_LAYERS if name.endswith("layers") else MAX_WIDTH
        if len(values) > MAX_LAYERS or any(value > most for value in values):
            raise UserError(f"{_dotted(name)}={str(list(values))[:80]}: {most} is the largest size")


def _dotted(name: str) -> str:
    return name.replace("__", ".")
