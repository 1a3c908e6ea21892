"""Ray casting of scenes with numpy, and the miniature world on disk: H.264 clips, PNG images, captions.

Rays are (3, n) float32 arrays whose component along the camera axis is 1, so that the ray parameter of a hit *is* its
depth along the axis.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from miniature.scene import COLOURS, GROUNDS, Scene, Solid, sample_scene

FAR = 24.0  # depth of the sky, where the ground has faded into the haze
HALF_VIEW = 0.36  # tangent of half the vertical angle of view
FRAME_RATE = 24
Hit = tuple[np.ndarray, np.ndarray]  # depth (n,), infinite where a ray misses, and a vector per ray (3, n)


@dataclass(frozen=True)
class Clip:
    """`frames` uint8 (n, h, w, 3), `depth` float32 (n, h, w) along the camera axis in world units, and `caption`."""

    frames: np.ndarray
    depth: np.ndarray
    caption: str


def hit_ball(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """First hit, with its outward normal, of rays in the solid's own axes (base centre at 0) with a ball."""
    start = origin - np.array([0, solid.radius, 0], np.float32)
    a, b = (rays * rays).sum(0), start @ rays
    inside = b * b - a * (start @ start - solid.radius**2)
    depth = np.where(inside >= 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    normal = (start[:, None] + np.where(np.isfinite(depth), depth, 0) * rays) / solid.radius
    return depth, normal


def hit_box(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> Hit:
    """First hit with an upright box of width 2 radius: the slab method."""
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
    """First hit with an upright cylinder or cone: x^2 + z^2 = (radius - taper y)^2 for 0 <= y <= height, and its lid.

    The base is left open: the camera never looks from below.
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


HITS: dict[str, Callable[[Solid, np.ndarray, np.ndarray], Hit]] = {
    "ball": hit_ball,
    "box": hit_box,
    "cylinder": hit_round,
    "cone": hit_round,
}


def camera_rays(scene: Scene, time: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera position (3,) and one ray per pixel (3, h w), through the pixel centres."""
    position, (right, up, forward) = scene.camera(time)
    rows = (height / 2 - 0.5 - np.arange(height, dtype=np.float32)) * np.float32(2 * HALF_VIEW / height)
    columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * np.float32(2 * HALF_VIEW / height)
    rays = columns * right[:, None, None] + (rows[:, None] * up[:, None, None]) + forward[:, None, None]
    return position, rays.reshape(3, -1)


def ground_pattern(scene: Scene, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Texture of the ground in -1..1 at world points, with softened edges so that it does not shimmer."""
    cos, sin = np.float32(np.cos(scene.texture_turn)), np.float32(np.sin(scene.texture_turn))
    u, v = scene.texture_scale * (cos * x - sin * z), scene.texture_scale * (sin * x + cos * z)
    if scene.texture == "striped":
        return np.clip(3 * np.sin(u), -1, 1)
    if scene.texture == "checkered":
        return np.clip(4 * np.sin(u) * np.sin(v), -1, 1)
    return (np.sin(0.7 * u + 2 * np.sin(0.4 * v)) + np.sin(1.3 * v + 2 * np.sin(0.5 * u))) / 3


def paint_ground(scene: Scene, time: float, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, n) and depth (n,) of ground and sky, with a soft contact shadow under each solid."""
    below = rays[1] < -origin[1] / FAR
    depth = np.where(below, -origin[1] / np.where(below, rays[1], -1), np.float32(FAR))
    sky = np.array(scene.sky, np.float32)[:, None]
    colours = sky * (1 - 0.35 * np.clip(rays[1], 0, 1))
    distance = depth[below]
    x, _, z = origin[:, None] + distance * rays[:, below]
    haze = np.minimum(distance / FAR, 1) ** 2
    brightness = 1 + 0.2 * np.exp(-((distance / 12) ** 2)) * ground_pattern(scene, x, z)
    for solid in scene.solids:
        (px, lift, pz), _ = solid.place(time)
        slide = (lift + 0.3 * solid.height) / scene.light[1]
        gap = (x - px + slide * scene.light[0]) ** 2 + (z - pz + slide * scene.light[2]) ** 2
        brightness *= 1 - 0.55 / (1 + lift) * np.exp(-((gap / (1.3 * solid.radius**2)) ** 2))
    albedo = np.array(GROUNDS[scene.ground], np.float32)[:, None]
    colours[:, below] = (1 - haze) * np.minimum(albedo * brightness, 1) + haze * sky
    return colours, depth


def paint_solid(scene: Scene, solid: Solid, time: float, origin: np.ndarray, rays: np.ndarray, canvas: Hit) -> None:
    """Draw a solid into the canvas, depth (n,) and colours (3, n), wherever it is nearer than what is there.

    Only the rays that meet its bounding ball are traced.
    """
    depth, colours = canvas
    base, angle = solid.place(time)
    to_middle = base + np.array([0, solid.height / 2, 0], np.float32) - origin
    bound = 2 * solid.radius**2 + solid.height**2 / 4
    along = to_middle @ rays
    candidates = np.flatnonzero(along * along >= (rays * rays).sum(0) * (to_middle @ to_middle - bound))
    cos, sin = np.cos(angle), np.sin(angle)
    own_axes = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)
    start, slopes = own_axes @ (origin - base), own_axes @ rays[:, candidates]
    hit, normal = HITS[solid.shape](solid, start, slopes)
    nearer = hit < depth[candidates]
    candidates, hit, normal = candidates[nearer], hit[nearer], normal[:, nearer]
    x, _, z = (start[:, None] + hit * slopes[:, nearer]) / solid.radius
    marks = 1 - 0.12 * np.tanh(8 * x * z)  # four sectors, which show how the solid turns
    light = own_axes @ np.array(scene.light, np.float32)
    shade = scene.ambient + (1.05 - scene.ambient) * np.maximum(light @ normal, 0)
    colours[:, candidates] = np.array(COLOURS[solid.colour], np.float32)[:, None] * shade * marks
    depth[candidates] = hit


def render_frame(
    scene: Scene, time: float, height: int, width: int, supersample: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """One frame: uint8 (h, w, 3) and depth float32 (h, w). `supersample` rays per pixel and direction are averaged.

    Depth is never averaged (a mean over an edge is a surface that does not exist): one ray of each pixel gives it.
    """
    h, w = height * supersample, width * supersample
    origin, rays = camera_rays(scene, time, h, w)
    colours, depth = paint_ground(scene, time, origin, rays)
    for solid in scene.solids:
        paint_solid(scene, solid, time, origin, rays, (depth, colours))
    colours = colours.reshape(3, height, supersample, width, supersample).mean((2, 4))
    frame = (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    centre = slice(supersample // 2, None, supersample)
    return np.ascontiguousarray(frame), depth.reshape(h, w)[centre, centre].astype(np.float32)


def render_clip(seed: int, frames: int, height: int, width: int, supersample: int = 1) -> Clip:
    """The first `frames` frames, at 24 per second of world time, of the scene of `seed`."""
    scene = sample_scene(seed)
    pairs = [render_frame(scene, index / FRAME_RATE, height, width, supersample) for index in range(frames)]
    pictures, depth = (np.stack(part) for part in zip(*pairs, strict=True))
    return Clip(pictures, depth, scene.caption)


def render_image(seed: int, height: int, width: int, supersample: int = 1) -> Clip:
    """The first frame of the scene of `seed`, as a clip of one frame."""
    return render_clip(seed, 1, height, width, supersample)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Encode (n, h, w, 3) uint8 as an H.264 yuv420p MP4, complete under its name or not there at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def write_image(path: Path, frame: np.ndarray) -> None:
    """Write (h, w, 3) uint8 as PNG, complete under its name or not there at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(frame).save(partial, format="png")
    partial.replace(path)


def write_world(
    folder: str | Path,
    clips: int,
    images: int,
    seed: int = 0,
    frames: int = 40,
    height: int = 256,
    width: int = 448,
    fps: int = 24,
) -> None:
    """Write `clip-0000.mp4`, `image-0000.png`, … with a caption in `.txt` beside each; files already there are kept.

    Threads suffice: numpy and the encoder work outside the interpreter lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"clip-{i:04d}.mp4", seed * 100_000 + i, frames) for i in range(clips)]
    jobs += [(folder / f"image-{i:04d}.png", seed * 100_000 + 50_000 + i, 1) for i in range(images)]

    def write(job: tuple[Path, int, int]) -> None:
        path, clip_seed, count = job
        if path.exists():
            return
        clip = render_clip(clip_seed, count, height, width)
        path.with_suffix(".txt").write_text(clip.caption + "\n")
        if path.suffix == ".mp4":
            write_video(path, clip.frames, fps)
        else:
            write_image(path, clip.frames[0])

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(write, jobs))
