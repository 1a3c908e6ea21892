"""Light of rich scenes: soft shadows of a light that is not a point, and highlights."""

from __future__ import annotations

import numpy as np

from miniature.world.scene import Scene, Solid
from miniature.world.solids import HITS

LIGHT_DISTANCE = 14.0  # of the light from the center of the scene; ours
LIGHT_RADIUS = 0.9  # half the width of the light: borders of shadows are softer the farther they are from the solid
SHININESS = 24.0  # exponent of a highlight (Blinn-Phong)
# where the light is sampled, in units of its radius: a shadow has one level more than there are points
SAMPLES = ((0.0, 0.0), (0.8, 0.2), (-0.2, 0.8), (-0.8, -0.2), (0.2, -0.8))


def own_axes(angle: float) -> np.ndarray:
    """The rotation (3, 3) from the world's axes to those of a solid that is turned by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)


def near(solid: Solid, base: np.ndarray, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """The indices of the rays (3, n) from `origin` that meet the bounding ball of a solid."""
    to_middle = base + np.array([0, solid.height / 2, 0], np.float32) - origin
    bound = 2 * solid.radius**2 + solid.height**2 / 4
    along = to_middle @ rays
    return np.flatnonzero(along * along >= (rays * rays).sum(0) * (to_middle @ to_middle - bound))


def lit(scene: Scene, time: float, points: np.ndarray, without: int | None = None) -> np.ndarray:
    """The share (n,) of the light that reaches world points (3, n), in 0..1.

    `without`: index of the solid that the points are on, which casts no shadow on itself here: its shading does.
    """
    blocked = np.zeros(points.shape[1], int)  # points of the light
    for sample in light_points(scene):
        rays = points - sample[:, None]
        dark = np.zeros(points.shape[1], bool)
        for index, solid in enumerate(scene.solids):
            if index == without:
                continue
            base, angle = solid.pose(time)
            some = near(solid, base, sample, rays)
            axes = own_axes(angle)
            hit, _ = HITS[solid.shape](solid, axes @ (sample - base), axes @ rays[:, some])
            dark[some[hit < 1]] = True  # a ray ends at its point, where its parameter is 1
        blocked += dark
    return (1 - blocked / len(SAMPLES)).astype(np.float32)


def light_points(scene: Scene) -> list[np.ndarray]:
    """The points (3,) of the light at which it is sampled."""
    light = np.array(scene.light, np.float32)
    side = np.cross(light, [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(side, light)
    return [(LIGHT_DISTANCE * light + LIGHT_RADIUS * (a * side + b * up)).astype(np.float32) for a, b in SAMPLES]


def highlight(solid: Solid, light: np.ndarray, normal: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """The brightness (n,) that a glossy solid reflects of the light (3,), for unit normals and rays (3, n)."""
    half = light[:, None] - rays / np.linalg.norm(rays, axis=0)
    half /= np.linalg.norm(half, axis=0)
    return np.float32(solid.gloss) * np.maximum((half * normal).sum(0), 0) ** np.float32(SHININESS)
