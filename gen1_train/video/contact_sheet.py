"""Labeled pictures side by side in one picture."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # white pixels between two pictures


def contact_sheet(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Arranges uint8 pictures (h, w, 3) of one size, each below its label, in about a square: uint8 (H, W, 3)."""
    height, width = pictures[0].shape[:2]
    columns = math.ceil(math.sqrt(len(pictures) * height / width)) if len(pictures) > 3 else len(pictures)
    columns = max(2, columns) if len(pictures) > 1 else 1
    rows = math.ceil(len(pictures) / columns)
    size = max(10, height // 16)
    font = ImageFont.load_default(size)
    bar = size + 6  # pixels, the height of a label
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + bar + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, label) in enumerate(zip(pictures, labels)):
        x, y = i % columns * (width + GAP), i // columns * (height + bar + GAP)
        draw.text((x + 2, y + bar / 2), shortened(label, font, width - 4), "black", font, anchor="lm")
        page.paste(Image.fromarray(picture), (x, y + bar))
    return np.asarray(page)


def shortened(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The label, cut with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}…") > width:
        label = label[:-1]
    return f"{label}…"
