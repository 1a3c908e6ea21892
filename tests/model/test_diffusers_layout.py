"""Tests of the conversion to and from diffusers' config: every entry is mapped, fixed or harmless; none is missing."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import (
    FIXED,
    HARMLESS,
    MAPPED,
    config_from_diffusers,
    config_to_diffusers,
    weights_from_diffusers,
    weights_to_diffusers,
)
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, SD2, frame_by_frame, inputs

FOLDER = Path("FOLDER")
SIGNATURE = {
    name: parameter.default
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    if name != "self"
}
THREE = {**SD1, "channels": [8, 16, 16], "attention": [True, False, True], "heads": [2, 2, 4], "layers": 1}
CONFIGS = {
    "like SD 1": UNetConfig(**SD1, temporal=False),
    "like SD 2": UNetConfig(**SD2, temporal=False),
    "with structure": UNetConfig(**SD1, in_channels=12, temporal=False),
    "projected content": UNetConfig(**{**SD1, "content_dim": 40}, temporal=False),
    "three resolutions": UNetConfig(**THREE, temporal=False),
}
# entry -> a value with another meaning in diffusers
OTHER: dict[str, Any] = {
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_type": "UNetMidBlock2D",
    "only_cross_attention": [True, True, True, False],
    "downsample_padding": 0,
    "mid_block_scale_factor": 1.4142,
    "dropout": 0.1,
    "act_fn": "gelu",
    "norm_eps": 1e-6,
    "transformer_layers_per_block": [1, 2, 10, 10],
    "reverse_transformer_layers_per_block": [[1, 1, 1]] * 4,
    "num_attention_heads": 8,
    "dual_cross_attention": True,
    "class_embed_type": "timestep",
    "addition_embed_type": "text_time",
    "num_class_embeds": 1000,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 512,
    "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 256,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "attention_type": "gated",
    "class_embeddings_concat": True,
    "mid_block_only_cross_attention": True,
    "cross_attention_norm": "layer_norm",
}


def through_json(value: Any) -> Any:
    """Returns the value as it is read back from JSON."""
    return json.loads(json.dumps(value))


def test_every_entry_of_diffusers_is_in_one_table() -> None:
    """If this fails, diffusers has a new entry: find out what it changes and add it to the right table."""
    assert set(MAPPED) | set(FIXED) | set(HARMLESS) == set(SIGNATURE)
    assert len(MAPPED) + len(FIXED) + len(HARMLESS) == len(SIGNATURE)


def test_absent_entries_have_the_defaults_of_diffusers() -> None:
    assert through_json({name: SIGNATURE[name] for name in MAPPED}) == MAPPED
    assert {name: SIGNATURE[name] for name in FIXED} == {name: supported[0] for name, supported in FIXED.items()}
    assert config_from_diffusers({}, FOLDER) == UNetConfig(context_dim=1280, content_dim=1280, temporal=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_the_conversion_to_diffusers_and_back(name: str) -> None:
    config = CONFIGS[name]
    assert config_from_diffusers(through_json(config_to_diffusers(config)), FOLDER) == config
    video = replace(config, temporal=True, temporal_kernel=5, max_frames=4)
    assert config_from_diffusers(config_to_diffusers(video), FOLDER) == config  # diffusers has no temporal layers


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_builds_the_same_unet_from_the_config(name: str) -> None:
    """With our weights, every key and the function in float64 agree."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(config).double().eval().requires_grad_(False)
    reference = (
        UNet2DConditionModel.from_config(through_json(config_to_diffusers(config)))
        .double()
        .eval()
        .requires_grad_(False)
    )
    weights = weights_to_diffusers(unet.state_dict())
    reference.load_state_dict(weights)
    for tokens in (1, 3):
        example = inputs(config, tokens=tokens)
        expected = frame_by_frame(reference, *example)
        assert (unet(*example) - expected).abs().max() < 1e-9 * expected.abs().max()
    assert config_from_diffusers(dict(reference.config), FOLDER) == config  # as diffusers saves it, with all defaults
    back = weights_from_diffusers(weights)
    assert list(back) == list(unet.state_dict()) and all(back[k] is weights[n] for k, n in zip(back, weights))


def test_the_content_projection_is_encoder_hid_proj_in_diffusers() -> None:
    unet = SpatioTemporalUNet(CONFIGS["projected content"])
    renamed = set(weights_to_diffusers(unet.state_dict())) - set(unet.state_dict())
    assert renamed == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}


def test_the_published_configs_of_stable_diffusion_are_read() -> None:
    """The published configs: 1.5 with only the entries of its time, 2.1 with nulls and harmless entries."""
    down, up = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    first = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": up,
    }
    assert config_from_diffusers(first, FOLDER) == UNetConfig(temporal=False)
    written = config_to_diffusers(UNetConfig())
    shared = set(first) - {"_diffusers_version", "sample_size"}
    assert {name: written[name] for name in shared} == {name: first[name] for name in shared}
    second = {
        **first,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "dual_cross_attention": False,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    }
    assert config_from_diffusers(second, FOLDER) == UNetConfig(
        heads=[5, 10, 20, 20], context_dim=1024, content_dim=1024, linear_projection=True, temporal=False
    )


def test_every_fixed_entry_has_a_refused_value() -> None:
    assert set(OTHER) == set(FIXED)


@pytest.mark.parametrize("name", OTHER)
def test_an_unsupported_value_is_refused_by_name(name: str) -> None:
    content = {**config_to_diffusers(CONFIGS["like SD 1"]), name: OTHER[name]}
    with pytest.raises(UserError) as error:
        config_from_diffusers(content, FOLDER)
    line = str(error.value)
    assert line.startswith("FOLDER is not a Stable Diffusion 1.x or 2.x UNet: ") and "\n" not in line
    assert f"{name} is {OTHER[name]!r}, but only {FIXED[name][0]!r} is supported;" in line


REFUSED: dict[str, dict[str, Any]] = {
    "_class_name": {"_class_name": "UNet3DConditionModel"},
    "in_channels": {"in_channels": 0},
    "block_out_channels": {"block_out_channels": [8, "16", 32, 32]},
    "down_block_types": {"down_block_types": ["CrossAttnDownBlock2D"] * 3},
    "up_block_types": {"up_block_types": ["CrossAttnUpBlock2D"] * 4},  # differs from the way down
    "attention_head_dim": {"attention_head_dim": [8, 8]},
    "layers_per_block": {"layers_per_block": [1, 2, 2, 2]},
    "cross_attention_dim": {"cross_attention_dim": [24, 24, 24, 48]},
    "norm_num_groups": {"norm_num_groups": 3},
    "use_linear_projection": {"use_linear_projection": "yes"},
    "encoder_hid_dim_type": {"encoder_hid_dim": 40, "encoder_hid_dim_type": "image_proj"},
    "encoder_hid_dim": {"encoder_hid_dim": None, "encoder_hid_dim_type": "text_proj"},
}


NONSENSE = {name: {name: "nonsense"} for name in REFUSED}


@pytest.mark.parametrize(("name", "changes"), [*REFUSED.items(), *NONSENSE.items()])
def test_values_that_our_config_cannot_express_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=rf"^FOLDER is not .* UNet: {name} is .*, but only .* is supported; give another UNet$"
    ):
        config_from_diffusers({**config_to_diffusers(CONFIGS["like SD 1"]), **changes}, FOLDER)


def test_a_projection_between_equal_widths_is_refused() -> None:
    content = {**config_to_diffusers(CONFIGS["like SD 1"]), "encoder_hid_dim": 24}
    with pytest.raises(UserError, match=r"encoder_hid_dim is 24, but only a width other than"):
        config_from_diffusers(content, FOLDER)


def test_a_content_width_without_a_type_means_a_projection_as_in_diffusers() -> None:
    content = {**config_to_diffusers(CONFIGS["like SD 1"]), "encoder_hid_dim": 40}
    assert config_from_diffusers(content, FOLDER) == CONFIGS["projected content"]


def test_a_list_with_the_same_value_for_every_resolution_is_one_value() -> None:
    config = CONFIGS["like SD 1"]
    content = config_to_diffusers(config)
    lists = {
        name: [content[name]] * 4
        for name in ("layers_per_block", "cross_attention_dim", "attention_head_dim", "only_cross_attention")
    }
    assert config_from_diffusers({**content, **lists, "transformer_layers_per_block": [1] * 4}, FOLDER) == config


def test_harmless_entries_have_no_effect() -> None:
    config = CONFIGS["like SD 1"]
    values = dict(zip(HARMLESS, (7, True, 256, 8, 512), strict=True))
    content = {**config_to_diffusers(config), **values, "_name_or_path": "somewhere", "decay": 0.9999}
    assert config_from_diffusers(content, FOLDER) == config
    torch.manual_seed(0)
    one = UNet2DConditionModel.from_config(config_to_diffusers(config)).double().eval()
    other = UNet2DConditionModel.from_config(content).double().eval()
    other.load_state_dict(one.state_dict())
    example = inputs(config, tokens=3)
    with torch.no_grad():
        assert torch.equal(frame_by_frame(one, *example), frame_by_frame(other, *example))
