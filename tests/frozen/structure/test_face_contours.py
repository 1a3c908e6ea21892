"""Tests of the lines of a face: the table of points, and exact coverage of pixels."""

import numpy as np
import pytest

from gen1_train.frozen.structure import face_contours
from gen1_train.frozen.structure.face_contours import CONTOURS, OVAL, SEGMENTS, draw_face, face_size


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A mesh whose oval has the size 100, of which only one line is drawn, from point 1 to point 2."""
    monkeypatch.setattr(face_contours, "SEGMENTS", np.array([[1, 2]]))
    points = np.zeros((468, 2))
    points[list(OVAL)] = 0
    points[OVAL[0]], points[OVAL[9]] = (0, 0), (60, 80)
    return points


def test_the_table_has_the_points_of_the_mesh():
    assert SEGMENTS.min() >= 0 and SEGMENTS.max() < 468
    unordered = {frozenset(pair) for pair in SEGMENTS.tolist()}
    assert len(unordered) == len(SEGMENTS) == 36 + 2 * 16 + 4 * 4 + 2 * 20 + 25
    closed = {name for name, chain in CONTOURS.items() if chain[0] == chain[-1]}
    assert closed == {"oval", "left eye", "right eye", "lips, outer", "lips, inner", "nose, tip"}
    assert face_size(np.zeros((468, 2))) == 0


@pytest.mark.parametrize("line", [0.02, 0.05, 0.005])
def test_a_line_covers_its_width_at_any_place_between_pixels(bar, line):
    """100 times `line` pixels wide; over its length, the sum of each row is its width."""
    assert face_size(bar) == 100
    for shift in (0.0, 0.3, 0.5, 0.9):
        plane = np.zeros((40, 30), np.float32)
        bar[1], bar[2] = (15 + shift, -10), (15 + shift, 60)
        draw_face(plane, bar, line)
        np.testing.assert_allclose(plane.sum(axis=1), 100 * line, rtol=1e-4)
        center = (plane * (np.arange(30) + 0.5)).sum(axis=1) / plane.sum(axis=1)
        tolerance = max(1e-3, (1 - 100 * line) / 2)  # a narrow line within one pixel shows only that it is there
        np.testing.assert_allclose(center, 15 + shift, atol=tolerance)
        assert plane.max() <= min(1, 100 * line) + 1e-6


def test_a_line_is_as_bright_in_every_direction(bar):
    sums = []
    for angle in np.linspace(0, np.pi, 7):
        plane = np.zeros((80, 80), np.float32)
        half = 30 * np.array([np.cos(angle), np.sin(angle)])
        bar[1], bar[2] = 40 - half, 40 + half
        draw_face(plane, bar, 0.02)
        sums.append(plane.sum())
    np.testing.assert_allclose(sums, 60 * 2 + np.pi, rtol=0.03)  # the length and two round ends


def test_what_is_outside_of_the_plane_is_not_drawn_and_what_is_there_stays(bar):
    plane = np.full((10, 10), 0.25, np.float32)
    bar[1], bar[2] = (30, 30), (50, -20)
    draw_face(plane, bar, 0.02)
    assert (plane == 0.25).all()
    bar[1], bar[2] = (5.5, -30), (5.5, 30)
    draw_face(plane, bar, 0.01)
    assert (plane[:, 5] == 1).all() and (np.delete(plane, 5, axis=1) == 0.25).all()
