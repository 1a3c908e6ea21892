"""The results page: `python -m miniature.results EXPERIMENT DOCS`, after `python -m miniature.experiment`.

It reads the following, and leaves out of the page what is missing:

EXPERIMENT/cases/, texture-cases/      the cases, with references.json (python -m miniature.references)
EXPERIMENT/evaluation/NAME/            gen1-eval's folders with measured.jsonl (python -m miniature.measure); NAME is
    time                               stage 5 over omega_t, and per frame; content from a picture
    structure                          stage 5 over t_s
    text                               content from text, through the prior
    stage3, stage4, no-images          earlier stages, and stage 4 without images in training
    texture-before, texture-after      before and after customization on an unseen texture

It writes DOCS/results.md, DOCS/results.jpg and DOCS/customization.jpg (edits of some cases), and DOCS/results/ (the
trade-off plots). All figures and verdicts are computed. A verdict is based on means or, if two means are compared, on
the 95 % interval of their paired difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import GEN1, PER_FRAME, Setting
from gen1_train.evaluation.plots import draw_plots
from gen1_train.system.console import show
from gen1_train.system.files import write_atomically
from miniature.arguments import Parser
from miniature.experiment import EVALUATIONS
from miniature.measure import MEASURED, by_setting, mean_of
from miniature.references import REFERENCES
from miniature.strip import CONTENT, TEXTURE, write_strip

RELEASED_RUN = "miniature/stage5"  # of the experiment: the package has its weights
PLAIN = Setting(GEN1, 1.0, 0)
# the thresholds of the claims (ours)
BY_IMAGE = 0.8
BY_TEXT = 0.7
KEPT = 0.8
TITLES = {
    "hit": "prompted color ↑",
    "own": "input's own color ↓",
    "colour_error": "color error (Lab) ↓",
    "mask_iou": "mask IoU ↑",
    "structure_correlation": "depth correlation ↑",
    "frame_consistency": "frame consistency ↑",
    "prompt_consistency": "prompt consistency ↑",
    "warp_error": "warp error ↓",
    "texture_share": "share of the unseen texture ↑",
    "texture_hit": "edits above one half ↑",
}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its edits by setting, and gen1-eval's record of how they were made."""

    name: str
    folder: Path
    plan: dict[str, Any]
    rows: dict[Setting, list[dict[str, Any]]]

    def mean(self, setting: Setting, value: str) -> dict[str, Any] | None:
        """Mean, interval and number of cases of a value; None if the setting was not evaluated."""
        return mean_of([row[value] for row in self.rows[setting]]) if setting in self.rows else None


def read_evaluations(folder: Path) -> dict[str, Evaluated]:
    """Reads the evaluations that have been measured, by name. Raises UserError if there is none."""
    evaluations = {}
    for path in sorted((folder / "evaluation").glob(f"*/{MEASURED}.jsonl")):
        evaluation = path.parent
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            plan = json.loads((evaluation / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{evaluation} cannot be read ({error}): evaluate and measure it again") from error
        evaluations[evaluation.name] = Evaluated(evaluation.name, evaluation, plan, by_setting(rows))
    if not evaluations:
        raise UserError(f"{folder} has no evaluation/NAME/{MEASURED}.jsonl: call python -m miniature.experiment first")
    return evaluations


def difference(
    first: Evaluated, first_setting: Setting, second: Evaluated, second_setting: Setting, value: str
) -> dict[str, Any] | None:
    """Mean and interval of second minus first, paired by case; None if one of them is missing."""
    if first_setting not in first.rows or second_setting not in second.rows:
        return None
    before = {row["line"]: row[value] for row in first.rows[first_setting]}
    after = {row["line"]: row[value] for row in second.rows[second_setting]}
    lines = [line for line in before if after.get(line) is not None and before[line] is not None]
    return mean_of([after[line] - before[line] for line in lines])


def format_mean(measured: dict[str, Any] | None) -> str:
    """Formats a mean and its interval as 0.812 [0.703, 0.906]; an em dash if there is none."""
    if measured is None or measured["mean"] is None:
        return "—"
    interval = "" if measured["interval"] is None else " [{:.3f}, {:.3f}]".format(*measured["interval"])
    return f"{measured['mean']:.3f}{interval}"


def verdict(claim: str, holds: bool, *figures: str) -> str:
    return f"- {'**Holds**' if holds else '**Does not hold**'}: {claim} ({'; '.join(figures)}).\n"


def rises(measured: dict[str, Any] | None) -> bool:
    """Whether the whole interval of a difference is above zero."""
    return bool(measured and measured["interval"] and measured["interval"][0] > 0)


def falls(measured: dict[str, Any] | None) -> bool:
    """Whether the whole interval of a difference is below zero."""
    return bool(measured and measured["interval"] and measured["interval"][1] < 0)


def table(heading: str, rows: Sequence[tuple[str, Evaluated, Setting]], values: Sequence[str]) -> str:
    """A Markdown table with a row for each setting that was evaluated, followed by the commands that produce it."""
    lines = [[heading, "edits", *(TITLES[value] for value in values)]]
    lines.append(["---"] * len(lines[0]))
    for title, evaluated, setting in rows:
        if setting in evaluated.rows:
            edits = str(len(evaluated.rows[setting]))
            lines.append([title, edits, *(format_mean(evaluated.mean(setting, value)) for value in values)])
    commands = dict.fromkeys(command(evaluated) for _, evaluated, setting in rows if setting in evaluated.rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n```\n" + "\n".join(commands) + "\n```\n\n"


def command(evaluated: Evaluated) -> str:
    """The command that produces the edits of an evaluation, to be pasted into a shell in the repository's folder."""
    settings = evaluated.plan["settings"]
    kept = ("methods", "omega_t", "t_s", "omega", "steps", "solver")
    dials = " ".join(f"{name}={json.dumps(settings[name], separators=(',', ':'))}".replace('"', "") for name in kept)
    # brackets are patterns of file names to a shell
    dials = " ".join(f"'{dial}'" if "[" in dial else dial for dial in dials.split())
    made = EVALUATIONS.get(evaluated.name)
    source = ""
    if made is not None:
        run = "miniature" if made.run == RELEASED_RUN else f"experiment/runs/{made.run}"
        source = f"checkpoint={run} data=experiment/{made.cases}/{made.pairs} "
    return f"gen1-eval {source}output=evaluation/{evaluated.name} {dials} keep_videos=true"


def content_section(evaluations: dict[str, Evaluated]) -> Iterator[str]:
    """Section 1."""
    rows = [("image prompt", "time", BY_IMAGE), ("text, through the prior", "text", BY_TEXT)]
    available = [(title, evaluations[name], PLAIN) for title, name, _ in rows if name in evaluations]
    if not available:
        return
    yield "## 1. Content follows the prompt\n\n"
    yield table("content", available, ("hit", "own", "colour_error", "prompt_consistency"))
    for title, name, bound in rows:
        measured = evaluations[name].mean(PLAIN, "hit") if name in evaluations else None
        if measured:
            claim = f"{title}: the edited solid shows the prompted color in at least {bound:.0%} of the edits"
            yield verdict(claim, measured["mean"] >= bound, format_mean(measured))
            edits = evaluations[name].rows[PLAIN]
            parts = {
                "One solid": [row for row in edits if row["solids"] == 1],
                "Two solids, one of which is edited": [row for row in edits if row["solids"] == 2],
                "Color-shape pairs that training never shows": [row for row in edits if row["new_pair"]],
            }
            for part, subset in parts.items():
                yield f"- {part}: {format_mean(mean_of([row['hit'] for row in subset]))}, {len(subset)} edits.\n"


def structure_section(evaluations: dict[str, Evaluated]) -> Iterator[str]:
    """Section 2."""
    if "structure" not in evaluations:
        return
    evaluated = evaluations["structure"]
    levels = sorted((s for s in evaluated.rows if s.method == GEN1), key=lambda setting: setting.t_s or 0)
    yield "\n## 2. Structure is kept\n\n"
    yield table("t_s", [(f"{s.t_s}", evaluated, s) for s in levels], ("mask_iou", "structure_correlation", "hit"))
    for value in ("mask_iou", "structure_correlation"):
        measured = evaluated.mean(levels[0], value)
        assert measured is not None
        name = TITLES[value].removesuffix(" ↑")
        holds = measured["mean"] is not None and measured["mean"] >= KEPT
        yield verdict(f"{name} is at least {KEPT} at t_s = {levels[0].t_s}", holds, format_mean(measured))
        steps = [difference(evaluated, one, evaluated, two, value) for one, two in pairwise(levels)]
        whole = difference(evaluated, levels[0], evaluated, levels[-1], value)
        falling = falls(whole) and not any(rises(step) for step in steps)
        figures = [f"{two.t_s}: {format_mean(step)}" for (_, two), step in zip(pairwise(levels), steps)]
        yield verdict(
            f"{name} falls as t_s rises, and no step rises beyond its error", falling, "steps to " + ", ".join(figures)
        )


def time_section(evaluations: dict[str, Evaluated]) -> Iterator[str]:
    """Section 3."""
    if "time" not in evaluations:
        return
    evaluated = evaluations["time"]
    dials = sorted((s for s in evaluated.rows if s.method == GEN1), key=lambda setting: setting.omega_t or 0)
    per_frame = Setting(PER_FRAME, t_s=0)
    yield "\n## 3. Consistency over time\n\n"
    rows = [(f"omega_t = {s.omega_t:g}", evaluated, s) for s in dials] + [("per frame", evaluated, per_frame)]
    yield table("", rows, ("frame_consistency", "warp_error", "hit", "mask_iou"))
    steps = [difference(evaluated, one, evaluated, two, "frame_consistency") for one, two in pairwise(dials)]
    figures = [f"to {two.omega_t:g}: {format_mean(step)}" for (_, two), step in zip(pairwise(dials), steps)]
    if steps:
        yield verdict("frame consistency rises with omega_t", all(map(rises, steps)), *figures)
    beaten = difference(evaluated, per_frame, evaluated, PLAIN, "frame_consistency")
    if beaten:
        claim = "frame consistency at omega_t = 1 is above that of per-frame editing"
        yield verdict(claim, rises(beaten), f"difference {format_mean(beaten)}")


def stages_section(evaluations: dict[str, Evaluated]) -> Iterator[str]:
    """Section 4. The per-frame rows are there because images in training help most where temporal layers are off."""
    rows = [("stage 3", "stage3"), ("stage 4", "stage4"), ("stage 5", "time"), ("stage 4, no images", "no-images")]
    available = [(title, evaluations[name], PLAIN) for title, name in rows if name in evaluations]
    if len(available) < 2 or "time" not in evaluations:
        return
    per_frame = Setting(PER_FRAME, t_s=0)
    available += [
        (f"{title}, per frame", evaluations[name], per_frame)
        for title, name in rows
        if name in evaluations and per_frame in evaluations[name].rows
    ]
    yield "\n## 4. Stages, and joint training on images\n\n"
    yield table(
        "model", available, ("hit", "mask_iou", "structure_correlation", "frame_consistency", "prompt_consistency")
    )
    for later, earlier, setting in (
        ("time", "stage3", PLAIN),
        ("time", "stage4", PLAIN),
        ("stage4", "no-images", PLAIN),
        ("stage4", "no-images", per_frame),
    ):
        for value in ("hit", "structure_correlation"):
            if later in evaluations and earlier in evaluations:
                yield from _gain(evaluations, {name: title for title, name in rows}, later, earlier, setting, value)


def _gain(
    evaluations: dict[str, Evaluated], titles: dict[str, str], later: str, earlier: str, setting: Setting, value: str
) -> Iterator[str]:
    """The verdict on whether a value is higher in one evaluation than in another."""
    gained = difference(evaluations[earlier], setting, evaluations[later], setting, value)
    if gained:
        how = ", per frame" if setting.method == PER_FRAME else ""
        claim = f"{TITLES[value].removesuffix(' ↑')} of {titles[later]}{how} is above that of {titles[earlier]}{how}"
        yield verdict(claim, rises(gained), f"difference {format_mean(gained)}")


def customization_section(evaluations: dict[str, Evaluated]) -> Iterator[str]:
    """Section 5."""
    names = ("texture-before", "texture-after")
    if not all(name in evaluations for name in names):
        return
    before, after = (evaluations[name] for name in names)
    yield "\n## 5. Customization\n\n"
    yield "Customization is on pictures of a texture that training never shows. "
    yield "Share: 0 is no texture, 1 is the texture as rendered.\n\n"
    yield "![input, prompt, truth, and edits](customization.jpg)\n\n"
    rows = [("before", before, PLAIN), ("after", after, PLAIN)]
    yield table("fine-tuning", rows, ("texture_share", "texture_hit", "hit", "mask_iou", "frame_consistency"))
    gained = difference(before, PLAIN, after, PLAIN, "texture_share")
    yield verdict("fine-tuning adds the unseen texture", rises(gained), f"share gained {format_mean(gained)}")
    reached = after.mean(PLAIN, "texture_hit")
    if reached and reached["mean"] is not None:
        claim = "after fine-tuning, most edits are closer to the unseen texture than to none"
        yield verdict(claim, reached["mean"] > 0.5, format_mean(reached))


def references_section(folder: Path) -> Iterator[str]:
    """The measures of frames whose truth is known."""
    for name in ("cases", "texture-cases"):
        path = folder / name / REFERENCES
        if not path.is_file():
            continue
        rows = json.loads(path.read_text())
        values = [value for value in TITLES if any(row.get(value, {}).get("mean") is not None for row in rows.values())]
        yield f"\n## Measures of known frames ({name})\n\n"
        yield f"| frames | cases | {' | '.join(TITLES[value] for value in values)} |\n"
        yield f"|{' --- |' * (len(values) + 2)}\n"
        for title, row in rows.items():
            cells = [format_mean(row[value]) for value in values]
            yield f"| {title.replace('_', ' ')} | {row[values[0]]['cases']} | {' | '.join(cells)} |\n"
        measured = max(row[values[0]]["cases"] for row in rows.values())
        yield f"\n```\npython -m miniature.references experiment/{name} --cases {measured}\n```\n"


PREFACE = """# Results in the miniature world

`python -m miniature.experiment` produces everything on this page, and `python -m miniature.results EXPERIMENT docs`
writes the page from its numbers. Values are means over held-out cases with 95 % intervals (percentile bootstrap over
cases). The numbers alone decide whether a claim holds. `miniature/measure.py` documents how color, masks and texture
are measured in an edit.

The commands can be pasted into a shell in the folder of the repository, after these two, which write the cases:

```
python -m miniature.cases experiment/cases --pairs 64
python -m miniature.cases experiment/texture-cases --pairs 64 --texture capped
```

Those with `checkpoint=miniature` need nothing else: the released model is that of stage 5. The others need the runs
that `python -m miniature.experiment` makes. `python -m miniature.measure evaluation/NAME experiment/cases` (or
`experiment/texture-cases`) then measures colors, masks and textures in the edits.

![input, prompt, truth, and edits](results.jpg)

"""


def page(folder: Path, evaluations: dict[str, Evaluated]) -> str:
    """The text of DOCS/results.md."""
    sections = [
        *content_section(evaluations),
        *structure_section(evaluations),
        *time_section(evaluations),
        *stages_section(evaluations),
        *customization_section(evaluations),
    ]
    plots = [f"![trade-off](results/{name}.png)\n" for name in ("frame_consistency", "structure", "flicker")]
    return PREFACE + "".join([*sections, "\n## Trade-offs\n\n", *plots, *references_section(folder)])


def write_results(experiment: Path, docs: Path) -> None:
    """Writes the page, its plots and its pictures. Raises UserError if nothing has been measured."""
    evaluations = read_evaluations(experiment)
    docs.mkdir(parents=True, exist_ok=True)
    summary: dict[Setting, dict[str, Any]] = {}
    for name in ("structure", "time"):  # where both have a setting, the latter counts
        for row in evaluations[name].plan["summary"] if name in evaluations else ():
            summary[Setting(row["method"], row["omega_t"], row["t_s"], row["init_strength"])] = row
    draw_plots(list(summary.values()), {"omega_t": 1.0, "t_s": 0}, docs / "results")
    folders = {name: item.folder for name, item in evaluations.items()}
    write_strip(docs / "results.jpg", experiment / "cases", folders, CONTENT)
    if {name for _, name, _ in TEXTURE} <= set(evaluations):
        write_strip(docs / "customization.jpg", experiment / "texture-cases", folders, TEXTURE)
    write_atomically(docs / "results.md", page(experiment, evaluations).encode())


def main() -> None:
    parser = Parser(prog="python -m miniature.results", description="the results page of an experiment")
    parser.add_argument("experiment", type=Path, help="output of python -m miniature.experiment")
    parser.add_argument("docs", type=Path, help="the folder of the page")
    arguments = parser.parse_args()
    with parser.command():
        write_results(arguments.experiment, arguments.docs)
        show(f"miniature.results: {arguments.docs / 'results.md'}")


if __name__ == "__main__":
    main()
