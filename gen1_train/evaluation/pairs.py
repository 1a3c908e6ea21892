"""The list of (video, prompt) pairs, `data=`: CSV with a header, or JSON lines."""

import csv
import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.system.records import parse_json
from gen1_train.system.remote import foreign_reason, is_url, without_secrets

COLUMNS: dict[str, type] = {"video": str, "prompt": str, "image": str, "start": int, "frames": int, "fps": float}
REQUIRED = ("video", "prompt")
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Pair:
    """One row of the list."""

    line: int  # of the file, from 1, as messages name it
    video: str  # as in the list: a path, relative to the list's folder or absolute, or a URL
    prompt: str  # what the output is compared with; also the content, if there is no `image`
    image: str | None = None  # the content as an example image, which needs no prior
    start: int = 0  # first frame of the video
    frames: int | None = None  # how many frames are edited; None: the setting frames= of gen1-eval
    fps: float | None = None  # frames a second that are edited; None: all of the video's
    folder: str = field(default="", compare=False)  # of the list

    @property
    def video_path(self) -> str:
        return self._path(self.video)

    @property
    def image_path(self) -> str | None:
        return None if self.image is None else self._path(self.image)

    def _path(self, name: str) -> str:
        return name if is_url(name) else os.path.join(self.folder, name)

    def facts(self) -> dict[str, Any]:
        """Returns the row and the sizes of its files: what a result depends on besides the model and the settings.

        They do not depend on the working folder. Raises UserError for a file that does not exist.
        """
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        for name, path in (("video", self.video_path), ("image", self.image_path)):
            if path is not None and not is_url(path):
                try:
                    facts[f"{name}_bytes"] = os.stat(path).st_size
                except (OSError, ValueError) as error:  # of a name with NUL, or with half a character
                    raise UserError(f"line {self.line} of data=: {path} does not exist: correct the path") from error
        return facts


def read_pairs(path: Path) -> list[Pair]:
    """Reads all rows of a list; its paths are relative to its folder. Raises UserError, which names line and column."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"data={path} is not a list: give a file that ends with {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"data={path} does not exist: give a CSV or JSONL list with the columns video and prompt")
    try:
        rows = list(_csv(path) if path.suffix.lower() == ".csv" else _json_lines(path))
    except UnicodeDecodeError as error:
        raise UserError(f"data={path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"data={path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"data={path} has no pairs: add rows with a video and a prompt")
    return [_pair(path, line, row) for line, row in rows]


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row's line in the file, and its cells that are not empty."""
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            for name in header:
                _check_column(path, 1, name)
            if missing := [name for name in REQUIRED if name not in header]:
                raise UserError(f"data={path} has no column {missing[0]}: name the columns in its first line")
            line = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"data={path} line {line}: {len(cells)} cells for {len(header)} columns: put quotes around "
                        "a text with a comma"
                    )
                if cells:
                    yield line, {name: cell for name, cell in zip(header, cells) if cell.strip()}
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"data={path} line {reader.line_num}: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            raise UserError(f"data={path} line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"data={path} line {line} is not a JSON object such as {{'video': …, 'prompt': …}}")
        for name in row:
            _check_column(path, line, name)
        yield line, {name: value for name, value in row.items() if value is not None}


def _check_column(path: Path, line: int, name: str) -> None:
    if name not in COLUMNS:
        close = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
        remedy = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(COLUMNS)}"
        raise UserError(f"data={path} line {line}: there is no column {name!r}; {remedy}")


def _pair(path: Path, line: int, row: dict[str, Any]) -> Pair:
    values = {name: _value(path, line, name, value) for name, value in row.items()}
    for name in REQUIRED:
        if not str(values.get(name, "")).strip():
            raise UserError(f"data={path} line {line}: the {name} is empty: fill it in, or remove the row")
    return Pair(line, **values, folder=str(path.parent))


def _value(path: Path, line: int, name: str, value: Any) -> Any:
    """Converts a cell to its column's type; in CSV all cells are text."""
    kind = COLUMNS[name]
    if kind is str and isinstance(value, str):
        if name == "prompt" and re.search("[\ud800-\udfff]", value):
            raise UserError(f"data={path} line {line}: the prompt contains half a character: write it again")
        if name != "prompt" and is_url(value) and (reason := foreign_reason(value)):
            raise UserError(f"data={path} line {line}: {name}={without_secrets(value)}: {reason}")
        return " ".join(value.split()) if name == "prompt" else value
    if kind is not str and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = kind(value)
            if isinstance(value, str) or number == value:
                return number
        except (ValueError, OverflowError):
            pass
    expected = {str: "a text", int: "a whole number", float: "a number"}[kind]
    raise UserError(f"data={path} line {line}: {name}={str(value)[:40]} is not {expected}")
