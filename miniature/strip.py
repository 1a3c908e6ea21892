"""Pictures of edits side by side: one row per case, from the input to its edits."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen1_train.evaluation.methods import GEN1, PER_FRAME, Setting
from gen1_train.system.files import write_atomically
from miniature.cases import FRAMES, Case, read_cases
from miniature.measure import edit_file, read_edit, read_rows, setting_of
from miniature.references import SIZE, model_input

ROWS = 8  # the first cases
ZOOM = 2  # screen pixels per pixel
GAP = 4  # pixels between pictures
HEADING = 18  # height of the headings, in pixels
Columns = tuple[tuple[str, str, Setting], ...]  # heading, evaluation, setting
CONTENT: Columns = (
    ("by picture", "time", Setting(GEN1, 1.0, 0)),
    ("by text", "text", Setting(GEN1, 1.0, 0)),
    ("t_s = 7", "structure", Setting(GEN1, 1.0, 7)),
    ("per frame", "time", Setting(PER_FRAME, t_s=0)),
    ("stage 3", "stage3", Setting(GEN1, 1.0, 0)),
    ("no images", "no-images", Setting(GEN1, 1.0, 0)),
)
TEXTURE: Columns = (
    ("before", "texture-before", Setting(GEN1, 1.0, 0)),
    ("after", "texture-after", Setting(GEN1, 1.0, 0)),
)


def write_strip(path: Path, cases: Path, evaluations: Mapping[str, Path], wanted: Columns) -> None:
    """Writes the middle frames of the first cases: input, prompt picture, truth, and the edits that exist.

    Raises UserError.
    """
    chosen = read_cases(cases)[:ROWS]
    columns = [("input", [middle(model_input(case.source())) for case in chosen])]
    columns += [("prompt", [prompt(cases, case) for case in chosen])]
    columns += [("truth", [middle(model_input(case.wanted())) for case in chosen])]
    for heading, name, setting in wanted:
        if name not in evaluations:
            continue
        edits = {Path(row["video"]).name: row for row in read_rows(evaluations[name]) if setting_of(row) == setting}
        rows = [edits.get(case.video) for case in chosen]
        if all(row is not None and edit_file(evaluations[name], row).is_file() for row in rows):
            columns.append((heading, [middle(read_edit(evaluations[name], row)) for row in rows if row]))
    file = io.BytesIO()
    draw(columns).save(file, "jpeg", quality=88)
    write_atomically(path, file.getvalue())


def middle(frames: np.ndarray) -> np.ndarray:
    return frames[FRAMES // 2]


def prompt(cases: Path, case: Case) -> np.ndarray:
    """The prompt picture of a case at SIZE, uint8 (h, w, 3)."""
    with Image.open(cases / case.image, formats=("PNG", "JPEG")) as picture:
        return np.asarray(picture.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC))


def draw(columns: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Draws pictures of SIZE below the headings of their columns."""
    width, height = (side * ZOOM for side in SIZE)
    whole = (len(columns) * (width + GAP) - GAP, HEADING + len(columns[0][1]) * (height + GAP) - GAP)
    page = Image.new("RGB", whole, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for x, (heading, pictures) in enumerate(columns):
        pen.text((x * (width + GAP) + 2, HEADING / 2), heading, "black", font, anchor="lm")
        for y, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
            page.paste(large, (x * (width + GAP), HEADING + y * (height + GAP)))
    return page
