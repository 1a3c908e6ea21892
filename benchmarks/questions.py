"""Runs a benchmark as a set of questions that are answered by rows: JSON lines on stdout, a table on stderr."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Question = Callable[[argparse.Namespace, Path], Iterator[Row]]


def answer(questions: Mapping[str, Question], arguments: argparse.Namespace, common: Mapping[str, Any]) -> list[Row]:
    """Asks all questions, or only `arguments.only`, each with an empty folder, and returns their rows.

    `common` is added to every printed row, but not to those returned.
    """
    answers: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ask in questions.items():
            if arguments.only in (None, name):
                working_folder = Path(folder) / name
                working_folder.mkdir()
                for row in ask(arguments, working_folder):
                    answers.append({"question": name, **row})
                    row = {"question": name, **common, **row}
                    print(json.dumps(row), flush=True)
                    print("  ".join(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
    return answers


def append_tables(path: Path, title: str, common: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Appends a section to a Markdown file: the common values, then a table for each set of columns."""
    lines = ["", f"## {title}", "", "; ".join(f"{name}: {value}" for name, value in common.items()), *tables(rows)]
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def tables(rows: Iterable[Row]) -> list[str]:
    """Returns the lines of Markdown tables of the rows: one table for each set of columns, after an empty line."""
    lines: list[str] = []
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += ["", _line(columns), _line(["---"] * len(columns))]
        lines.append(_line(row.values()))
    return lines


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
