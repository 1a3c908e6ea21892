"""A frozen shard set on disk: WebDataset tars, an index beside each, and one manifest.

    SET/manifest.json                       pools, shards, provenance; written last, so a set without it is not finished
    SET/shards/video-448x256-000000.tar     readable by any WebDataset user
    SET/shards/video-448x256-000000.index   a JSON line a sample: key and, of each member, offset, size, crc32

The index turns a tar into random access: a sample costs one positioned read a member and no scan.
"""

import hashlib
import json
import os
import tarfile
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from gen1_train.batch import Pool, Sample, SampleError, decode_sample, members_of, validate
from gen1_train.errors import UserError
from gen1_train.files import write_atomically

FORMAT = 2  # 1 called the structure "depth"
MANIFEST = "manifest.json"
BLOCK = 512  # a tar's headers and members start at multiples of it


@dataclass(frozen=True)
class Entry:
    """Where one sample's members lie in its tar: member -> (offset, size, crc32)."""

    key: str
    members: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Shard:
    name: str  # the tar's name below SET/shards
    samples: int
    bytes: int
    crc32: int  # of the index file, which in turn holds the crc32 of every member


@dataclass
class PoolShards:
    """A pool and the shards that hold it, in order; sample i of the pool is found by counting through them."""

    kind: str
    width: int
    height: int
    frames: int
    shards: list[Shard]

    @property
    def pool(self) -> Pool:
        return Pool(self.kind, self.width, self.height, self.frames)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


@dataclass
class Manifest:
    """What a frozen set is: its pools, and everything that made them.

    `estimators` holds, for each of "autoencoder", "structure" and "clip", the section of the recipe that loads it
    (path, size, ...) as `config`, its `fingerprint`, and the `precision` they ran in; for the autoencoder also
    `scale` (of the latents), `factor` (pixels per latent) and `stored` (whether the samples hold latents); for the
    structure its `kind` and `normalise` (what 0 and 1 mean); for clip `width` (of an embedding).
    """

    pools: dict[str, PoolShards]
    recipe: dict[str, Any]  # data_tools' recipe, as resolved
    estimators: dict[str, dict[str, Any]]
    plan: str  # hash of the plan that the set was made by
    versions: dict[str, str] = field(default_factory=dict)  # of the decoders and libraries
    refreshed: dict[str, str] = field(default_factory=dict)  # layer -> hash of the set whose frames it was made from
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON: equal sets have equal hashes on every machine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, root: Path) -> None:
        """Writes SET/manifest.json in one step: complete or not there."""
        write_atomically(root / MANIFEST, json.dumps({**asdict(self), "hash": self.hash}, indent=1).encode())

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Reads and checks SET/manifest.json. Raises UserError when it is missing, damaged or of another format."""
        path = root / MANIFEST
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"no shard set at {root}: {MANIFEST} is missing; make one with gen1-data source=… output={root}"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); freeze the set again with gen1-data") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise UserError(f"{path} has format {found}, this version reads {FORMAT}; freeze it again")
        stored = content.pop("hash", None)
        try:
            for name, pool in content["pools"].items():
                shards = [Shard(**shard) for shard in pool.pop("shards")]
                content["pools"][name] = PoolShards(**pool, shards=shards)
            manifest = cls(**content)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a manifest ({error}); freeze the set again with gen1-data") from error
        if manifest.hash != stored:
            raise UserError(f"{path} was changed after it was frozen (its hash does not fit); freeze the set again")
        return manifest


def build_index(tar: Path) -> list[Entry]:
    """Reads a whole tar once and returns an Entry a sample, in the order of the tar."""
    entries: dict[str, dict[str, tuple[int, int, int]]] = {}
    with tarfile.open(tar) as archive:
        for info in archive:
            key, _, member = info.name.partition(".")
            stream = archive.extractfile(info)
            if stream is not None:
                entries.setdefault(key, {})[member] = (info.offset_data, info.size, zlib.crc32(stream.read()))
    return [Entry(key, members) for key, members in entries.items()]


def padded(end: int) -> int:
    """Where the next header of a tar stands if a member's bytes stop at `end`."""
    return -(-end // BLOCK) * BLOCK


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index")


def write_index(tar: Path, entries: list[Entry]) -> int:
    """Writes the index beside its tar and returns the index's crc32."""
    data = "".join(json.dumps({"key": e.key, "members": e.members}) + "\n" for e in entries).encode()
    write_atomically(index_path(tar), data)
    return zlib.crc32(data)


def read_index(tar: Path, crc32: int | None = None) -> list[Entry]:
    """Reads the index beside a tar, checked against the manifest's crc32 if that is given."""
    path = index_path(tar)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); the shard set is not complete") from error
    if crc32 is not None and zlib.crc32(data) != crc32:
        raise UserError(f"{path} is not the index that was frozen (its crc32 differs); restore it or freeze again")
    lines = [json.loads(line) for line in data.splitlines()]
    return [Entry(line["key"], {k: tuple(v) for k, v in line["members"].items()}) for line in lines]


def read_members(tar: Path, entry: Entry, names: list[str], descriptor: int | None = None) -> dict[str, bytes]:
    """Reads members of one sample by position, each checked against its crc32. Raises SampleError."""
    opened = os.open(tar, os.O_RDONLY) if descriptor is None else descriptor
    try:
        found = {}
        for name in names:
            if name not in entry.members:
                raise SampleError(f"{tar.name}: sample {entry.key} has no member {name}")
            offset, size, crc32 = entry.members[name]
            data = os.pread(opened, size, offset)
            if zlib.crc32(data) != crc32:
                raise SampleError(f"{tar.name}: member {entry.key}.{name} is damaged (its crc32 differs)")
            found[name] = data
        return found
    finally:
        if descriptor is None:
            os.close(opened)


class ShardSet:
    """Random access to a frozen shard set. Opens nothing until it is read, so it is cheap to send to a worker."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.manifest = Manifest.load(self.root)
        self._starts = {
            name: [0, *accumulate(shard.samples for shard in pool.shards)] for name, pool in self.manifest.pools.items()
        }
        self._descriptors: dict[str, int] = {}
        self._index = lru_cache(maxsize=256)(self._read_index)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def pools(self, kind: str) -> list[PoolShards]:
        """The pools of one kind, sorted by name."""
        return [pool for _, pool in sorted(self.manifest.pools.items()) if pool.kind == kind]

    def locate(self, pool: str, index: int) -> tuple[Shard, int]:
        """The shard that holds sample `index` of a pool, and its row there."""
        starts = self._starts[pool]
        if not 0 <= index < starts[-1]:
            raise IndexError(f"sample {index} of pool {pool}, which has {starts[-1]}")
        number = bisect_right(starts, index) - 1
        return self.manifest.pools[pool].shards[number], index - starts[number]

    def entry(self, shard: Shard, row: int) -> Entry:
        """What the index says of one row of a shard: its key and members. Raises UserError for a damaged index."""
        return self._index(shard.name, shard.crc32)[row]

    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        """Reads the named fields of one sample, checked by crc32 and by the contract. Raises SampleError."""
        shard, row = self.locate(pool, index)
        entry = self.entry(shard, row)
        layout = self.manifest.pools[pool].pool
        names = [name for field_ in fields for name in members_of(field_, layout.frames)]
        tar = self.root / "shards" / shard.name
        sample = decode_sample(entry.key, read_members(tar, entry, names, self._open(shard.name)))
        validate(sample, layout)
        return sample

    def _read_index(self, name: str, crc32: int) -> list[Entry]:
        return read_index(self.root / "shards" / name, crc32)

    def _open(self, name: str) -> int:
        if name not in self._descriptors:
            try:
                self._descriptors[name] = os.open(self.root / "shards" / name, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.root / 'shards' / name} cannot be read ({error.strerror})") from error
        return self._descriptors[name]
