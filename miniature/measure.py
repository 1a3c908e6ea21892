"""Edits compared with the truth: `python -m miniature.measure EVALUATION CASES`, after gen1-eval keep_videos=true.

For every edit in EVALUATION/videos, it measures

colour        the named color that the edited solid shows. The mean over the solid's true pixels in all frames is
              compared, in CIE Lab, with what the renderer shows there for each color of the world, in the same light
              and texture; the nearest color counts. `hit`: it is the wanted one; `own`: it is that of the input
colour_error  distance of that mean from the wanted color, in Lab (Delta E 1976)
mask_iou      IoU of the true mask of all solids and the mask that GrabCut (OpenCV) finds in the edit, see
              `grabcut_mask`; mean over frames. references.json has its values for true and for wrong frames
texture       the one of the world, or of the case, whose brightness is nearest to the edited solid's, see
              texture_share.py. `texture_nearest`: it is the wanted one, which the prompt names; chance is 25 %, in rich
              scenes 17 %
texture_share for cases of textures: the share of the wanted texture that the edited solid shows;
              0 if plain, 1 as the renderer paints it. `texture_hit`: more than one half
kept_error    how far what should stay has changed: distance in Lab of the mean color from the true one, mean over the
              other solids and the ground

and writes

EVALUATION/measured.jsonl    a line for each edit: its line of results.jsonl, and the values above
EVALUATION/measured.json     for each setting, the means with 95 % intervals (percentile bootstrap over cases)
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
from gen1_train.system.console import show
from gen1_train.system.files import write_atomically
from gen1_train.video.decode import VideoError, read_clips
from miniature.arguments import Parser
from miniature.cases import Case, read_cases, render_case
from miniature.spread import spread
from miniature.texture_share import brightness, nearest_texture, reference_brightness, texture_share
from miniature.world.render import FAR, supersampling
from miniature.world.scene import COLORS, TEXTURES_OF

MEASURED = "measured"
# the values of `measure_edit` that have a mean
VALUES = (
    "hit",
    "own",
    "colour_error",
    "mask_iou",
    "texture_nearest",
    "texture_share",
    "texture_hit",
    "kept_error",
)
GRABCUT_ROUNDS = 4
LEAST_SHARE = 0.25  # of a solid's pixels that must remain without its border (ours)


@dataclass(frozen=True)
class Truth:
    """The truth about an edit, rendered at the edit's size."""

    solids: np.ndarray  # bool (n, h, w): all solids
    edited: np.ndarray  # bool (n, h, w): the edited solid, without its border if enough remains
    colors: dict[str, np.ndarray]  # for each color name, the color that the edited solid then shows, Lab (3,)
    textures: dict[str, np.ndarray]  # its brightness (p,) in each texture of the world, and in the case's
    kept: list[tuple[np.ndarray, np.ndarray]]  # bool (n, h, w) and Lab (3,) of each other solid and of the ground


@lru_cache(maxsize=1)  # the edits of a case are measured one after another
def truth_of(case: Case, height: int, width: int) -> Truth:
    """Renders the case in every color and every texture. A pixel belongs to what its middle ray meets."""
    clip = render_case(case.wanted(), height, width)
    edited = without_border(clip.solids == case.solid + 1)
    colors = {}
    for name in COLORS:
        frames = render_case(case.repainted(name, case.texture), height, width, supersampling(height)).frames
        colors[name] = to_lab(mean_color(frames, edited))
        if name == case.target:
            wanted = frames
    others = [clip.solids == number + 1 for number in range(len(case.source().solids)) if number != case.solid]
    ground = (clip.solids == 0) & (clip.depth < FAR)
    kept = [(mask, to_lab(mean_color(wanted, mask))) for mask in map(without_border, (*others, ground)) if mask.any()]
    textures = reference_brightness(case, edited, {*TEXTURES_OF[case.style], case.texture})
    return Truth(clip.solids > 0, edited, colors, textures, kept)


def without_border(masks: np.ndarray) -> np.ndarray:
    """Removes the border of masks (n, h, w), where other colors mix in: one pixel, unless too little would remain."""
    inner = np.stack([cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) for mask in masks]).astype(bool)
    return inner if inner.sum() >= LEAST_SHARE * masks.sum() else masks


def mean_color(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 frames (n, h, w, 3), mask (n, h, w) -> mean RGB (3,) in [0, 1] within the mask."""
    return frames[mask].mean(0) / 255


def to_lab(color: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] (..., 3) -> CIE Lab."""
    rows = np.ascontiguousarray(color.reshape(1, -1, 3), np.float32)
    return cv2.cvtColor(rows, cv2.COLOR_RGB2LAB).reshape(color.shape)


def grabcut_mask(frames: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Segments the solids in each frame by GrabCut (Rother et al. 2004): bool (n, h, w).

    GrabCut starts from the true mask `expected` as a guess, and alternately fits colors to the inside and the outside
    and cuts along edges of the picture. No pixel is fixed to the guess: solids that have moved are found at their new
    positions, and where there are none, little is found (references.json has the numbers).
    """
    masks = []
    for frame, guess in zip(frames, expected, strict=True):
        if guess.all() or not guess.any():  # GrabCut needs both
            masks.append(guess)
            continue
        mask = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        cv2.setRNGSeed(0)  # of GrabCut's k-means
        cv2.grabCut(
            img=np.ascontiguousarray(frame),
            mask=mask,
            rect=(0, 0, 1, 1),  # unused with a mask
            bgdModel=np.zeros((1, 65)),  # filled in by GrabCut
            fgdModel=np.zeros((1, 65)),
            iterCount=GRABCUT_ROUNDS,
            mode=cv2.GC_INIT_WITH_MASK,
        )
        masks.append((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
    return np.stack(masks)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over frames of the intersection over union of masks (n, h, w), leaving out frames where both are empty."""
    inter, union = (first & second).sum((1, 2)), (first | second).sum((1, 2))
    return float((inter[union > 0] / union[union > 0]).mean()) if union.any() else 1.0


def measure_edit(frames: np.ndarray, case: Case) -> dict[str, Any]:
    """An edit's 8 frames, uint8 (8, h, w, 3) -> the values listed at the top of this module."""
    truth = truth_of(case, *frames.shape[1:3])
    mean = to_lab(mean_color(frames, truth.edited))
    distance = {name: float(np.linalg.norm(mean - color)) for name, color in truth.colors.items()}
    color = min(distance, key=distance.__getitem__)
    shown = brightness(frames, truth.edited)
    nearest = nearest_texture(shown, truth.textures)
    share = None
    if case.texture != case.own_texture:
        share = texture_share(shown, truth.textures["plain"], truth.textures[case.texture])
    changes = [np.linalg.norm(to_lab(mean_color(frames, mask)) - color) for mask, color in truth.kept]
    return {
        "target": case.target,
        "colour": color,
        "hit": color == case.target,
        "own": color == case.own,
        "colour_error": round(distance[case.target], 4),
        "mask_iou": round(mask_iou(grabcut_mask(frames, truth.solids), truth.solids), 6),
        "texture": nearest,
        "texture_nearest": nearest == case.texture,
        "texture_share": None if share is None else round(share, 4),
        "texture_hit": None if share is None else share > 0.5,
        "kept_error": round(float(np.mean(changes)), 4),
        "new_pair": case.new_pair,
        "solids": len(case.source().solids),
    }


def measure(evaluation: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measures all edits of an evaluation, writes both files, and returns the summary's rows. Raises UserError."""
    by_video = {case.video: case for case in cases}
    edits: dict[str, list[dict[str, Any]]] = {}  # by case, so that its truth is rendered once
    for row in read_rows(evaluation):
        case = by_video.get(Path(row["video"]).name)
        if case is None or case.wanted().caption != row["prompt"]:
            pair = f"{row['video']}, {row['prompt']!r}"
            raise UserError(f"{evaluation}: line {row['line']} ({pair}) is not one of these cases")
        edits.setdefault(case.video, []).append(row)
    jobs = [(evaluation, by_video[video], rows_of_case) for video, rows_of_case in edits.items()]
    rows = [row for measured in spread(_measure_case, jobs, "cases measured", "case") for row in measured]
    write_atomically(evaluation / f"{MEASURED}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    summary = summarize(rows)
    write_atomically(evaluation / f"{MEASURED}.json", json.dumps(summary, indent=1).encode())
    return summary


def _measure_case(job: tuple[Path, Case, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Adds the measured values to the lines of one case."""
    evaluation, case, rows = job
    return [row | measure_edit(read_edit(evaluation, row), case) for row in rows]


def read_rows(evaluation: Path) -> list[dict[str, Any]]:
    """Reads the lines of results.jsonl. Raises UserError."""
    path = evaluation / RESULTS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: call gen1-eval keep_videos=true output={evaluation}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): call gen1-eval step=report again") from error


def setting_of(row: dict[str, Any]) -> Setting:
    """The method and dials of a line of results.jsonl."""
    return Setting(row["method"], row["omega_t"], row["t_s"], row["init_strength"])


def edit_file(evaluation: Path, row: dict[str, Any]) -> Path:
    """The path of the video of a line of results.jsonl."""
    pair = Pair(row["line"], row["video"], row["prompt"])
    return Unit(pair, setting_of(row)).file(evaluation, "videos", ".mp4")


def read_edit(evaluation: Path, row: dict[str, Any]) -> np.ndarray:
    """Reads the frames of an edit from its file, uint8 (n, h, w, 3). Raises UserError."""
    path = edit_file(evaluation, row)
    if not path.is_file():
        raise UserError(f"{path} does not exist: call gen1-eval with keep_videos=true and another output=")
    try:
        ((_, frames),) = read_clips(path, [range(row["frames"])], ("pyav",))
    except VideoError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return frames


def summarize(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns, for each setting in order, its dials and the mean, interval and number of cases of each value."""
    return [
        asdict(setting) | {"values": {name: mean_of([row[name] for row in group], seed) for name in VALUES}}
        for setting, group in by_setting(rows).items()
    ]


def by_setting(rows: Iterable[dict[str, Any]]) -> dict[Setting, list[dict[str, Any]]]:
    """Groups lines by setting; the cases have the same order in every group."""
    groups: dict[Setting, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    return groups


def mean_of(values: Sequence[float | None], seed: int = 0) -> dict[str, Any]:
    """Returns {"mean", "interval", "cases"} of the values that are not None, as in gen1-eval's summary.json."""
    numbers = [float(value) for value in values if value is not None]
    mean = round(sum(numbers) / len(numbers), 6) if numbers else None
    return {"mean": mean, "interval": interval(numbers, seed), "cases": len(numbers)}


def main() -> None:
    parser = Parser(prog="python -m miniature.measure", description="edits compared with the truth")
    parser.add_argument("evaluation", type=Path, help="output= of gen1-eval keep_videos=true")
    parser.add_argument("cases", type=Path, help="the folder of the cases")
    arguments = parser.parse_args()
    with parser.command():
        for row in measure(arguments.evaluation, read_cases(arguments.cases)):
            means = {name: row["values"][name]["mean"] for name in VALUES}
            values = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
            show(f"{setting_of(row).name}: {values}")


if __name__ == "__main__":
    main()
