"""Reads the rows of list files: CSV, TSV, JSON lines and Parquet. Each row names a media file with its facts."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.system.records import parse_json

PATHS = ("path", "file", "url", "video", "image")  # possible names of the column with the file; exactly one is used
CAPTIONS = ("caption", "text")
IDS = ("id",)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
LIST_SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)
BATCH = 16384  # rows of a Parquet file that are in memory at a time


@dataclass(frozen=True, slots=True)
class Row:
    line: int  # line of the file, from 1; for Parquet the row, from 1
    path: str
    caption: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be used."""

    line: int
    reason: str


def read_rows(path: Path, name: str) -> Iterator[Row | BrokenRow]:
    """Yields every row of a local list file, in order. `name` is what messages call the file.

    Raises UserError if it is not such a file, lacks the columns, or is not UTF-8 text.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == PARQUET:
            yield from _read_parquet(path, name)
        elif suffix in JSON_LINES:
            yield from _read_json_lines(path, name)
        else:
            yield from _read_delimited(path, name, DELIMITERS[suffix])
    except UnicodeDecodeError as error:
        raise UserError(f"source={name} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"source={name} cannot be read: {error.strerror or error}") from error


def _read_delimited(path: Path, name: str, delimiter: str) -> Iterator[Row | BrokenRow]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)  # an open quote would swallow all the rest
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"source={name}: its first line names no columns ({error}): give a header") from error
        columns = _columns(header, name)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BrokenRow(line, f"not a row, up to line {reader.line_num}: {error}")
                continue
            if len(cells) == len(header):
                yield _row(line, *(None if column is None else cells[column] for column in columns))
            elif cells:
                yield BrokenRow(
                    line, f"{len(cells)} cells for {len(header)} columns (a text with {delimiter!r} needs quotes)"
                )


def _read_json_lines(path: Path, name: str) -> Iterator[Row | BrokenRow]:
    checked = False
    with open(path, encoding="utf-8-sig", newline="\n") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                content = parse_json(text)
            except ValueError as error:
                yield BrokenRow(line, f"not JSON: {error}")
                continue
            if not isinstance(content, dict):
                yield BrokenRow(line, "not a JSON object")
                continue
            names = [key for key, value in content.items() if value is not None]
            # the first object is checked as a header: one message instead of one for each of a million rows
            if not checked:
                _columns(names, name)
                checked = True
            try:
                columns = _columns(names, name)
            except UserError:
                yield BrokenRow(line, f"it does not have exactly one of {', '.join(PATHS)}: {_quote(names)}")
                continue
            yield _row(line, *(None if column is None else content[names[column]] for column in columns))


def _read_parquet(path: Path, name: str) -> Iterator[Row | BrokenRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"source={name}: Parquet needs the package pyarrow: install it") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = _columns(names, name)
            wanted = [names[column] for column in columns if column is not None]
            line = 0
            for batch in file.iter_batches(BATCH, columns=wanted):
                values = [None if column is None else batch[names[column]].to_pylist() for column in columns]
                for row in range(len(batch)):
                    line += 1
                    yield _row(line, *(None if column is None else column[row] for column in values))
    except UnicodeDecodeError:
        raise
    except (pyarrow.ArrowException, ArithmeticError, ValueError) as error:  # Python has no year 40000
        reason = " ".join(str(error).split())
        raise UserError(f"source={name} is not a readable Parquet file: {reason}") from error


def _columns(header: Sequence[str], name: str) -> tuple[int, int | None, int | None]:
    """Returns the indices of the columns of path, caption and id; None for a caption or id that is not there.

    Raises UserError unless there is exactly one path column and at most one of each of the others.
    """
    names = [column.strip().casefold() for column in header]
    indices: list[int | None] = []
    for accepted in (PATHS, CAPTIONS, IDS):
        matches = [index for index, column in enumerate(names) if column in accepted]
        if len(matches) > 1:
            same = _quote(header[index] for index in matches)
            raise UserError(f"source={name}: the columns {same} mean the same: keep one")
        indices.append(matches[0] if matches else None)
    path, caption, id = indices
    if path is None:
        columns = _quote(header) or "none"
        raise UserError(
            f"source={name} has no column “path” (or {', '.join(PATHS[1:])}); its first row names: {columns}"
        )
    return path, caption, id


def _quote(names: Any) -> str:
    return ", ".join(f"“{name}”" for name in names)


def _row(line: int, path: Any, caption: Any, id: Any) -> Row | BrokenRow:
    """Returns a row if each value has the right type, or else a BrokenRow."""
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    for name, value in (("path", path), ("caption", caption), ("id", id)):
        if value is not None and not isinstance(value, str):
            return BrokenRow(line, f"the {name} is not text: {str(value)[:40]}")
    if not path or not path.strip():
        return BrokenRow(line, "it has no path")
    if caption is not None:
        try:
            caption.encode()
        except UnicodeEncodeError:
            return BrokenRow(line, "the caption contains half a character")
    # spaces around a value belong to it: a file may be named so
    return Row(line, path, caption if caption and caption.strip() else None, id if id and id.strip() else None)
