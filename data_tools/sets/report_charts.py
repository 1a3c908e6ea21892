"""The charts of the report, as inline SVG."""

import math
from collections.abc import Sequence

from gen1_train.html import Html, element, short


def histogram(title: str, unit: str, counts: Sequence[int], ticks: Sequence[tuple[float, str]]) -> Html:
    """Returns a figure with a bar for each count, as inline SVG. Ticks are at positions in bins: 1.0 ends bin 0."""
    left, top = 36, 12  # of the plot, in units of the view box
    width, height = 310, 130
    bin_width = width / len(counts)
    highest = _round_up(max(counts, default=0))
    shapes: list[Html] = []
    for value in (0, highest // 2, highest) if highest > 1 else (0, highest):
        y = top + height * (1 - value / highest)
        shapes.append(element("line", x1=left, x2=left + width, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        shapes.append(element("text", short(value), x=left - 5, y=f"{y + 4:.1f}", text_anchor="end"))
    for i, count in enumerate(counts):
        size = max(height * count / highest, 1.5) if count else 0
        bar_left, bar_top = left + i * bin_width + 1, top + height - size
        box = {"x": f"{bar_left:.1f}", "y": f"{bar_top:.1f}", "width": f"{bin_width - 2:.1f}"}
        shapes.append(element("rect", **box, height=f"{size:.1f}", class_="column"))
    for position, label in ticks:
        x = f"{left + position * bin_width:.1f}"
        shapes.append(element("text", label, x=x, y=top + height + 17, text_anchor="middle"))
    shapes.append(element("text", unit, x=left + width / 2, y=top + height + 37, text_anchor="middle", class_="unit"))
    label = f"{title}: {', '.join(str(count) for count in counts)}"
    svg = element("svg", *shapes, viewBox="0 0 360 184", role="img", aria_label=label)
    return element("figure", element("figcaption", title), svg)


def _round_up(count: int) -> int:
    """Returns the next of 1, 2, 4, 6, 8, 10, 20, 40, ...: the end of an axis with a whole number in its middle."""
    power = 10 ** max(0, math.ceil(math.log10(count)) - 1) if count > 1 else 1
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= count)
