"""Labelled pictures side by side."""

import numpy as np
import pytest
from PIL import ImageFont

from gen1_train.sheet import sheet, shortened


def pictures(count: int, height: int = 64, width: int = 112) -> list[np.ndarray]:
    return [np.full((height, width, 3), (200, 10 + i, 0), np.uint8) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_every_picture_is_there_whole_and_none_covers_another(count: int) -> None:
    page = sheet(pictures(count), [f"label {i}" for i in range(count)])
    for i in range(count):
        assert ((page == (200, 10 + i, 0)).all(-1)).sum() == 64 * 112


def test_all_pages_of_a_video_are_of_one_size_whatever_the_labels() -> None:
    shapes = {sheet(pictures(4), [label] * 4).shape for label in ("", "x", "a very long prompt " * 20)}
    assert len(shapes) == 1


def test_labels_are_drawn_and_long_ones_end_in_an_ellipsis() -> None:
    font = ImageFont.load_default(12)
    short = shortened("a very long prompt " * 20, font, 100)
    assert short.endswith("…") and font.getlength(short) <= 100 and shortened("fox", font, 100) == "fox"
    assert (sheet(pictures(1), ["fox"]) != sheet(pictures(1), [""])).any()
