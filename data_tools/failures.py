"""What did not become a sample, and why: the lines of failures.jsonl."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """A file, or a span of a video, of which nothing was made."""

    file: str  # as the source names it
    category: str  # a few words to count by: "unreadable", "too short", "static", ...
    reason: str  # one line with the particulars
    failed: bool = True  # something is wrong with the file or its place; False: it was read, and is not wanted
    transient: bool = False  # another try may succeed: the file itself is not at fault
    start: float | None = None  # seconds of the video; None: the whole file
    end: float | None = None  # seconds of the video; None: the whole file
    clips: int = 0  # samples that were made of the file all the same


def to_lines(failures: Iterable[Failure]) -> bytes:
    """JSON lines, a failure each."""
    return "".join(dumps(asdict(failure), sort_keys=True) + "\n" for failure in failures).encode()


def read_failures(output: Path) -> Iterator[Failure]:
    """The failures of a frozen set, line by line: the list may be longer than memory.

    Raises OSError, ValueError, TypeError for a file that is no such list.
    """
    with open(output / FAILURES, "rb") as lines:
        for line in lines:
            yield Failure(**loads(line))
