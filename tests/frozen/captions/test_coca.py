"""Tests of captions by CoCa: each token is the one that open_clip's network holds for the likeliest."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gen1_train.errors import UserError
from gen1_train.frozen.captions.coca import SHORTEST, CocaCaptioner, CocaConfig
from gen1_train.frozen.clip import ClipConfig, ClipEncoder
from tests.frozen.captions.published import COCA, make_coca
from tests.frozen.hostile import change_json
from tests.running import WEIGHTS


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> CocaCaptioner:
    return CocaCaptioner(CocaConfig(f"local-dir:{make_coca(tmp_path_factory.mktemp('coca') / 'coca')}", None))


def test_each_token_is_the_likeliest_after_those_before_it(captioner: CocaCaptioner) -> None:
    """As open_clip's own forward says, which sees a whole caption at once; no end comes before the shortest caption."""
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = captioner.tokens(pixels)
    start, end = captioner.tokenizer.sot_token_id, captioner.tokenizer.eot_token_id
    assert (tokens[:, 0] == start).all() and tokens.shape[1] <= 20
    with torch.no_grad():
        logits = captioner.network(pixels, tokens, output_labels=False)["logits"]
    logits[:, : SHORTEST - 1, end] = -torch.inf
    for row, likeliest in zip(tokens[:, 1:].tolist(), logits[:, :-1].argmax(-1).tolist()):
        length = row.index(end) + 1 if end in row else len(row)
        assert row[:length] == likeliest[:length] and length >= SHORTEST - 1


def test_the_end_and_the_start_are_not_spelled(captioner: CocaCaptioner) -> None:
    tokens = captioner.tokenizer("a red ball")[0].tolist()
    assert captioner._spell(tokens) == captioner._spell(tokens[:4]) == "a red ball "


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ((), {"hf_model_name": "x"}, "'hf_model_name' in its model_cfg is not a setting that we allow"),
        (("multimodal_cfg",), {"hf_model_name": "x"}, "'hf_model_name' in its multimodal_cfg"),
        (("text_cfg",), {"hf_tokenizer_name": "x"}, "'hf_tokenizer_name' in its text_cfg"),
    ],
)
def test_a_setting_that_is_not_plain_is_refused(tmp_path: Path, section: tuple, changes: dict, message: str) -> None:
    folder = make_coca(tmp_path / "coca")
    change_json(folder / "open_clip_config.json", "model_cfg", *section, **changes)
    with pytest.raises(UserError, match=rf"^captioner .* cannot be loaded: give a CoCa .* \(.*({message})"):
        CocaCaptioner(CocaConfig(f"local-dir:{folder}", None))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    sections: dict[str, Any] = {name: {**COCA[name], "vocab_size": 600} for name in ("text_cfg", "multimodal_cfg")}
    with pytest.raises(UserError, match="its vocabulary is not that of open_clip's own tokenizer"):
        CocaCaptioner(CocaConfig(f"local-dir:{make_coca(tmp_path / 'coca', **sections)}", None))


def test_a_clip_without_a_decoder_is_no_captioner_and_a_coca_s_folder_no_clip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its multimodal_cfg is not a JSON object"):
        CocaCaptioner(CocaConfig(f"local-dir:{WEIGHTS / 'clip'}", None))
    with pytest.raises(UserError, match="'multimodal_cfg' in its model_cfg is not a setting that we allow"):
        ClipEncoder(ClipConfig(f"local-dir:{make_coca(tmp_path / 'coca')}", None))


def test_the_architecture_covers_the_decoder(captioner: CocaCaptioner, tmp_path: Path) -> None:
    decoder = {**COCA["multimodal_cfg"], "heads": 4}
    other = CocaCaptioner(CocaConfig(f"local-dir:{make_coca(tmp_path / 'coca', multimodal_cfg=decoder)}", None))
    assert other.fingerprint == captioner.fingerprint and other.architecture != captioner.architecture
