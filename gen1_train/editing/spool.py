"""A sequence of arrays that does not fit into memory, in a temporary file."""

import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from gen1_train.errors import UserError


class Spool:
    """A growing sequence of arrays of one shape and dtype on disk. `spool[a:b]` reads some of them, stacked.

    A context manager. The file has no name, so nothing is left of it however the process ends.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Opens the file in `folder`, by default in the system's folder for temporary files. Raises UserError."""
        self._remedy = "set TMPDIR to a folder on a larger disk" if folder is None else "free some space there"
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            reason = f"cannot create a temporary file: {error.strerror}"
            raise UserError(f"{self._folder}: {reason}: set TMPDIR to another folder") from error
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)

    def append(self, array: np.ndarray) -> None:
        """Raises UserError if the disk is full, and ValueError if shape or dtype differ from the first array's."""
        if self._count == 0:
            self._shape = array.shape
            self._dtype = array.dtype
        if (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"{array.dtype} {array.shape} among {self._dtype} {self._shape}")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        offset = self._count * data.nbytes
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            reason = f"{error.strerror} after {offset / 2**20:.0f} MiB of temporary data"
            raise UserError(f"{self._folder}: {reason}: {self._remedy}, or edit fewer frames") from error
        self._count += 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of arrays, and the shape of each."""
        return (self._count, *self._shape)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        """Returns a copy of consecutive arrays, (n, …)."""
        if not isinstance(part, slice):
            raise TypeError("a spool is read by slices")
        start, stop, step = part.indices(self._count)
        if step != 1:
            raise ValueError("a spool is read by slices without a step")
        array = np.empty((max(0, stop - start), *self._shape), self._dtype)
        data = array.reshape(-1).view(np.uint8).data
        offset = start * int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            if count == 0:
                raise EOFError("the temporary file is shorter than what was written to it")
            data, offset = data[count:], offset + count
        return array

    def close(self) -> None:
        """Frees the disk space."""
        self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
