"""The page of an evaluation, OUTPUT/index.html: the plots, the table, and the edits if they were kept."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen1_train import html
from gen1_train.evaluation.methods import Setting
from gen1_train.evaluation.metrics import METRICS
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.plots import PLOTS
from gen1_train.evaluation.results import Unit
from gen1_train.evaluation.summary import cells, headings
from gen1_train.html import Html, Number, element

MAX_PAIRS = 12  # whose edits are on the page

STYLE = """
main { max-width: 84rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.2rem; }
.plots img { width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; }
.metrics td, .metrics th { font-size: .86rem; padding-right: .7rem; }
.metrics th.number { white-space: normal; vertical-align: bottom; }
.metrics td:nth-child(5), .metrics th:nth-child(5) { padding-left: 1.2rem; }
.metrics td span { display: block; color: var(--quiet); font-size: .8rem; }
.edits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.2rem; }
.edits img, .edits video { width: 100%; height: auto; display: block; background: var(--soft); }
.edits details video { max-width: 22rem; }
.edits summary { font-size: .87rem; margin: .2rem 0; }
"""


def render(
    output: Path,
    facts: dict[str, str],
    summary: Sequence[dict[str, Any]],
    pairs: Sequence[Pair],
    settings: Sequence[Setting],
    kept: bool,
) -> bytes:
    """Returns the page's bytes. It embeds plots and strips, and links to the videos in the folder."""
    about = [f"{metric.title}: {metric.about}" for metric in METRICS.values()]
    more = None
    if kept and len(pairs) > MAX_PAIRS:
        more = html.note(f"The first {MAX_PAIRS} of {len(pairs)} pairs; all are in videos/.")
    return html.page(
        "gen1-eval",
        element("h1", "Evaluation"),
        html.tiles(facts),
        html.section("Trade-offs", element("div", *(plot(output, name.name) for name in PLOTS), class_="plots")),
        html.note(
            "Means over all pairs. Thin lines, and brackets in the table, are 95 % bootstrap intervals over the pairs. "
            "Labels are values of the dial that the legend names."
        ),
        html.section("All settings", table(summary), html.note("; ".join(about), ".")),
        *(edits(output, pair, settings) for pair in pairs[: MAX_PAIRS if kept else 0]),
        more,
        style=STYLE,
        videos=kept,
    )


def table(summary: Sequence[dict[str, Any]]) -> Html:
    """Returns the table, with each interval below its mean."""
    rows = []
    for row in summary:
        method, *values = cells(row)
        rows.append([method, *(_two_lines(value) for value in values)])
    return element("div", html.table(headings(), rows), class_="metrics")


def _two_lines(value: str) -> Html | Number:
    mean, _, interval = value.partition(" ")
    return Number(mean) if not interval else html.join(mean, element("span", interval))


def plot(output: Path, name: str) -> Html:
    data = (output / "plots" / f"{name}.svg").read_bytes()
    title = name.replace("_", " ")
    return element(
        "figure",
        element("img", src=f"data:image/svg+xml;base64,{b64encode(data).decode()}", alt=title),
        element("figcaption", f"plots/{name}.svg, plots/{name}.png"),
    )


def edits(output: Path, pair: Pair, settings: Sequence[Setting]) -> Html:
    """Returns the strips of a pair, the input first, each with a video that can be opened."""
    figures = []
    for setting in settings:
        unit = Unit(pair, setting)
        strip = unit.file(output, "strips", ".jpg")
        video = unit.file(output, "videos", ".mp4")
        data = b64encode(strip.read_bytes()).decode()
        dials = ", ".join(f"{name} = {value:g}" for name, value in setting.dials.items())
        caption = html.join(element("b", setting.method), f" {dials}")
        source = video.relative_to(output).as_posix()
        figures.append(
            element(
                "figure",
                element("img", src=f"data:image/jpeg;base64,{data}", alt=f"{setting.method} {dials}"),
                element(
                    "details",
                    element("summary", caption),
                    element("video", src=source, controls="", loop="", muted="", preload="none"),
                ),
            )
        )
    title = f"“{html.shorten(pair.prompt)}”"
    return html.section(title, html.note(f"line {pair.line}: {pair.video}"), element("div", *figures, class_="edits"))
