"""Tars that webdataset reads, byte for byte the same whenever they hold the same.

temp file -> fsync -> reopened and verified -> rename: a tar that has its name is whole, and was read back once.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from gen1_train.data.index import Entry, Index, build_index, padded, write_index
from gen1_train.data.shards import Shard
from gen1_train.errors import UserError
from gen1_train.files import sync

Checksums = dict[str, dict[str, tuple[int, int]]]  # key -> member -> (size, crc32)
PADDING = bytes(1024)  # a tar ends with two empty blocks


class PackError(OSError):
    """What was read back is not what was written: the disk, or something between, is at fault."""


@contextmanager
def place(path: Path) -> Iterator[tuple[BinaryIO, Checksums, list[Entry]]]:
    """Gives a stream, the checksums that the block fills in, and a list that holds the index once the block has ended.

    The file has its name once the block has ended well and every member was read back, and not before. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    checksums: Checksums = {}
    entries: list[Entry] = []
    try:
        with open(temporary, "wb") as stream:
            yield stream, checksums, entries
            stream.flush()
            os.fsync(stream.fileno())
        entries += build_index(temporary)
        verify(path, entries, checksums)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def verify(path: Path, entries: list[Entry], checksums: Checksums) -> None:
    """Compares what a tar holds with what was put into it. Raises PackError."""
    found = {entry.key: {name: member[1:] for name, member in entry.members.items()} for entry in entries}
    if found != checksums:
        wrong = next((key for key in checksums if found.get(key) != checksums[key]), "one more")
        raise PackError(None, f"{path.name}: sample {wrong} was read back with other bytes than were written")


@dataclass
class TarPacker:
    """Writes samples into one tar."""

    writer: TarWriter
    checksums: Checksums
    entries: list[Entry]  # where the samples lie; filled in when the tar is finished

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Adds one sample."""
        self.writer.write({"__key__": key, **members})
        self.checksums[key] = {name: (len(data), zlib.crc32(data)) for name, data in members.items()}


@contextmanager
def open_tar(path: Path) -> Iterator[TarPacker]:
    """A tar to write samples into. It has its name once the block has ended well, and not before. Raises OSError."""
    with place(path) as (stream, checksums, entries):
        # a fixed time, owner and mode, or two runs would differ
        writer = TarWriter(stream, user="gen1", group="gen1", mode=0o644, mtime=0, encoder=False)
        try:
            yield TarPacker(writer, checksums, entries)
        except BaseException:
            with suppress(OSError):  # tarfile would write to the closed stream later, and complain
                writer.close()
            raise
        writer.close()


def seal(tar: Path, entries: list[Entry]) -> Shard:
    """Ends a shard by writing its index: with that it is whole. Raises OSError."""
    crc32 = write_index(tar, entries)
    return Shard(tar.name, len(entries), os.path.getsize(tar), crc32)


def sealed(tar: Path) -> Shard | None:
    """A shard that was ended before; None if there is none, or none of this version. Raises OSError."""
    with suppress(FileNotFoundError, UserError), Index(tar) as index:
        return Shard(tar.name, index.header.rows, os.path.getsize(tar), index.header.crc32)
    return None


def sample_range(entry: Entry, before: Entry | None) -> tuple[int, int]:
    """Where a sample lies in its tar with its headers and padding: (offset, size), given the sample before it."""
    start = _end(before) if before else 0
    return start, _end(entry) - start


def _end(entry: Entry) -> int:
    offset, size, _ = max(entry.members.values())
    return padded(offset + size)
