"""Ray casting of scenes in numpy: pictures with exact depth and exact object masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miniature.world.light import highlight, lit, near, own_axes
from miniature.world.scene import GROUNDS, PLAIN, SURROUND, Scene, Solid, sample_scene
from miniature.world.solids import HITS, albedo

FAR = 24.0  # depth of the sky, where the ground has faded into haze
HALF_VIEW = 0.36  # tangent of half the vertical field of view
FRAME_RATE = 24


@dataclass(frozen=True)
class Canvas:
    """The state of the drawing for n rays."""

    colors: np.ndarray  # float32 (3, n)
    depth: np.ndarray  # float32 (n,), along the camera axis in world units
    solids: np.ndarray  # uint8 (n,): 0 for ground and sky, else the solid's number in the scene, from 1


@dataclass(frozen=True)
class Frame:
    """A picture and its truth."""

    pixels: np.ndarray  # uint8 (h, w, 3)
    depth: np.ndarray  # float32 (h, w), along the camera axis in world units
    solids: np.ndarray  # uint8 (h, w): 0 for ground and sky, else the solid's number in the scene, from 1


@dataclass(frozen=True)
class Clip:
    """Frames (n, h, w, 3) with depth and solids (n, h, w) as in `Frame`, and the caption."""

    frames: np.ndarray
    depth: np.ndarray
    solids: np.ndarray
    caption: str


def camera_rays(scene: Scene, time: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The camera position (3,) and one ray per pixel (3, h w), through the pixel centers."""
    position, (right, up, forward) = scene.camera(time)
    rows = (height / 2 - 0.5 - np.arange(height, dtype=np.float32)) * np.float32(2 * HALF_VIEW / height)
    columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * np.float32(2 * HALF_VIEW / height)
    rays = columns * right[:, None, None] + (rows[:, None] * up[:, None, None]) + forward[:, None, None]
    return position, rays.reshape(3, -1)


def relief(scene: Scene, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Brightness pattern of the ground at world points, about -1..1, which makes camera motion visible."""
    cos, sin = np.float32(np.cos(scene.relief_turn)), np.float32(np.sin(scene.relief_turn))
    u, v = scene.relief_scale * (cos * x - sin * z), scene.relief_scale * (sin * x + cos * z)
    return (np.sin(0.7 * u + 2 * np.sin(0.4 * v)) + np.sin(1.3 * v + 2 * np.sin(0.5 * u))) / 3


def paint_ground(scene: Scene, time: float, origin: np.ndarray, rays: np.ndarray) -> Canvas:
    """Paints ground and sky, with a soft contact shadow under each solid."""
    below = rays[1] < -origin[1] / FAR
    depth = np.where(below, -origin[1] / np.where(below, rays[1], -1), np.float32(FAR))
    sky = np.array(scene.sky, np.float32)[:, None]
    if scene.sky_above is None:
        colors = sky * (1 - 0.35 * np.clip(rays[1], 0, 1))
    else:
        colors = sky + np.clip(2.2 * rays[1], 0, 1) * (np.array(scene.sky_above, np.float32)[:, None] - sky)
    distance = depth[below]
    points = origin[:, None] + distance * rays[:, below]
    x, _, z = points
    haze = np.minimum(distance / FAR, 1) ** 2
    brightness = 1 + 0.2 * np.exp(-((distance / 12) ** 2)) * relief(scene, x, z)
    if scene.soft_shadows:
        brightness *= 0.45 + 0.55 * lit(scene, time, points)
    for solid in () if scene.soft_shadows else scene.solids:
        (px, lift, pz), _ = solid.pose(time)
        slide = (lift + 0.3 * solid.height) / scene.light[1]
        gap = (x - px + slide * scene.light[0]) ** 2 + (z - pz + slide * scene.light[2]) ** 2
        brightness *= 1 - 0.55 / (1 + lift) * np.exp(-((gap / (1.3 * solid.radius**2)) ** 2))
    ground = np.array(GROUNDS[scene.ground], np.float32)[:, None]
    if scene.surround is not None:
        other = np.array(GROUNDS[scene.surround], np.float32)[:, None]
        ground = ground + np.clip(0.5 + 3 * (np.hypot(x, z) - SURROUND), 0, 1) * (other - ground)
    colors[:, below] = (1 - haze) * np.minimum(ground * brightness, 1) + haze * sky
    return Canvas(colors, depth, np.zeros(depth.shape, np.uint8))


def paint_solid(scene: Scene, number: int, time: float, origin: np.ndarray, rays: np.ndarray, canvas: Canvas) -> None:
    """Paints solid `number`, counted from 1, into the canvas wherever it is nearer than the content so far.

    Only rays that meet its bounding ball are traced.
    """
    solid: Solid = scene.solids[number - 1]
    base, angle = solid.pose(time)
    candidates = near(solid, base, origin, rays)
    axes = own_axes(angle)
    start, slopes = axes @ (origin - base), axes @ rays[:, candidates]
    hit, normal = HITS[solid.shape](solid, start, slopes)
    nearer = hit < canvas.depth[candidates]
    candidates = candidates[nearer]
    hit = hit[nearer]
    normal = normal[:, nearer]
    slopes = slopes[:, nearer]
    light = axes @ np.array(scene.light, np.float32)
    direct = np.maximum(light @ normal, 0)
    if scene.soft_shadows:
        direct = direct * lit(scene, time, origin[:, None] + hit * rays[:, candidates], without=number - 1)
    shade = scene.ambient + (1.05 - scene.ambient) * direct
    canvas.colors[:, candidates] = albedo(solid, start[:, None] + hit * slopes) * shade
    if solid.gloss:
        canvas.colors[:, candidates] += (direct > 0) * highlight(solid, light, normal, slopes)
    canvas.depth[candidates] = hit
    canvas.solids[candidates] = number


def supersampling(height: int) -> int:
    """The rays per pixel and direction that pictures of this height take: small ones need more, large ones time."""
    return 2 if height < 128 else 1


def render_frame(scene: Scene, time: float, height: int, width: int, supersample: int = 1) -> Frame:
    """Renders one frame; colors are averages over `supersample` rays per pixel and direction.

    Depth is never averaged, since a mean over an edge is a surface that does not exist: depth and mask come from one
    ray of each pixel.
    """
    h, w = height * supersample, width * supersample
    origin, rays = camera_rays(scene, time, h, w)
    canvas = paint_ground(scene, time, origin, rays)
    for number in range(1, len(scene.solids) + 1):
        paint_solid(scene, number, time, origin, rays, canvas)
    colors = canvas.colors.reshape(3, height, supersample, width, supersample).mean((2, 4))
    pixels = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    center = (slice(supersample // 2, None, supersample),) * 2
    depth, solids = canvas.depth.reshape(h, w)[center], canvas.solids.reshape(h, w)[center]
    return Frame(np.ascontiguousarray(pixels), depth.astype(np.float32), solids.copy())


def render_scene(scene: Scene, frames: int, height: int, width: int, supersample: int = 1, stride: int = 1) -> Clip:
    """Renders every `stride`-th frame of a scene, `frames` in all; there are 24 in a second of world time."""
    times = [stride * index / FRAME_RATE for index in range(frames)]
    rendered = [render_frame(scene, time, height, width, supersample) for time in times]
    pixels, depth, solids = (np.stack([getattr(f, name) for f in rendered]) for name in ("pixels", "depth", "solids"))
    return Clip(pixels, depth, solids, scene.caption)


def render_clip(
    seed: int, frames: int, height: int, width: int, supersample: int = 1, split: str = "all", style: str = PLAIN
) -> Clip:
    """Renders the first `frames` frames of the scene of `seed`."""
    return render_scene(sample_scene(seed, split, style), frames, height, width, supersample)


def render_image(
    seed: int, height: int, width: int, supersample: int = 1, split: str = "all", style: str = PLAIN
) -> Clip:
    """Renders the first frame of the scene of `seed`, as a clip of one frame."""
    return render_clip(seed, 1, height, width, supersample, split, style)
