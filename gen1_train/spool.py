"""Arrays on a disk: what a long video needs of each frame does not fill the memory."""

import tempfile
from pathlib import Path
from typing import Self

import numpy as np

from gen1_train.errors import UserError


class Spool:
    """Rows of one shape and dtype, appended to an unnamed temporary file and read back by slices."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """`folder`: where the file lies; by default where the system keeps temporary ones (TMPDIR)."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it
        self._row: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._count = 0

    def append(self, rows: np.ndarray) -> None:
        """Adds rows (m, ...). Raises UserError when the disk is full, ValueError for rows of another kind."""
        if not self._count:
            self._row, self._dtype = rows.shape[1:], rows.dtype
        if (rows.shape[1:], rows.dtype) != (self._row, self._dtype):
            raise ValueError(f"rows of {rows.shape[1:]} {rows.dtype} among those of {self._row} {self._dtype}")
        try:
            self._file.seek(self._count * self._bytes)
            self._file.write(np.ascontiguousarray(rows).data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"the temporary files of a long video cannot be written ({error.strerror or error}): free some space, "
                "or let TMPDIR name a folder on a larger disk"
            ) from error
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        """Rows in memory of their own, (m, ...)."""
        start, stop, step = part.indices(self._count)
        if step != 1:
            raise ValueError("rows are read one after the other")
        rows = max(0, stop - start)
        self._file.seek(start * self._bytes)
        data = bytearray(self._file.read(rows * self._bytes))
        return np.frombuffer(data, self._dtype).reshape(rows, *self._row)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _bytes(self) -> int:
        """Of a row."""
        return int(np.prod(self._row)) * self._dtype.itemsize
