"""A frozen shard set on disk: WebDataset tars, each with an index, and one manifest.

    SET/manifest.json                       pools, shards, provenance; written last, so a set without it is unfinished
    SET/shards/video-448x256-000000.tar     readable by any WebDataset user
    SET/shards/video-448x256-000000.index   one row per sample: its key, and offset, size and crc32 of each member

The index gives random access to a tar: a sample costs one read of its row (`gen1_train/data/index.py`), and one read
for each run of members that are adjacent in the tar.
"""

import time
import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gen1_train.batch import Sample, SampleError, decode_sample, members_of, validate
from gen1_train.data.index import Entry, Index, index_path
from gen1_train.data.manifest import Manifest, PoolShards, Shard
from gen1_train.data.open_files import OpenFile, OpenFiles
from gen1_train.errors import UserError

PREFETCH_ERROR = "prefetch.error"  # next to the manifest of a set that a prefetcher fills: why the prefetcher ended
MAX_OPEN = 64  # tars that are kept open, and as many indices
MAX_GAP = 4096  # bytes between two members that are still read in one go; a tar has a header and padding there
PAUSES = 0.02, 0.5  # seconds between two checks for a shard that has not arrived: at first, and at most

MemberLocation = tuple[tuple[int, int, int], str]  # offset, size and crc32 of a member; its name

T = TypeVar("T")
F = TypeVar("F", bound=OpenFile)


def read_members(tar: OpenFile, entry: Entry, names: list[str]) -> dict[str, bytes]:
    """Reads members of one sample by position, each checked against its crc32. Raises SampleError, OSError."""
    absent = [name for name in names if name not in entry.members]
    if absent:
        raise SampleError(f"{tar.path.name}: sample {entry.key} has no member {absent[0]}", "missing")
    members = {}
    for run in adjacent_runs(sorted((entry.members[name], name) for name in names)):
        (start, *_), _ = run[0]
        (last, length, _), _ = run[-1]
        data = tar.read(last + length - start, start)
        for (offset, size, crc32), name in run:
            member = data[offset - start : offset - start + size]
            if zlib.crc32(member) != crc32:
                problem = f"{tar.path.name}: member {entry.key}.{name} is damaged (its crc32 differs)"
                raise SampleError(problem, "checksum")
            members[name] = member
    return {name: members[name] for name in names}


def adjacent_runs(locations: list[MemberLocation]) -> list[list[MemberLocation]]:
    """Groups members, given in the order of the tar, into runs with at most MAX_GAP bytes between two members."""
    runs: list[list[MemberLocation]] = []
    end = 0
    for location in locations:
        (offset, size, _), _ = location
        if not runs or offset - end > MAX_GAP:
            runs.append([])
        runs[-1].append(location)
        end = offset + size
    return runs


class ShardSet:
    """Random access to a frozen shard set. Not thread-safe.

    No shard is opened before it is read, so a ShardSet is cheap to send to a worker.

    `patience`: seconds to wait for a shard that has not arrived, in a cache that a prefetcher fills and evicts from. A
    shard's index arrives before its tar, each by a rename. The wait ends early when the prefetcher leaves its error in
    SET/prefetch.error.
    """

    allow_repeats = False  # a batch may hold a sample twice, if the set has fewer of a kind than a batch

    def __init__(self, root: str | Path, patience: float = 0.0) -> None:
        self.root = Path(root)
        self.patience = patience
        self.manifest = Manifest.load(self.root)
        self._tars: OpenFiles[OpenFile] = OpenFiles(MAX_OPEN)
        self._indices: OpenFiles[Index] = OpenFiles(MAX_OPEN)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def pools(self, kind: str) -> list[PoolShards]:
        """Returns the pools of one kind, sorted by name."""
        return [pool for _, pool in sorted(self.manifest.pools.items()) if pool.kind == kind]

    @property
    def buckets(self) -> list[str]:
        """The sizes of the clips, as WIDTHxHEIGHT."""
        return list(dict.fromkeys(f"{pool.width}x{pool.height}" for pool in self.pools("video")))  # of all lengths

    @property
    def image_buckets(self) -> list[str]:
        """The sizes of the images, as WIDTHxHEIGHT."""
        return [f"{pool.width}x{pool.height}" for pool in self.pools("image")]

    def locate(self, pool: str, index: int) -> tuple[Shard, int]:
        """Returns the shard that holds sample `index` of a pool, and its row in the shard."""
        pool_shards = self.manifest.pools[pool]
        if not 0 <= index < pool_shards.samples:
            raise IndexError(f"sample {index} of pool {pool} does not exist: it has {pool_shards.samples} samples")
        number = bisect_right(pool_shards.starts, index) - 1
        return pool_shards.shards[number], index - pool_shards.starts[number]

    def entry(self, shard: Shard, row: int) -> Entry:
        """Reads one row of a shard's index: the key and members of a sample.

        Raises SampleError for a row that is damaged or cannot be read, UserError for a damaged or missing index.
        """
        return self._read_twice(self._indices, shard, f"row {row} of its index", lambda: self._index(shard).entry(row))

    def read(self, pool: str, index: int, fields: tuple[str, ...]) -> Sample:
        """Reads the named fields of one sample, and checks their crc32 and the contract.

        Raises SampleError for a sample that is damaged or cannot be read, UserError for missing files.
        """
        shard, row = self.locate(pool, index)
        entry = self.entry(shard, row)
        layout = self.manifest.pools[pool].pool
        names = [name for field_ in fields for name in members_of(field_, layout.frames)]
        what = f"sample {entry.key}"
        members = self._read_twice(self._tars, shard, what, lambda: read_members(self._tar(shard), entry, names))
        sample = decode_sample(entry.key, members, layout)
        validate(sample, layout)
        return sample

    def _read_twice(self, files: OpenFiles[Any], shard: Shard, what: str, read: Callable[[], T]) -> T:
        """Calls `read`. After an error of the disk or the network, opens the file again and calls it once more.

        A second error is a SampleError, because other samples, elsewhere on the disk, may still be readable.
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
        return self._tars.get(shard.name, lambda: self._wait_and_open(path, lambda: OpenFile(path)))

    def _index(self, shard: Shard) -> Index:
        tar = self.root / "shards" / shard.name
        return self._indices.get(
            shard.name, lambda: self._wait_and_open(index_path(tar), lambda: self._open_index(tar, shard))
        )

    def _open_index(self, tar: Path, shard: Shard) -> Index:
        index = Index(tar, shard.crc32)
        rows = index.header.rows
        if rows != shard.samples:
            raise UserError(
                f"{index.path} names {rows} samples, but the manifest says {shard.samples}: freeze the set again"
            )
        return index

    def _wait_and_open(self, path: Path, open_file: Callable[[], F]) -> F:
        """Opens a file once it exists. Raises UserError if it does not arrive or may not be read, OSError."""
        deadline = time.monotonic() + self.patience
        pause, longest = PAUSES
        while True:
            if self.patience:  # the cache evicts: deleted files that are still open would keep their disk space
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

    def _check_patience(self, path: Path, error: OSError, seconds_left: float) -> None:
        """Raises UserError when there is no point in waiting any longer for a file."""
        if not self.patience:
            raise UserError(f"{path} cannot be read ({error.strerror}); the shard set is not complete: copy it again")
        prefetch_error = self.root / PREFETCH_ERROR
        if prefetch_error.exists():
            raise UserError(prefetch_error.read_text().strip())
        if seconds_left <= 0:
            raise UserError(
                f"{path} has not arrived within {self.patience:g} s: check that the prefetcher is running and that its "
                "source responds"
            )
