"""Draws a panel as inline SVG.

The points of a path are the data: x is the step (plus those of earlier stages), y is the value or its logarithm. A
transform of the group maps them to the page. The page's script can therefore read the logged values back, to five
digits, and no number is in the page twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen1_train.html import Html, element
from gen1_train.reporting import curves
from gen1_train.reporting.axes import Scale, label, round_numbers, scale_for
from gen1_train.reporting.panels import Panel, Style
from gen1_train.reporting.run_log import RunLog

# the plot, in units of the view box
LEFT = 42
TOP = 16
WIDTH = 312
HEIGHT = 130
BOX = (LEFT + WIDTH + 6, TOP + HEIGHT + 24)
COLORS = 9  # --c0 to --c8 in the style sheet
FEWEST_TO_SMOOTH = 50  # rows of a stage; shorter lines are not smoothed
MOST_AREAS = 200  # intervals of rows in a stack, each drawn as its mean


@dataclass(frozen=True)
class Part:
    """The values of a column in one stage."""

    x: np.ndarray  # float64 (n,): steps of the finite values
    y: np.ndarray  # float64 (n,): finite values
    not_finite: np.ndarray  # float64 (m,): steps of the other values


@dataclass(frozen=True)
class Timeline:
    """The stages, one after another along the horizontal axis."""

    logs: Sequence[RunLog]

    @property
    def starts(self) -> list[int]:
        """The position of step 0 of each stage, and the end of the last one."""
        return [0, *np.cumsum([log.last_step for log in self.logs]).tolist()]

    def parts(self, name: str) -> list[Part]:
        """Returns the values of a column, for each stage that has it."""
        parts = []
        for log, start in zip(self.logs, self.starts):
            if name in log.columns:
                column = log.columns[name]
                x, finite = column.steps + float(start), np.isfinite(column.values)
                parts.append(Part(x[finite], column.values[finite], x[~finite]))
        return parts

    def shares(self, names: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns steps (n,) and values (n, names) of each stage; missing cells are zero."""
        stages = []
        for log, start in zip(self.logs, self.starts):
            columns = [(i, log.columns[name]) for i, name in enumerate(names) if name in log.columns]
            if not columns:
                continue
            steps = np.unique(np.concatenate([column.steps for _, column in columns]))
            table = np.zeros((len(steps), len(names)))
            for i, column in columns:
                table[np.searchsorted(steps, column.steps), i] = np.nan_to_num(column.values, posinf=0, neginf=0)
            stages.append((steps + float(start), table))
        return stages


def chart(panel: Panel, timeline: Timeline) -> Html | None:
    """Returns the figure of a panel with its legend; None if it has no finite value."""
    names = panel.matching({name for log in timeline.logs for name in log.columns})
    parts = {name: timeline.parts(name) for name in names}
    values = [part.y for name in names for part in parts[name]]
    if not values or not sum(map(len, values)):
        return None
    if panel.style is Style.AREAS:
        scale = Scale(0.0, 1.0, log=False)
        drawn = areas(names, timeline)
    else:
        scale = scale_for(np.concatenate(values), panel.log)
        kind = kind_of(panel, max(map(len, values)))
        drawn = [path for i, name in enumerate(names) for path in lines(i, parts[name], kind, scale)]
    not_finite = np.concatenate([part.not_finite for name in names for part in parts[name]])
    last = {name: next((part.y[-1] for part in reversed(parts[name]) if len(part.y)), None) for name in names}
    end = max(timeline.starts[-1], 1)
    ratio, rise = WIDTH / end, HEIGHT / (scale.high - scale.low)
    matrix = f"matrix({ratio:.8g} 0 0 {-rise:.8g} {LEFT} {TOP + HEIGHT + scale.low * rise:.8g})"
    svg = element(
        "svg",
        *frame(timeline, scale),
        element("g", *drawn, transform=matrix),
        marks(not_finite, ratio),
        element("line", x1=LEFT, x2=LEFT, y1=TOP, y2=TOP + HEIGHT, class_="cursor"),
        element("text", x=LEFT + WIDTH, y=TOP - 5, text_anchor="end", class_="place"),
        viewBox=f"0 0 {BOX[0]} {BOX[1]}",
        role="img",
        aria_label=f"{panel.title}: {', '.join(names)}",
        data_log=int(scale.log),
        data_stack=int(panel.style is Style.AREAS),
    )
    unit = element("span", f" {panel.unit}", class_="unit") if panel.unit else None
    heading = element("figcaption", element("b", panel.title), unit, element("span", panel.about, class_="about"))
    return element("figure", heading, svg, legend(names, last), class_="chart")


def kind_of(panel: Panel, rows: int) -> str:
    """Returns how the values are drawn: as "dots", as a "line", or "raw", thin below a smoothed line."""
    if panel.style is Style.POINTS:
        return "dots"
    return "raw" if panel.style is Style.LINES and rows >= FEWEST_TO_SMOOTH else "line"


def lines(number: int, parts: Sequence[Part], kind: str, scale: Scale) -> list[Html]:
    """Draws the values of a column, and a smoothed line if they are "raw", see kind_of."""
    count = sum(len(part.y) for part in parts)
    raw: list[str] = []
    smoothed: list[str] = []
    for part in parts:
        if not len(part.y):
            continue
        y, share = scale.to_axis(part.y), len(part.y) / count
        kept = curves.thin(y, max(4, int(curves.MOST_POINTS * share)))
        raw.append(points(part.x[kept], y[kept], dots=kind == "dots" or len(kept) == 1))
        if kind == "raw":
            kept = curves.evenly(len(y), max(2, int(curves.SMOOTH_POINTS * share)))
            smoothed.append(points(part.x[kept], curves.smooth(y)[kept]))
    paths = [path(raw, kind, number)]
    if kind == "raw":
        paths.append(path(smoothed, "line", number))
    return paths


def areas(names: Sequence[str], timeline: Timeline) -> list[Html]:
    """Draws the columns stacked: the sum of all first, which the others then cover."""
    stages = timeline.shares(names)
    outlines: list[list[str]] = [[] for _ in names]
    for x, table in stages:
        most = max(2, MOST_AREAS * len(x) // sum(len(steps) for steps, _ in stages))
        x = curves.means(x, most).round()
        upper = np.cumsum(curves.means(table, most), axis=1)
        for i, outline in enumerate(outlines):
            outline.append(points(x, upper[:, i]) + f"V0H{x[0]:.0f}Z")
    return [path(outlines[i], "area", i) for i in reversed(range(len(names)))]


def path(data: Sequence[str], kind: str, column: int) -> Html:
    """Returns a line or area in the color of a column, by its number."""
    return element("path", d="".join(data), class_=kind, style=color_of(column), data_column=column)


def color_of(column: int) -> str:
    return f"--c:var(--c{column % COLORS})"


def points(x: np.ndarray, y: np.ndarray, dots: bool = False) -> str:
    """Returns the data of a path; a dot is a line of zero length."""
    if dots:
        return "".join(f"M{a:.0f} {b:.5g}h0" for a, b in zip(x, y))
    return "M" + " ".join(f"{a:.0f} {b:.5g}" for a, b in zip(x, y))


def frame(timeline: Timeline, scale: Scale) -> list[Html]:
    """Draws the grid, the numbers at the axes, and the start of each stage."""
    elements: list[Html] = []
    floor = TOP + HEIGHT
    for value, text in scale.ticks():
        y = floor - (value - scale.low) / (scale.high - scale.low) * HEIGHT
        elements.append(element("line", x1=LEFT, x2=LEFT + WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        elements.append(element("text", text, x=LEFT - 5, y=f"{y + 4:.1f}", text_anchor="end"))
    starts = timeline.starts
    free = 0.0  # where the next label may start
    end = max(starts[-1], 1)
    for log, start, until in zip(timeline.logs, starts, starts[1:]):
        x = LEFT + start / end * WIDTH
        if len(timeline.logs) > 1:
            elements.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 10, y2=floor, class_="stage"))
            space = (until - start) / end * WIDTH
            title = f"stage {log.stage}" if space > 48 else log.stage if space > 8 * len(log.stage) else None
            elements.append(element("text", title, x=f"{x + 4:.1f}", y=TOP - 5, class_="title"))
        for step in round_numbers(0, end, 5 if len(timeline.logs) == 1 else 8):
            x = LEFT + (start + step) / end * WIDTH
            if start + step <= until and x >= free and (step or not start):
                anchor = "end" if x > LEFT + WIDTH - 12 else "middle"
                elements.append(element("text", label(step), x=f"{x:.1f}", y=floor + 16, text_anchor=anchor))
                free = x + 34
    return elements


def marks(steps: np.ndarray, ratio: float) -> Html | None:
    """Draws a mark at the upper edge for each step at which a value was not finite."""
    positions = np.unique((LEFT + steps * ratio).round())
    data = "".join(f"M{x:.0f} {TOP}v7" for x in positions)
    return element("path", d=data, class_="lost") if len(positions) else None


def legend(names: Sequence[str], last: dict[str, float | None]) -> Html:
    """Lists the columns with their last values, which the page's script replaces by those under the pointer."""
    entries = []
    for i, name in enumerate(names):
        value = last[name]
        text = element("b", "—" if value is None else label(value))
        entries.append(element("span", element("i", style=color_of(i)), f"{name} ", text))
    return element("div", *entries, class_="legend")
