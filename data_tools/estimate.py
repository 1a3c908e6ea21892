"""The frozen networks of a recipe."""

from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from data_tools.recipe import RecipeConfig
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.clip import ClipEncoder
from gen1_train.frozen.levels import with_levels
from gen1_train.frozen.networks import Networks
from gen1_train.frozen.structure import build_structure
from gen1_train.system.device import pick_device
from gen1_train.video.geometry import parse_bucket

LAYERS = ("structure", "clip", "latents")  # layers that gen1-data refresh can recompute


class Estimators(Networks):
    """The autoencoder, the structure estimator and CLIP, as one recipe names them."""

    def __init__(
        self, recipe: RecipeConfig, device: str, precision: str = "auto", recorded: Collection[str] = ()
    ) -> None:
        """Loads all three. Raises UserError if one cannot be loaded or does not fit the buckets.

        `recorded`: those that a manifest names, not the user, see `frozen.plain`.
        """
        self.recipe = recipe
        torch_device = pick_device(device)
        super().__init__(
            Autoencoder(recipe.autoencoder, "autoencoder" in recorded).to(torch_device),
            recipe.structure,
            build_structure(recipe.structure, recipe.structure_config, torch_device, "structure" in recorded),
            ClipEncoder(recipe.clip, torch_device, "clip" in recorded),
            torch_device,
            precision,
        )
        factor = self.autoencoder.factor
        for bucket in (*recipe.video_buckets, *recipe.image_buckets):
            if any(side % factor for side in parse_bucket(bucket)):
                raise UserError(f"bucket {bucket}: the autoencoder needs sides that are multiples of {factor}")

    @cached_property
    def description(self) -> dict[str, dict[str, Any]]:
        """How to load each network, its fingerprint, and what a reader of the shards must know about it."""
        width = self.clip.images(np.zeros((1, 8, 8, 3), np.uint8)).shape[-1]
        common = {"precision": self.precision}
        autoencoder = {
            "config": asdict(self.recipe.autoencoder),
            "fingerprint": self.autoencoder.fingerprint,
            "architecture": self.autoencoder.architecture,
            "scale": self.autoencoder.scale,
            "factor": self.autoencoder.factor,
            "channels": self.autoencoder.channels,
            "stored": self.recipe.latents,
            **common,
        }
        return {
            "autoencoder": with_levels(autoencoder, self.recipe.stored_level),
            "structure": {
                "kind": self.recipe.structure,
                "config": asdict(self.recipe.structure_config),
                "fingerprint": self.structure.fingerprint,
                "architecture": self.structure.architecture,
                "normalise": self.structure.normalisation,
                **common,
            },
            "clip": {
                "config": self.recipe.clip.record(),
                "fingerprint": self.clip.fingerprint,
                "architecture": self.clip.architecture,
                "width": width,
                **common,
            },
        }

    @property
    def batch(self) -> int:
        """Number of clips of one size that go through the networks together."""
        return 1 if self.device.type == "cpu" else 8


_loaded: dict[str, Estimators] = {}


def load_estimators(recipe: RecipeConfig, device: str, precision: str = "auto") -> Estimators:
    """Returns the networks of a recipe, loaded once in each process."""
    name = repr((recipe, device, precision))
    if name not in _loaded:
        _loaded[name] = Estimators(recipe, device, precision)
    return _loaded[name]
