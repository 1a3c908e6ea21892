"""Rows of a metrics.csv, read without Lightning: whoever only looks at a run need not wait for its imports."""

import csv
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, str]]:
    """One row a step of a metrics.csv, without empty cells; none if there is no file. A torn last line is left out.

    Of rows that stand for one step (validation has one of its own), the later cells count.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().decode().splitlines(keepends=True)
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    steps: dict[str, dict[str, str]] = {}
    for row in rows:
        if None in row or None in row.values():  # torn, and another line after it
            continue
        cells = {name: value for name, value in row.items() if value}
        steps.setdefault(cells.get("step", ""), {}).update(cells)
    return list(steps.values())
