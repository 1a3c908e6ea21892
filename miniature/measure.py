"""Edits against the truth: `python -m miniature.measure EVALUATION CASES`, after gen1-eval with keep_videos=true.

For every edit in EVALUATION/videos:

colour        which named colour the edited solid shows: the mean over its true pixels in all frames, in CIE Lab,
              against what the renderer shows there for each colour of the world, in the same light and texture; the
              nearest. `hit`: it is the wanted one; `own`: it is the input's
colour_error  distance of that mean from the wanted colour's, in Lab (Delta E 1976)
mask_iou      IoU of the true mask of all solids with the mask found in the edit by GrabCut (OpenCV), see `found_mask`;
              mean over frames. What it gives for true frames and for wrong ones is in references.json
texture_share for cases of textures: how much of the wanted one the edited solid shows, see `miniature.texture`; 0 as a
              plain one, 1 as the renderer paints it. `texture_hit`: more than half

EVALUATION/measured.jsonl    a line for each edit: what results.jsonl says of it, and the above
EVALUATION/measured.json     for each setting the means with 95 % intervals (percentile bootstrap over cases)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gen1_train.errors import UserError
from gen1_train.evaluation.methods import Setting
from gen1_train.evaluation.pairs import Pair
from gen1_train.evaluation.results import RESULTS, Unit
from gen1_train.evaluation.summary import interval
from gen1_train.files import write_atomically
from gen1_train.video.decode import VideoError, read_clips
from miniature.arguments import Parser
from miniature.cases import Case, read_cases, render_case
from miniature.scene import COLOURS
from miniature.spread import spread
from miniature.texture import brightness, references, texture_share

MEASURED = "measured"
VALUES = ("hit", "own", "colour_error", "mask_iou", "texture_share", "texture_hit")  # of measure_edit; have a mean
GRABCUT_ROUNDS = 4
LEAST_SHARE = 0.25  # of a solid's pixels that must be left within its border; ours


@dataclass(frozen=True)
class Truth:
    """What the renderer knows of an edit, at the edit's size."""

    solids: np.ndarray  # bool (n, h, w): all solids
    edited: np.ndarray  # bool (n, h, w): the edited solid, without its border where that leaves enough
    colours: dict[str, np.ndarray]  # of each name what the edited solid then shows, Lab (3,)
    texture: tuple[np.ndarray, np.ndarray] | None  # its brightness, plain and textured, where the case is of textures


@lru_cache(maxsize=1)  # the edits of a case come one after another
def truth_of(case: Case, height: int, width: int) -> Truth:
    """Renders the case in every colour, with and without its texture; a pixel is of what its middle ray meets."""
    clip = render_case(case.wanted(), height, width)
    edited = within(clip.solids == case.solid + 1)
    colours = {}
    for name in COLOURS:
        frames = render_case(case.dressed(name, case.texture), height, width, supersample=2).frames
        colours[name] = to_lab(mean_colour(frames, edited))
    texture = references(case, edited) if case.texture != case.own_texture else None
    return Truth(clip.solids > 0, edited, colours, texture)


def within(masks: np.ndarray) -> np.ndarray:
    """Masks (n, h, w) without their border of one pixel, where other colours mix in; as they are if little is left."""
    inner = np.stack([cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) for mask in masks]).astype(bool)
    return inner if inner.sum() >= LEAST_SHARE * masks.sum() else masks


def mean_colour(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3) -> mean RGB (3,) in [0, 1] within the mask (n, h, w)."""
    return frames[mask].mean(0) / 255


def to_lab(colour: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] (..., 3) -> CIE Lab."""
    rows = np.ascontiguousarray(colour.reshape(1, -1, 3), np.float32)
    return cv2.cvtColor(rows, cv2.COLOR_RGB2LAB).reshape(colour.shape)


def found_mask(frames: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The solids as the frames show them: bool (n, h, w), by GrabCut (Rother et al. 2004), each frame alone.

    It starts from the true mask `expected` as a guess, fits colours to inside and outside, cuts where the picture has
    edges, and so on; nothing is held to the guess. Where the solids have moved away it finds them at their new place,
    where there are none it finds little (references.json has the numbers).
    """
    found = []
    for frame, guess in zip(frames, expected, strict=True):
        if guess.all() or not guess.any():  # GrabCut needs both
            found.append(guess)
            continue
        mask = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        cv2.setRNGSeed(0)  # of its k-means
        outside, inside = np.zeros((1, 65)), np.zeros((1, 65))  # filled in by it
        rest = (0, 0, 1, 1), outside, inside  # with a mask the rectangle counts for nothing
        cv2.grabCut(np.ascontiguousarray(frame), mask, *rest, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
        found.append((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
    return np.stack(found)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over frames of the intersection over union of masks (n, h, w); frames without any pixel do not count."""
    inter, union = (first & second).sum((1, 2)), (first | second).sum((1, 2))
    return float((inter[union > 0] / union[union > 0]).mean()) if union.any() else 1.0


def measure_edit(frames: np.ndarray, case: Case) -> dict[str, Any]:
    """An edit's 8 frames, uint8 (8, h, w, 3) -> the values that the module describes."""
    truth = truth_of(case, *frames.shape[1:3])
    shown = to_lab(mean_colour(frames, truth.edited))
    distance = {name: float(np.linalg.norm(shown - colour)) for name, colour in truth.colours.items()}
    colour = min(distance, key=distance.__getitem__)
    texture = texture_share(brightness(frames, truth.edited), *truth.texture) if truth.texture else None
    return {
        "target": case.target,
        "colour": colour,
        "hit": colour == case.target,
        "own": colour == case.own,
        "colour_error": round(distance[case.target], 4),
        "mask_iou": round(mask_iou(found_mask(frames, truth.solids), truth.solids), 6),
        "texture_share": None if texture is None else round(texture, 4),
        "texture_hit": None if texture is None else texture > 0.5,
        "new_pair": case.new_pair,
        "solids": len(case.source().solids),
    }


def measure(evaluation: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measures all edits of an evaluation; writes both files and returns the summary's rows. Raises UserError."""
    known = {case.video: case for case in cases}
    edits: dict[str, list[dict[str, Any]]] = {}  # by case, whose truth is rendered once
    for row in read_rows(evaluation):
        case = known.get(Path(row["video"]).name)
        if case is None or case.wanted().caption != row["prompt"]:
            raise UserError(f"{evaluation}: line {row['line']} ({row['video']}, {row['prompt']!r}) is no case of these")
        edits.setdefault(case.video, []).append(row)
    jobs = [(evaluation, known[video], mine) for video, mine in edits.items()]
    rows = [row for measured in spread(_measure_case, jobs, "cases measured", "case") for row in measured]
    write_atomically(evaluation / f"{MEASURED}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    summary = summarise(rows)
    write_atomically(evaluation / f"{MEASURED}.json", json.dumps(summary, indent=1).encode())
    return summary


def _measure_case(job: tuple[Path, Case, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of one case with what is measured."""
    evaluation, case, rows = job
    return [row | measure_edit(read_edit(evaluation, row), case) for row in rows]


def read_rows(evaluation: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl. Raises UserError."""
    path = evaluation / RESULTS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: call gen1-eval keep_videos=true output={evaluation}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): call gen1-eval step=report again") from error


def setting_of(row: dict[str, Any]) -> Setting:
    """Method and dials of a line of results.jsonl."""
    return Setting(row["method"], row["omega_t"], row["t_s"], row["init_strength"])


def edit_file(evaluation: Path, row: dict[str, Any]) -> Path:
    """The video of a line of results.jsonl."""
    pair = Pair(row["line"], row["video"], row["prompt"])
    return Unit(pair, setting_of(row)).file(evaluation, "videos", ".mp4")


def read_edit(evaluation: Path, row: dict[str, Any]) -> np.ndarray:
    """The frames of an edit, uint8 (n, h, w, 3), as its file holds them. Raises UserError."""
    path = edit_file(evaluation, row)
    if not path.is_file():
        raise UserError(f"{path} is not there: call gen1-eval with keep_videos=true and another output=")
    try:
        ((_, frames),) = read_clips(path, [range(row["frames"])], ("pyav",))
    except VideoError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return frames


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """For each setting, in their order, its dials and of each value mean, interval and number of cases."""
    return [
        asdict(setting) | {"values": {name: mean_of([row[name] for row in mine], seed) for name in VALUES}}
        for setting, mine in by_setting(rows).items()
    ]


def by_setting(rows: Iterable[dict[str, Any]]) -> dict[Setting, list[dict[str, Any]]]:
    """The lines of each setting; their cases come in one order in all of them."""
    groups: dict[Setting, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    return groups


def mean_of(values: Sequence[float | None], seed: int = 0) -> dict[str, Any]:
    """{"mean", "interval", "cases"} of the values that are there, as gen1-eval's summary.json has them."""
    there = [float(value) for value in values if value is not None]
    mean = round(sum(there) / len(there), 6) if there else None
    return {"mean": mean, "interval": interval(there, seed), "cases": len(there)}


def main() -> None:
    parser = Parser(prog="python -m miniature.measure", description="edits against their truth")
    parser.add_argument("evaluation", type=Path, help="output= of gen1-eval with keep_videos=true")
    parser.add_argument("cases", type=Path, help="the folder of its cases")
    given = parser.parse_args()
    with parser.mistakes():
        summary = measure(given.evaluation, read_cases(given.cases))
    for row in summary:
        means = {name: row["values"][name]["mean"] for name in VALUES}
        values = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
        print(f"{setting_of(row).name}: {values}")


if __name__ == "__main__":
    main()
