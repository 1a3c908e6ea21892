"""`gen1-train report=RUN`: an HTML page about a run, with the panels of the W&B dashboard, from its metrics.csv.

The page loads nothing except the validation videos in the run folder. It can be written at any time, for a run that is
training, stopped or finished.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
from omegaconf import MISSING

from gen1_train.errors import UserError
from gen1_train.html import (
    NOTHING,
    Html,
    duration,
    element,
    join,
    note,
    number,
    page,
    plural,
    section,
    table,
    tiles,
    warning,
)
from gen1_train.reporting.chart import LEFT, WIDTH, Timeline, chart
from gen1_train.reporting.findings import findings, state
from gen1_train.reporting.panels import sections_for
from gen1_train.reporting.run_log import RunLog, newest_videos, read_run
from gen1_train.reporting.style import SCRIPT, STYLE
from gen1_train.system.console import ConsoleConfig, show
from gen1_train.system.files import check_new, write_atomically

REPORT = "report.html"


@dataclass
class RunReportConfig:
    report: str = MISSING  # run folder (runs/NAME/stageN) or run tree (runs/NAME)
    output: str | None = None  # file of the page; null: RUN/report.html
    overwrite: bool = False  # replace an output= that exists already; RUN/report.html always is
    log: ConsoleConfig = field(default_factory=ConsoleConfig)  # lines on the terminal

    def destinations(self) -> list[tuple[str, Path]]:
        """The page and the setting that names it."""
        return [("output", Path(self.output) if self.output else Path(self.report) / REPORT)]


def report(config: RunReportConfig) -> None:
    """Writes the page of a run and prints its path. Raises UserError."""
    run = Path(config.report)
    if config.output is not None:
        if not config.output.endswith(".html"):  # as a file of the run, which overwrite=true would replace
            raise UserError(f"output={config.output} must end with .html")
        check_new("output", Path(config.output), config.overwrite)
    show(str(write_report(run, Path(config.output) if config.output else run / REPORT)))


def write_report(run: Path, output: Path, now: datetime | None = None) -> Path:
    """Writes the page about a run folder or a run tree, and returns its path. `now`: to decide whether it is running.

    Raises UserError if the run does not exist, its metrics.csv is damaged, or the page cannot be written.
    """
    logs = read_run(run)
    now = now or datetime.now(UTC)
    name = logs[0].name if len(logs) > 1 else f"{logs[0].name} · stage {logs[0].stage}"
    parts = [*header(name, logs, now), videos(logs, output), *charts(logs), *configs(logs)]
    content = page(f"{name} · gen1-train", *parts, style=STYLE, script=SCRIPT, videos=True)
    try:
        write_atomically(output, content)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}): give another output=") from error
    return output


def header(name: str, logs: Sequence[RunLog], now: datetime) -> Iterator[Html]:
    """Yields the overview: progress, time, and findings."""
    yield element("h1", name)
    last = max(log.changed for log in logs)
    yield note(f"{logs[0].folder if len(logs) == 1 else logs[0].folder.parent} · last row {last:%Y-%m-%d %H:%M} UTC")
    if len(logs) == 1:
        yield tiles(facts(logs[0], now))
    else:
        headings = ("stage", *facts(logs[0], now))
        yield table(headings, [[f"stage {log.stage}", *facts(log, now).values()] for log in logs])
    for log in logs:
        lines = [element("span", line) for line in findings(log)]
        if lines:
            yield warning(element("b", f"Stage {log.stage}") if len(logs) > 1 else None, *lines)


def facts(log: RunLog, now: datetime) -> dict[str, str]:
    """Returns title -> value, with the same titles for every run."""
    planned = f" of {log.planned:,}" if log.planned is not None else ""
    seconds = log.values("seconds")
    return {
        "state": state(log, now),
        "step": f"{log.last_step:,}{planned}",
        "last checkpoint": f"{log.checkpoint:,}" if log.checkpoint is not None else "none",
        "time so far": duration(float(np.nansum(seconds))) if len(seconds) else NOTHING,
        "loss": _last(log, "loss"),
        "validation loss": _last(log, "val_loss_ema" if "val_loss_ema" in log.columns else "val_loss"),
        "samples/s": _last(log, "samples_per_second"),
    }


def _last(log: RunLog, name: str) -> str:
    """Formats the median of a column's last ten values."""
    values = log.values(name)[-10:]
    values = values[np.isfinite(values)]
    return number(float(np.median(values))) if len(values) else NOTHING


def charts(logs: Sequence[RunLog]) -> Iterator[Html]:
    """Yields all panels, in their sections."""
    timeline = Timeline(logs)
    starts = timeline.starts
    columns = {name: None for log in logs for name in log.columns}
    scale = {"data_end": max(starts[-1], 1), "data_left": LEFT, "data_width": WIDTH}
    stages = " ".join(f"{start}:{log.stage}" for log, start in zip(logs, starts)) if len(logs) > 1 else ""
    sections = [
        section(part.title, element("div", *figures, class_="figures"))
        for part in sections_for(columns)
        if (figures := [figure for panel in part.panels if (figure := chart(panel, timeline))])
    ]
    yield element("div", *sections, class_="charts", data_stages=stages, **scale)


def videos(logs: Sequence[RunLog], output: Path) -> Html | None:
    """Returns the newest validation videos, as relative links from the page to the run folder."""
    steps = newest_videos(logs)
    if not steps:
        return None
    blocks = []
    for heading, files in steps:
        figures = [element("figure", _video(file, output), element("figcaption", file.stem)) for file in files]
        blocks += [element("h3", heading), element("div", *figures, class_="videos")]
    return section("Validation videos", *blocks)


def _video(file: Path, output: Path) -> Html:
    link = quote(os.path.relpath(file.resolve(), output.resolve().parent))
    attributes = {"src": link, "autoplay": "", "controls": "", "loop": "", "muted": "", "playsinline": ""}
    return element("video", **attributes)


def configs(logs: Sequence[RunLog]) -> Iterator[Html]:
    """Yields the resolved config of each stage, collapsed."""
    details = [
        element("details", element("summary", f"config.yaml of stage {log.stage}"), element("pre", log.config))
        for log in logs
        if log.config is not None
    ]
    missing = [log.stage for log in logs if log.config is None]
    missing_note = note(f"No config.yaml in the run folder of stage {', '.join(missing)}.") if missing else None
    rows = sum(len(log.steps) for log in logs)
    drawn = note(f"Drawn from {plural(rows, 'row')} of metrics.csv. docs/metrics.md documents the columns.")
    yield section("Settings", join(*details), missing_note, drawn)
