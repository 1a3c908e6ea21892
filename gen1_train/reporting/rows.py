"""Reads the rows of a metrics.csv without importing Lightning, which takes seconds."""

import csv
from pathlib import Path

from gen1_train.system.files import open_regular


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Returns one row per step, without empty cells; an empty list if there is no file. Drops a truncated last line.

    Rows of the same step are merged (validation logs its own); later cells win.
    """
    try:
        with open_regular(path) as stream:
            lines = stream.read().decode().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    steps: dict[str, dict[str, str]] = {}
    for row in rows:
        if None in row or None in row.values():  # truncated, and followed by another line
            continue
        cells = {name: value for name, value in row.items() if value}
        steps.setdefault(cells.get("step", ""), {}).update(cells)
    return list(steps.values())
