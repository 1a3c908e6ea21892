"""A spool returns what was written to it, and a full disk is one line."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from gen1_train.editing.spool import Spool
from gen1_train.errors import UserError


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_slices_return_the_arrays_that_were_appended(tmp_path: Path, dtype: str) -> None:
    arrays = np.random.default_rng(0).integers(0, 200, (7, 3, 5, 2)).astype(dtype)
    with Spool(tmp_path) as spool:
        assert len(spool) == 0 and len(spool[:]) == 0
        for array in arrays:
            spool.append(array.T.copy().T)  # another memory order
        assert len(spool) == 7
        for a, b in ((0, 7), (2, 5), (-3, None), (5, 100), (4, 2)):
            part = spool[a:b]
            assert part.dtype == dtype and part.shape[1:] == (3, 5, 2)
            assert np.array_equal(part, arrays[a:b])
        part = spool[0:1]
        part[:] = 0
        assert np.array_equal(spool[0:1], arrays[0:1])  # a copy
        assert os.listdir(tmp_path) == []  # nothing is left, however the process ends


def test_scalars_and_arrays_without_elements(tmp_path: Path) -> None:
    with Spool(tmp_path) as scalars, Spool(tmp_path) as empty:
        for number in range(3):
            scalars.append(np.array(number))
            empty.append(np.zeros((0, 4)))
        assert scalars[1:].tolist() == [1, 2]
        assert empty[:2].shape == (2, 0, 4)


def test_another_shape_or_an_index_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(np.zeros((2, 2), np.uint8))
        for other in (np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.int8)):
            with pytest.raises(ValueError, match="among uint8"):
                spool.append(other)
        with pytest.raises(ValueError, match="without a step"):
            spool[::2]
        with pytest.raises(TypeError, match="by slices"):
            spool[0]  # type: ignore[index]
        assert len(spool) == 1


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # "File too large" stands in for "No space left"
        try:
            for number in range(6):
                spool.append(np.full(15_000, number, np.uint8))
            with pytest.raises(UserError, match=r"File too large after 0 MiB.*free some space there") as error:
                spool.append(np.zeros(15_000, np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
        assert len(spool) == 6 and spool[5:].tolist() == [[5] * 15_000]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: cannot create a temporary file: No such file"):
        Spool(tmp_path / "absent")
