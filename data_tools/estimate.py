"""The frozen networks of a recipe."""

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from data_tools.recipe import RecipeConfig
from gen1_train.errors import UserError
from gen1_train.estimators.clip import ClipEncoder
from gen1_train.estimators.structure import build_structure
from gen1_train.frozen import pick_device
from gen1_train.model.autoencoder import Autoencoder
from gen1_train.networks import Networks
from gen1_train.video.geometry import parse_bucket

LAYERS = ("structure", "clip", "latents")  # what can be computed anew by itself (gen1-data refresh)


class Estimators(Networks):
    """The networks of one recipe."""

    def __init__(self, recipe: RecipeConfig, device: str, precision: str = "auto") -> None:
        """Loads all three. Raises UserError when one cannot be loaded or does not fit the buckets."""
        self.recipe, where = recipe, pick_device(device)
        super().__init__(
            Autoencoder(recipe.autoencoder).to(where),
            recipe.structure,
            build_structure(recipe.structure, recipe.structure_config, where),
            ClipEncoder(recipe.clip, where),
            where,
            precision,
        )
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


_loaded: dict[str, Estimators] = {}


def load_estimators(recipe: RecipeConfig, device: str, precision: str = "auto") -> Estimators:
    """The networks of a recipe, loaded once in each process."""
    name = repr((recipe, device, precision))
    if name not in _loaded:
        _loaded[name] = Estimators(recipe, device, precision)
    return _loaded[name]
