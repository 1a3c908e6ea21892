"""Means over the pairs with 95 % confidence intervals, and the table of them."""

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
    """Returns the percentile bootstrap interval of the mean of one value per pair; None for a single value.

    The same pairs are drawn for every method and metric, so that curves vary together. (torchmetrics' BootStrapper
    draws from the global generator, and copies its metric for every resampling.)
    """
    if len(values) < 2:
        return None
    drawn = torch.randint(len(values), (RESAMPLINGS, len(values)), generator=keyed.generator(seed, "bootstrap"))
    means = torch.tensor(values, dtype=torch.float64)[drawn].mean(1)
    low, high = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return round(low, 6), round(high, 6)


def summarize(rows: Sequence[dict[str, Any]], settings: Sequence[Setting], seed: int) -> list[dict[str, Any]]:
    """Returns each setting's dials, and for each metric the mean, its interval and the number of pairs with a value."""
    summary = []
    for setting in settings:
        dials = asdict(setting)
        own = [row for row in rows if all(row[name] == value for name, value in dials.items())]
        measured: dict[str, Any] = {}
        for name in METRICS:
            values = [row[name] for row in own if row[name] is not None]
            mean = round(sum(values) / len(values), 6) if values else None
            measured[name] = {"mean": mean, "interval": interval(values, seed), "pairs": len(values)}
        frames = sum(row["frames"] for row in own)
        seconds = round(sum(row["seconds"] for row in own) / frames, 4)
        summary.append({**dials, "metrics": measured, "pairs": len(own), "seconds_per_frame": seconds})
    return summary


def cells(row: dict[str, Any]) -> list[str]:
    """Returns a row of the table as text, in the order of `headings`."""
    dials = [row[name] for name in ("omega_t", "t_s", "init_strength")]
    seconds = "" if row["method"] == INPUT else f"{row['seconds_per_frame']:.3g}"
    texts = ["" if dial is None else f"{dial:g}" for dial in dials]
    return [row["method"], *texts, *(format_mean(row["metrics"][name]) for name in METRICS), seconds]


def headings() -> list[str]:
    arrows = [f"{metric.title} {'↑' if metric.higher_is_better else '↓'}" for metric in METRICS.values()]
    return ["method", "omega_t", "t_s", "init_strength", *arrows, "s/frame"]


def format_mean(measured: dict[str, Any]) -> str:
    """Formats a mean with its interval: 0.9648 [0.9601, 0.9690]."""
    if measured["mean"] is None:
        return "—"
    interval_text = "" if measured["interval"] is None else " [{:.4f}, {:.4f}]".format(*measured["interval"])
    return f"{measured['mean']:.4f}{interval_text}"


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    """Returns the table in Markdown, with aligned columns for reading in a terminal."""
    lines = [headings(), *(cells(row) for row in summary)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |\n" for line in lines)
