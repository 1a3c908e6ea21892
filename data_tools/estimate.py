"""The frozen networks at work: frames of some clips become everything that training reads of them."""

import math
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data_tools.recipe import RecipeConfig
from gen1_train.batch import STRUCTURE_MAX, SampleError
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipEncoder
from gen1_train.estimators.structure import build_structure
from gen1_train.frozen import autocast, pick_device, resolve_precision
from gen1_train.model.autoencoder import Autoencoder, to_signed
from gen1_train.video.geometry import parse_bucket

LAYERS = ("structure", "clip", "latents")  # what can be computed anew by itself (gen1-data refresh)


class Estimators:
    """Structure estimator, CLIP and autoencoder of one recipe, on one device.

    Clips go through together, k of n frames each: uint8 (k, n, h, w, 3). On a CPU k is 1: the sums of a network, and so
    the bytes of a sample, would otherwise depend on its neighbours. Several threads may call at once, one a network.
    """

    def __init__(self, recipe: RecipeConfig, device: str, precision: str = "auto") -> None:
        """Loads all three. Raises UserError when one cannot be loaded or does not fit the buckets."""
        self.recipe = recipe
        self.device = pick_device(device)
        self.precision = resolve_precision(self.device, precision)
        self.autoencoder = Autoencoder(recipe.autoencoder).to(self.device)
        self.structure = build_structure(recipe.structure, recipe.structure_config, self.device)
        self.clip = ClipEncoder(recipe.clip, self.device)
        factor = self.autoencoder.factor
        for bucket in (*recipe.video_buckets, *recipe.image_buckets):
            if any(side % factor for side in parse_bucket(bucket)):
                raise UserError(f"bucket {bucket}: the autoencoder takes sides that are multiples of {factor}")

    @cached_property
    def description(self) -> dict[str, dict[str, Any]]:
        """How to load each network, its fingerprint, and what a reader of the shards must know of it."""
        width = self.clip.images(np.zeros((1, 8, 8, 3), np.uint8)).shape[-1]
        common = {"precision": self.precision}
        return {
            "autoencoder": {
                "config": asdict(self.recipe.autoencoder),
                "fingerprint": self.autoencoder.fingerprint,
                "scale": self.autoencoder.scale,
                "factor": self.autoencoder.factor,
                "stored": self.recipe.latents,
                **common,
            },
            "structure": {
                "kind": self.recipe.structure,
                "config": asdict(self.recipe.structure_config),
                "fingerprint": self.structure.fingerprint,
                "normalise": self.structure.normalisation,
                **common,
            },
            "clip": {
                "config": asdict(self.recipe.clip),
                "fingerprint": self.clip.fingerprint,
                "width": width,
                **common,
            },
        }

    @property
    def batch(self) -> int:
        """Clips of one size that go through the networks together."""
        return 1 if self.device.type == "cpu" else 8

    @torch.no_grad()
    def maps(self, clips: np.ndarray) -> list[tuple[np.ndarray, tuple[float, float]] | SampleError]:
        """(k, n, h, w, 3) -> of each clip its structure, uint16 (n, h, w), and the range that was spread over 0..65535.

        A clip whose structure is not finite has a SampleError in its place.
        """
        with autocast(self.device, self.precision):
            raw = self.structure(torch.from_numpy(clips.reshape(-1, *clips.shape[2:])))
        found: list[tuple[np.ndarray, tuple[float, float]] | SampleError] = []
        for clip in raw.view(*clips.shape[:2], *raw.shape[1:]):
            relative, extent = self.structure.normalise(clip)
            if all(map(math.isfinite, extent)):
                found.append(((relative * STRUCTURE_MAX).round().numpy().astype(np.uint16), extent))
            else:
                problem = f"the {self.recipe.structure} estimator gave values that are not finite"
                found.append(SampleError(problem, "not_finite"))
        return found

    @torch.no_grad()
    def structure_latents(self, structure: np.ndarray) -> np.ndarray:
        """Structure as it is stored, uint16 (n, h, w) -> float16 (n, c, h/f, w/f).

        Made from the 16 bits, so that what training encodes anew at t_s > 0 and what it reads at t_s = 0 come from the
        same numbers.
        """
        stored = torch.from_numpy(structure.astype(np.float32)) / STRUCTURE_MAX
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_structure(stored.to(self.device)))

    @torch.no_grad()
    def moments(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> float16 (k, n, 2c, h/f, w/f)."""
        with autocast(self.device, self.precision):
            return _half(self.autoencoder.encode_moments(to_signed(torch.from_numpy(clips)).to(self.device)))

    @torch.no_grad()
    def image_embeddings(self, clips: np.ndarray) -> np.ndarray:
        """(k, n, h, w, 3) -> float16 (k, n, d)."""
        with autocast(self.device, self.precision):
            flat = _half(self.clip.images(clips.reshape(-1, *clips.shape[2:])))
        return flat.reshape(*clips.shape[:2], -1)

    @torch.no_grad()
    def text_embedding(self, caption: str) -> np.ndarray:
        """float16 (d,)."""
        with autocast(self.device, self.precision):
            return _half(self.clip.texts([caption])[0])


def _half(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float16)


_loaded: dict[str, Estimators] = {}


def load_estimators(recipe: RecipeConfig, device: str, precision: str = "auto") -> Estimators:
    """The networks of a recipe, loaded once in each process."""
    name = repr((recipe, device, precision))
    if name not in _loaded:
        _loaded[name] = Estimators(recipe, device, precision)
    return _loaded[name]
