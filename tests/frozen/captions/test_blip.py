"""Tests of captions by BLIP: transformers' own words, from plain files only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor

from gen1_train.errors import UserError
from gen1_train.frozen.captions.blip import DECODING, BlipCaptioner, BlipConfig, spell
from tests.frozen.captions.published import SPECIAL, START, VOCABULARY, make_blip
from tests.frozen.hostile import CODE, change_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 48, 80, 3), dtype=np.uint8)


def test_captions_equal_those_of_transformers(folder: Path, frames: np.ndarray) -> None:
    network = BlipForConditionalGeneration.from_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": 32, "width": 32})(images=list(frames), return_tensors="pt")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    expected = tokenizer.batch_decode(network.generate(**pixels, **DECODING), skip_special_tokens=True)
    actual = BlipCaptioner(BlipConfig(str(folder)))(frames)
    assert [caption.split() for caption in actual] == [caption.split() for caption in expected] and all(actual)


def test_parts_of_words_are_joined_and_marks_left_out() -> None:
    tokens = [
        START,
        *(VOCABULARY.index(word) for word in ["[CLS]", "two", "ball", "##s", "roll", "##ing", ".", "[SEP]"]),
    ]
    assert spell([*tokens, 0, 0], VOCABULARY) == "two balls rolling."
    assert spell([START, *range(len(SPECIAL))], VOCABULARY) == ""


def test_weights_in_a_bin_are_read_as_tensors_only(folder: Path, tmp_path: Path, frames: np.ndarray) -> None:
    """Salesforce/blip-image-captioning-base has no safetensors."""
    other = make_blip(tmp_path / "bin", weights="pytorch_model.bin")
    assert BlipCaptioner(BlipConfig(str(other)))(frames) == BlipCaptioner(BlipConfig(str(folder)))(frames)
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(marker)!r}, 'w')",)

    torch.save({"vision_model.post_layernorm.weight": Evil()}, other / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"captioner .* cannot be loaded"):
        BlipCaptioner(BlipConfig(str(other)))
    assert not marker.exists()


def test_only_three_files_of_a_folder_are_read(tmp_path: Path) -> None:
    folder, marker = make_blip(tmp_path / "blip"), tmp_path / "executed"
    expected = BlipCaptioner(BlipConfig(str(folder))).fingerprint
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(evil))
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 7, "custom_generate": str(folder)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 8, "image_processor_type": "Evil"}))
    assert BlipCaptioner(BlipConfig(str(folder))).fingerprint == expected
    change_json(folder / "config.json", auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(UserError, match="its config has 'auto_map', and only plain weights are loaded"):
        BlipCaptioner(BlipConfig(str(folder)))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nowhere", "there is no such folder"),
        ("vocab.txt", "has no vocab.txt"),
        ("model.safetensors", "has no model.safetensors or pytorch_model.bin"),
        ("another kind", "its model_type is vit, not blip"),
        ("no text", "its text_config is not a JSON object"),
        ("more layers", "26 weights are missing, e.g. text_decoder"),
        ("huge", "much larger than its weights"),
        ("start", "index out of range|out of range"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str, message: str
) -> None:
    folder = make_blip(tmp_path / "blip")
    config = folder / "config.json"
    match damage:
        case "nowhere":
            folder = tmp_path / "nowhere"
        case "another kind":
            change_json(config, model_type="vit")
        case "no text":
            change_json(config, text_config=None)
        case "more layers":
            change_json(config, "text_config", num_hidden_layers=3)
        case "huge":
            change_json(config, "text_config", num_hidden_layers=10**6)
        case "start":
            change_json(config, "text_config", bos_token_id=10**6)
        case name:
            (folder / name).unlink()
    with pytest.raises(UserError, match=rf"^captioner .* cannot be loaded: give a folder .* \(.*({message})") as error:
        capfd.readouterr()
        BlipCaptioner(BlipConfig(str(folder)))
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""
