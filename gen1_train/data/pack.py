"""Writes tars that webdataset can read; equal contents give equal bytes.

A tar is written under a temporary name, synced, read back, verified, and then renamed. A tar that has its final name is
therefore complete and was readable.
"""

import os
import secrets
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from gen1_train.data.index import Entry, Index, build_index, padded, write_index
from gen1_train.data.manifest import Shard
from gen1_train.errors import UserError
from gen1_train.system.files import sync

Checksums = dict[str, dict[str, tuple[int, int]]]  # key -> member -> (size, crc32)
PADDING = bytes(1024)  # a tar ends with two empty blocks


class PackError(OSError):
    """A tar that was read back differs from what was written: the disk, or something in between, is at fault."""


@contextmanager
def verified_tar(path: Path) -> Iterator[tuple[BinaryIO, Checksums, list[Entry]]]:
    """Opens a new tar for raw bytes, which gets its name only after the block has succeeded and all was read back.

    Yields the stream, the checksums, which the block fills in, and a list that holds the index after the block. Raises
    OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
    checksums: Checksums = {}
    entries: list[Entry] = []
    try:
        with open(temporary, "wb") as stream:
            yield stream, checksums, entries
            stream.flush()
            os.fsync(stream.fileno())
        try:
            entries += build_index(temporary)
        except tarfile.TarError as error:
            raise PackError(None, f"{path.name}: it was read back as no tar ({error})") from error
        verify(path, entries, checksums)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def verify(path: Path, entries: list[Entry], checksums: Checksums) -> None:
    """Compares the index that was read back with the checksums of what was written. Raises PackError."""
    read = {entry.key: {name: member[1:] for name, member in entry.members.items()} for entry in entries}
    if read != checksums:
        wrong = next(key for key in (*checksums, *read) if read.get(key) != checksums.get(key))
        raise PackError(None, f"{path.name}: sample {wrong} was read back with other bytes than were written")


@dataclass
class TarPacker:
    """Writes samples into one tar."""

    writer: TarWriter
    checksums: Checksums
    entries: list[Entry]  # the index; filled in when the tar is finished

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Adds one sample."""
        self.writer.write({"__key__": key, **members})
        self.checksums[key] = {name: (len(data), zlib.crc32(data)) for name, data in members.items()}


@contextmanager
def open_tar(path: Path) -> Iterator[TarPacker]:
    """Opens a new tar for samples. It gets its name only after the block has succeeded. Raises OSError."""
    with verified_tar(path) as (stream, checksums, entries):
        # a fixed time, owner and mode: otherwise two runs would differ
        writer = TarWriter(stream, user="gen1", group="gen1", mode=0o644, mtime=0, encoder=False)
        try:
            yield TarPacker(writer, checksums, entries)
        except BaseException:
            with suppress(OSError):  # otherwise tarfile would write to the closed stream later
                writer.close()
            raise
        writer.close()


def seal(tar: Path, entries: list[Entry]) -> Shard:
    """Completes a shard by writing its index. Raises OSError."""
    crc32 = write_index(tar, entries)
    return Shard(tar.name, len(entries), os.path.getsize(tar), crc32)


def sealed_shard(tar: Path) -> Shard | None:
    """Returns the shard if it is complete, with an index of this version; otherwise None. Raises OSError."""
    with suppress(FileNotFoundError, UserError), Index(tar) as index:
        return Shard(tar.name, index.header.rows, os.path.getsize(tar), index.header.crc32)
    return None


def sample_range(entry: Entry, previous: Entry | None) -> tuple[int, int]:
    """Returns (offset, size) of a sample in its tar, with headers and padding, given the sample before it."""
    start = _end(previous) if previous else 0
    return start, _end(entry) - start


def _end(entry: Entry) -> int:
    offset, size, _ = max(entry.members.values())
    return padded(offset + size)
