"""Edits whose truth is known: `python -m miniature.cases FOLDER [--pairs 64] [--texture capped] [--style rich]`.

In each case, one solid of a held-out scene gets another color. With --texture it keeps its color and gets that texture.
The files are

FOLDER/clip-0000.mp4     the input: 8 frames, 4 / 24 s of world time apart, as recipe=tiny cuts training clips
FOLDER/prompt-0000.png   a picture of ANOTHER scene with the wanted caption, so that no pixel can be copied
FOLDER/pairs.csv         gen1-eval's list: video, prompt, image; the content comes from the picture
FOLDER/pairs-text.csv    the same without pictures; the content comes from the caption, through the prior
FOLDER/cases.json        the data that the truth is rebuilt from, see `Case`
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train import keyed
from gen1_train.errors import UserError
from gen1_train.system.console import progress
from gen1_train.system.files import write_atomically
from gen1_train.video.encode import write_video
from miniature.arguments import Parser
from miniature.world.render import FRAME_RATE, Clip, render_frame, render_scene
from miniature.world.scene import COLORS, HELD_OUT, PLAIN, STYLES, Scene, sample_scene, sample_solid
from miniature.world.solids import PATTERNS
from miniature.world.world import SCENES_PER_SEED, write_image

FRAMES = 8  # of an input, as in recipe=tiny
STRIDE = 4  # world frames from one frame of an input to the next, as in recipe=tiny
HEIGHT, WIDTH = 256, 448  # of the files, as in World
FIRST_SEED = 900  # the worlds used for training have lower seeds
CASES = "cases.json"
PAIRS = "pairs.csv"
TEXT_PAIRS = "pairs-text.csv"


@dataclass(frozen=True)
class Case:
    """One edit: solid number `solid` (from 0) of a held-out scene gets the color `target` and the texture `texture`."""

    name: str  # of the files: clip-NAME.mp4, prompt-NAME.png
    scene: int  # seed of the held-out scene
    solid: int
    own: str  # the solid's color in the input
    target: str
    texture: str  # the wanted texture: the solid's own, except with --texture
    own_texture: str  # the solid's texture in the input
    new_pair: bool  # the wanted color and shape are a pair that training never shows
    picture: int  # seed of the prompt picture's scene
    style: str = PLAIN  # of both scenes

    def record(self) -> dict[str, Any]:
        """What is stored. Plain is left out, as in older files."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("style", PLAIN)}

    @property
    def video(self) -> str:
        return f"clip-{self.name}.mp4"

    @property
    def image(self) -> str:
        return f"prompt-{self.name}.png"

    def source(self) -> Scene:
        """The scene of the input."""
        return sample_scene(self.scene, "held_out", self.style)

    def repainted(self, color: str, texture: str) -> Scene:
        """The input's scene with the edited solid in another color and texture."""
        scene = self.source()
        solids = list(scene.solids)
        solids[self.solid] = replace(solids[self.solid], color=color, texture=texture)
        return replace(scene, solids=tuple(solids))

    def wanted(self) -> Scene:
        """The scene that the edit should show."""
        return self.repainted(self.target, self.texture)

    def prompt_scene(self) -> Scene:
        """Another scene with the wanted caption: shapes, colors, textures, their order and the ground are as wanted.

        Positions, sky, light and camera are those of the first scene, starting at seed `picture`, with the same number
        of solids. Sizes and motions are drawn again for the wanted shapes.
        """
        wanted, seed = self.wanted(), self.picture
        while len((other := sample_scene(seed, style=self.style)).solids) != len(wanted.solids):
            seed += 1
        rng = np.random.default_rng([self.picture, 2])
        solids = [
            replace(
                sample_solid(rng, solid.shape, solid.color, other_solid.anchor),
                texture=solid.texture,
                gloss=other_solid.gloss,
            )
            for solid, other_solid in zip(wanted.solids, other.solids, strict=True)
        ]
        return replace(other, solids=tuple(solids), ground=wanted.ground, surround=wanted.surround)


def draw_case(seed: int, index: int, texture: str | None = None, style: str = PLAIN) -> Case:
    """Draws case `index` of a seed; the result depends on the arguments alone.

    The new color is drawn uniformly from those that differ from all solids' colors and from the ground's name.
    """
    first = seed * SCENES_PER_SEED + index
    scene = sample_scene(first, "held_out", style)
    number = keyed.integer(len(scene.solids), seed, "edited solid", index)
    solid = scene.solids[number]
    taken = {scene.ground, scene.surround, *(other.color for other in scene.solids)}
    allowed = [color for color in COLORS if color not in taken]
    target = solid.color if texture else allowed[keyed.integer(len(allowed), seed, "target colour", index)]
    return Case(
        name=f"{index:04d}",
        scene=first,
        solid=number,
        own=solid.color,
        target=target,
        texture=texture or solid.texture,
        own_texture=solid.texture,
        new_pair=(target, solid.shape) in HELD_OUT,
        picture=first + SCENES_PER_SEED // 2,
        style=style,
    )


def render_case(scene: Scene, height: int, width: int, supersample: int = 1) -> Clip:
    """Renders the 8 frames of an input, or of its truth, at any size."""
    return render_scene(scene, FRAMES, height, width, supersample, STRIDE)


def write_cases(
    folder: Path,
    pairs: int,
    seed: int = FIRST_SEED,
    texture: str | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    style: str = PLAIN,
) -> list[Case]:
    """Writes clips, pictures and lists. Files of an earlier call with the same cases are kept.

    `size`: width and height of the files. Raises UserError for arguments out of range and for a folder of other cases.
    """
    if pairs < 1:
        raise UserError(f"--pairs {pairs}: give 1 or more")
    if seed < FIRST_SEED:
        raise UserError(f"--seed {seed}: give {FIRST_SEED} or more; models may have been trained on the scenes below")
    if texture is not None and texture not in PATTERNS:
        raise UserError(f"--texture {texture}: choose from {', '.join(PATTERNS)}")
    cases = [draw_case(seed, index, texture, style) for index in range(pairs)]
    described = json.dumps({"size": list(size), "cases": [case.record() for case in cases]}, indent=1).encode()
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
        list(progress(pool.map(write, cases), title="cases", unit="case", total=pairs))
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
    """Reads the cases of a folder, in order. Raises UserError if it holds none."""
    path = folder / CASES
    try:
        rows = json.loads(path.read_text())["cases"]
        return [Case(**{"style": PLAIN, **row}) for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: write the cases with python -m miniature.cases {folder}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): write the cases again, to another folder") from error


def main() -> None:
    parser = Parser(prog="python -m miniature.cases", description="edits whose truth is known")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--texture", help="give the solids this texture instead of another color")
    parser.add_argument("--style", choices=STYLES, default=PLAIN)
    arguments = parser.parse_args()
    with parser.command():
        write_cases(arguments.folder, arguments.pairs, arguments.seed, arguments.texture, style=arguments.style)


if __name__ == "__main__":
    main()
