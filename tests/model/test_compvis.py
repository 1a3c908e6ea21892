"""Tests of CompVis' names: the mapping equals diffusers' own, and the config is inferred from the shapes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.compvis import config_from_weights, diffusers_names
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.published import compvis_names
from tests.model.reference import SD1, SD2, diffusers_unet

SOURCE = Path("SOURCE")
SD_1_5 = UNetConfig(temporal=False)
SD_2_1 = replace(SD_1_5, heads=[5, 10, 20, 20], context_dim=1024, content_dim=1024, linear_projection=True)
CONFIGS = {
    "SD 1.5": SD_1_5,
    "SD 2.1": SD_2_1,
    "SD 1.5 for inpainting": replace(SD_1_5, in_channels=9),
    "narrow SD 1": UNetConfig(**SD1, temporal=False),
    "narrow SD 2": UNetConfig(**SD2, temporal=False),
    "one layer per level": UNetConfig(**SD1 | {"layers": 1}, temporal=False),
    "three layers, three levels": UNetConfig(
        **SD1 | {"channels": [8, 16, 16], "attention": [False, True, True], "heads": [2, 2, 4], "layers": 3},
        temporal=False,
    ),
}


def meta_weights(config: UNetConfig) -> dict[str, Tensor]:
    """Returns the weights of diffusers' UNet on the meta device: only names and shapes."""
    with torch.device("meta"):
        return diffusers_unet(config).state_dict()


def renamed(compvis: dict[str, Tensor]) -> dict[str, Tensor]:
    return {new: compvis[old] for old, new in diffusers_names(compvis, SOURCE).items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mapping_equals_that_of_diffusers(name: str) -> None:
    config = CONFIGS[name]
    weights = meta_weights(config)
    compvis = {old: weights[new] for old, new in compvis_names(config, weights).items()}
    assert len(compvis) == len(weights)
    checkpoint = {f"model.diffusion_model.{parameter}": tensor for parameter, tensor in compvis.items()}
    expected = convert_ldm_unet_checkpoint(checkpoint, {"layers_per_block": config.layers})
    assert expected.keys() == weights.keys()  # the inverse mapping, which these tests implement, is right
    converted = renamed(compvis)
    assert converted.keys() == expected.keys()
    assert all(converted[parameter] is expected[parameter] for parameter in expected)


def test_all_686_names_of_stable_diffusion_1_5_are_mapped() -> None:
    names = compvis_names(SD_1_5, meta_weights(SD_1_5))
    with torch.device("meta"):
        unet = SpatioTemporalUNet(SD_1_5)
    assert len(names) == 686 and set(diffusers_names(names, SOURCE).values()) == set(unet.state_dict())
    for name in (  # as in the published file
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.11.0.out_layers.3.bias",
        "middle_block.1.proj_in.weight",
        "output_blocks.2.1.conv.weight",  # no transformer at the coarsest level: the upsampling is the second part
        "output_blocks.8.2.conv.weight",
        "time_embed.2.weight",
    ):
        assert name in names


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1", "SD 1.5 for inpainting"])
def test_the_config_is_inferred_from_the_shapes(name: str) -> None:
    assert config_from_weights(meta_weights(CONFIGS[name]), SOURCE) == CONFIGS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1},
        {"layers": 3, "channels": [32, 64, 96], "attention": [False, True, True], "heads": [8, 8, 8]},
        {"channels": [64], "attention": [True], "heads": [8]},
        {"in_channels": 12, "out_channels": 8, "context_dim": 5, "content_dim": 5},
        {"content_dim": 7, "context_dim": 5},
    ],
)
def test_the_config_of_other_models_is_inferred_too(changes: dict[str, object]) -> None:
    config = replace(UNetConfig(**SD1, temporal=False), channels=[32, 64, 64, 96], groups=32)
    config = replace(config, **changes)
    with torch.device("meta"):
        weights = SpatioTemporalUNet(config).state_dict()
    assert config_from_weights(weights, SOURCE) == config


def test_heads_are_not_guessed_for_channels_unlike_stable_diffusion() -> None:
    with pytest.raises(UserError, match=r"\[8, 16, 32, 32\] channels .* config\.json specifies them"):
        config_from_weights(meta_weights(CONFIGS["narrow SD 1"]), SOURCE)


def test_an_incomplete_unet_is_refused() -> None:
    weights = {k: v for k, v in meta_weights(SD_1_5).items() if not k.startswith("mid_block")}
    with pytest.raises(
        UserError, match=r"no complete Stable Diffusion UNet \(mid_block\.attentions\.0\.proj_in\.weight,"
    ):
        config_from_weights(weights, SOURCE)


@pytest.mark.parametrize(
    "name",
    [
        "label_emb.0.0.weight",  # SDXL
        "input_hint_block.0.weight",  # ControlNet
        "middle_block.3.in_layers.0.weight",
        "input_blocks.1.0.in_layers.1.weight",
        "input_blocks.1.2.norm.weight",
        "inputs.1",
    ],
)
def test_names_of_other_networks_are_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        diffusers_names([*compvis_names(SD_1_5, meta_weights(SD_1_5)), name], SOURCE)
    assert f"(1 unknown weights, e.g. {name})" in str(error.value) and "\n" not in str(error.value)


def test_two_names_of_one_parameter_are_refused() -> None:
    duplicate = "output_blocks.2.2.conv.weight"  # in addition to output_blocks.2.1.conv.weight
    names = [*compvis_names(SD_1_5, meta_weights(SD_1_5)), duplicate]
    with pytest.raises(UserError, match="its layers differ"):
        diffusers_names(names, SOURCE)
