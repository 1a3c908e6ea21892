"""How often a line of progress is written anew."""

import sys


def seconds_between() -> float:
    """For a terminal ten times a second; a log file gets a line a minute."""
    return 0.1 if sys.stderr.isatty() else 60.0
