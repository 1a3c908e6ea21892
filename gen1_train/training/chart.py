"""A panel as inline SVG.

The points of a path are the data: x is the step (after those of the stages before), y is the value or its logarithm; a
transform of the group lays them on the page. So what the page's script reads back under the pointer is what was logged,
to five digits, and no number is in the page twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen1_train.page import Html, element
from gen1_train.training import curves
from gen1_train.training.axes import Scale, label, round_numbers, scale_for
from gen1_train.training.panels import Panel, Style
from gen1_train.training.run_log import RunLog

LEFT, TOP, WIDTH, HEIGHT = 42, 16, 312, 130  # of the plot, in units of the view box
BOX = (LEFT + WIDTH + 6, TOP + HEIGHT + 24)
COLOURS = 9  # --c0 .. in the style sheet
FEWEST_TO_SMOOTH = 50  # rows of a stage
MOST_AREAS = 200  # stretches of rows in a stack, each drawn by its means


@dataclass(frozen=True)
class Part:
    """What one stage has of a column: finite values, and the steps at which they were not."""

    x: np.ndarray  # float64 (n,)
    y: np.ndarray
    lost: np.ndarray  # float64 (m,)


@dataclass(frozen=True)
class Timeline:
    """The stages one after the other along the horizontal axis."""

    logs: Sequence[RunLog]

    @property
    def starts(self) -> list[int]:
        """Where step 0 of each stage lies; one more: the end."""
        return [0, *np.cumsum([log.last_step for log in self.logs]).tolist()]

    def parts(self, name: str) -> list[Part]:
        """Of each stage that has the column."""
        found = []
        for log, start in zip(self.logs, self.starts):
            if name in log.columns:
                column = log.columns[name]
                x, finite = column.steps + float(start), np.isfinite(column.values)
                found.append(Part(x[finite], column.values[finite], x[~finite]))
        return found

    def shares(self, names: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each stage steps (n,) and values (n, names): a cell that is not there is zero."""
        found = []
        for log, start in zip(self.logs, self.starts):
            columns = [(i, log.columns[name]) for i, name in enumerate(names) if name in log.columns]
            if not columns:
                continue
            steps = np.unique(np.concatenate([column.steps for _, column in columns]))
            table = np.zeros((len(steps), len(names)))
            for i, column in columns:
                table[np.searchsorted(steps, column.steps), i] = np.nan_to_num(column.values, posinf=0, neginf=0)
            found.append((steps + float(start), table))
        return found


def chart(panel: Panel, timeline: Timeline) -> Html | None:
    """The panel's figure with its legend; None if there is no finite value in it."""
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
    lost = np.concatenate([part.lost for name in names for part in parts[name]])
    last = {name: next((part.y[-1] for part in reversed(parts[name]) if len(part.y)), None) for name in names}
    end = max(timeline.starts[-1], 1)
    ratio, rise = WIDTH / end, HEIGHT / (scale.high - scale.low)
    matrix = f"matrix({ratio:.8g} 0 0 {-rise:.8g} {LEFT} {TOP + HEIGHT + scale.low * rise:.8g})"
    svg = element(
        "svg",
        *frame(timeline, scale),
        element("g", *drawn, transform=matrix),
        marks(lost, ratio),
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
    """How the values are drawn: as "dots", as a "line", or "raw", thin below a smoothed line."""
    if panel.style is Style.POINTS:
        return "dots"
    return "raw" if panel.style is Style.LINES and rows >= FEWEST_TO_SMOOTH else "line"


def lines(number: int, parts: Sequence[Part], kind: str, scale: Scale) -> list[Html]:
    """A column's values, and the smoothed ones where they are raw; see kind_of."""
    count = sum(len(part.y) for part in parts)
    raw, smoothed = [], []
    for part in parts:
        if not len(part.y):
            continue
        y, share = scale.place(part.y), len(part.y) / count
        kept = curves.thin(y, max(4, int(curves.MOST_POINTS * share)))
        raw.append(points(part.x[kept], y[kept], dots=kind == "dots" or len(kept) == 1))
        if kind == "raw":
            kept = curves.evenly(len(y), max(2, int(curves.SMOOTH_POINTS * share)))
            smoothed.append(points(part.x[kept], curves.smooth(y)[kept]))
    made = [path(raw, kind, number)]
    if kind == "raw":
        made.append(path(smoothed, "line", number))
    return made


def areas(names: Sequence[str], timeline: Timeline) -> list[Html]:
    """The columns on top of each other: the sum of all first, which the others then cover."""
    found = timeline.shares(names)
    outlines: list[list[str]] = [[] for _ in names]
    for x, table in found:
        most = max(2, MOST_AREAS * len(x) // sum(len(steps) for steps, _ in found))
        x, upper = curves.means(x, most).round(), np.cumsum(curves.means(table, most), axis=1)
        for i, outline in enumerate(outlines):
            outline.append(points(x, upper[:, i]) + f"V0H{x[0]:.0f}Z")
    return [path(outlines[i], "area", i) for i in reversed(range(len(names)))]


def path(data: Sequence[str], kind: str, column: int) -> Html:
    """A line or area of the column of that number, in its colour."""
    return element("path", d="".join(data), class_=kind, style=colour_of(column), data_column=column)


def colour_of(column: int) -> str:
    return f"--c:var(--c{column % COLOURS})"


def points(x: np.ndarray, y: np.ndarray, dots: bool = False) -> str:
    """The data of a path; a dot is a line without length."""
    if dots:
        return "".join(f"M{a:.0f} {b:.5g}h0" for a, b in zip(x, y))
    return "M" + " ".join(f"{a:.0f} {b:.5g}" for a, b in zip(x, y))


def frame(timeline: Timeline, scale: Scale) -> list[Html]:
    """Grid, numbers beside the axes, and where a stage begins."""
    made, floor = [], TOP + HEIGHT
    for value, shown in scale.ticks():
        y = floor - (value - scale.low) / (scale.high - scale.low) * HEIGHT
        made.append(element("line", x1=LEFT, x2=LEFT + WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        made.append(element("text", shown, x=LEFT - 5, y=f"{y + 4:.1f}", text_anchor="end"))
    starts, free = timeline.starts, 0.0
    end = max(starts[-1], 1)
    for log, start, until in zip(timeline.logs, starts, starts[1:]):
        x = LEFT + start / end * WIDTH
        if len(timeline.logs) > 1:
            made.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 10, y2=floor, class_="stage"))
            room = (until - start) / end * WIDTH
            title = f"stage {log.stage}" if room > 48 else log.stage if room > 8 * len(log.stage) else None
            made.append(element("text", title, x=f"{x + 4:.1f}", y=TOP - 5, class_="title"))
        for step in round_numbers(0, end, 5 if len(timeline.logs) == 1 else 8):
            x = LEFT + (start + step) / end * WIDTH
            if start + step <= until and x >= free and (step or not start):
                anchor = "end" if x > LEFT + WIDTH - 12 else "middle"
                made.append(element("text", label(step), x=f"{x:.1f}", y=floor + 16, text_anchor=anchor))
                free = x + 34
    return made


def marks(lost: np.ndarray, ratio: float) -> Html | None:
    """A sign at the upper edge for each place at which a value was not finite."""
    places = np.unique((LEFT + lost * ratio).round())
    return element("path", d="".join(f"M{x:.0f} {TOP}v7" for x in places), class_="lost") if len(places) else None


def legend(names: Sequence[str], last: dict[str, float | None]) -> Html:
    """The columns with their last values, which the page's script replaces by those under the pointer."""
    entries = []
    for i, name in enumerate(names):
        value = last[name]
        shown = element("b", "—" if value is None else label(value))
        entries.append(element("span", element("i", style=colour_of(i)), f"{name} ", shown))
    return element("div", *entries, class_="legend")
