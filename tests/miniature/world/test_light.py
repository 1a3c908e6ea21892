"""Shadows and highlights: the light has a size, and only what it reaches is lit."""

from dataclasses import replace

import numpy as np

from miniature.world.light import highlight, light_points, lit
from miniature.world.render import render_frame
from miniature.world.scene import Scene, Solid

BALL = Solid("ball", "red", radius=0.8, height=1.6, anchor=(0.0, 0.0))
ABOVE = (0.0, 1.0, 1e-3)  # a light right above the center
SCENE = Scene((BALL,), "grey", light=ABOVE, soft_shadows=True)


def points(*xs: float) -> np.ndarray:
    """Points of the ground on the line z = 0, (3, n)."""
    return np.array([xs, np.zeros(len(xs)), np.zeros(len(xs))], np.float32)


def test_a_point_below_the_solid_is_dark_and_a_far_one_lit() -> None:
    np.testing.assert_array_equal(lit(SCENE, 0.0, points(0.0, 3.0, -3.0)), [0, 1, 1])


def test_the_border_of_a_shadow_is_soft_and_the_softer_the_higher_the_solid() -> None:
    line = points(*np.linspace(0, 2, 200))

    def partly(anchor_height: float) -> int:
        hovering = replace(BALL, bounce=anchor_height, rate=1.0)
        share = lit(replace(SCENE, solids=(hovering,)), np.pi / 3, line)  # at the top of its bounce
        return int(np.count_nonzero((share > 0) & (share < 1)))

    assert 0 < partly(0.0) < partly(2.0)


def test_a_solid_darkens_another_one_but_not_itself() -> None:
    top = np.array([[0.0], [1.7], [0.0]], np.float32)
    assert lit(SCENE, 0.0, points(0.0), without=0) == [1]
    high = replace(BALL, bounce=3.0, rate=1.0)
    assert lit(replace(SCENE, solids=(BALL, high)), np.pi / 3, top, without=0) == [0]


def test_the_light_is_a_disk_around_its_direction() -> None:
    scene = Scene((), "grey")
    middle, *rim = light_points(scene)
    direction = np.array(scene.light) / np.linalg.norm(scene.light)
    assert np.dot(middle / np.linalg.norm(middle), direction) > 1 - 1e-6
    for point in rim:
        assert 0.5 < np.linalg.norm(point - middle) < 1
        assert abs(np.dot(point - middle, direction)) < 1e-5


def test_a_highlight_is_where_the_light_is_mirrored() -> None:
    glossy = replace(BALL, gloss=0.5)
    normals = np.array([[0, 1, 0], [1, 0, 0]], np.float32).T
    rays = np.array([[0, -1, 0], [0, -1, 0]], np.float32).T
    np.testing.assert_allclose(highlight(glossy, np.array([0, 1, 0], np.float32), normals, rays), [0.5, 0], atol=1e-6)
    dull, shiny = (
        render_frame(replace(SCENE, solids=(replace(BALL, gloss=gloss),), light=(0.3, 0.85, -0.43)), 0.0, 64, 112)
        for gloss in (0.0, 0.5)
    )
    brighter = shiny.pixels.astype(int) - dull.pixels
    assert brighter.min() == 0 and brighter.max() > 60
    assert 5 < np.count_nonzero(brighter.max(-1) > 20) < 0.3 * np.count_nonzero(dull.solids)
    np.testing.assert_array_equal(shiny.depth, dull.depth)
