"""Labeled pictures side by side."""

import numpy as np
import pytest
from PIL import ImageFont

from gen1_train.video.contact_sheet import contact_sheet, shortened


def pictures(count: int, height: int = 64, width: int = 112) -> list[np.ndarray]:
    return [np.full((height, width, 3), (200, 10 + i, 0), np.uint8) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_every_picture_is_complete_and_not_covered(count: int) -> None:
    page = contact_sheet(pictures(count), [f"label {i}" for i in range(count)])
    for i in range(count):
        assert ((page == (200, 10 + i, 0)).all(-1)).sum() == 64 * 112


def test_the_size_does_not_depend_on_the_labels() -> None:
    shapes = {contact_sheet(pictures(4), [label] * 4).shape for label in ("", "x", "a very long prompt " * 20)}
    assert len(shapes) == 1


def test_labels_are_drawn_and_long_labels_end_in_an_ellipsis() -> None:
    font = ImageFont.load_default(12)
    short = shortened("a very long prompt " * 20, font, 100)
    assert short.endswith("…") and font.getlength(short) <= 100 and shortened("fox", font, 100) == "fox"
    assert (contact_sheet(pictures(1), ["fox"]) != contact_sheet(pictures(1), [""])).any()
