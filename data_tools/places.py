"""Places of source files, on this machine or behind a URL: what lies there, how large it is, and a local copy of it."""

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
from gen1_train.remote import HTTP, file_system, is_url, join, reason_of
from gen1_train.video.image import IMAGE_SUFFIXES
from gen1_train.video.probe import VideoError
from gen1_train.video.remote import download, transient_errors

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
THREADS = 32  # that wait for a disk or a server at the same time; ours
CHUNK = 256  # files that a thread takes at once; ours
WORTH_LISTING = (
    16  # files in one remote folder from which on the folder is listed rather than each file asked for; ours
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: str  # as the source names it: relative to its folder, with slashes; or a list's absolute path or URL
    kind: str  # "video" or "image", by the suffix
    bytes: int  # 0: unknown, the server does not tell or cannot be reached now
    caption: str | None
    id: str | None = None  # unique; of A-Z a-z 0-9 _ -: what the keys of its samples begin with


@dataclass
class Scan:
    files: list[SourceFile] = field(default_factory=list)  # sorted by path
    ignored: dict[str, int] = field(default_factory=dict)  # suffix -> number of files that are no media
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Source(ABC):
    """Where raw files come from. It holds nothing but strings, so any process may have it."""

    name: str  # as the user gave it; it holds no secret
    root: str  # folder, local or a URL, that relative paths start from

    @abstractmethod
    def scan(self, output: Path) -> Scan:
        """Everything there is; `output` is not read. Raises UserError when nothing can be found."""

    def locate(self, path: str) -> str:
        """A local path or a URL for a SourceFile's path."""
        return join(self.root, path)

    def local(self, path: str, bytes: int = 0, scratch: Path | None = None) -> AbstractContextManager[Path]:
        """A local file with that content: itself, or a copy below `scratch` (None: TMPDIR) for as long as the block.

        Raises VideoError, transient, when it is gone, cannot be fetched, or has not the planned `bytes` (0: unknown).
        """
        return fetch(self.locate(path), bytes, scratch)

    def size(self, path: str) -> int:
        """Bytes of a file, 0 if the server does not tell. Raises VideoError."""
        return size_of(self.locate(path))

    def check_present(self) -> None:
        """Raises UserError when the folder, mount or bucket as a whole is not there, or is empty."""
        require_present(self.root, self.name)


def require_present(place: str, name: str) -> None:
    """Raises UserError when there is nothing at the place, or an empty folder."""
    try:
        if is_url(place):
            # of an archive the file itself: what is open stays readable
            system, path = file_system(place.split("::")[-1])
            system.invalidate_cache()
            present = system.exists(path)
        else:
            with os.scandir(place) as entries:  # a mount that is gone leaves an empty folder
                present = next(entries, None) is not None
        reason = "nothing is there"
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        present, reason = False, reason_of(error)
    if not present:
        raise UserError(f"source={name} is gone ({reason}): bring it back and run it again")


def kind_of(path: str) -> str | None:
    """By the suffix "video" or "image", or None for anything else."""
    suffix = suffix_of(path)
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else None


def suffix_of(path: str) -> str:
    """In small letters, with its dot, "" without one; of zip://NAME::ARCHIVE that of NAME."""
    name = (path.partition("::")[0] if is_url(path) else path).rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


def in_threads(do: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """do(item) for each, in the same order; a million items take seconds, not a million waits one after the other."""

    def several(start: int) -> list[Result]:
        return [do(item) for item in items[start : start + size]]

    size = max(1, min(CHUNK, len(items) // THREADS))
    with ThreadPoolExecutor(THREADS) as pool:
        return [result for part in pool.map(several, range(0, len(items), size)) for result in part]


def measure(places: list[str]) -> list[int | VideoError]:
    """Bytes of each place, or why there is no such file. Raises UserError for a protocol that is not installed."""
    known = _listed([place for place in places if is_url(place)])

    def one(place: str) -> int | VideoError:
        try:
            return known[place] if place in known else size_of(place)
        except VideoError as error:
            return error

    return in_threads(one, places)


def size_of(place: str) -> int:
    """Bytes of a regular file. Raises VideoError, transient if it may be there all the same."""
    if is_url(place):
        with transient_errors():
            system, path = file_system(place)
            try:
                facts = system.info(path)
            except FileNotFoundError as error:
                # a web server that is down is told in the same way, with the true error as the cause
                missing = error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410)
                raise VideoError("no such file" if missing else reason_of(error), transient=not missing) from error
        if facts["type"] == "directory":
            raise VideoError("a folder, and no file")
        return facts["size"] or 0
    try:
        facts = os.stat(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError("a link to nothing" if os.path.islink(place) else "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise VideoError(reason_of(error), transient=isinstance(error, OSError)) from error
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError("no regular file")
    return facts.st_size


def _listed(urls: list[str]) -> dict[str, int]:
    """Sizes out of a few listings of folders; what is not in them has to be asked for one by one."""
    known: dict[str, int] = {}
    folders = Counter(_split(url) for url in urls)
    for (folder, rest), count in folders.items():
        if count < WORTH_LISTING or folder.partition("://")[0].lower() in HTTP:  # whose pages tell no sizes
            continue
        try:
            system, path = file_system(f"{folder}/{rest}")
            for facts in system.ls(path, detail=True):
                if facts["type"] == "file" and facts["size"] is not None:
                    known[f"{folder}/{facts['name'].rpartition('/')[2]}{rest}"] = facts["size"]
        except UserError:
            raise
        except Exception:  # a right to read files is not one to list them
            continue
    return known


def _split(url: str) -> tuple[str, str]:
    """The folder of a URL, without its last slash, and the archive that it lies in."""
    first, chained, rest = url.partition("::")
    return first.rpartition("/")[0], chained + rest


@contextmanager
def fetch(place: str, bytes: int, scratch: Path | None) -> Iterator[Path]:
    """See Source.local."""
    if not is_url(place):
        path = Path(place)
        _check_size(path, bytes)
        yield path
        return
    with transient_errors():
        folder = tempfile.TemporaryDirectory(prefix="gen1-data-", dir=scratch, ignore_cleanup_errors=True)
    with folder:
        path = Path(folder.name, "file" + suffix_of(place))
        download(place, path)
        _check_size(path, bytes or size_of(place))
        yield path


def _check_size(path: Path, bytes: int) -> None:
    try:
        found = os.stat(path).st_size
    except (OSError, ValueError) as error:
        raise VideoError(f"the file is gone: {reason_of(error)}", transient=True) from error
    if bytes and found != bytes:
        raise VideoError(
            f"it has {found} bytes and should have {bytes}: changed, or not wholly fetched", transient=True
        )
