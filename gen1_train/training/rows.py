"""Rows of a metrics.csv, read without Lightning: whoever only looks at a run need not wait for its imports."""

import csv
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv by step, without empty cells; none if there is no file.

    Rows of the same step that follow each other (validation has one of its own) are one; of a cell that both have the
    later counts. A last line that was torn by a kill is left out.
    """
    if not path.exists():
        return []
    with open(path, newline="") as stream:
        whole = (line for line in stream if line.endswith("\n"))
        read = [row for row in csv.DictReader(whole) if None not in row and None not in row.values()]
    rows: list[dict[str, str]] = []
    for row in read:
        cells = {name: value for name, value in row.items() if value}
        if rows and rows[-1].get("step") == cells.get("step"):
            rows[-1] |= cells
        else:
            rows.append(cells)
    return rows
