"""Edits whose truth is known: `python -m miniature.cases FOLDER [--pairs 64] [--seed 900] [--texture capped]`.

Each case is a held-out scene, one solid of which gets another colour; with --texture it keeps its colour and gets that
texture. For case i there are

FOLDER/clip-0000.mp4     the input: 8 frames, 4 / 24 s of world time apart, as recipe=tiny cuts training clips
FOLDER/prompt-0000.png   a picture of ANOTHER scene with the wanted caption: nothing can be copied by its place
FOLDER/pairs.csv         gen1-eval's list: video, prompt, image; the content is the picture
FOLDER/pairs-text.csv    the same without pictures: the content is the caption, by the prior
FOLDER/cases.json        what rebuilds the truth, see Case
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gen1_train import keyed
from gen1_train.errors import UserError
from gen1_train.files import write_atomically
from gen1_train.video.encode import write_video
from miniature.arguments import Parser
from miniature.render import FRAME_RATE, Clip, render_frame
from miniature.scene import COLOURS, HELD_OUT, Scene, sample_scene, sample_solid
from miniature.solids import PATTERNS
from miniature.world import SEEDS, write_image

FRAMES, STRIDE = 8, 4  # of an input, and world frames from one to the next: those of recipe=tiny
HEIGHT, WIDTH = 256, 448  # of the files, those of World
FIRST_SEED = 900  # worlds that are trained on have lower ones
CASES, PAIRS, TEXT_PAIRS = "cases.json", "pairs.csv", "pairs-text.csv"


@dataclass(frozen=True)
class Case:
    """One edit: solid number `solid` (from 0) of a held-out scene gets `target` for its colour and `texture`."""

    name: str  # of its files: clip-NAME.mp4, prompt-NAME.png
    scene: int  # seed of the held-out scene
    solid: int
    own: str  # the solid's colour in the input
    target: str
    texture: str  # that the solid shall have: its own, but for cases of textures
    own_texture: str
    new_pair: bool  # whether the wanted colour and shape are a pair that training never shows
    picture: int  # seed of the prompt picture's scene

    @property
    def video(self) -> str:
        return f"clip-{self.name}.mp4"

    @property
    def image(self) -> str:
        return f"prompt-{self.name}.png"

    def source(self) -> Scene:
        """The scene of the input."""
        return sample_scene(self.scene, "held_out")

    def dressed(self, colour: str, texture: str) -> Scene:
        """The input's scene with the edited solid in another colour and texture."""
        scene = self.source()
        solids = list(scene.solids)
        solids[self.solid] = replace(solids[self.solid], colour=colour, texture=texture)
        return replace(scene, solids=tuple(solids))

    def wanted(self) -> Scene:
        """The scene that the edit shall show."""
        return self.dressed(self.target, self.texture)

    def prompt_scene(self) -> Scene:
        """Another scene of the same caption: shapes, colours, textures, their order and the ground are as wanted.

        Place, sky, light and camera are those of the first scene from seed `picture` on that has as many solids; their
        size and motion are drawn anew for their shapes.
        """
        wanted, seed = self.wanted(), self.picture
        while len((other := sample_scene(seed)).solids) != len(wanted.solids):
            seed += 1
        rng = np.random.default_rng([self.picture, 2])
        solids = [
            replace(sample_solid(rng, solid.shape, solid.colour, place.anchor), texture=solid.texture)
            for solid, place in zip(wanted.solids, other.solids, strict=True)
        ]
        return replace(other, solids=tuple(solids), ground=wanted.ground)


def draw_case(seed: int, index: int, texture: str | None = None) -> Case:
    """Case `index` of a seed, a function of its arguments.

    The new colour is drawn evenly from those that are not the solid's, another solid's, or the ground's name.
    """
    first = seed * SEEDS + index
    scene = sample_scene(first, "held_out")
    number = keyed.integer(len(scene.solids), seed, "edited solid", index)
    solid = scene.solids[number]
    taken = {scene.ground, *(other.colour for other in scene.solids)}
    allowed = [colour for colour in COLOURS if colour not in taken]
    target = solid.colour if texture else allowed[keyed.integer(len(allowed), seed, "target colour", index)]
    return Case(
        name=f"{index:04d}",
        scene=first,
        solid=number,
        own=solid.colour,
        target=target,
        texture=texture or solid.texture,
        own_texture=solid.texture,
        new_pair=(target, solid.shape) in HELD_OUT,
        picture=first + SEEDS // 2,
    )


def render_case(scene: Scene, height: int, width: int, supersample: int = 1) -> Clip:
    """The 8 frames of an input, or of its truth, at any size."""
    times = [STRIDE * index / FRAME_RATE for index in range(FRAMES)]
    made = [render_frame(scene, time, height, width, supersample) for time in times]
    pixels, depth, solids = (np.stack([getattr(f, name) for f in made]) for name in ("pixels", "depth", "solids"))
    return Clip(pixels, depth, solids, scene.caption)


def write_cases(
    folder: Path,
    pairs: int,
    seed: int = FIRST_SEED,
    texture: str | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> list[Case]:
    """Writes clips, pictures and lists; files of an earlier call are kept if it drew the same cases.

    `size`: width and height of the files. Raises UserError for what cannot be drawn, and for a folder of other cases.
    """
    if pairs < 1:
        raise UserError(f"--pairs {pairs}: give 1 or more")
    if seed < FIRST_SEED:
        raise UserError(f"--seed {seed}: give {FIRST_SEED} or more, the scenes below may have been trained on")
    if texture is not None and texture not in PATTERNS:
        raise UserError(f"--texture {texture}: choose from {', '.join(PATTERNS)}")
    cases = [draw_case(seed, index, texture) for index in range(pairs)]
    described = json.dumps({"size": list(size), "cases": [asdict(case) for case in cases]}, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CASES).is_file() and (folder / CASES).read_bytes() != described:
        raise UserError(f"{folder} holds other cases: give another folder")
    write_atomically(folder / CASES, described)

    def write(case: Case) -> None:
        video, image = folder / case.video, folder / case.image
        if not video.exists():
            write_video(video, render_case(case.source(), size[1], size[0]).frames, FRAME_RATE // STRIDE)
        if not image.exists():
            write_image(image, render_frame(case.prompt_scene(), 0.0, size[1], size[0]).pixels)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(write, cases), "cases", pairs, unit="case", disable=not sys.stderr.isatty()))
    for name, columns in ((PAIRS, ("video", "prompt", "image")), (TEXT_PAIRS, ("video", "prompt"))):
        write_atomically(folder / name, _list(cases, columns))
    return cases


def _list(cases: Sequence[Case], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for case in cases:
        row = {"video": case.video, "prompt": case.wanted().caption, "image": case.image}
        rows.writerow([row[column] for column in columns])
    return text.getvalue().encode()


def read_cases(folder: Path) -> list[Case]:
    """The cases of a folder, in order. Raises UserError if it holds none."""
    path = folder / CASES
    try:
        rows = json.loads(path.read_text())["cases"]
        return [Case(**{field.name: row[field.name] for field in fields(Case)}) for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: write cases by python -m miniature.cases {folder}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): write the cases again, into another folder") from error


def main() -> None:
    parser = Parser(prog="python -m miniature.cases", description="edits whose truth is known")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--texture", help="give the solids this texture, not another colour")
    given = parser.parse_args()
    with parser.mistakes():
        write_cases(given.folder, given.pairs, given.seed, given.texture)


if __name__ == "__main__":
    main()
