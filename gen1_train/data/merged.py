"""The images of one set and the clips of another, read as one set. A customization trains on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from gen1_train.batch import Sample
from gen1_train.data.index import Entry
from gen1_train.data.manifest import Shard
from gen1_train.data.shards import ShardSet


class MergedShards(ShardSet):
    """The image pools of `images` and the video pools of `prior`; without `prior`, all pools of `images`.

    Both sets are on this machine. As a step reads a single pool, the schedule needs no change: image steps read these
    images, video steps those clips.
    """

    allow_repeats = True

    def __init__(self, images: str | Path, prior: str | Path | None = None) -> None:
        self.images = ShardSet(images)
        self.prior = ShardSet(prior) if prior is not None else None
        clips = self.prior or self.images
        self.root = clips.root
        self.patience = 0.0
        pools = {pool.pool.name: pool for pool in (*self.images.pools("image"), *clips.pools("video"))}
        plan = " ".join(shards.manifest.hash for shards in (self.images, clips))
        estimators = _common_estimators(clips.manifest.estimators, self.images.manifest.estimators)
        self.manifest = replace(clips.manifest, pools=pools, plan=plan, estimators=estimators)
        self._image_shards = {shard.name for pool in self.images.pools("image") for shard in pool.shards}

    def __getstate__(self) -> dict[str, Any]:
        return {"images": self.images.root, "prior": self.prior.root if self.prior else None}

    @property
    @override
    def buckets(self) -> list[str]:
        """The buckets that the model was trained on before, including those without any image or clip here."""
        return list(self.images.manifest.recipe["buckets"])

    @property
    @override
    def image_buckets(self) -> list[str]:
        recipe = self.images.manifest.recipe
        return list(recipe.get("image_buckets") or recipe["buckets"])

    @override
    def entry(self, shard: Shard, row: int) -> Entry:
        return self._set_of(shard).entry(shard, row)

    @override
    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        shard, _ = self.locate(pool, index)
        return self._set_of(shard).read(pool, index, fields)

    def _set_of(self, shard: Shard) -> ShardSet:
        """The set that a shard belongs to."""
        return self.images if shard.name in self._image_shards or self.prior is None else self.prior


def _common_estimators(
    clips: dict[str, dict[str, Any]], images: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Returns the networks of the clips, with the structure levels only if the samples of both sets hold them."""
    autoencoder = dict(clips["autoencoder"])
    levels, other = autoencoder.pop("levels", None), images["autoencoder"].get("levels")
    if levels and other and levels["degradation"] == other["degradation"]:
        autoencoder["levels"] = {**levels, "highest": min(levels["highest"], other["highest"])}
    return {**clips, "autoencoder": autoencoder}
