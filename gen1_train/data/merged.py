"""Images of one set and clips of another, read as one set: what a customization trains on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from gen1_train.batch import Sample
from gen1_train.data.index import Entry
from gen1_train.data.shards import Shard, ShardSet


class MergedShards(ShardSet):
    """The image pools of `images` and the video pools of `prior`, if there is one. Both lie on this machine.

    A step reads one pool, so nothing of the schedule changes: image steps read these images, video steps those clips.
    """

    repeats = True

    def __init__(self, images: str | Path, prior: str | Path | None = None) -> None:
        self.images, self.prior = ShardSet(images), ShardSet(prior) if prior is not None else None
        clips = self.prior or self.images
        self.root, self.patience = clips.root, 0.0
        pools = {pool.pool.name: pool for pool in (*self.images.pools("image"), *clips.pools("video"))}
        plan = " ".join(shards.manifest.hash for shards in (self.images, clips))
        self.manifest = replace(clips.manifest, pools=pools, plan=plan)
        self._own = {shard.name for pool in self.images.pools("image") for shard in pool.shards}

    def __getstate__(self) -> dict[str, Any]:
        return {"images": self.images.root, "prior": self.prior.root if self.prior else None}

    @property
    @override
    def buckets(self) -> list[str]:
        """Those that the model was trained on before, also where no image and no clip has them."""
        return list(self.images.manifest.recipe["buckets"])

    @override
    def entry(self, shard: Shard, row: int) -> Entry:
        return self._of(shard).entry(shard, row)

    @override
    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        shard, _ = self.locate(pool, index)
        return self._of(shard).read(pool, index, fields)

    def _of(self, shard: Shard) -> ShardSet:
        """The set that a shard lies in."""
        return self.images if shard.name in self._own or self.prior is None else self.prior
