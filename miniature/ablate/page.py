"""The page of the ablations: a table of differences to the base, with intervals, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gen1_train.system.files import write_atomically
from miniature.ablate.arms import ARMS, BASE, Arm
from miniature.ablate.lab import STEPS, Row
from miniature.measure import mean_of
from miniature.results import falls, format_mean, rises

TITLES = {  # value -> heading, whether higher is better
    "hit": ("prompted color", True),
    "colour_error": ("color error (Lab)", False),
    "mask_iou": ("mask IoU", True),
    "mask_iou@7": ("mask IoU at t_s = 7", False),  # the dial must be felt
    "structure_correlation": ("depth correlation", True),
    "frame_consistency": ("frame consistency", True),
    "warp_error": ("warp error", False),
}
HEAD = """# What each dial of the method is worth in the miniature world

`python -m miniature.ablate` trains every row with the same steps ({steps}),
with one change at a time, and edits the same cases. Numbers are differences to the base with 95 % intervals
(percentile bootstrap over pairs of equal case and seed); bold ones do not contain 0. One small world is no proof for
another one: the list below says what we expect at full size.

"""


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Writes the page from all rows that there are. Raises OSError."""
    write_atomically(path, "".join(page(rows)).encode())


def page(rows: Sequence[Row]) -> Iterator[str]:
    base = {row.seed: row for row in rows if row.arm == BASE}
    steps = ", ".join(f"stage {stage}: {count}" for stage, count in STEPS.items())
    yield HEAD.format(steps=steps)
    if not base:
        yield "No run is finished yet.\n"
        return
    headings = [f"{title} {'↑' if higher else '↓'}" for title, higher in TITLES.values()]
    lines = [["", "seeds", *headings, "training time"]]
    lines.append(["---"] * len(lines[0]))
    lines.append(["base", str(len(base)), *(format_mean(mean_of(values(base.values(), name))) for name in TITLES), "1"])
    for arm in ARMS:
        own = [row for row in rows if row.arm == arm.name and row.seed in base]
        if own and arm.name != BASE:
            cells = ["—" if name in arm.incomparable else cell(own, base, name) for name in TITLES]
            lines.append([arm.change, str(len(own)), *cells, cost(own, base)])
    yield "".join(f"| {' | '.join(line)} |\n" for line in lines)
    finished = {row.arm for row in rows}
    if missing := [arm.name for arm in ARMS if arm.name not in finished]:
        yield f"\nNot run yet: {', '.join(missing)}.\n"
    yield "\n## What follows\n\n"
    for arm in ARMS:
        own = [row for row in rows if row.arm == arm.name and row.seed in base]
        if own and arm.name != BASE:
            yield f"- **{arm.change}** (`{' '.join(own[0].settings)}`): {verdict(arm, own, base)}\n"


def values(rows: Any, name: str) -> list[float]:
    return [value for row in rows for value in row.values[name]]


def differences(own: Sequence[Row], base: dict[int, Row], name: str) -> dict[str, Any]:
    """Mean and interval of an arm minus the base, paired by seed and case."""
    pairs = [pair for row in own for pair in zip(row.values[name], base[row.seed].values[name], strict=True)]
    return mean_of([after - before for after, before in pairs])


def cell(own: Sequence[Row], base: dict[int, Row], name: str) -> str:
    found = differences(own, base, name)
    text = format_mean(found)
    return f"**{text}**" if rises(found) or falls(found) else text


def cost(own: Sequence[Row], base: dict[int, Row]) -> str:
    """The training time as a share of the base's, where the arm trains as many stages."""
    if any(not row.seconds for row in own) or any(not base[row.seed].seconds for row in own):
        return "—"
    trained = sum(row.seconds for row in own) / sum(base[row.seed].seconds for row in own)
    return f"{trained:.2f}"


def verdict(arm: Arm, own: Sequence[Row], base: dict[int, Row]) -> str:
    better: list[str] = []
    worse: list[str] = []
    for name, (title, higher) in TITLES.items():
        if name in arm.incomparable:
            continue
        found = differences(own, base, name)
        if rises(found) or falls(found):
            (better if rises(found) == higher else worse).append(title)
    parts = [f"better in {', '.join(better)}"] if better else []
    parts += [f"worse in {', '.join(worse)}"] if worse else []
    said = "; ".join(parts) or "no difference is shown"
    return f"{said}. At full size: {arm.full_size or 'not known; the same change has to be measured there'}."
