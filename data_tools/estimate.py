"""The frozen networks at work: a clip of frames becomes a Sample with everything that training reads."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data_tools.recipe import RecipeConfig
from gen1_train.batch import STRUCTURE_MAX, Sample, SampleError
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipEncoder
from gen1_train.estimators.depth import NORMALISATION, DepthEstimator, normalise_clip
from gen1_train.frozen import pick_device
from gen1_train.model.autoencoder import Autoencoder, to_signed
from gen1_train.video.geometry import parse_bucket


class Estimators:
    """Autoencoder, depth and CLIP of one recipe, on one device."""

    def __init__(self, recipe: RecipeConfig, device: str) -> None:
        """Loads all three. Raises UserError when one cannot be loaded or does not fit the buckets."""
        self.device = pick_device(device)
        self.autoencoder = Autoencoder(recipe.autoencoder).to(self.device)
        self.depth = DepthEstimator(recipe.depth, self.device)
        self.clip = ClipEncoder(recipe.clip, self.device)
        self.recipe = recipe
        factor = self.autoencoder.factor
        for bucket in (*recipe.video_buckets, *recipe.image_buckets):
            if any(side % factor for side in parse_bucket(bucket)):
                raise UserError(f"bucket {bucket}: the autoencoder takes sides that are multiples of {factor}")

    @cached_property
    def description(self) -> dict[str, dict[str, Any]]:
        """How to load each network, its fingerprint, and what a reader of the shards must know of it."""
        width = self.clip.images(np.zeros((1, 8, 8, 3), np.uint8)).shape[-1]
        autoencoder = {"scale": self.autoencoder.scale, "factor": self.autoencoder.factor}
        described = {
            "autoencoder": autoencoder,
            "structure": {"kind": "depth", "normalise": NORMALISATION},
            "clip": {"width": width},
        }
        for name, facts in described.items():
            attribute = "depth" if name == "structure" else name
            facts["config"] = asdict(getattr(self.recipe, attribute))
            facts["fingerprint"] = getattr(self, attribute).fingerprint
        return described

    def text_embedding(self, caption: str | None) -> np.ndarray | None:
        """Caption -> float16 (d,), as a Sample holds it."""
        return None if caption is None else _half(self.clip.texts([caption])[0])

    @torch.no_grad()
    def sample(self, key: str, frames: np.ndarray, meta: dict[str, Any]) -> Sample:
        """uint8 frames (n, h, w, 3), already of their bucket's size -> a Sample without caption.

        The structure latent is made from the depth as it is stored, in 16 bits: what training encodes anew at t_s > 0
        and what it reads at t_s = 0 come from the same numbers. Raises SampleError for depth that is not finite.
        """
        pixels = torch.from_numpy(frames)
        relative, extent = normalise_clip(self.depth(pixels))
        if not all(map(math.isfinite, extent)):
            raise SampleError(f"{key}: the depth estimator gave values that are not finite")
        depth = (relative * STRUCTURE_MAX).round().numpy().astype(np.uint16)
        stored = torch.from_numpy(depth.astype(np.float32)) / STRUCTURE_MAX
        return Sample(
            key=key,
            frames=frames,
            structure=depth,
            moments=_half(self.autoencoder.encode_moments(to_signed(pixels).to(self.device))),
            structure_latent=_half(self.autoencoder.encode_structure(stored.to(self.device))),
            image_embedding=_half(self.clip.images(frames)),
            meta={**meta, "normalise": NORMALISATION, "depth_range": extent},
        )


def _half(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.float16)


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for torch in the block: sums then have one order, so the bytes are the same for any number of
    workers; and workers that share cores do not wait for each other's threads, which costs ten times the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_loaded: dict[str, Estimators] = {}


def load_estimators(recipe: RecipeConfig, device: str) -> Estimators:
    """The networks of a recipe, loaded once in each process."""
    name = repr((recipe, device))
    if name not in _loaded:
        _loaded[name] = Estimators(recipe, device)
    return _loaded[name]
