"""`gen1-train report=RUN`: one HTML page about a run, with the panels of the W&B dashboard, from its metrics.csv.

The page loads nothing but the validation videos that lie in the run folder. It may be made at any time: of a run that
goes on, that has stopped, or that is finished.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
from omegaconf import MISSING

from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.page import (
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
from gen1_train.training.chart import LEFT, WIDTH, Timeline, chart
from gen1_train.training.findings import findings, state
from gen1_train.training.panels import sections_for
from gen1_train.training.report_style import SCRIPT, STYLE
from gen1_train.training.run_log import RunLog, newest_videos, read_run

REPORT = "report.html"


@dataclass
class RunReportConfig:
    report: str = MISSING  # run folder, runs/NAME/stageN, or run tree, runs/NAME
    output: str | None = None  # the page; null: RUN/report.html


def report(config: RunReportConfig) -> None:
    """Writes the page of a run and says where it is. Raises UserError."""
    run = Path(config.report)
    print(write_report(run, Path(config.output) if config.output else run / REPORT))


def write_report(run: Path, output: Path, now: datetime | None = None) -> Path:
    """Writes the page about a run folder or a run tree, and returns its path; `now` tells a running one from a stopped.

    Raises UserError when there is no such run, its metrics.csv is damaged, or the page cannot be written.
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
    """What one asks for first: how far it is, how long it takes, and what is worth a look."""
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
    """The same keys for every run: what is counted -> the value."""
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
    """The median of a column's last ten values."""
    values = log.values(name)[-10:]
    values = values[np.isfinite(values)]
    return number(float(np.median(values))) if len(values) else NOTHING


def charts(logs: Sequence[RunLog]) -> Iterator[Html]:
    """All panels, in their sections."""
    timeline = Timeline(logs)
    starts = timeline.starts
    columns = {name: None for log in logs for name in log.columns}
    where = {"data_end": max(starts[-1], 1), "data_left": LEFT, "data_width": WIDTH}
    stages = " ".join(f"{start}:{log.stage}" for log, start in zip(logs, starts)) if len(logs) > 1 else ""
    made = [
        section(part.title, element("div", *figures, class_="figures"))
        for part in sections_for(columns)
        if (figures := [figure for panel in part.panels if (figure := chart(panel, timeline))])
    ]
    yield element("div", *made, class_="charts", data_stages=stages, **where)


def videos(logs: Sequence[RunLog], output: Path) -> Html | None:
    """The newest validation videos, by links that hold as long as page and run lie as they lie now."""
    found = newest_videos(logs)
    if not found:
        return None
    blocks = []
    for heading, files in found:
        shown = [element("figure", _video(file, output), element("figcaption", file.stem)) for file in files]
        blocks += [element("h3", heading), element("div", *shown, class_="videos")]
    return section("Validation videos", *blocks)


def _video(file: Path, output: Path) -> Html:
    link = quote(os.path.relpath(file.resolve(), output.resolve().parent))
    attributes = {"src": link, "autoplay": "", "controls": "", "loop": "", "muted": "", "playsinline": ""}
    return element("video", **attributes)


def configs(logs: Sequence[RunLog]) -> Iterator[Html]:
    """The resolved config of each stage, folded."""
    shown = [
        element("details", element("summary", f"config.yaml of stage {log.stage}"), element("pre", log.config))
        for log in logs
        if log.config is not None
    ]
    missing = [log.stage for log in logs if log.config is None]
    gap = note(f"No config.yaml in the run folder of stage {', '.join(missing)}.") if missing else None
    rows = sum(len(log.steps) for log in logs)
    drawn = note(f"Drawn from {plural(rows, 'row')} of metrics.csv. docs/metrics.md tells what each column means.")
    yield section("Settings", join(*shown), gap, drawn)
