"""Data for fitting the estimators, in memory: rendered frames with their truth, and generic random pictures."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from miniature.world.render import FRAME_RATE, render_frame, supersampling
from miniature.world.scene import PLAIN, Scene, sample_scene

HEIGHT, WIDTH = 64, 112
# first scenes of the two sets; worlds on disk use lower seeds
FIT_SEED = 10_000_000
HELD_OUT_SEED = 20_000_000


@dataclass(frozen=True)
class Frames:
    """Frames and their truth, one entry per scene."""

    pixels: torch.Tensor  # uint8 (n, 3, h, w)
    inverse_depth: torch.Tensor  # float32 (n, h, w) in 1 / world units
    scenes: list[Scene]

    @property
    def captions(self) -> list[str]:
        return [scene.caption for scene in self.scenes]


@dataclass(frozen=True)
class Pictures:
    """The style and the size of pictures."""

    style: str = PLAIN
    height: int = HEIGHT
    width: int = WIDTH
    supersample: int | None = None  # rays per pixel and direction; None: as `supersampling` has it

    def rendered(self, count: int, first_seed: int) -> Frames:
        """Renders such frames, see `rendered_frames`."""
        return rendered_frames(count, first_seed, self.height, self.width, self.style, self.supersample)

    def generic(self, count: int, seed: int) -> torch.Tensor:
        """Draws pictures of that size without a subject, see `generic_images`."""
        return generic_images(count, seed, self.height, self.width)


def rendered_frames(
    count: int,
    first_seed: int,
    height: int = HEIGHT,
    width: int = WIDTH,
    style: str = PLAIN,
    supersample: int | None = None,
) -> Frames:
    """Renders one frame of each of `count` scenes, at a random time within the first two seconds."""

    def render(seed: int) -> tuple[np.ndarray, np.ndarray, Scene]:
        scene = sample_scene(seed, style=style)
        time = int(np.random.default_rng([seed, 1]).integers(2 * FRAME_RATE)) / FRAME_RATE
        frame = render_frame(scene, time, height, width, supersample or supersampling(height))
        return frame.pixels, frame.depth, scene

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        frames, depth, scenes = zip(*pool.map(render, range(first_seed, first_seed + count)), strict=True)
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return Frames(pixels, 1 / torch.from_numpy(np.stack(depth)), list(scenes))


def colored_noise(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random fields with spectra between 1/f and 1/f^2.4, mixed into random colors: (n, 3, h, w) in 0..1."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    radius = np.hypot(fy, fx) + 0.5 / max(height, width)
    power = rng.uniform(1.0, 2.4, (count, 1, 1, 1))
    shape = (count, 3, *radius.shape)
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * radius**-power
    spectrum[..., 0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(height, width))
    field /= field.std((2, 3), keepdims=True)
    # channels vary together for the most part, as in photographs
    mix = 0.4 * rng.standard_normal((count, 3, 3)) + [1, 0, 0]
    field = np.einsum("nij,njhw->nihw", mix * rng.uniform(0.05, 0.2, (count, 1, 1)), field)
    return np.clip(field + rng.uniform(0.15, 0.85, (count, 3, 1, 1)), 0, 1)


def generic_images(count: int, seed: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Pictures without a subject: two noise fields with a sharp border between them; uint8 (n, 3, h, w)."""
    rng = np.random.default_rng(seed)
    first, second, border = (colored_noise(count, height, width, rng) for _ in range(3))
    level = np.quantile(border[:, :1], 0.7, (2, 3), keepdims=True)[0]
    pictures = np.where(border[:, :1] > level, first, second)
    return torch.from_numpy((pictures * 255).astype(np.uint8))
