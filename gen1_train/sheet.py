"""Labelled pictures side by side, as one picture."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # white pixels between two pictures


def sheet(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """uint8 pictures (h, w, 3) of one size, each under its label, in about a square: uint8 (H, W, 3)."""
    height, width = pictures[0].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures) * height / width)) if len(pictures) > 3 else len(pictures)
    columns = max(2, columns) if len(pictures) > 1 else 1
    rows = math.ceil(len(pictures) / columns)
    size = max(10, height // 16)
    font, bar = ImageFont.load_default(size), size + 6
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + bar + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, label) in enumerate(zip(pictures, labels)):
        x, y = i % columns * (width + GAP), i // columns * (height + bar + GAP)
        draw.text((x + 2, y + bar / 2), shortened(label, font, width - 4), "black", font, anchor="lm")
        page.paste(Image.fromarray(picture), (x, y + bar))
    return np.asarray(page)


def shortened(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The label, or as much of it as goes into so many pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}…") > width:
        label = label[:-1]
    return f"{label}…"
