"""The rows of list files: CSV, TSV, JSON lines and Parquet, each row a media file with what is known of it."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError

PATHS = ("path", "file", "url", "video", "image")  # names of the column that says which file; one of them
CAPTIONS = ("caption", "text")
IDS = ("id",)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
LIST_SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)
BATCH = 16384  # rows of a Parquet file in memory


@dataclass(frozen=True, slots=True)
class Row:
    line: int  # of the file, from 1; of Parquet the row, from 1
    path: str
    caption: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Broken:
    """A row of which nothing can be made."""

    line: int
    reason: str


def read_rows(path: Path, name: str) -> Iterator[Row | Broken]:
    """Every row of a local list file, in order. `name` is what messages call it.

    Raises UserError when it is no such file, has not the columns, or is no UTF-8 text.
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
        raise UserError(f"source={name} is no UTF-8 text ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"source={name} cannot be read: {error.strerror or error}") from error


def _read_delimited(path: Path, name: str, delimiter: str) -> Iterator[Row | Broken]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)  # an open quote would swallow all that follows
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"source={name}: its first line names no columns: {error}") from error
        columns = _columns(header, name)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Broken(line, f"no row, as far as line {reader.line_num}: {error}")
                continue
            if len(cells) == len(header):
                yield _row(line, *(None if column is None else cells[column] for column in columns))
            elif cells:
                yield Broken(
                    line, f"{len(cells)} cells for {len(header)} columns (a text with {delimiter!r} needs quotes)"
                )


def _read_json_lines(path: Path, name: str) -> Iterator[Row | Broken]:
    checked = False
    with open(path, encoding="utf-8-sig", newline="\n") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                content = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield Broken(line, f"no JSON: {error}")
                continue
            if not isinstance(content, dict):
                yield Broken(line, "no JSON object")
                continue
            names = [key for key, value in content.items() if value is not None]
            if (
                not checked
            ):  # the keys of the first object stand for those of all: said once rather than a million times
                _columns(names, name)
                checked = True
            try:
                columns = _columns(names, name)
            except UserError:
                yield Broken(line, f"not exactly one of {', '.join(PATHS)} in it: {_quote(names)}")
                continue
            yield _row(line, *(None if column is None else content[names[column]] for column in columns))


def _read_parquet(path: Path, name: str) -> Iterator[Row | Broken]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"source={name}: Parquet needs the package pyarrow") from error
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
    except pyarrow.ArrowException as error:
        raise UserError(f"source={name} is no Parquet file that can be read: {' '.join(str(error).split())}") from error


def _columns(header: Sequence[str], name: str) -> tuple[int, int | None, int | None]:
    """Where path, caption and id stand. Raises UserError unless there is one path and at most one of the others."""
    names = [column.strip().casefold() for column in header]
    places = []
    for wanted in (PATHS, CAPTIONS, IDS):
        found = [place for place, column in enumerate(names) if column in wanted]
        if len(found) > 1:
            raise UserError(f"source={name}: the columns {_quote(header[i] for i in found)} say the same; keep one")
        places.append(found[0] if found else None)
    if places[0] is None:
        columns = _quote(header) or "none"
        raise UserError(
            f"source={name} has no column “path” (or {', '.join(PATHS[1:])}); its first row names: {columns}"
        )
    return places[0], places[1], places[2]


def _quote(names: Any) -> str:
    return ", ".join(f"“{name}”" for name in names)


def _row(line: int, path: Any, caption: Any, id: Any) -> Row | Broken:
    """A row, if each value is what it should be."""
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    for name, value in (("path", path), ("caption", caption), ("id", id)):
        if value is not None and not isinstance(value, str):
            return Broken(line, f"the {name} is no text: {str(value)[:40]}")
    if not path or not path.strip():
        return Broken(line, "no path in it")
    if caption is not None:
        try:
            caption.encode()
        except UnicodeEncodeError:
            return Broken(line, "the caption has half a character in it")
    return Row(line, path, " ".join((caption or "").split()) or None, (id or "").strip() or None)
