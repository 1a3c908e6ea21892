"""The lines of failures.jsonl: what did not become a sample, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path

from gen1_train.system.files import open_regular
from gen1_train.system.records import make_record, parse_json

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """A file, or a span of a video, that gave no samples or not all of them."""

    file: str  # path as the source names it
    category: str  # a few words for counting: "unreadable", "too short", "static", ...
    reason: str  # one line with the details
    failed: bool = True  # the file or its storage is faulty; False: it was read, but the recipe does not want it
    transient: bool = False  # another try may succeed: the file itself is not at fault
    start: float | None = None  # seconds into the video; None: the whole file
    end: float | None = None  # seconds into the video; None: the whole file
    clips: int = 0  # samples that the file gave nevertheless


def to_lines(failures: Iterable[Failure]) -> bytes:
    """Returns JSON lines, one per failure."""
    return "".join(dumps(asdict(failure), sort_keys=True) + "\n" for failure in failures).encode()


def read_failures(output: Path) -> Iterator[Failure]:
    """Yields the failures of a frozen set one by one: the list may not fit into memory.

    Raises OSError or ValueError if the file is missing or is not such a list.
    """
    with open_regular(output / FAILURES) as lines:
        for line in lines:
            yield make_record(Failure, parse_json(line))
