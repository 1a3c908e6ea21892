"""Means over the pairs with 95 % confidence intervals, and the table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from gen1_train import keyed
from gen1_train.evaluation.methods import INPUT, Setting
from gen1_train.evaluation.metrics import METRICS

RESAMPLINGS = 2000  # of the bootstrap; ours
LEVEL = 0.95


def interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    """The percentile bootstrap's interval of the mean of one value a pair; None for a single one.

    Drawn by key: the same pairs are drawn for every method and metric, so curves move together. (torchmetrics'
    BootStrapper draws from the global generator, and copies its metric for every resampling.)
    """
    if len(values) < 2:
        return None
    drawn = torch.randint(len(values), (RESAMPLINGS, len(values)), generator=keyed.generator(seed, "bootstrap"))
    means = torch.tensor(values, dtype=torch.float64)[drawn].mean(1)
    low, high = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return round(low, 6), round(high, 6)


def summarise(rows: Sequence[dict[str, Any]], settings: Sequence[Setting], seed: int) -> list[dict[str, Any]]:
    """For each setting its dials, and of each metric mean, interval and number of the pairs that have a value."""
    summary = []
    for setting in settings:
        dials = asdict(setting)
        mine = [row for row in rows if all(row[name] == value for name, value in dials.items())]
        measured: dict[str, Any] = {}
        for name in METRICS:
            values = [row[name] for row in mine if row[name] is not None]
            mean = round(sum(values) / len(values), 6) if values else None
            measured[name] = {"mean": mean, "interval": interval(values, seed), "pairs": len(values)}
        frames = sum(row["frames"] for row in mine)
        seconds = round(sum(row["seconds"] for row in mine) / frames, 4)
        summary.append({**dials, "metrics": measured, "pairs": len(mine), "seconds_per_frame": seconds})
    return summary


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text; below each other they stand under `headings()`."""
    dials = [row[name] for name in ("omega_t", "t_s", "init_strength")]
    seconds = "" if row["method"] == INPUT else f"{row['seconds_per_frame']:.3g}"
    texts = ["" if dial is None else f"{dial:g}" for dial in dials]
    return [row["method"], *texts, *(shown(row["metrics"][name]) for name in METRICS), seconds]


def headings() -> list[str]:
    arrows = [f"{metric.title} {'↑' if metric.higher_is_better else '↓'}" for metric in METRICS.values()]
    return ["method", "omega_t", "t_s", "init_strength", *arrows, "s/frame"]


def shown(measured: dict[str, Any]) -> str:
    """0.9648 [0.9601, 0.9690]."""
    if measured["mean"] is None:
        return "—"
    around = "" if measured["interval"] is None else " [{:.4f}, {:.4f}]".format(*measured["interval"])
    return f"{measured['mean']:.4f}{around}"


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, its columns aligned so that it reads in a terminal too."""
    lines = [headings(), *(cells(row) for row in summary)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |\n" for line in lines)
