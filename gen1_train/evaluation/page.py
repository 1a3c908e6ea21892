"""OUTPUT/index.html: the plots, the table, and the edits if they were kept."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen1_train import page
from gen1_train.evaluation.methods import Setting
from gen1_train.evaluation.metrics import METRICS
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.plots import PLOTS
from gen1_train.evaluation.results import Unit
from gen1_train.evaluation.summary import cells, headings
from gen1_train.page import Html, Number, element

SHOWN = 12  # pairs whose edits are on the page; the others' files are named

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
    """The page's bytes; it holds the plots and strips of the folder, and links to the videos beside it."""
    about = [f"{metric.title}: {metric.about}" for metric in METRICS.values()]
    left_out = None
    if kept and len(pairs) > SHOWN:
        left_out = page.note(f"The first {SHOWN} of {len(pairs)} pairs; all are in videos/.")
    return page.page(
        "gen1-eval",
        element("h1", "Evaluation"),
        page.tiles(facts),
        page.section("Trade-offs", element("div", *(plot(output, name.name) for name in PLOTS), class_="plots")),
        page.note(
            "Means over all pairs; thin lines, and brackets in the table, are 95 % bootstrap intervals over the pairs. "
            "Labels are the values of the dial that the legend names."
        ),
        page.section("All settings", table(summary), page.note("; ".join(about), ".")),
        *(edits(output, pair, settings) for pair in pairs[: SHOWN if kept else 0]),
        left_out,
        style=STYLE,
        videos=kept,
    )


def table(summary: Sequence[dict[str, Any]]) -> Html:
    """Its intervals stand below the means."""
    rows = []
    for row in summary:
        method, *values = cells(row)
        rows.append([method, *(_two_lines(value) for value in values)])
    return element("div", page.table(headings(), rows), class_="metrics")


def _two_lines(value: str) -> Html | Number:
    mean, _, interval = value.partition(" ")
    return Number(mean) if not interval else page.join(mean, element("span", interval))


def plot(output: Path, name: str) -> Html:
    data = (output / "plots" / f"{name}.svg").read_bytes()
    title = name.replace("_", " ")
    return element(
        "figure",
        element("img", src=f"data:image/svg+xml;base64,{b64encode(data).decode()}", alt=title),
        element("figcaption", f"plots/{name}.svg, plots/{name}.png"),
    )


def edits(output: Path, pair: Pair, settings: Sequence[Setting]) -> Html:
    """The strips of a pair, the input first, each with its video to open."""
    figures = []
    for setting in settings:
        unit = Unit(pair, setting)
        strip, video = unit.file(output, "strips", ".jpg"), unit.file(output, "videos", ".mp4")
        data = b64encode(strip.read_bytes()).decode()
        dials = ", ".join(f"{name} = {value:g}" for name, value in setting.dials.items())
        caption = page.join(element("b", setting.method), f" {dials}")
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
    title = f"“{page.shorten(pair.prompt)}”"
    return page.section(title, page.note(f"line {pair.line}: {pair.video}"), element("div", *figures, class_="edits"))
