"""A picture of edits side by side: a row for each case, from its input to what it became."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen1_train.evaluation.methods import GEN1, PER_FRAME, Setting
from gen1_train.files import write_atomically
from miniature.cases import FRAMES, Case, read_cases
from miniature.measure import edit_file, read_edit, read_rows, setting_of
from miniature.references import SIZE, seen

ROWS = 8  # cases, the first ones
ENLARGED, GAP, BAR = 2, 4, 18  # pixels: of a pixel, between pictures, of the headings
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
    """Middle frames of the first cases: input, prompt picture, truth, and the edits there are. Raises UserError."""
    chosen = read_cases(cases)[:ROWS]
    columns = [("input", [middle(seen(case.source())) for case in chosen])]
    columns += [("prompt", [prompt(cases, case) for case in chosen])]
    columns += [("truth", [middle(seen(case.wanted())) for case in chosen])]
    for heading, name, setting in wanted:
        if name not in evaluations:
            continue
        made = {Path(row["video"]).name: row for row in read_rows(evaluations[name]) if setting_of(row) == setting}
        rows = [made.get(case.video) for case in chosen]
        if all(row is not None and edit_file(evaluations[name], row).is_file() for row in rows):
            columns.append((heading, [middle(read_edit(evaluations[name], row)) for row in rows if row]))
    file = io.BytesIO()
    draw(columns).save(file, "jpeg", quality=88)
    write_atomically(path, file.getvalue())


def middle(frames: np.ndarray) -> np.ndarray:
    return frames[FRAMES // 2]


def prompt(cases: Path, case: Case) -> np.ndarray:
    with Image.open(cases / case.image) as picture:
        return np.asarray(picture.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC))


def draw(columns: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Pictures of SIZE under their columns' headings."""
    width, height = (side * ENLARGED for side in SIZE)
    whole = (len(columns) * (width + GAP) - GAP, BAR + len(columns[0][1]) * (height + GAP) - GAP)
    page = Image.new("RGB", whole, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for x, (heading, pictures) in enumerate(columns):
        pen.text((x * (width + GAP) + 2, BAR / 2), heading, "black", font, anchor="lm")
        for y, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
            page.paste(large, (x * (width + GAP), BAR + y * (height + GAP)))
    return page
