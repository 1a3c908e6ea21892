"""The frozen networks of a recipe."""

from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from data_tools.recipe import RecipeConfig
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import Autoencoder
from gen1_train.frozen.captions.captioner import build_captioner, clean_caption
from gen1_train.frozen.clip import ClipEncoder
from gen1_train.frozen.levels import with_levels
from gen1_train.frozen.networks import Networks
from gen1_train.frozen.structure.kinds import build_structure
from gen1_train.system.device import autocast, pick_device
from gen1_train.video.geometry import parse_bucket

LAYERS = ("structure", "clip", "latents", "caption")  # layers that gen1-data refresh can recompute


class Estimators(Networks):
    """The autoencoder, the structure estimator, CLIP, and perhaps a captioner, as one recipe names them."""

    def __init__(
        self, recipe: RecipeConfig, device: str, precision: str = "auto", recorded: Collection[str] = ()
    ) -> None:
        """Loads all of them. Raises UserError if one cannot be loaded or does not fit the buckets.

        `recorded`: those that a manifest names, not the user, see `frozen.plain`. The captions of a set are kept, so
        that a recorded captioner is not loaded.
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
        self.captioner = None
        if recipe.caption_config is not None and "caption" not in recorded:
            self.captioner = build_captioner(recipe.caption, recipe.caption_config, torch_device)
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
        description = {
            "autoencoder": with_levels(autoencoder, self.recipe.stored_level, self.recipe.degradation),
            "structure": {
                "kind": self.recipe.structure,
                "config": self.structure.record(),
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
        if self.captioner is not None:
            description["caption"] = {
                "kind": self.recipe.caption,
                "config": asdict(self.recipe.caption_config),
                "fingerprint": self.captioner.fingerprint,
                "architecture": self.captioner.architecture,
                "precision": "fp32",
            }
        return description

    def captions(self, clips: np.ndarray) -> list[str | None]:
        """(k, n, h, w, 3) -> a caption of the middle frame of each; None if the network has no words for it.

        Always in float32, whatever the precision: rounding could lead to another word, and then to others after it.
        """
        assert self.captioner is not None
        with autocast(self.device, "fp32"):
            return [clean_caption(text) for text in self.captioner(clips[:, clips.shape[1] // 2])]

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
