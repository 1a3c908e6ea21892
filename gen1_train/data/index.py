"""The index next to a tar: the location of each sample, in rows of equal size, so that any row takes one read.

All numbers are little-endian, and nothing is padded or aligned:

    header  8 bytes    "gen1idx1"
            u32        R: rows, one per sample, in the order of the tar
            u16        K: bytes of a key
            u16        M: distinct member names of all samples
            u32        N: bytes of the member names
            u32        crc32 of the R row checks, concatenated
            N bytes    the M names in UTF-8, sorted, separated by line feeds
            u32        crc32 of the header up to here; also stored in the manifest
    R rows  K bytes    the key in UTF-8 (ASCII by the contract), padded with zero bytes; K is at most 200
            M times    u64 offset in the tar, u32 size, u32 crc32 of the member; the offset is 0 if the sample lacks it
            u32        check: zlib's crc32 of the row up to here, with the row number as the initial value

The one number in the manifest thus covers everything: manifest -> header -> checks -> row -> member. A row that is read
on its own is verified by its own check. (The crc32 of the whole file would be useless: a crc32 over blocks that are
each followed by their own crc32 does not depend on the data.)

Checksums show that a file is as it was written, not that it is harmless. An index may come from others, so names, keys
and offsets are checked as well.
"""

import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from struct import Struct

from gen1_train.batch import SampleError
from gen1_train.data.open_files import OpenFile
from gen1_train.errors import UserError
from gen1_train.system.files import open_regular, write_atomically
from gen1_train.system.names import member_name, plain_name

BLOCK = 512  # the headers and members of a tar start at multiples of it
MAGIC = b"gen1idx1"
HEADER = Struct("<8sIHHII")
CHECK = Struct("<I")
MAX_KEY = 200  # bytes, by the contract
MAX_OFFSET = 1 << 62  # bytes; no file is that long, and the size of a member on top still fits into an offset
FIRST_READ = 4096  # bytes; more than any header that gen1-data writes, so that one read suffices


@dataclass(frozen=True, slots=True)
class Entry:
    """The locations of one sample's members in its tar: member -> (offset, size, crc32)."""

    key: str
    members: dict[str, tuple[int, int, int]]


def build_index(tar: Path) -> list[Entry]:
    """Reads a whole tar once and returns one Entry per sample, in the order of the tar."""
    entries: dict[str, dict[str, tuple[int, int, int]]] = {}
    with tarfile.open(tar, "r:") as archive:  # never compressed
        for info in archive:
            key, _, member = info.name.partition(".")
            stream = archive.extractfile(info)
            if stream is not None:
                entries.setdefault(key, {})[member] = (info.offset_data, info.size, zlib.crc32(stream.read()))
    return [Entry(key, members) for key, members in entries.items()]


def padded(end: int) -> int:
    """Rounds up to the next block boundary: the offset of the header that follows a member ending at `end`."""
    return -(-end // BLOCK) * BLOCK


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index")


def write_index(tar: Path, entries: list[Entry]) -> int:
    """Writes the index next to its tar and returns the crc32 for the manifest. Equal entries give equal bytes."""
    names = sorted({name for entry in entries for name in entry.members})
    keys = [entry.key.encode() for entry in entries]
    width = max(map(len, keys), default=0)
    layout = _row_layout(width, len(names))
    rows, checks = [], []
    for number, (key, entry) in enumerate(zip(keys, entries)):
        locations = (value for name in names for value in entry.members.get(name, (0, 0, 0)))
        rows.append(layout.pack(key, *locations))
        checks.append(CHECK.pack(zlib.crc32(rows[-1], number)))
    joined = "\n".join(names).encode()
    header = HEADER.pack(MAGIC, len(rows), width, len(names), len(joined), zlib.crc32(b"".join(checks))) + joined
    crc32 = zlib.crc32(header)
    body = b"".join(row + check for row, check in zip(rows, checks))
    write_atomically(index_path(tar), header + CHECK.pack(crc32) + body)
    return crc32


def read_index(tar: Path, crc32: int | None = None) -> list[Entry]:
    """Reads the whole index next to a tar, and checks every row, and the manifest's `crc32` if it is given.

    Raises UserError if the index is missing, damaged, or the index of another tar.
    """
    path = index_path(tar)
    try:
        with open_regular(path) as stream:
            data = stream.read()
        header = Header.parse(data, len(data), crc32)
        return [header.entry(row) for row in header.checked_rows(data)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); the shard set is not complete: copy it again"
        ) from error
    except IndexDamage as error:
        raise _not_frozen(path, error) from error


def check_index(data: bytes, crc32: int) -> None:
    """Checks all bytes of an index file against the manifest's crc32. Raises IndexDamage."""
    Header.parse(data, len(data), crc32).checked_rows(data)


class IndexDamage(ValueError):
    """Bytes that are not the index that was frozen; the message names the difference."""


@dataclass(frozen=True, slots=True)
class Header:
    """The part of an index before the rows, which says how to read them."""

    rows: int
    names: list[str]  # of the members
    layout: Struct  # of a row, without its check
    start: int  # offset of the first row in the file
    checks: int  # crc32 of the checks of all rows
    crc32: int  # of this header

    @property
    def stride(self) -> int:
        """Bytes of a row."""
        return self.layout.size + CHECK.size

    @staticmethod
    def length(data: bytes) -> int:
        """Returns the bytes of the whole header, which begins with `data`. Raises IndexDamage."""
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise IndexDamage("it has an unknown format")
        *_, names, _ = HEADER.unpack_from(data)
        return HEADER.size + names + CHECK.size

    @classmethod
    def parse(cls, data: bytes, size: int, crc32: int | None = None) -> "Header":
        """Parses the header at the beginning of `data`, from a file of `size` bytes. Raises IndexDamage."""
        start = cls.length(data)
        _, rows, width, members, _, checks = HEADER.unpack_from(data)
        if width > MAX_KEY:
            raise IndexDamage(f"its keys have {width} bytes, more than {MAX_KEY}")
        layout = _row_layout(width, members)
        expected_size = start + rows * (layout.size + CHECK.size)
        if size != expected_size:
            raise IndexDamage(f"it has {size} bytes, not {expected_size}")
        end = start - CHECK.size
        actual = zlib.crc32(data[:end])
        if CHECK.unpack_from(data, end) != (actual,) or crc32 not in (None, actual):
            raise IndexDamage("its crc32 differs")
        names = _member_names(data[HEADER.size : end])
        if len(names) != members:
            raise IndexDamage(f"it names {len(names)} members, not {members}")
        return cls(rows, names, layout, start, checks, actual)

    def checked_rows(self, data: bytes) -> list[bytes]:
        """Returns all rows of a whole file. Raises IndexDamage."""
        rows = [data[i : i + self.stride] for i in range(self.start, len(data), self.stride)]
        intact = all(self.is_intact(row, number) for number, row in enumerate(rows))
        if not intact or zlib.crc32(b"".join(row[-CHECK.size :] for row in rows)) != self.checks:
            raise IndexDamage("its crc32 differs")
        return rows

    def is_intact(self, row: bytes, number: int) -> bool:
        """Whether these are all the bytes of row `number`, undamaged."""
        end = self.layout.size
        return len(row) == self.stride and CHECK.unpack_from(row, end) == (zlib.crc32(row[:end], number),)

    def entry(self, row: bytes) -> Entry:
        """Decodes a row; the members are in the order of the tar. Raises IndexDamage for what no writer writes."""
        key, *numbers = self.layout.unpack_from(row)
        locations = zip(numbers[::3], numbers[1::3], numbers[2::3])
        present = sorted((location, name) for name, location in zip(self.names, locations) if location[0])
        if present and present[-1][0][0] >= MAX_OFFSET:
            raise IndexDamage("a member is beyond the end of any file")
        try:
            return Entry(plain_name(key.rstrip(b"\0").decode()), {name: location for location, name in present})
        except ValueError as error:
            raise IndexDamage(f"the key {error}") from error


class Index(OpenFile):
    """The open index of a tar: its header is in memory, and each row is read on demand."""

    def __init__(self, tar: Path, crc32: int | None = None) -> None:
        """Raises UserError if the index is damaged or does not match `crc32`, OSError if it cannot be read."""
        super().__init__(index_path(tar))
        data, size = self.read(FIRST_READ, 0), self.size
        try:
            if len(data) < Header.length(data) <= size:
                data = self.read(Header.length(data), 0)
            self.header = Header.parse(data, size, crc32)
        except IndexDamage as error:
            raise _not_frozen(self.path, error) from error

    def entry(self, row: int) -> Entry:
        """Reads one row with one read. Raises SampleError if it is damaged (other rows may be intact), OSError."""
        header = self.header
        if not 0 <= row < header.rows:
            raise IndexError(f"row {row} of {self.path} does not exist: it has {header.rows} rows")
        data = self.read(header.stride, header.start + row * header.stride)
        if not header.is_intact(data, row):
            raise SampleError(f"{self.path.name}: row {row} is damaged (its crc32 differs)", "checksum")
        try:
            return header.entry(data)
        except IndexDamage as error:
            raise SampleError(f"{self.path.name}: row {row} was never written so ({error})", "decode") from error


def _member_names(data: bytes) -> list[str]:
    """Returns the names in a header. Raises IndexDamage unless they are names of members, each once."""
    try:
        names = [member_name(name) for name in data.decode().split("\n")] if data else []
    except ValueError as error:
        raise IndexDamage(f"the name {error}") from error
    if len(set(names)) < len(names):
        raise IndexDamage("it names a member twice")
    return names


def _not_frozen(path: Path, damage: IndexDamage) -> UserError:
    return UserError(f"{path} is not the index that was frozen ({damage}): restore it, or freeze the set again")


@lru_cache
def _row_layout(width: int, members: int) -> Struct:
    """The layout of a row without its check; cached, because the shards of a pool share a few layouts."""
    return Struct(f"<{width}s" + members * "QII")
