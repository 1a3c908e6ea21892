"""How a manifest records the levels of its structure: as older versions did in pixels, and by name otherwise."""

from pathlib import Path
from typing import Any

import pytest

from gen1_train.data.manifest import Manifest
from gen1_train.diffusion.structure import DEGRADATIONS, PIXELS, RELATIVE
from gen1_train.errors import UserError
from gen1_train.frozen.levels import set_degradation, stored_level, with_levels
from tests.made import make_shard_set

ENTRY: dict[str, Any] = {"fingerprint": "1"}


@pytest.mark.parametrize(
    ("highest", "degradation", "levels", "recorded"),
    [
        (7, PIXELS, {"highest": 7, "degradation": DEGRADATIONS[PIXELS]}, PIXELS),
        (7, RELATIVE, {"highest": 7, "degradation": DEGRADATIONS[RELATIVE]}, RELATIVE),
        (0, RELATIVE, {"highest": 0, "degradation": DEGRADATIONS[RELATIVE]}, RELATIVE),
        (0, PIXELS, None, None),  # as in older sets, whose hash stays
    ],
)
def test_a_set_records_its_levels(highest, degradation, levels, recorded):
    entry = with_levels({**ENTRY, "levels": "earlier"}, highest, degradation)
    assert entry == {**ENTRY, **({"levels": levels} if levels else {})}
    assert (set_degradation(entry), stored_level(entry)) == (recorded, highest)
    assert stored_level(entry, degradation) == highest
    assert stored_level(entry, RELATIVE if degradation == PIXELS else PIXELS) == 0


def test_levels_of_another_version_are_not_read():
    entry = {**ENTRY, "levels": {"highest": 7, "degradation": "3: another"}}
    assert set_degradation(entry) is None and stored_level(entry) == 0


@pytest.mark.parametrize(("highest", "valid"), [(0, True), (9, True), (10, False), (-1, False)])
def test_the_highest_level_of_a_manifest_is_a_digit(tmp_path: Path, highest: int, valid: bool) -> None:
    root = make_shard_set(tmp_path / "set")
    manifest = Manifest.load(root)
    manifest.estimators["autoencoder"]["levels"] = {"highest": highest, "degradation": DEGRADATIONS[RELATIVE]}
    manifest.save(root)
    if valid:
        assert stored_level(Manifest.load(root).estimators["autoencoder"]) == highest
        return
    with pytest.raises(UserError, match=r"levels\.highest is not in 0\.\.9"):
        Manifest.load(root)
