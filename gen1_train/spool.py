"""Arrays that are too many for the memory, in a temporary file."""

import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from gen1_train.errors import UserError


class Spool:
    """A growing row of arrays of one shape and dtype on disk; `spool[a:b]` reads some back, stacked.

    A context manager. The file has no name: however the process ends, nothing is left of it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where the file lies; None: where the system keeps temporary files (TMPDIR). Raises UserError."""
        self._mend = "set TMPDIR to a folder on a larger disk" if folder is None else "free some space there"
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise UserError(f"{self._folder} takes no temporary file: {error.strerror}") from error
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)

    def append(self, array: np.ndarray) -> None:
        """Raises UserError if the disk is full, and ValueError for another shape or dtype than the first one's."""
        if self._count == 0:
            self._shape, self._dtype = array.shape, array.dtype
        if (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(f"{array.dtype} {array.shape} among {self._dtype} {self._shape}")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        place = self._count * data.nbytes
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, place)
                data, place = data[written:], place + written
        except OSError as error:
            reason = f"{error.strerror} after {place / 2**20:.0f} MiB of temporary data"
            raise UserError(f"{self._folder}: {reason}: {self._mend}, or take fewer frames") from error
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: slice) -> np.ndarray:
        """A copy of some consecutive arrays, (n, …)."""
        if not isinstance(place, slice):
            raise TypeError("a spool is read by slices")
        start, stop, step = place.indices(self._count)
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
        """Frees the disk."""
        self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
