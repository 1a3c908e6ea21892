"""Rows on a disk read back as they were written; a full disk is one line."""

from pathlib import Path

import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.spool import Spool


def test_slices_are_those_of_the_array(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 3, 2)).astype(np.float32)
    with Spool(tmp_path) as spool:
        for part in (rows[:4], rows[4:5], rows[5:]):
            spool.append(part)
        assert len(spool) == 10 and list(tmp_path.iterdir()) == []  # unnamed: a killed process leaves nothing
        for part in (slice(0, 10), slice(3, 7), slice(8, 20), slice(5, 5), slice(None)):
            assert np.array_equal(spool[part], rows[part])
        spool[2:3][:] = 0  # a copy
        assert np.array_equal(spool[2:3], rows[2:3])


def test_other_rows_are_refused() -> None:
    with Spool() as spool:
        spool.append(np.zeros((1, 2), np.uint8))
        for other in (np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.float32)):
            with pytest.raises(ValueError, match="among those of"):
                spool.append(other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_a_full_disk_is_one_line() -> None:
    with Spool() as spool, open("/dev/full", "r+b", buffering=0) as full:
        spool._file.close()
        spool._file = full  # type: ignore[assignment]
        with pytest.raises(UserError, match=r"No space left on device.*TMPDIR"):
            spool.append(np.zeros((1, 2), np.uint8))
