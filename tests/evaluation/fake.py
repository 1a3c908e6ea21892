"""A fake editor without networks, whose edits depend on the dials, and lists of pairs with small videos."""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from gen1_train import keyed
from gen1_train.diffusion.sampling import SamplingConfig
from gen1_train.evaluation.methods import Editing
from gen1_train.evaluation.pairs import Pair, read_pairs
from gen1_train.video.encode import write_video

WIDTH = 112
HEIGHT = 64


class FakeClip:
    def images(self, frames: np.ndarray, own: bool = False) -> Tensor:
        assert own  # metrics are comparable only by CLIP's own preprocessing
        return torch.from_numpy(frames.reshape(len(frames), 4, -1, 3).mean(2).reshape(len(frames), 12)).float()

    def texts(self, texts: list[str]) -> Tensor:
        return torch.stack([keyed.normal((12,), text).abs() for text in texts])


class FakeEditor:
    """A higher omega_t gives less noise from frame to frame, a higher t_s less of the input."""

    def __init__(self) -> None:
        self.buckets = [f"{WIDTH}x{HEIGHT}"]
        self.clip = FakeClip()
        self.highest_level = 7

    def structure_estimator(self, frames: Tensor) -> Tensor:
        return frames.float().mean(-1)

    def __call__(
        self,
        frames: np.ndarray,
        *,
        prompt: str | None = None,
        image: np.ndarray | None = None,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        assert sampling is not None
        content = keyed.normal((3,), prompt or "image").numpy() * 40
        flicker = 0.5 / (0.5 + sampling.guidance.omega_t) if sampling.temporal else 1.0
        noise = keyed.normal(frames.shape, sampling.seed, "fake").numpy() * 30
        kept = 1 - (sampling.t_s / 10) * sampling.init_strength
        return np.clip(frames * kept + content + flicker * noise, 0, 255).astype(np.uint8)


def load(rank: int) -> Editing:
    return FakeEditor()


def moving(frames: int = 5, seed: int = 0, step: tuple[int, int] = (2, 1)) -> np.ndarray:
    """Returns smooth noise that moves by a whole number of pixels (x, y) per frame: uint8 (n, h, w, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (14, 22, 3), dtype=np.uint8)
    whole = cv2.resize(coarse, (22 * 8, 14 * 8), interpolation=cv2.INTER_CUBIC)
    x, y = step
    return np.stack([whole[8 + t * y : 8 + t * y + HEIGHT, 8 + t * x : 8 + t * x + WIDTH] for t in range(frames)])


def write_pairs(folder: Path, count: int = 3, **extra: Any) -> Path:
    """Writes a list of `count` pairs, each with its own video, and with the same value in each column of `extra`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_video(folder / f"{number}.mp4", moving(seed=number), 8)
    rows = [[f"{number}.mp4", f"a clay model, number {number}", *extra.values()] for number in range(count)]
    with open(folder / "pairs.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["video", "prompt", *extra], *rows])
    return folder / "pairs.csv"


def made_pairs(folder: Path, count: int = 3) -> list[Pair]:
    return read_pairs(write_pairs(folder, count))
