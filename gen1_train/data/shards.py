"""A frozen shard set on disk: WebDataset tars, an index beside each, and one manifest.

    SET/manifest.json                       pools, shards, provenance; written last, so a set without it is not finished
    SET/shards/video-448x256-000000.tar     readable by any WebDataset user
    SET/shards/video-448x256-000000.index   a row a sample: key and, of each member, offset, size, crc32

The index turns a tar into random access: a sample costs one read of its row (`gen1_train/data/index.py`), and one read
for the members that lie side by side in the tar.
"""

import hashlib
import json
import time
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from gen1_train.batch import Pool, Sample, SampleError, decode_sample, members_of, validate
from gen1_train.data.index import Entry, Index, index_path
from gen1_train.data.opened import OpenFile, OpenFiles
from gen1_train.errors import UserError
from gen1_train.files import write_atomically

FORMAT = 3  # 1 called the structure "depth", 2 had the indices in JSON
MANIFEST = "manifest.json"
PREFETCH_ERROR = "prefetch.error"  # beside the manifest of a set that a prefetcher fills: why it ended
OPEN = 64  # tars that are kept open, and as many indices
GAP = 4096  # bytes between two members that are still read in one go; a tar has a header and padding there
PAUSES = 0.02, 0.5  # seconds between two looks for a shard that is to come: at first, and at most

Place = tuple[tuple[int, int, int], str]  # of a member: offset, size and crc32; name

T = TypeVar("T")
F = TypeVar("F", bound=OpenFile)


@dataclass(frozen=True, slots=True)
class Shard:
    name: str  # the tar's name below SET/shards
    samples: int
    bytes: int
    crc32: int  # of the index's header, which in turn answers for every row and member


@dataclass(frozen=True)
class PoolShards:
    """A pool and the shards that hold it, in order; sample i of the pool is found by counting through them."""

    kind: str
    width: int
    height: int
    frames: int
    shards: tuple[Shard, ...]

    @property
    def pool(self) -> Pool:
        return Pool(self.kind, self.width, self.height, self.frames)

    @cached_property
    def starts(self) -> Sequence[int]:
        """The number of each shard's first sample, and last of all that of the samples."""
        return array("Q", [0, *accumulate(shard.samples for shard in self.shards)])

    @property
    def samples(self) -> int:
        return self.starts[-1]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PoolShards":
        """Of what `to_json` gave. Raises KeyError, TypeError."""
        columns = content.pop("shards")
        return cls(**content, shards=tuple(map(Shard, *(columns[column.name] for column in fields(Shard)))))

    def to_json(self) -> dict[str, Any]:
        """The shards by column: of 140 000 an object each would take twice the room and five times as long."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        columns = {column.name: [getattr(shard, column.name) for shard in self.shards] for column in fields(Shard)}
        return {**content, "shards": columns}


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
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def save(self, root: Path) -> None:
        """Writes SET/manifest.json in one step: complete or not there."""
        write_atomically(root / MANIFEST, json.dumps({**self._content(), "hash": self.hash}, indent=1).encode())

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
            pools = {name: PoolShards.from_json(pool) for name, pool in content.pop("pools").items()}
            manifest = cls(pools, **content)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a manifest ({error}); freeze the set again with gen1-data") from error
        if manifest.hash != stored:
            raise UserError(f"{path} was changed after it was frozen (its hash does not fit); freeze the set again")
        return manifest

    def _content(self) -> dict[str, Any]:
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**content, "pools": {name: pool.to_json() for name, pool in self.pools.items()}}


def read_members(tar: OpenFile, entry: Entry, names: list[str]) -> dict[str, bytes]:
    """Reads members of one sample by position, each checked against its crc32. Raises SampleError, OSError."""
    absent = [name for name in names if name not in entry.members]
    if absent:
        raise SampleError(f"{tar.path.name}: sample {entry.key} has no member {absent[0]}", "missing")
    found = {}
    for run in neighbours(sorted((entry.members[name], name) for name in names)):
        (start, *_), _ = run[0]
        (last, length, _), _ = run[-1]
        data = tar.read(last + length - start, start)
        for (offset, size, crc32), name in run:
            member = data[offset - start : offset - start + size]
            if zlib.crc32(member) != crc32:
                problem = f"{tar.path.name}: member {entry.key}.{name} is damaged (its crc32 differs)"
                raise SampleError(problem, "checksum")
            found[name] = member
    return {name: found[name] for name in names}


def neighbours(places: list[Place]) -> list[list[Place]]:
    """Runs of members, given in the order of the tar, with no more than GAP bytes between one and the next."""
    runs: list[list[Place]] = []
    end = 0
    for place in places:
        (offset, size, _), _ = place
        if not runs or offset - end > GAP:
            runs.append([])
        runs[-1].append(place)
        end = offset + size
    return runs


class ShardSet:
    """Random access to a frozen shard set. Opens nothing until it is read, so it is cheap to send to a worker.

    `patience`: seconds to wait for a shard that is not there yet, in a set that a prefetcher fills (a shard's index
    comes before its tar, each by a rename) and thins out. What the prefetcher leaves in SET/prefetch.error ends the
    waiting. For one thread.
    """

    repeats = False  # a batch may hold a sample twice: the set has fewer of a kind than a batch

    def __init__(self, root: str | Path, patience: float = 0.0) -> None:
        self.root, self.patience = Path(root), patience
        self.manifest = Manifest.load(self.root)
        self._tars: OpenFiles[OpenFile] = OpenFiles(OPEN)
        self._indices: OpenFiles[Index] = OpenFiles(OPEN)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def pools(self, kind: str) -> list[PoolShards]:
        """The pools of one kind, sorted by name."""
        return [pool for _, pool in sorted(self.manifest.pools.items()) if pool.kind == kind]

    @property
    def buckets(self) -> list[str]:
        """WIDTHxHEIGHT of its clips."""
        return [f"{pool.width}x{pool.height}" for pool in self.pools("video")]

    def locate(self, pool: str, index: int) -> tuple[Shard, int]:
        """The shard that holds sample `index` of a pool, and its row there."""
        held = self.manifest.pools[pool]
        if not 0 <= index < held.samples:
            raise IndexError(f"sample {index} of pool {pool}, which has {held.samples}")
        number = bisect_right(held.starts, index) - 1
        return held.shards[number], index - held.starts[number]

    def entry(self, shard: Shard, row: int) -> Entry:
        """What the index says of one row of a shard: its key and members.

        Raises SampleError for a row that is damaged or cannot be read, UserError for an index that is damaged or gone.
        """
        return self._twice(self._indices, shard, f"row {row} of its index", lambda: self._index(shard).entry(row))

    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        """Reads the named fields of one sample, checked by crc32 and by the contract.

        Raises SampleError for a sample that is damaged or cannot be read, UserError for files that are gone.
        """
        shard, row = self.locate(pool, index)
        entry = self.entry(shard, row)
        layout = self.manifest.pools[pool].pool
        names = [name for field_ in fields for name in members_of(field_, layout.frames)]
        what = f"sample {entry.key}"
        members = self._twice(self._tars, shard, what, lambda: read_members(self._tar(shard), entry, names))
        sample = decode_sample(entry.key, members)
        validate(sample, layout)
        return sample

    def _twice(self, files: OpenFiles[Any], shard: Shard, what: str, read: Callable[[], T]) -> T:
        """Reads; after an error of the disk or the network the file is opened anew and read once more.

        An error that stays is a SampleError: another sample, elsewhere on the disk, may well be read.
        """
        try:
            return read()
        except OSError:
            files.close(shard.name)
        try:
            return read()
        except OSError as error:
            files.close(shard.name)
            problem = f"{shard.name}: {what} cannot be read ({error.strerror or error})"
            raise SampleError(problem, "read") from error

    def _tar(self, shard: Shard) -> OpenFile:
        path = self.root / "shards" / shard.name
        return self._tars.get(shard.name, lambda: self._opened(path, lambda: OpenFile(path)))

    def _index(self, shard: Shard) -> Index:
        tar = self.root / "shards" / shard.name
        return self._indices.get(shard.name, lambda: self._opened(index_path(tar), lambda: self._checked(tar, shard)))

    def _checked(self, tar: Path, shard: Shard) -> Index:
        index = Index(tar, shard.crc32)
        named = index.header.rows
        if named != shard.samples:
            raise UserError(f"{index.path} names {named} samples, the manifest says {shard.samples}: freeze again")
        return index

    def _opened(self, path: Path, open_file: Callable[[], F]) -> F:
        """Opens a file once it is there. Raises UserError if it does not come or may not be read, OSError."""
        deadline = time.monotonic() + self.patience
        pause, longest = PAUSES
        while True:
            if self.patience:  # it is a cache that evicts: what is open and deleted would keep its room on the disk
                self._tars.close_deleted()
                self._indices.close_deleted()
            try:
                return open_file()
            except PermissionError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}): change its mode or owner") from error
            except FileNotFoundError as error:
                self._check_patience(path, error, deadline - time.monotonic())
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _check_patience(self, path: Path, error: OSError, left: float) -> None:
        """Raises UserError when it is of no use to wait any longer for a file."""
        if not self.patience:
            raise UserError(f"{path} cannot be read ({error.strerror}); the shard set is not complete: copy it again")
        told = self.root / PREFETCH_ERROR
        if told.exists():
            raise UserError(told.read_text().strip())
        if left <= 0:
            raise UserError(
                f"{path} has not come in {self.patience:g} s: the prefetcher has not brought this shard; see whether "
                "it lives and its source answers"
            )
