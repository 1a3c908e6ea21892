"""What both captioners have in common: equal frames have equal captions, whatever else is in the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.captions.blip import BlipConfig
from gen1_train.frozen.captions.captioner import LONGEST, Captioner, build_captioner, clean_caption
from gen1_train.frozen.captions.coca import CocaConfig
from tests.frozen.captions.published import make_blip, make_coca


def build(kind: str, folder: Path, seed: int = 0) -> Captioner:
    if kind == "blip":
        return build_captioner(kind, BlipConfig(str(make_blip(folder, seed))))
    return build_captioner(kind, CocaConfig(f"local-dir:{make_coca(folder, seed)}", None))


@pytest.fixture(scope="module", params=["blip", "coca"])
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return build(request.param, tmp_path_factory.mktemp("captioner") / request.param)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Frames of different colors with some noise, (8, 48, 80, 3)."""
    draw = np.random.default_rng(0)
    return (draw.integers(0, 200, (8, 1, 1, 3)) + draw.integers(0, 56, (8, 48, 80, 3))).astype(np.uint8)


def test_a_caption_does_not_depend_on_the_batch(captioner: Captioner, frames: np.ndarray) -> None:
    captions = captioner(frames)
    assert captions == [captioner(frame[None])[0] for frame in frames]
    assert captions[::-1][:3] == captioner(frames[::-1][:3])
    lengths = {len(caption.split()) for caption in captions}
    assert len(set(captions)) > 4 and len(lengths) > 2  # they differ, and end at different times


def test_all_of_the_frame_is_seen(captioner: Captioner, frames: np.ndarray) -> None:
    others = frames.copy()
    others[:, :, :12] = others[:, :, -12:] = 255 - others[:, :, :12]
    assert captioner(others) != captioner(frames)


def test_the_fingerprint_is_of_the_weights(captioner: Captioner, tmp_path: Path) -> None:
    kind = "blip" if isinstance(captioner.config, BlipConfig) else "coca"  # type: ignore[attr-defined]
    same, other = build(kind, tmp_path / "same"), build(kind, tmp_path / "other", seed=1)
    assert same.fingerprint == captioner.fingerprint != other.fingerprint
    assert same.architecture == captioner.architecture == other.architecture


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = make_blip(tmp_path / "blip", weights="pytorch_model.bin")
    weights = torch.load(folder / "pytorch_model.bin")
    weights["vision_model.post_layernorm.weight"][0] = torch.nan
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"recipe\.caption=blip: .* has weights that are not finite"):
        build_captioner("blip", BlipConfig(str(folder)))


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" a red\tball\n", "a red ball"),
        ("a\x1b[31m red\x00ball\u2028here\u202e", "a [31m red ball here"),
        ("ein Würfel über 東京", "ein Würfel über 東京"),
        (" \x07\n ", None),
        ("", None),
        ("word " * 200, ("word " * (LONGEST // 5)).strip()),
    ],
)
def test_a_made_caption_is_one_printable_line(text: str, caption: str | None) -> None:
    assert clean_caption(text) == caption
