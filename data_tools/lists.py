"""A list file as a source: its rows name files, by paths from the list's folder, absolute paths, or URLs."""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_tools.failures import Failure
from data_tools.places import (
    VIDEO_SUFFIXES,
    Scan,
    Source,
    SourceFile,
    fetch,
    kind_of,
    measure,
    require_present,
)
from data_tools.rows import Broken, Row, read_rows
from gen1_train.errors import UserError
from gen1_train.remote import ARCHIVES, is_url, join, local_path, refusal, without_secrets
from gen1_train.video.image import IMAGE_SUFFIXES
from gen1_train.video.probe import VideoError

PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")  # a sample's key has more behind the id, and 200 characters at most


@dataclass(frozen=True)
class ListFile(Source):
    """CSV, TSV, JSON lines or Parquet, on this machine or wherever fsspec reads."""

    place: str  # of the list itself; `root` is the folder that it lies in

    def locate(self, path: str) -> str:
        path = local_path(path)
        if is_url(path) or os.path.isabs(path):
            return path
        place = join(self.root, path)
        return _normal(place) if is_url(place) else place  # a bucket would look for a folder named `..`

    def check_present(self) -> None:
        # the folder of a remote list may be one that nobody is allowed to list
        require_present(self.place if is_url(self.place) else self.root, self.name)

    def scan(self, output: Path) -> Scan:
        """A row that cannot be used is a failure with its line; the others are taken."""
        result = Scan()
        rows: list[Row] = []
        places: list[str] = []
        for row, place in self._usable(result.failures):
            rows.append(row)
            places.append(place)
        sizes = measure(places)
        for row, size in zip(rows, sizes, strict=True):
            if isinstance(size, VideoError) and not size.transient:
                result.failures.append(Failure(row.path, "unreadable", f"line {row.line}: {size}"))
                continue
            # what cannot be reached now keeps its place: a task will say so, and can be repeated
            bytes = 0 if isinstance(size, VideoError) else size
            result.files.append(SourceFile(row.path, kind_of(row.path) or "", bytes, row.caption, row.id))
        result.files.sort(key=lambda file: file.path)
        if not result.files:
            first = "".join(f" ({entry.file}, {entry.reason})" for entry in result.failures[:1]) or ": it is empty"
            raise UserError(f"source={self.name} names no file that can be used{first}")
        return result

    def _usable(self, failures: list[Failure]) -> Iterator[tuple[Row, str]]:
        """Rows of media with their places, no place and no id twice; a Failure for each of the others."""
        title = os.path.basename(self.place.partition("::")[0] if is_url(self.place) else self.place)
        places: dict[str, int] = {}
        ids: dict[str, int] = {}
        for row in self._rows():
            if isinstance(row, Broken):
                failures.append(Failure(title, "broken row", f"line {row.line}: {row.reason}"))
                continue
            row = Row(row.line, _tidy(row.path), row.caption, row.id and clean_id(row.id))
            if failure := _objection(row):
                failures.append(failure)
                continue
            place = self.locate(row.path)
            if (first := places.setdefault(_normal(place), row.line)) != row.line:
                failures.append(Failure(row.path, "named twice", f"line {row.line}: line {first} names it already"))
            elif row.id and (first := ids.setdefault(row.id, row.line)) != row.line:
                failures.append(Failure(row.path, "id twice", f"line {row.line}: line {first} has the same id"))
            else:
                yield row, place

    def _rows(self) -> Iterator[Row | Broken]:
        try:
            with fetch(self.place, 0, None) as path:
                yield from read_rows(path, self.name)
        except VideoError as error:
            raise UserError(f"source={self.name} cannot be read: {error}") from error


def _objection(row: Row) -> Failure | None:
    """What is wrong with a row by itself."""
    if is_url(row.path) and (reason := refusal(row.path)):
        return Failure(without_secrets(row.path), "broken row", f"line {row.line}: {reason}")
    if kind_of(row.path) is None:
        known = " ".join([*sorted(VIDEO_SUFFIXES), *sorted(IMAGE_SUFFIXES)])
        return Failure(row.path, "no media", f"line {row.line}: the name ends in none of {known}")
    return None


def clean_id(text: str) -> str:
    """The id itself if a key may have its characters; else what is readable of it, and a digest that keeps it apart."""
    if PLAIN.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{readable.strip('-')[:60] or 'id'}-{digest}"


def _tidy(path: str) -> str:
    """Without ./ and double slashes; `..` stays, as what it means depends on links."""
    return PurePosixPath(path).as_posix() if ("//" in path or "./" in path) and not is_url(path) else path


def _normal(place: str) -> str:
    """One name for all spellings of a place, to tell what is named twice."""
    if not is_url(place):
        return os.path.abspath(place)
    first, chained, rest = place.partition("::")
    scheme, separator, path = first.partition("://")
    scheme = scheme.lower()
    host, slash, path = ("", "", path) if scheme in ARCHIVES else path.partition("/")
    return scheme + separator + host + posixpath.normpath(slash + path) + chained + rest


def folder_of(place: str) -> str:
    """The folder that a place lies in."""
    if not is_url(place):
        return os.path.dirname(place) or "."
    first, chained, rest = place.partition("::")
    scheme, separator, path = first.partition("://")
    return scheme + separator + path.rpartition("/")[0] + chained + rest
