"""demo/index.html: the input, its structure and the edits, side by side, and the cost of the run."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

from gen1_train.data.shards import ShardSet
from gen1_train.reporting.rows import read_metrics
from miniature.results import PLAIN, TITLES, format_mean, read_evaluations
from miniature.world.scene import COLORS

# names of the two models' evaluations
DEMO = "demo"
RELEASED = "released"
MODELS = {DEMO: "the demo's model", RELEASED: "the released model"}
COMPARED = ("hit", "mask_iou", "structure_correlation", "frame_consistency")
CLICK = "this.paused ? this.play() : this.pause()"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --accent: #2a6fdb; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } .quiet { color: var(--quiet); }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; }
.row + .row { margin-top: 1rem; } figure { margin: 0; }
figure video, figure img { width: 100%; aspect-ratio: 7 / 4; object-fit: cover; background: #0002; border-radius: 6px;
  display: block; }
figcaption { font-size: .9rem; padding-top: .3rem; } figcaption b { color: var(--accent); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.wide td, .wide th { text-align: left; } svg { vertical-align: middle; } code { font-size: .9em; }
"""


def write_page(
    path: Path, work: Path, video: Path, timings: dict[str, float], training: str, comparison: Path | None
) -> Path:
    """Writes the page about a work folder, with links to its media, and returns its path.

    `training`: a sentence on how the two models were trained; `comparison`: the folder of their evaluations, if any.
    """
    edits = work / "edits"
    body = [
        "<h1>Gen-1 in miniature</h1>",
        "<p class=quiet>A tiny model, trained for minutes on a CPU: every step is real, and the pictures are rough. "
        "Content comes from a picture, structure from the depth of the input.</p>",
        "<h2>Two models</h2>",
        _row(path, [
            (video, "<b>input</b> video"),
            (edits / "content-a.png", "<b>content A</b>"),
            (edits / "time-1.0.mp4", f"A by <b>{MODELS[DEMO]}</b>"),
            (edits / "released-a.mp4", f"A by <b>{MODELS[RELEASED]}</b>"),
        ]),
        _row(path, [
            (edits / "depth-0.mp4", "the input's <b>structure</b>: estimated depth, near is white"),
            (edits / "content-b.png", "<b>content B</b>"),
            (edits / "structure-0.mp4", f"B by <b>{MODELS[DEMO]}</b>"),
            (edits / "released-b.mp4", f"B by <b>{MODELS[RELEASED]}</b>"),
        ]),
        f"<p>{html.escape(training)}</p>",
        _comparison(comparison) if comparison is not None else "",
        "<p class=quiet>Everything below is about the demo's model.</p>",
        "<h2>Time: content A, &omega;<sub>t</sub></h2>",
        _row(path, [
            (edits / f"time-{value}.mp4", f"<b>&omega;<sub>t</sub> = {value}</b> {note}")
            for value, note in (("0.0", "each frame alone"), ("1.0", "the video model"), ("1.5", "smoother"))
        ]),
        "<h2>Structure: content B, t<sub>s</sub></h2>",
        _row(path, [
            (edits / f"structure-{level}.mp4", f"<b>t<sub>s</sub> = {level}</b> {note}")
            for level, note in ((0, "all of the structure"), (3, ""), (7, "the most freedom"))
        ]),
        _row(path, [
            (edits / f"depth-{level}.mp4", f"the model's structure input at t<sub>s</sub> = {level}")
            for level in (0, 3, 7)
        ]),
        "<h2>The run</h2>",
        _stages(work, timings),
        "<h2>The data</h2>",
        _data(work),
    ]  # fmt: skip
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Gen-1 in miniature</title><style>{STYLE}</style>{''.join(body)}</html>"
    )
    return path


def _row(page: Path, items: list[tuple[Path, str]]) -> str:
    figures = []
    for file, caption in items:
        link = html.escape(os.path.relpath(file, page.parent), quote=True)
        if file.suffix == ".png":
            media = f'<img src="{link}" alt="">'
        else:
            media = (
                f'<video src="{link}" autoplay loop muted playsinline onclick="{CLICK}" title="click to pause"></video>'
            )
        figures.append(f"<figure>{media}<figcaption>{caption}</figcaption></figure>")
    return f"<div class=row>{''.join(figures)}</div>"


def comparison_table(comparison: Path) -> list[list[str]]:
    """The rows of the table that compares the models, headings first: means with their 95 % intervals."""
    evaluations = read_evaluations(comparison)
    rows = [[""] + [TITLES[value] for value in COMPARED]]
    for name, model in MODELS.items():
        rows.append([model, *(format_mean(evaluations[name].mean(PLAIN, value)) for value in COMPARED)])
    return rows


def _comparison(comparison: Path) -> str:
    head, *rows = comparison_table(comparison)
    edits = len(read_evaluations(comparison)[DEMO].rows[PLAIN])
    lines = [f"<tr>{''.join(f'<th>{cell}' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}' for cell in row)}</tr>" for row in rows]
    return (
        f"<table>{''.join(lines)}</table><p class=quiet>Means over {edits} edits of held-out clips, with 95 % "
        f"intervals. Each edit gives one solid another color, which one edit in {len(COLORS)} shows by chance.</p>"
    )


def _stages(work: Path, timings: dict[str, float]) -> str:
    columns = ("step", "steps", "first loss", "last loss", "", "training s", "samples/s", "frames/s", "total s")
    head = f"<tr>{''.join(f'<th>{column}' for column in columns)}</tr>"
    rows = []
    for title, seconds in timings.items():
        metrics = read_metrics(work / "runs" / "demo" / title.replace(" ", "") / "metrics.csv")
        cells = ["", "", "", "", "", "", ""]
        if metrics:
            training = sum(float(row["seconds"]) for row in metrics)
            samples = sum(float(row["samples_per_second"]) * float(row["seconds"]) for row in metrics) / training
            frames = sum(float(row["frames_per_second"]) * float(row["seconds"]) for row in metrics) / training
            losses = [float(row["loss"]) for row in metrics]
            cells = [metrics[-1]["step"], f"{losses[0]:.3f}", f"{losses[-1]:.3f}", _curve(losses)]
            cells += [f"{training:.0f}", f"{samples:.1f}", f"{frames:.1f}"]
        filled = "".join(f"<td>{cell}" for cell in (*cells, f"{seconds:.0f}"))
        rows.append(f"<tr><td>{html.escape(title)}{filled}</tr>")
    total = f"<tr><th>total<th colspan=7><th>{sum(timings.values()):.0f}</tr>"
    return f"<table>{head}{''.join(rows)}{total}</table>"


def _curve(losses: list[float]) -> str:
    """The loss over a stage as a small line."""
    low, high = min(losses), max(losses)
    span = max(high - low, 1e-9)
    points = " ".join(
        f"{120 * i / max(1, len(losses) - 1):.1f},{22 - 20 * (loss - low) / span:.1f}" for i, loss in enumerate(losses)
    )
    return (
        f'<svg width=120 height=24 role=img aria-label="loss from {losses[0]:.3f} to {losses[-1]:.3f}">'
        f'<polyline points="{points}" fill=none stroke="var(--accent)" stroke-width=1.5></svg>'
    )


def _data(work: Path) -> str:
    shards = ShardSet(work / "shards")
    pools = "".join(
        f"<tr><td>{name}<td>{pool.samples}<td>{len(pool.shards)}<td>{sum(s.bytes for s in pool.shards) / 1e6:.1f}</tr>"
        for name, pool in sorted(shards.manifest.pools.items())
    )
    table = f"<table><tr><th>pool<th>samples<th>shards<th>MB</tr>{pools}</table>"
    failures = work / "shards" / "failures.jsonl"
    lines = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    if not lines:
        return table + "<p class=quiet>All files were used.</p>"
    rows = "".join(f"<tr><td>{html.escape(line['file'])}<td>{html.escape(line['reason'])}</tr>" for line in lines)
    return f"{table}<h3>Not used</h3><table class=wide><tr><th>file<th>reason</tr>{rows}</table>"
