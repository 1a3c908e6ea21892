"""The manifest of a frozen set: its pools, its shards, and what they were made from; checked when it is read.

A manifest may come from others. Its hash only shows that it is as it was written, so types, ranges and relations are
checked as well, and the names of shards before any of them becomes a path.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from gen1_train.batch import MAX_PIXELS, Pool
from gen1_train.errors import UserError
from gen1_train.system.files import write_atomically
from gen1_train.system.names import plain_name, shown
from gen1_train.system.records import check_format, checked, format_of, load_json, make_record, require

FORMAT = 3  # 1 called the structure "depth"; 2 had JSON indices
MANIFEST = "manifest.json"
KINDS = ("image", "video")
MAX_FRAMES = 99  # the members of a sample are numbered with two digits
MAX_COUNT = 1 << 44  # samples or bytes of a shard: sums over all shards stay below 2^63; ours
ESTIMATOR_FACTS: dict[str, dict[str, type]] = {  # what readers of a set use, see Manifest
    "autoencoder": {
        "config": dict,
        "fingerprint": str,
        "scale": float,
        "factor": int,
        "channels": int,
        "stored": bool,
        "levels": dict,
        "precision": str,
    },
    "structure": {"kind": str, "config": dict, "fingerprint": str, "precision": str},
    "clip": {"config": dict, "fingerprint": str, "width": int, "precision": str},
}
OPTIONAL_FACTS = ("channels", "stored", "levels", "precision")  # not in older sets


@dataclass(frozen=True, slots=True)
class Shard:
    name: str  # of the tar in SET/shards
    samples: int
    bytes: int
    crc32: int  # of the index's header, which in turn covers every row and member


@dataclass(frozen=True)
class PoolShards:
    """A pool and the shards that hold its samples, which are numbered through all shards in order."""

    kind: str
    width: int
    height: int
    frames: int
    shards: tuple[Shard, ...]
    longer: bool = False  # see Pool; in the manifest, only the name of the pool shows it

    @property
    def pool(self) -> Pool:
        return Pool(self.kind, self.width, self.height, self.frames, self.longer)

    @cached_property
    def starts(self) -> Sequence[int]:
        """The index of each shard's first sample, and finally the number of all samples."""
        return array("Q", [0, *accumulate(shard.samples for shard in self.shards)])

    @property
    def samples(self) -> int:
        return self.starts[-1]

    @classmethod
    def from_json(cls, content: Any, name: str) -> "PoolShards":
        """Parses and checks the output of `to_json` for the pool of this name. Raises ValueError."""
        stored = make_record(_StoredPool, content, name)
        columns = [getattr(stored.shards, column.name) for column in fields(Shard)]
        require(len({len(column) for column in columns}) == 1, f"{name}.shards has columns of different lengths")
        pool = cls(stored.kind, stored.width, stored.height, stored.frames, tuple(map(Shard, *columns)))
        longer = replace(pool, longer=True)
        if pool.kind == "video" and name == longer.pool.name:
            pool = longer
        pool.check(name)
        return pool

    def check(self, name: str) -> None:
        """Raises ValueError for what a pool cannot hold, and for the name of a shard that is not a plain one."""
        require(self.kind in KINDS, f"{name}.kind is {shown(self.kind)} instead of one of {', '.join(KINDS)}")
        require(min(self.width, self.height) > 0, f"{name} has a side without pixels")
        require(self.width * self.height <= MAX_PIXELS, f"{name} has more than {MAX_PIXELS} pixels")
        require(0 < self.frames <= MAX_FRAMES, f"{name}.frames is not in 1..{MAX_FRAMES}")
        require(self.kind == "video" or self.frames == 1, f"{name}.frames is {self.frames}, but an image is one frame")
        require(self.pool.name == name, f"{shown(name)} is not the name of its pool, {self.pool.name}")
        require(bool(self.shards), f"{name} has no shard")
        for shard in self.shards:
            plain_name(shard.name, ".tar")
            require(0 <= shard.samples <= MAX_COUNT, f"{shard.name}: samples is not in 0..{MAX_COUNT}")
            require(0 < shard.bytes <= MAX_COUNT, f"{shard.name}: bytes is not in 1..{MAX_COUNT}")
            require(0 <= shard.crc32 < 1 << 32, f"{shard.name}: crc32 is not in 32 bits")

    def to_json(self) -> dict[str, Any]:
        """Returns the shards by column: with an object for each of 140 000 shards, JSON is 2x larger and 5x slower."""
        content = {each.name: getattr(self, each.name) for each in fields(_StoredPool)}
        columns = {column.name: [getattr(shard, column.name) for shard in self.shards] for column in fields(Shard)}
        return {**content, "shards": columns}


@dataclass(frozen=True)
class _StoredShards:
    """The shards of a pool by column, as in the manifest."""

    name: list[str]
    samples: list[int]
    bytes: list[int]
    crc32: list[int]


@dataclass(frozen=True)
class _StoredPool:
    """A pool as in the manifest."""

    kind: str
    width: int
    height: int
    frames: int
    shards: _StoredShards


@dataclass(frozen=True)
class _StoredLevels:
    """The structure levels in the manifest, see frozen.levels."""

    highest: int
    degradation: str


@dataclass(frozen=True)
class _StoredManifest:
    """The manifest's JSON, with pools that are not parsed yet."""

    pools: dict[str, Any]
    recipe: dict[str, Any]
    estimators: dict[str, dict[str, Any]]
    plan: str
    hash: str
    versions: dict[str, str] = field(default_factory=dict)
    refreshed: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass
class Manifest:
    """The description of a frozen set: its pools, and everything that they were made from.

    `estimators` has, for each of "autoencoder", "structure" and "clip", the section of the recipe that loads it (path,
    size, ...) as `config`, its `fingerprint`, and the `precision` that it ran in. The autoencoder also has `scale` (of
    the latents), `factor` (pixels per latent), `channels` (of a latent; not in older sets), `stored` (whether the
    samples hold latents) and `levels` (the `highest` t_s of the structure's latents, and the `degradation` of those
    above 0; see frozen.levels); the structure has its `kind` and `normalise` (the meaning of 0 and 1);
    clip has `width` (of an embedding). "caption" is there if a network made captions; it has its `kind`.
    """

    pools: dict[str, PoolShards]
    recipe: dict[str, Any]  # data_tools' recipe, resolved
    estimators: dict[str, dict[str, Any]]
    plan: str  # hash of the plan from which the set was made
    versions: dict[str, str] = field(default_factory=dict)  # of the decoders and libraries
    refreshed: dict[str, str] = field(default_factory=dict)  # layer -> hash of the set whose frames it was made from
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON: equal sets have equal hashes on every machine."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def lengths(self) -> list[int]:
        """The numbers of frames that its clips have, the least first; none without clips."""
        return sorted({pool.frames for pool in self.pools.values() if pool.kind == "video"})

    def save(self, root: Path) -> None:
        """Writes SET/manifest.json atomically."""
        write_atomically(root / MANIFEST, json.dumps({**self._content(), "hash": self.hash}, indent=1).encode())

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Reads and checks SET/manifest.json. Raises UserError if it is missing, damaged or in another format."""
        path = root / MANIFEST
        missing = f"no shard set at {root}: {MANIFEST} is missing; make one with gen1-data source=… output={root}"
        content = load_json(path, missing, "freeze the set again with gen1-data")
        check_format(format_of(content), FORMAT, path, "freeze the set again")
        try:
            stored = make_record(_StoredManifest, content)
            pools = {name: PoolShards.from_json(pool, name) for name, pool in stored.pools.items()}
            _check_shards(pools)
            _check_estimators(stored.estimators)
        except ValueError as error:
            raise UserError(f"{path} is not a manifest ({error}): freeze the set again with gen1-data") from error
        manifest = cls(pools, stored.recipe, stored.estimators, stored.plan, stored.versions, stored.refreshed)
        if manifest.hash != stored.hash:
            raise UserError(f"{path} was changed after it was frozen (its hash does not match): freeze the set again")
        return manifest

    def _content(self) -> dict[str, Any]:
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**content, "pools": {name: pool.to_json() for name, pool in self.pools.items()}}


def _check_shards(pools: dict[str, PoolShards]) -> None:
    """Raises ValueError if there is no pool, or if two shards share a name."""
    require(bool(pools), "it has no pool")
    names = Counter(shard.name for pool in pools.values() for shard in pool.shards)
    name, uses = names.most_common(1)[0]
    require(uses == 1, f"it names the shard {name} {uses} times")


def _check_estimators(estimators: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError if what readers of a set rely on is missing or of another type."""
    for name, facts in ESTIMATOR_FACTS.items():
        require(name in estimators, f"estimators has no {name}")
        for fact, expected in facts.items():
            value = estimators[name].get(fact)
            if value is None and fact in OPTIONAL_FACTS:
                continue
            value = checked(expected, value, f"estimators.{name}.{fact}")
            is_count = expected in (int, float)
            require(not is_count or value > 0, f"estimators.{name}.{fact} must be above 0")
    if levels := estimators["autoencoder"].get("levels"):
        stored = make_record(_StoredLevels, levels, "estimators.autoencoder.levels")
        require(0 <= stored.highest < 10, "estimators.autoencoder.levels.highest is not in 0..9")
