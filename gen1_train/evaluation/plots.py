"""The paper's trade-off plots, as SVG and PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no window system, no state
from matplotlib.patheffects import withStroke

from gen1_train.evaluation.methods import GEN1, INPUT, PER_FRAME, SDEDIT
from gen1_train.evaluation.metrics import METRICS
from gen1_train.system.files import own_folder, write_atomically

SIGNS = {"omega_t": "$\\omega_t$", "t_s": "$t_s$", "init_strength": "strength"}
STYLES = {  # colors that color-blind readers can distinguish, and markers for print
    GEN1: ("#1f5fa8", "o", "Gen-1"),
    PER_FRAME: ("#c8641b", "s", "per frame"),
    SDEDIT: ("#2f8a57", "^", "SDEdit, per frame"),
    INPUT: ("#6b7077", "*", "input"),
}


@dataclass(frozen=True)
class Plot:
    """A plot of one metric against prompt consistency. `dials`: method -> the dial that its curve sweeps."""

    name: str
    metric: str
    dials: dict[str, str]
    title: str


PLOTS = (
    Plot(
        "frame_consistency",
        "frame_consistency",
        {GEN1: "omega_t", PER_FRAME: "t_s", SDEDIT: "init_strength"},
        "Consistency over time: $\\omega_t$",
    ),
    Plot(
        "structure",
        "structure_correlation",
        {GEN1: "t_s", PER_FRAME: "t_s", SDEDIT: "init_strength"},
        "Structure kept: $t_s$",
    ),
    Plot(
        "flicker",
        "warp_error",
        {GEN1: "omega_t", PER_FRAME: "t_s", SDEDIT: "init_strength"},
        "Flicker: $\\omega_t$",
    ),
)


def draw_plots(summary: Sequence[dict[str, Any]], fixed: dict[str, float], folder: Path) -> None:
    """Writes each of PLOTS as NAME.svg and NAME.png. `fixed`: the value of each Gen-1 dial while the other varies."""
    own_folder(folder.parent, folder.name)
    for plot in PLOTS:
        figure = draw(plot, summary, fixed)
        for suffix in ("svg", "png"):
            file = io.BytesIO()
            # without a date and random ids, so that the same results give the same bytes
            with matplotlib.rc_context({"svg.hashsalt": plot.name}):
                figure.savefig(file, format=suffix, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
            write_atomically(folder / f"{plot.name}.{suffix}", file.getvalue())


def draw(plot: Plot, summary: Sequence[dict[str, Any]], fixed: dict[str, float]) -> Figure:
    """Draws one plot: a curve for each method, with the dial's value at each point."""
    figure = Figure(figsize=(5.4, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plot.title, loc="left", fontsize=12, pad=10)
    for method in STYLES:
        curve = [row for row in summary if row["method"] == method and on_curve(row, plot, fixed)]
        draw_curve(axes, plot, method, sorted(curve, key=lambda row: row[plot.dials.get(method, "method")]))
    up = METRICS[plot.metric].higher_is_better
    axes.set_xlabel("prompt consistency (CLIP cosine)  →  better")
    axes.set_ylabel(f"{METRICS[plot.metric].title}  {'→' if up else '←'}  better")
    axes.margins(0.12)
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, color="#9aa0a8")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def on_curve(row: dict[str, Any], plot: Plot, fixed: dict[str, float]) -> bool:
    """Whether a setting is a point of its method's curve: the dial that is not swept has its fixed value."""
    measured = row["metrics"]
    if measured[plot.metric]["mean"] is None or measured["prompt_consistency"]["mean"] is None:
        return False
    swept = plot.dials.get(row["method"])
    return row["method"] != GEN1 or all(row[dial] == value for dial, value in fixed.items() if dial != swept)


def draw_curve(axes: Axes, plot: Plot, method: str, rows: Sequence[dict[str, Any]]) -> None:
    """Draws points with their intervals, a line through them, and the dial's value next to each."""
    if not rows:
        return
    color, marker, title = STYLES[method]
    dial = plot.dials.get(method)
    legend = title if dial is None else f"{title}, {SIGNS[dial]}"
    x, y = ([row["metrics"][name] for row in rows] for name in ("prompt_consistency", plot.metric))
    x_means, y_means = ([value["mean"] for value in values] for values in (x, y))
    axes.errorbar(
        x_means,
        y_means,
        xerr=bars(x),
        yerr=bars(y),
        color=color,
        marker=marker,
        markersize=11 if method == INPUT else 5.5,
        linestyle="none" if method == INPUT else "-",
        linewidth=1.6,
        elinewidth=0.7,
        ecolor=(color, 0.35),
        label=legend,
    )
    for row, point in zip(rows, zip(x_means, y_means)):
        if dial is not None:
            offset = (6, 5) if method == GEN1 else (6, -11)
            label = axes.annotate(f"{row[dial]:g}", point, offset, textcoords="offset points", fontsize=9, color=color)
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # readable over curves


def bars(values: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Returns the lengths of the error bars below and above the means."""
    around = [(value["mean"], *(value["interval"] or (value["mean"], value["mean"]))) for value in values]
    return [[max(0.0, mean - low) for mean, low, _ in around], [max(0.0, high - mean) for mean, _, high in around]]
