"""A list file as a source: its rows name files by paths relative to the list's folder, absolute paths, or URLs."""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_tools.failures import Failure
from data_tools.source.locations import (
    Scan,
    Source,
    SourceFile,
    fetch,
    kind_of,
    measure,
    require_present,
    suffix_of,
)
from data_tools.source.rows import BrokenRow, Row, read_rows
from gen1_train.errors import UserError
from gen1_train.system.remote import ARCHIVES, foreign_reason, is_url, join, local_path, without_secrets
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import SUFFIXES

PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")  # a sample's key continues after the id, and has at most 200 characters


@dataclass(frozen=True)
class ListFile(Source):
    """CSV, TSV, JSON lines or Parquet, on this machine or wherever fsspec reads."""

    location: str  # of the list itself; `root` is its folder

    def locate(self, path: str) -> str:
        if is_url(path) and (reason := foreign_reason(path, self.location)):  # of a plan that was made elsewhere
            raise VideoError(reason)
        path = local_path(path)
        if is_url(path) or os.path.isabs(path):
            return path
        try:
            location = join(self.root, path)
        except ValueError as error:
            raise VideoError(str(error)) from error
        return _normal(location) if is_url(location) else location  # a bucket would look for a folder named `..`

    def check_present(self) -> None:
        # the folder of a remote list may be one that must not be listed
        require_present(self.location if is_url(self.location) else self.root, self.name)

    def scan(self, output: Path) -> Scan:
        """Reads all rows. A row that cannot be used becomes a failure with its line; the others are used."""
        result = Scan()
        rows: list[Row] = []
        locations: list[str] = []
        for row, location in self._usable(result.failures):
            rows.append(row)
            locations.append(location)
        sizes = measure(locations)
        for row, size in zip(rows, sizes, strict=True):
            if isinstance(size, VideoError) and not size.transient:
                result.failures.append(Failure(row.path, "unreadable", f"line {row.line}: {size}"))
                continue
            # a file that cannot be reached now stays in the plan: its task reports the failure, and can be repeated
            bytes = 0 if isinstance(size, VideoError) else size
            result.files.append(SourceFile(row.path, kind_of(row.path) or "video", bytes, row.caption, row.id))
        result.files.sort(key=lambda file: file.path)
        if not result.files:
            first = "".join(f" ({entry.file}, {entry.reason})" for entry in result.failures[:1]) or ": it is empty"
            raise UserError(f"source={self.name} names no file that can be used{first}")
        return result

    def _usable(self, failures: list[Failure]) -> Iterator[tuple[Row, str]]:
        """Yields media rows with their locations, each location and id once; appends a Failure for each other row."""
        title = os.path.basename(self.location.partition("::")[0] if is_url(self.location) else self.location)
        locations: dict[str, int] = {}
        ids: dict[str, int] = {}
        for row in self._rows():
            if isinstance(row, BrokenRow):
                failures.append(Failure(title, "broken row", f"line {row.line}: {row.reason}"))
                continue
            row = Row(row.line, _tidy(row.path), row.caption, row.id and clean_id(row.id))
            if failure := _check_row(row, self.location):
                failures.append(failure)
                continue
            try:
                location = self.locate(row.path)
            except VideoError as error:
                failures.append(Failure(row.path, "broken row", f"line {row.line}: {error}"))
                continue
            if (first := locations.setdefault(_normal(location), row.line)) != row.line:
                failures.append(Failure(row.path, "named twice", f"line {row.line}: line {first} already names it"))
            elif row.id and (first := ids.setdefault(row.id, row.line)) != row.line:
                failures.append(Failure(row.path, "id twice", f"line {row.line}: line {first} has the same id"))
            else:
                yield row, location

    def _rows(self) -> Iterator[Row | BrokenRow]:
        try:
            with fetch(self.location, 0, None) as path:
                yield from read_rows(path, self.name)
        except VideoError as error:
            raise UserError(f"source={self.name} cannot be read: {error}") from error


def _check_row(row: Row, own: str) -> Failure | None:
    """Returns what is wrong with a row regardless of the other rows, or None. `own`: the location of the list."""
    if is_url(row.path) and (reason := foreign_reason(row.path, own)):
        return Failure(without_secrets(row.path), "broken row", f"line {row.line}: {reason}")
    if kind_of(row.path) is None and suffix_of(row.path):  # without a suffix, the content decides
        return Failure(row.path, "no media", f"line {row.line}: the name ends in none of {SUFFIXES}")
    return None


def clean_id(text: str) -> str:
    """Returns the id itself if a key may contain its characters; else its readable part and a digest that is unique."""
    if PLAIN.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{readable.strip('-')[:60] or 'id'}-{digest}"


def _tidy(path: str) -> str:
    """Removes ./ and double slashes; `..` stays, since its meaning depends on links."""
    return PurePosixPath(path).as_posix() if ("//" in path or "./" in path) and not is_url(path) else path


def _normal(location: str) -> str:
    """Returns one name for all spellings of a location, so that duplicates can be found."""
    if not is_url(location):
        return os.path.abspath(location)
    first, chained, rest = location.partition("::")
    scheme, separator, path = first.partition("://")
    scheme = scheme.lower()
    host, slash, path = ("", "", path) if scheme in ARCHIVES else path.partition("/")
    return scheme + separator + host + posixpath.normpath(slash + path) + chained + rest


def folder_of(location: str) -> str:
    """Returns the folder of a location."""
    if not is_url(location):
        return os.path.dirname(location) or "."
    first, chained, rest = location.partition("::")
    scheme, separator, path = first.partition("://")
    return scheme + separator + path.rpartition("/")[0] + chained + rest
