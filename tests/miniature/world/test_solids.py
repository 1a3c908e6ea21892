"""Shapes agree with their equations and with marching along the ray; textures are visible."""

from dataclasses import replace

import numpy as np
import pytest

from miniature.world.render import camera_rays, render_frame
from miniature.world.scene import COLORS, SHAPES, Scene, Solid
from miniature.world.solids import HITS, PATTERNS, TUBE, albedo

RADIUS, HEIGHT = 0.8, 1.5
STEP = 2e-3  # of the march, in depth
FARTHEST = 7.0  # depth where the march ends


def solid(shape: str, texture: str = "plain", color: str = "red") -> Solid:
    return Solid(shape, color, RADIUS, 2 * RADIUS if shape in ("ball", "torus") else HEIGHT, (0.0, 0.0), texture)


def inside(each: Solid, at: np.ndarray) -> np.ndarray:
    """Whether points (3, …) in a solid's own axes are inside it, by the equations in the shapes' docstrings."""
    x, y, z = at
    level = (y >= 0) & (y <= each.height)
    if each.shape == "ball":
        return x**2 + (y - RADIUS) ** 2 + z**2 <= RADIUS**2
    if each.shape == "box":
        return level & (np.maximum(abs(x), abs(z)) <= RADIUS)
    if each.shape == "torus":
        tube = TUBE * RADIUS
        return (np.hypot(x, y - RADIUS) - (RADIUS - tube)) ** 2 + z**2 <= tube**2
    reach = RADIUS * (1 - y / each.height) if each.shape == "cone" else RADIUS
    return level & (np.hypot(x, z) <= reach)


def view(turn: float) -> tuple[np.ndarray, np.ndarray]:
    """A camera that looks at the center, and a few hundred of its rays."""
    scene = Scene((), "grey", camera_turn=turn, camera_distance=4.0, camera_height=2.2)
    return camera_rays(scene, 0.0, 18, 30)


@pytest.mark.parametrize("turn", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_hit_is_the_first_point_inside_when_marching_along_the_ray(shape: str, turn: float) -> None:
    each, (origin, rays) = solid(shape), view(turn)
    depths = np.arange(1.0, FARTHEST, STEP, dtype=np.float32)
    entered = inside(each, origin[:, None, None] + rays[:, :, None] * depths)
    marched = np.where(entered.any(1), depths[entered.argmax(1)], np.inf)
    depth, _ = HITS[shape](each, origin, rays)
    both = np.isfinite(depth) & np.isfinite(marched)
    error = np.abs(depth[both] - marched[both])
    assert both.sum() > 25
    # a ray that only touches the surface may count as either
    assert np.count_nonzero(np.isfinite(depth) != np.isfinite(marched)) <= 0.06 * both.sum()
    assert np.quantile(error, 0.9) < 1.5 * STEP and error.max() < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_have_unit_length_and_point_outward_and_toward_the_camera(shape: str) -> None:
    each, (origin, rays) = solid(shape), view(0.7)
    depth, normal = HITS[shape](each, origin, rays)
    hit = np.isfinite(depth)
    depth, normal, rays = depth[hit], normal[:, hit], rays[:, hit]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=2e-3)
    assert np.all((normal * rays).sum(0) < 0.02)
    at = origin[:, None] + depth * rays
    assert np.mean(inside(each, at - 0.02 * normal)) > 0.97
    assert np.mean(inside(each, at + 0.02 * normal)) < 0.03


def test_the_torus_normal_is_the_gradient_of_its_equation() -> None:
    """Compares with the gradient of (hypot(x, y) - ring)^2 + z^2 by finite differences in double precision."""
    each, (origin, rays) = solid("torus"), view(0.7)
    depth, normal = HITS["torus"](each, origin, rays)
    hit = np.isfinite(depth)
    at = (origin[:, None] + depth[hit] * rays[:, hit]).astype(float)

    def level(points: np.ndarray) -> np.ndarray:
        x, y, z = points
        return (np.hypot(x, y - RADIUS) - (1 - TUBE) * RADIUS) ** 2 + z**2

    steps = 1e-5 * np.eye(3)[:, :, None]
    gradient = np.stack([level(at + step) - level(at - step) for step in steps])
    gradient /= np.linalg.norm(gradient, axis=0)
    assert hit.sum() > 25
    assert np.all((gradient * normal[:, hit]).sum(0) > 0.999)


def test_the_hole_of_a_torus_is_see_through() -> None:
    scene = Scene((solid("torus"),), "grey", camera_height=RADIUS, camera_distance=6.0)
    position, axes = scene.camera(0.0)
    to_middle = np.array([0.0, RADIUS, 0.0]) - position
    frame = render_frame(scene, 0.0, 65, 65)
    x, y = (32 + axes[row] @ to_middle / (axes[2] @ to_middle) * 65 / 0.72 for row in (0, 1))
    assert frame.solids[round(64 - y), round(x)] == 0
    assert np.count_nonzero(frame.solids) > 150


def test_textures_have_two_shades_and_differ_from_each_other() -> None:
    pictures = {}
    for texture in PATTERNS:  # in even light
        frame = render_frame(Scene((solid("ball", texture),), "grey", ambient=1.05), 0.0, 64, 112)
        pictures[texture] = frame.pixels[frame.solids == 1][:, 0].astype(float)  # the red channel
    spread = {texture: picture.std() for texture, picture in pictures.items()}
    assert all(spread[texture] > 3 * spread["plain"] for texture in PATTERNS if texture != "plain")
    names = list(PATTERNS)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(pictures[first] - pictures[second]).mean() > 5, (first, second)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("texture", PATTERNS)
def test_marks_are_shades_of_the_solid_color(texture: str, color: str) -> None:
    at = np.random.default_rng(0).uniform(-1, 1, (3, 500)).astype(np.float32)
    each = solid("ball", texture, color)
    surface = albedo(each, at)
    own = np.array(COLORS[color])[:, None]
    assert surface.shape == (3, 500) and np.all((0 <= surface) & (surface <= 1))
    assert np.abs(surface - own).max(0).min() < 0.02  # some points have the color itself
    if color != "black":
        cosine = (surface * own).sum(0) / np.linalg.norm(surface, axis=0) / np.linalg.norm(own)
        assert np.all(cosine > 0.999)


def test_a_texture_scales_with_its_solid() -> None:
    at = np.random.default_rng(1).uniform(-1, 1, (3, 200)).astype(np.float32)
    small = solid("ball", "checkered")
    large = replace(small, radius=2 * small.radius)
    np.testing.assert_allclose(albedo(small, at), albedo(large, 2 * at), atol=1e-5)
