"""Tests of CLIP: open_clip's own numbers, in the shapes of the contract."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from gen1_train.errors import UserError
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from tests.running import WEIGHTS

FOLDER = WEIGHTS / "clip"
MODEL = f"local-dir:{FOLDER}"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="miniature/weights/clip does not exist")


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return ClipEncoder(ClipConfig(MODEL, None))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)


CAPTIONS = ["a red ball", "zwei blaue Würfel, im Gras", ""]


def test_embeddings_equal_those_of_open_clip(encoder: ClipEncoder, frames: np.ndarray) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL)
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(Image.fromarray(frame)) for frame in frames]))
        texts = model.encode_text(open_clip.get_tokenizer(MODEL)(CAPTIONS))
    for actual, expected in ((encoder.images(frames), images), (encoder.texts(CAPTIONS), texts)):
        assert actual.shape == (len(expected), 64) and actual.dtype == torch.float32 and not actual.requires_grad
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_preprocessing_is_that_of_inference(encoder: ClipEncoder, frames: np.ndarray) -> None:
    """open_clip's preprocessing for training would crop at random."""
    assert torch.equal(encoder.images(frames), encoder.images(frames))


def test_different_inputs_have_different_embeddings(encoder: ClipEncoder, frames: np.ndarray) -> None:
    for embeddings in (encoder.images(frames), encoder.texts(CAPTIONS)):
        assert torch.cdist(embeddings, embeddings)[~torch.eye(len(embeddings), dtype=torch.bool)].min() > 1e-3


def test_embeddings_are_not_normalized(encoder: ClipEncoder, frames: np.ndarray) -> None:
    assert (encoder.images(frames).norm(dim=-1) - 1).abs().min() > 1e-3  # content_tokens normalizes


def test_the_chunk_size_changes_no_value(encoder: ClipEncoder, frames: np.ndarray) -> None:
    small = ClipEncoder(ClipConfig(MODEL, None, chunk=2))
    torch.testing.assert_close(small.images(frames), encoder.images(frames), rtol=1e-4, atol=1e-5)
    assert small.fingerprint == encoder.fingerprint


def test_the_fingerprint_covers_weights_and_preprocessing(encoder: ClipEncoder) -> None:
    other = ClipEncoder(ClipConfig(MODEL, None))
    other._preprocess = open_clip.image_transform(64, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert other.fingerprint != encoder.fingerprint
    other._preprocess = encoder._preprocess
    assert other.fingerprint == encoder.fingerprint
    with torch.no_grad():
        other.network.logit_scale += 1e-3
    assert other.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("damage", ["missing", "no weights", "truncated"])
def test_a_folder_that_cannot_be_loaded_gives_a_one_line_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "clip"
    if damage != "missing":
        path.mkdir()
        for file in FOLDER.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    weights = path / "open_clip_model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError) as error:
        ClipEncoder(ClipConfig(f"local-dir:{path}", None))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"CLIP model 'local-dir:{path}' cannot be loaded: give")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UserError, match="CLIP model 'ViT-Z-99' cannot be loaded"):
        ClipEncoder(ClipConfig("ViT-Z-99", None))


def test_the_default_model_has_the_activation_of_its_weights() -> None:
    """OpenAI's weights need QuickGELU. If model and tag differ, open_clip only warns, and its embeddings are wrong."""
    config = ClipConfig()
    model, weights = open_clip.get_model_config(config.model), open_clip.get_pretrained_cfg(config.model, "openai")
    assert model["embed_dim"] == 768 and config.pretrained == "openai"
    assert model.get("quick_gelu", False) == weights["quick_gelu"]


def test_a_model_with_another_activation_than_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained", lambda *_, **__: "no file"
    )  # open_clip warns before it reads
    with pytest.raises(UserError, match="QuickGELU"):
        ClipEncoder(ClipConfig("ViT-B-32", "openai"))


def test_a_model_without_weights_is_refused() -> None:
    """pretrained=null with a name of open_clip would silently give a network with random weights."""
    with pytest.raises(UserError, match="CLIP model 'ViT-S-32-alt' cannot be loaded"):
        ClipEncoder(ClipConfig("ViT-S-32-alt", None))
