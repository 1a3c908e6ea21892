"""The fits: what of a picture CLIP sees, and what of old records stays as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gen1_train.errors import UserError
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from gen1_train.frozen.fit import FITS, preprocessing
from gen1_train.frozen.loading import check_fingerprint
from gen1_train.frozen.networks import recorded_config
from tests.running import REPOSITORY, WEIGHTS

FOLDER = WEIGHTS / "clip"
MODEL = f"local-dir:{FOLDER}"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="miniature/weights/clip does not exist")


@pytest.fixture(scope="module")
def encoders() -> dict[str | None, ClipEncoder]:
    return {fit: ClipEncoder(ClipConfig(MODEL, None, fit=fit)) for fit in (None, *FITS)}


def noise(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_a_square_picture_has_one_embedding(encoders: dict[str | None, ClipEncoder]) -> None:
    square = noise(96, 96)
    for fit in FITS:
        torch.testing.assert_close(encoders[fit].images(square), encoders[None].images(square), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 112), (112, 64), (49, 83)])
def test_crop_misses_the_ends_and_the_others_see_them(
    encoders: dict[str | None, ClipEncoder], height: int, width: int
) -> None:
    frames = noise(height, width)
    changed = frames.copy()
    changed[:, :8, :8] = changed[:, -8:, -8:] = 255
    changes = {fit: (encoders[fit].images(changed) - encoders[fit].images(frames)).abs().max() for fit in FITS}
    assert changes["crop"] == 0 and min(changes["pad"], changes["squash"]) > 1e-3


def test_crop_is_what_clip_does_and_keeps_its_fingerprint(encoders: dict[str | None, ClipEncoder]) -> None:
    frames = noise(64, 112)
    assert torch.equal(encoders["crop"].images(frames), encoders[None].images(frames))
    fingerprints = {fit: encoder.fingerprint for fit, encoder in encoders.items()}
    assert fingerprints["crop"] == fingerprints[None] and len(set(fingerprints.values())) == 3
    assert len({encoder.architecture for encoder in encoders.values()}) == 1  # the same network


def test_padding_is_zero_for_the_tower_around_the_whole_picture(encoders: dict[str | None, ClipEncoder]) -> None:
    settings = encoders[None].network.visual.preprocess_cfg
    white = Image.new("RGB", (112, 64), "white")
    padded = preprocessing(settings, "pad")(white)
    assert padded.shape == (3, 64, 64)
    rows = padded.abs().amax((0, 2))
    assert (rows < 0.01).nonzero().flatten().tolist() == [*range(13), *range(50, 64)]  # 37 rows of the picture remain
    assert padded[:, 13:50].min() > 1
    black = preprocessing(settings, "pad", (0, 0, 0))(white)
    assert black[:, 0].max() < -1 and torch.equal(black[:, 13:50], padded[:, 13:50])


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_metrics_are_by_the_own_preprocessing(encoders: dict[str | None, ClipEncoder], fit: str) -> None:
    frames = noise(64, 112)
    assert torch.equal(encoders[fit].images(frames, own=True), encoders[None].images(frames))


def test_a_model_with_another_preprocessing_keeps_it_unless_a_fit_is_given(tmp_path: Path) -> None:
    """Those of PE-Core, for example, squash."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "clip"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    own, crop, squash = (
        ClipEncoder(ClipConfig(f"local-dir:{folder}", None, fit=fit)) for fit in (None, "crop", "squash")
    )
    frames = noise(64, 112)
    assert own.fingerprint == squash.fingerprint != crop.fingerprint
    assert torch.equal(own.images(frames), squash.images(frames))
    assert torch.equal(crop.images(frames, own=True), squash.images(frames))
    assert not torch.equal(crop.images(frames), squash.images(frames))


def test_the_released_checkpoint_which_records_no_fit_has_the_fingerprint_of_crop() -> None:
    info = json.loads((REPOSITORY / "miniature" / "released" / "checkpoint.json").read_text())
    entry: dict[str, Any] = info["estimators"]["clip"]
    assert "fit" not in entry["config"]
    config = recorded_config(ClipConfig, entry, "RUN")
    assert config.fit is None and config.record() == {"chunk": config.chunk, **entry["config"]}
    assert ClipEncoder(config, recorded=True).fingerprint == entry["fingerprint"]


def test_a_recorded_fit_is_loaded_and_a_changed_one_refused(encoders: dict[str | None, ClipEncoder]) -> None:
    config = ClipConfig(MODEL, None, fit="pad")
    entry = {"config": config.record(), "fingerprint": encoders["pad"].fingerprint}
    assert recorded_config(ClipConfig, entry, "RUN") == config
    entry["config"]["fit"] = "squash"
    changed = ClipEncoder(recorded_config(ClipConfig, entry, "RUN"), recorded=True)
    with pytest.raises(UserError, match=r"the CLIP model at .*'fit': 'squash'.* is not the one that made RUN"):
        check_fingerprint("CLIP model", changed.fingerprint, entry, "RUN")


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe\.clip\.fit=stretch is not one of crop, pad, squash"):
        ClipEncoder(ClipConfig(MODEL, None, fit="stretch"))


def test_a_picture_of_which_padding_leaves_nothing_is_refused(encoders: dict[str | None, ClipEncoder]) -> None:
    line = noise(1, 1000, count=1)
    with pytest.raises(UserError, match="a picture of 1000x1 is too narrow for CLIP"):
        encoders["pad"].images(line)
    assert encoders["squash"].images(line).isfinite().all()
