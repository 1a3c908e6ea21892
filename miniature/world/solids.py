"""Intersections of rays with the solids' shapes, and the solids' textures.

Each shape has axes of its own, with the center of its base at 0. Rays are (3, n) float32 arrays whose component along
the camera axis is 1, so that the ray parameter of a hit *is* its depth along the axis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from miniature.world.scene import COLORS, Solid

Hit = tuple[np.ndarray, np.ndarray]  # depth (n,), infinite where a ray misses, and a vector per ray (3, n)


def hit_ball(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """Intersects rays in the solid's own axes with a ball: the first hits and their outward normals."""
    start = origin - np.array([0, solid.radius, 0], np.float32)
    a, b = (rays * rays).sum(0), start @ rays
    inside = b * b - a * (start @ start - solid.radius**2)
    depth = np.where(inside >= 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    normal = (start[:, None] + np.where(np.isfinite(depth), depth, 0) * rays) / solid.radius
    return depth, normal


def hit_box(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """Intersects rays with an upright box of width 2 radius by the slab method."""
    half = np.array([solid.radius, solid.height / 2, solid.radius], np.float32)[:, None]
    start = origin[:, None] - np.array([[0], [solid.height / 2], [0]], np.float32)
    slope = np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
    near = (-np.sign(slope) * half - start) / slope
    far = (np.sign(slope) * half - start) / slope
    axis = near.argmax(0)
    depth = near.max(0)
    depth = np.where(depth <= far.min(0), depth, np.inf)
    normal = np.where(np.arange(3)[:, None] == axis, -np.sign(rays), 0)
    return depth, normal


def hit_round(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """Intersects rays with an upright cylinder or cone: x^2 + z^2 = (radius - taper y)^2, 0 <= y <= height, and a lid.

    The base is open, since the camera never looks from below.
    """
    taper = solid.radius / solid.height if solid.shape == "cone" else 0.0
    (ox, oy, oz), (dx, dy, dz) = origin, rays
    reach = solid.radius - taper * oy
    a = dx * dx + dz * dz - (taper * dy) ** 2
    a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
    b = ox * dx + oz * dz + reach * taper * dy
    inside = b * b - a * (ox * ox + oz * oz - reach * reach)
    root = np.sqrt(np.maximum(inside, 0))
    depth = np.full_like(dx, np.inf)
    for side in ((-b - root) / a, (-b + root) / a):
        y = oy + side * dy
        valid = (inside >= 0) & (side > 0) & (y >= 0) & (y <= solid.height)
        depth = np.where(valid & (side < depth), side, depth)
    lid = (solid.height - oy) / np.where(np.abs(dy) < 1e-6, np.float32(1e-6), dy)
    on_lid = (ox + lid * dx) ** 2 + (oz + lid * dz) ** 2 <= (solid.radius - taper * solid.height) ** 2
    on_lid &= (lid > 0) & (lid < depth)
    depth = np.where(on_lid, lid, depth)
    x, y, z = origin[:, None] + np.where(np.isfinite(depth), depth, 0) * rays
    normal = np.stack([x, taper * (solid.radius - taper * y), z])
    normal = np.where(on_lid, np.array([[0], [1], [0]]), normal / (np.linalg.norm(normal, axis=0) + 1e-6))
    return depth, normal


TUBE = 0.36  # radius of a torus's tube, as a share of its outer radius
TRACE_STEPS = 40  # of sphere tracing; the error left after the last is below a thousandth


def hit_torus(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """Intersects rays with an upright torus, its axis along z, by sphere tracing on its distance field."""
    tube = TUBE * solid.radius
    ring = solid.radius - tube
    start = origin[:, None] - np.array([[0], [solid.radius], [0]], np.float32)
    speed = np.linalg.norm(rays, axis=0)

    def around(at: np.ndarray) -> np.ndarray:
        return np.hypot(at[0], at[1]) + np.float32(1e-9)

    depth = np.maximum(np.linalg.norm(start) - 1.5 * solid.radius, 0) / speed
    for _ in range(TRACE_STEPS):
        at = start + depth * rays
        depth = depth + (np.hypot(around(at) - ring, at[2]) - tube) / speed
    at = start + depth * rays
    reach = around(at)
    normal = np.stack([at[0] * (1 - ring / reach), at[1] * (1 - ring / reach), at[2]])
    distance = np.linalg.norm(normal, axis=0)
    depth = np.where(np.abs(distance - tube) < 4e-3, depth, np.inf).astype(np.float32)
    return depth, normal / (distance + np.float32(1e-9))


HITS: dict[str, Callable[[Solid, np.ndarray, np.ndarray], Hit]] = {
    "ball": hit_ball,
    "box": hit_box,
    "cylinder": hit_round,
    "cone": hit_round,
    "torus": hit_torus,
}


def plain(at: np.ndarray) -> np.ndarray:
    """Four faint sectors, which make the rotation of a solid visible."""
    return 0.1 * (1 + np.tanh(8 * at[0] * at[2]))


def striped(at: np.ndarray) -> np.ndarray:
    return _edge(np.sin(5.0 * (at[1] + 0.6 * at[0])))


def checkered(at: np.ndarray) -> np.ndarray:
    return _edge(2 * np.sin(3.8 * at[0] + 0.8) * np.sin(3.8 * at[1] + 0.5) * np.sin(3.8 * at[2] + 0.8))


def dotted(at: np.ndarray) -> np.ndarray:
    period = np.float32(0.8)
    offset = np.mod(at + np.array([[0.1], [0.3], [0.2]], np.float32), period) - period / 2
    return _edge(2 * (0.75 - np.linalg.norm(offset, axis=0) / (period / 2)))


def zigzag(at: np.ndarray) -> np.ndarray:
    """A texture of rich scenes. The autoencoder of the plain ones, which never saw it, blurs it."""
    wave = np.abs(np.mod(at[0] + at[2], 0.8) - 0.4)
    return _edge(np.sin(6.0 * (at[1] + 1.6 * wave)))


def capped(at: np.ndarray) -> np.ndarray:
    """A marked upper part: a texture that no world has, coarse enough for the autoencoders to reproduce."""
    return _edge(3 * (at[1] - 1.0))


def halved(at: np.ndarray) -> np.ndarray:
    """One half marked, the other not: a texture of rich scenes."""
    return _edge(3 * at[0])


def _edge(level: np.ndarray) -> np.ndarray:
    """0 where the level is below zero, 1 where it is above, with a soft border that does not shimmer."""
    return np.clip(0.5 + 2.5 * level, 0, 1)


# Share of the mark's color, 0..1, at points (3, n) in a solid's own axes, in units of its radius.
PATTERNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": plain,
    "striped": striped,
    "checkered": checkered,
    "dotted": dotted,
    "zigzag": zigzag,
    "capped": capped,
    "halved": halved,
}


def albedo(solid: Solid, at: np.ndarray) -> np.ndarray:
    """The color (3, n) of a solid's surface at points (3, n) in its own axes: its color, with marks of a darker shade.

    On black, the marks are lighter.
    """
    color = np.array(COLORS[solid.color], np.float32)
    mark = 0.45 * color if color.max() > 0.3 else color + np.float32(0.4)
    share = PATTERNS[solid.texture](at / np.float32(solid.radius))
    return color[:, None] + (mark - color)[:, None] * share
