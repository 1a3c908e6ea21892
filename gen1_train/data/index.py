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
    path = index_path(tar)
    try:
        data = path.read_bytes()
        header = Header.parse(data, len(data), crc32)
        return [header.entry(row) for row in header.checked_rows(data)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); the shard set is not complete: copy it again"
        ) from error
    except IndexDamage as error:
        raise _foreign(path, error) from error


def check_index(data: bytes, crc32: int) -> None:
    """Checks all bytes of an index file against the manifest's crc32. Raises IndexDamage."""
    Header.parse(data, len(data), crc32).checked_rows(data)


class IndexDamage(ValueError):
    """Bytes that are not the index that was frozen; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the rows, and with it how to read them."""

    rows: int
    names: list[str]  # of the members
    layout: Struct  # of a row, without its check
    start: int  # of the first row in the file
    checks: int  # crc32 of the checks of all rows
    crc32: int  # of this header

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return self.layout.size + CHECK.size

    @staticmethod
    def length(data: bytes) -> int:
        """Bytes of the whole header, of which these are the first. Raises IndexDamage."""
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise IndexDamage("it has another format")
        *_, names, _ = HEADER.unpack_from(data)
        return HEADER.size + names + CHECK.size

    @classmethod
    def parse(cls, data: bytes, size: int, crc32: int | None = None) -> "Header":
        """The header at the beginning of `data`, from a file of `size` bytes. Raises IndexDamage."""
        start = cls.length(data)
        _, rows, width, members, _, checks = HEADER.unpack_from(data)
        wanted = start + rows * (_row(width, members).size + CHECK.size)
        if size != wanted:
            raise IndexDamage(f"it has {size} bytes, not {wanted}")
        end = start - CHECK.size
        found = zlib.crc32(data[:end])
        if CHECK.unpack_from(data, end) != (found,) or crc32 not in (None, found):
            raise IndexDamage("its crc32 differs")
        names = data[HEADER.size : end].decode().split("\n")
        return cls(rows, names, _row(width, members), start, checks, found)

    def checked_rows(self, data: bytes) -> list[bytes]:
        """All rows of a whole file. Raises IndexDamage."""
        rows = [data[i : i + self.stride] for i in range(self.start, len(data), self.stride)]
        whole = all(self.holds(row, number) for number, row in enumerate(rows))
        if not whole or zlib.crc32(b"".join(row[-CHECK.size :] for row in rows)) != self.checks:
            raise IndexDamage("its crc32 differs")
        return rows

    def holds(self, row: bytes, number: int) -> bool:
        """Whether these are all the bytes of row `number`, undamaged."""
        end = self.layout.size
        return len(row) == self.stride and CHECK.unpack_from(row, end) == (zlib.crc32(row[:end], number),)

    def entry(self, row: bytes) -> Entry:
        """What a row says; its members in the order of the tar."""
        key, *numbers = self.layout.unpack_from(row)
        places = zip(numbers[::3], numbers[1::3], numbers[2::3])
        found = sorted((place, name) for name, place in zip(self.names, places) if place[0])
        return Entry(key.rstrip(b"\0").decode(), {name: place for place, name in found})


class Index(OpenFile):
    """The index beside a tar, open: its header is in memory, a row is read when it is asked for."""

    def __init__(self, tar: Path, crc32: int | None = None) -> None:
        """Raises UserError when it is damaged or not that of `crc32` (if given), OSError when it cannot be read."""
        super().__init__(index_path(tar))
        data, size = self.read(FIRST_READ, 0), self.size
        try:
            if len(data) < Header.length(data) <= size:
                data = self.read(Header.length(data), 0)
            self.header = Header.parse(data, size, crc32)
        except IndexDamage as error:
            raise _foreign(self.path, error) from error

    def entry(self, row: int) -> Entry:
        """One row, by one read. Raises SampleError when it is damaged (its neighbours may be whole), OSError."""
        header = self.header
        if not 0 <= row < header.rows:
            raise IndexError(f"row {row} of {self.path}, which has {header.rows}")
        data = self.read(header.stride, header.start + row * header.stride)
        if not header.holds(data, row):
            raise SampleError(f"{self.path.name}: row {row} is damaged (its crc32 differs)", "checksum")
        return header.entry(data)


def _foreign(path: Path, damage: IndexDamage) -> UserError:
    return UserError(f"{path} is not the index that was frozen ({damage}); restore it or freeze again")


@lru_cache
def _row(width: int, members: int) -> Struct:
    """A row without its check; kept, since the shards of a pool have few forms."""
    return Struct(f"<{width}s" + members * "QII")
