"""Measures of frames whose truth is known: `python -m miniature.references CASES [--cases 64]`.

Writes CASES/references.json, the rows that every edit is compared with. All frames are 112x64 and encoded as gen1-eval
encodes its edits.

wanted         the renderer's own picture of the wanted edit: the error of the measures themselves
autoencoder    the same after the miniature's autoencoder: the best that an edit can reach
input          the input, unedited
other_scene    the wanted frames of the next case, measured as if they belonged to this one: structure by chance
grey           frames without any content
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.system.console import show
from gen1_train.system.files import write_atomically
from gen1_train.video.decode import read_clips
from gen1_train.video.encode import write_video
from gen1_train.video.geometry import resize_and_crop
from miniature.arguments import Parser
from miniature.cases import FRAMES, HEIGHT, WIDTH, Case, read_cases, render_case
from miniature.measure import VALUES, mean_of, measure_edit
from miniature.spread import spread
from miniature.texture_share import through_autoencoder
from miniature.world.scene import Scene

SIZE = (112, 64)  # of recipe=tiny
REFERENCES = "references.json"


def model_input(scene: Scene) -> np.ndarray:
    """The frames of a scene as gen1-eval feeds them to the model: uint8 (8, 64, 112, 3)."""
    return resize_and_crop(render_case(scene, HEIGHT, WIDTH).frames, *SIZE)


def through_video(frames: np.ndarray) -> np.ndarray:
    """The frames after gen1-eval's video encoder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.mp4"
        write_video(path, frames, 6)
        ((_, decoded),) = read_clips(path, [range(FRAMES)], ("pyav",))
    return decoded


def measure_references(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Name of the row -> value -> {"mean", "interval", "cases"}."""
    jobs = list(zip(cases, [*cases[1:], *cases[:1]], strict=True))
    measured = spread(_measure_case, jobs, "references measured", "case")
    rows = {name: [values[name] for values in measured] for name in (measured[0] if measured else ())}
    return {name: {value: mean_of([row[value] for row in each]) for value in VALUES} for name, each in rows.items()}


def _measure_case(job: tuple[Case, Case]) -> dict[str, dict[str, Any]]:
    """The values of each row for the first case of the job; the second one gives `other_scene`."""
    case, other = job
    wanted = model_input(case.wanted())
    frames = {
        "wanted": wanted,
        "autoencoder": through_autoencoder(wanted, case.style),
        "input": model_input(case.source()),
        "other_scene": model_input(other.wanted()),
        "grey": np.full_like(wanted, 128),
    }
    return {name: measure_edit(through_video(each), case) for name, each in frames.items()}


def main() -> None:
    parser = Parser(prog="python -m miniature.references", description="measures of known frames")
    parser.add_argument("folder", type=Path, help="the folder of the cases")
    parser.add_argument("--cases", type=int, help="measure only the first N cases")
    arguments = parser.parse_args()
    with parser.command():
        rows = measure_references(read_cases(arguments.folder)[: arguments.cases])
        write_atomically(arguments.folder / REFERENCES, json.dumps(rows, indent=1).encode())
        for name, values in rows.items():
            means = {value: measured["mean"] for value, measured in values.items() if measured["mean"] is not None}
            show(f"{name}: " + "  ".join(f"{value} {mean:.3f}" for value, mean in means.items()))


if __name__ == "__main__":
    main()
