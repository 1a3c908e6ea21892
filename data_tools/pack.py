"""Tars that webdataset reads, byte for byte the same whenever they hold the same."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from webdataset import TarWriter

Write = Callable[[str, dict[str, bytes]], None]


@contextmanager
def open_tar(path: Path) -> Iterator[Write]:
    """Gives a function write(key, members); the tar has its name once the block has ended well, and not before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            # a fixed time, owner and mode, or two runs would differ
            writer = TarWriter(stream, user="gen1", group="gen1", mode=0o644, mtime=0, encoder=False)
            try:
                yield lambda key, members: _write(writer, key, members)
            except BaseException:
                with suppress(OSError):  # tarfile would write to the closed stream later, and complain
                    writer.close()
                raise
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(writer: TarWriter, key: str, members: dict[str, bytes]) -> None:
    writer.write({"__key__": key, **members})
