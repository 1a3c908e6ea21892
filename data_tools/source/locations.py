"""Locations of source files, on this machine or behind a URL: what is there, how large it is, and a local copy."""

import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from data_tools.failures import Failure
from gen1_train.errors import UserError
from gen1_train.system.names import file_suffix
from gen1_train.system.remote import HTTP, file_system, is_url, join, reason_of
from gen1_train.video.decoding.remote import download, transient_errors
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

THREADS = 32  # threads that wait for a disk or a server at the same time; ours
CHUNK = 256  # files that a thread takes at a time; ours
WORTH_LISTING = 16  # a remote folder with this many files is listed; with fewer, each file is looked up; ours

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str  # as the source names it: relative to its folder, with slashes; or a list's absolute path or URL
    kind: str  # "video" or "image", a guess by the suffix: the content decides when the file is examined
    bytes: int  # 0: unknown, since the server does not report it or cannot be reached now
    caption: str | None
    id: str | None = None  # unique, of A-Z a-z 0-9 _ -; the keys of its samples begin with it


@dataclass
class Scan:
    files: list[SourceFile] = field(default_factory=list)  # sorted by path
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are not media
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Source(ABC):
    """Where raw files come from. It holds only strings, so it can be sent to any process."""

    name: str  # as the user gave it; contains no secret
    root: str  # folder, local or a URL, from which relative paths start

    @abstractmethod
    def scan(self, output: Path) -> Scan:
        """Finds all files; `output` is not read. Raises UserError if there is nothing usable."""

    def locate(self, path: str) -> str:
        """Returns a local path or a URL for the path of a SourceFile. Raises VideoError for one that cannot be."""
        return join(self.root, path)

    def local(self, path: str, bytes: int = 0, scratch: Path | None = None) -> AbstractContextManager[Path]:
        """Returns a context with a local file of that content: the file itself, or a copy in `scratch` (None: TMPDIR).

        Raises VideoError, transient, if the file is gone, cannot be fetched, or does not have the planned `bytes` (0:
        unknown).
        """
        return fetch(self.locate(path), bytes, scratch)

    def size(self, path: str) -> int:
        """Returns the size of a file in bytes, 0 if the server does not report it. Raises VideoError."""
        return size_of(self.locate(path))

    def check_present(self) -> None:
        """Raises UserError if the folder, mount or bucket as a whole is missing or empty."""
        require_present(self.root, self.name)


def require_present(location: str, name: str) -> None:
    """Raises UserError if the location is missing or is an empty folder."""
    try:
        if is_url(location):
            # for an archive, the file itself: what is open stays readable
            system, path = file_system(location.split("::")[-1])
            system.invalidate_cache()
            present = system.exists(path)
        else:
            with os.scandir(location) as entries:  # a mount that is gone leaves an empty folder
                present = next(entries, None) is not None
        reason = "nothing is there"
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        present, reason = False, reason_of(error)
    if not present:
        raise UserError(f"source={name} is gone ({reason}): bring it back and run it again")


def kind_of(path: str) -> str | None:
    """Returns "video" or "image" according to the suffix, or None for anything else."""
    suffix = suffix_of(path)
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else None


def suffix_of(path: str) -> str:
    """Returns the suffix in lower case with its dot, "" if there is none; for zip://NAME::ARCHIVE that of NAME."""
    name = (path.partition("::")[0] if is_url(path) else path).rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


def in_threads(do: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """Returns do(item) for each item, in order; a million items take seconds, not a million waits in sequence."""

    def several(start: int) -> list[Result]:
        return [do(item) for item in items[start : start + size]]

    size = max(1, min(CHUNK, len(items) // THREADS))
    with ThreadPoolExecutor(THREADS) as pool:
        return [result for part in pool.map(several, range(0, len(items), size)) for result in part]


def measure(locations: list[str]) -> list[int | VideoError]:
    """Returns the size of each location in bytes, or the error if there is no such file.

    Raises UserError for a protocol that is not installed.
    """
    known = _listed([location for location in locations if is_url(location)])

    def one(location: str) -> int | VideoError:
        try:
            return known[location] if location in known else size_of(location)
        except VideoError as error:
            return error

    return in_threads(one, locations)


def size_of(location: str) -> int:
    """Returns the size of a regular file in bytes. Raises VideoError, transient if the file may exist nevertheless."""
    if is_url(location):
        with transient_errors():
            system, path = file_system(location)
            try:
                facts = system.info(path)
            except FileNotFoundError as error:
                # a web server that is down raises the same error, with the true error as its cause
                missing = error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410)
                raise VideoError("no such file" if missing else reason_of(error), transient=not missing) from error
        if facts["type"] == "directory":
            raise VideoError("a folder, not a file")
        return facts["size"] or 0
    try:
        facts = os.stat(location)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError("a link to nothing" if os.path.islink(location) else "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise VideoError(reason_of(error), transient=isinstance(error, OSError)) from error
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError("not a regular file")
    return facts.st_size


def _listed(urls: list[str]) -> dict[str, int]:
    """Returns sizes from a few listings of folders; files that are not in them have to be looked up one by one."""
    known: dict[str, int] = {}
    folders = Counter(_split(url) for url in urls)
    for (folder, rest), count in folders.items():
        if count < WORTH_LISTING or folder.partition("://")[0].lower() in HTTP:  # web pages list no sizes
            continue
        try:
            system, path = file_system(f"{folder}/{rest}")
            for facts in system.ls(path, detail=True):
                if facts["type"] == "file" and facts["size"] is not None:
                    known[f"{folder}/{facts['name'].rpartition('/')[2]}{rest}"] = facts["size"]
        except UserError:
            raise
        except Exception:  # the right to read files does not include the right to list them
            continue
    return known


def _split(url: str) -> tuple[str, str]:
    """Returns the folder of a URL, without its last slash, and the archive that contains it."""
    first, chained, rest = url.partition("::")
    return first.rpartition("/")[0], chained + rest


@contextmanager
def fetch(location: str, bytes: int, scratch: Path | None) -> Iterator[Path]:
    """Implements Source.local."""
    if not is_url(location):
        path = Path(location)
        _check_size(path, bytes)
        yield path
        return
    with transient_errors():
        folder = tempfile.TemporaryDirectory(prefix="gen1-data-", dir=scratch, ignore_cleanup_errors=True)
    with folder:
        path = Path(folder.name, "file" + file_suffix(suffix_of(location)))
        download(location, path)
        _check_size(path, bytes or size_of(location))
        yield path


def _check_size(path: Path, bytes: int) -> None:
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError) as error:
        raise VideoError(f"the file is gone: {reason_of(error)}", transient=True) from error
    if bytes and size != bytes:
        raise VideoError(
            f"it has {size} bytes and should have {bytes}: it changed, or was not fetched completely", transient=True
        )
