"""What the measures say of frames whose truth is known: `python -m miniature.references CASES [--cases 64]`.

The rows that every edit is read against, in CASES/references.json. All are of 112x64 and encoded as gen1-eval does it.

wanted         the renderer's own picture of what the edit shall be: what the measures miss by themselves
autoencoder    the same through the miniature's autoencoder alone: no edit can be better
input          the input, unedited
other_scene    the wanted frames of the next case, measured as if they were of this one: structure by chance
grey           frames without anything in them
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.files import write_atomically
from gen1_train.video.decode import read_clips
from gen1_train.video.encode import write_video
from gen1_train.video.geometry import resize_and_crop
from miniature.arguments import Parser
from miniature.cases import FRAMES, HEIGHT, WIDTH, Case, read_cases, render_case
from miniature.measure import VALUES, mean_of, measure_edit
from miniature.scene import Scene
from miniature.spread import spread
from miniature.texture import through_autoencoder

SIZE = (112, 64)  # of recipe=tiny
REFERENCES = "references.json"


def seen(scene: Scene) -> np.ndarray:
    """The frames of a scene as gen1-eval brings them to the model: uint8 (8, 64, 112, 3)."""
    return resize_and_crop(render_case(scene, HEIGHT, WIDTH).frames, *SIZE)


def encoded(frames: np.ndarray) -> np.ndarray:
    """The frames after the encoder that gen1-eval writes its edits by."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.mp4"
        write_video(path, frames, 6)
        ((_, read),) = read_clips(path, [range(FRAMES)], ("pyav",))
    return read


def measure_references(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Name of the row -> value -> {"mean", "interval", "cases"}."""
    jobs = list(zip(cases, [*cases[1:], *cases[:1]], strict=True))
    measured = spread(_measure_case, jobs, "references measured", "case")
    rows = {name: [mine[name] for mine in measured] for name in (measured[0] if measured else ())}
    return {name: {value: mean_of([row[value] for row in mine]) for value in VALUES} for name, mine in rows.items()}


def _measure_case(job: tuple[Case, Case]) -> dict[str, dict[str, Any]]:
    """The values of each row for a case, beside another one."""
    case, other = job
    wanted = seen(case.wanted())
    shown = {
        "wanted": wanted,
        "autoencoder": through_autoencoder(wanted),
        "input": seen(case.source()),
        "other_scene": seen(other.wanted()),
        "grey": np.full_like(wanted, 128),
    }
    return {name: measure_edit(encoded(frames), case) for name, frames in shown.items()}


def main() -> None:
    parser = Parser(prog="python -m miniature.references", description="measures of known frames")
    parser.add_argument("folder", type=Path, help="the folder of the cases")
    parser.add_argument("--cases", type=int, help="the first so many")
    given = parser.parse_args()
    with parser.mistakes():
        found = measure_references(read_cases(given.folder)[: given.cases])
        write_atomically(given.folder / REFERENCES, json.dumps(found, indent=1).encode())
    for name, values in found.items():
        means = {value: measured["mean"] for value, measured in values.items() if measured["mean"] is not None}
        print(f"{name}: " + "  ".join(f"{value} {mean:.3f}" for value, mean in means.items()))


if __name__ == "__main__":
    main()
