"""A benchmark as a set of questions, each answered by rows: JSON lines on stdout, a table on stderr."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Question = Callable[[argparse.Namespace, Path], Iterator[Row]]


def answer(questions: Mapping[str, Question], arguments: argparse.Namespace, common: Mapping[str, Any]) -> None:
    """Asks them all, or that of `arguments.only`, each with an empty folder; `common` stands in every row."""
    with tempfile.TemporaryDirectory() as folder:
        for name, ask in questions.items():
            if arguments.only in (None, name):
                place = Path(folder) / name
                place.mkdir()
                for row in ask(arguments, place):
                    row = {"question": name, **common, **row}
                    print(json.dumps(row), flush=True)
                    print("  ".join(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
