"""The index beside a tar: where each sample lies, in rows of one size, so that any row is one positioned read.

All numbers are little-endian, nothing is padded or aligned:

    header  8 bytes    "gen1idx1"
            u32        R: rows, one a sample, in the order of the tar
            u16        K: bytes of a key
            u16        M: members, those of all samples together
            u32        N: bytes of the members' names
            u32        crc32 of the R checks of the rows, one after another
            N bytes    the M names in UTF-8, sorted, a line feed between two
            u32        crc32 of the header up to here; the manifest holds it too
    R rows  K bytes    the key in UTF-8 (ASCII by the contract), filled up with zeros
            M times    u64 offset in the tar, u32 size, u32 crc32 of the member; the offset is 0 if the sample lacks it
            u32        check: zlib's crc32 of the row up to here, begun with the row's number in place of 0

So the one number in the manifest answers for all: manifest -> header -> checks -> row -> member; and a row that is read
alone is held against its own check. (It is not the crc32 of the file: a crc32 over data that each have their crc32
behind them is the same whatever the data.)
"""

import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import Struct

from gen1_train.batch import SampleError
from gen1_train.data.opened import OpenFile
from gen1_train.errors import UserError
from gen1_train.files import write_atomically

BLOCK = 512  # a tar's headers and members start at multiples of it
MAGIC = b"gen1idx1"
HEADER = Struct("<8sIHHII")
CHECK = Struct("<I")
FIRST_READ = 4096  # bytes: more than any header of ours has, so that it is one read


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one sample's members lie in its tar: member -> (offset, size, crc32)."""

    key: str
    members: dict[str, tuple[int, int, int]]


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
    """Writes the index beside its tar and returns the crc32 for the manifest. Equal entries give equal bytes."""
    names = sorted({name for entry in entries for name in entry.members})
    keys = [entry.key.encode() for entry in entries]
    width = max(map(len, keys), default=0)
    layout = _row(width, len(names))
    rows, checks = [], []
    for number, (key, entry) in enumerate(zip(keys, entries)):
        places = (value for name in names for value in entry.members.get(name, (0, 0, 0)))
        rows.append(layout.pack(key, *places))
        checks.append(CHECK.pack(zlib.crc32(rows[-1], number)))
    listed = "\n".join(names).encode()
    head = HEADER.pack(MAGIC, len(rows), width, len(names), len(listed), zlib.crc32(b"".join(checks))) + listed
    crc32 = zlib.crc32(head)
    body = b"".join(row + check for row, check in zip(rows, checks))
    write_atomically(index_path(tar), head + CHECK.pack(crc32) + body)
    return crc32


def read_index(tar: Path, crc32: int | None = None) -> list[Entry]:
    """All of the index beside a tar, every row checked, and the whole against the manifest's crc32 if that is given.

    Raises UserError when it is missing, damaged or another one.
    """
    try:
        with Index(tar, crc32) as index:
            return index.entries()
    except OSError as error:
        raise UserError(
            f"{index_path(tar)} cannot be read ({error.strerror}); the shard set is not complete: copy it again"
        ) from error


class Index(OpenFile):
    """The index beside a tar, open: its header is in memory, a row is read when it is asked for.

    `crc32` is the one that the manifest holds, `rows` the number of samples.
    """

    def __init__(self, tar: Path, crc32: int | None = None) -> None:
        """Raises UserError when it is damaged or not that of `crc32` (if given), OSError when it cannot be read."""
        super().__init__(index_path(tar))
        data = self.read(FIRST_READ, 0)
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise self._foreign("it has another format")
        _, self.rows, self._width, members, listed, self._checks = HEADER.unpack_from(data)
        head, self._row = HEADER.size + listed, _row(self._width, members)
        self._start = head + CHECK.size
        self._stride = self._row.size + CHECK.size
        wanted, size = self._start + self.rows * self._stride, self.size
        if size != wanted:
            raise self._foreign(f"it has {size} bytes, not {wanted}")
        if self._start > len(data):
            data = self.read(self._start, 0)
        self.crc32 = zlib.crc32(data[:head])
        if CHECK.unpack_from(data, head) != (self.crc32,) or crc32 not in (None, self.crc32):
            raise self._foreign("its crc32 differs")
        self._names = data[HEADER.size : head].decode().split("\n")

    def entry(self, row: int) -> Entry:
        """One row, by one read. Raises SampleError when it is damaged (its neighbours may be whole), OSError."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.path}, which has {self.rows}")
        data = self.read(self._stride, self._start + row * self._stride)
        entry = self._parse(data, row)
        if entry is None:
            raise SampleError(f"{self.path.name}: row {row} is damaged (its crc32 differs)")
        return entry

    def entries(self) -> list[Entry]:
        """All rows, by one read. Raises UserError when one is damaged, OSError."""
        data = memoryview(self.read(self.rows * self._stride, self._start))
        parts = [data[i : i + self._stride] for i in range(0, len(data), self._stride)]
        checks = b"".join(part[-CHECK.size :] for part in parts)
        entries = [entry for row, part in enumerate(parts) if (entry := self._parse(part, row)) is not None]
        if len(entries) < self.rows or zlib.crc32(checks) != self._checks:
            raise self._foreign("its crc32 differs")
        return entries

    def _parse(self, data: bytes | memoryview, row: int) -> Entry | None:
        """A row's Entry, its members in the order of the tar; None if its check fails."""
        end = self._row.size
        if len(data) < self._stride or CHECK.unpack_from(data, end) != (zlib.crc32(data[:end], row),):
            return None
        key, *numbers = self._row.unpack_from(data)
        places = zip(numbers[::3], numbers[1::3], numbers[2::3])
        found = sorted((place, name) for name, place in zip(self._names, places) if place[0])
        return Entry(key.rstrip(b"\0").decode(), {name: place for place, name in found})

    def _foreign(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not the index that was frozen ({reason}); restore it or freeze again")


@lru_cache
def _row(width: int, members: int) -> Struct:
    """A row without its check; kept, since the shards of a pool have few forms."""
    return Struct(f"<{width}s" + members * "QII")
