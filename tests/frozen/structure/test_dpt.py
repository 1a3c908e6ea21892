"""Tests of MiDaS's DPT: transformers' network at any aspect, for each of its kinds."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation, Swinv2Config

from data_tools.estimate import Estimators
from gen1_train.errors import UserError
from gen1_train.frozen.networks import recorded_config
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from gen1_train.frozen.structure.dpt import dpt_inverse_depth
from tests.data_tools.small_source import quick_recipe
from tests.frozen.structure.tiny_depth import (
    COMMON,
    STAGES,
    VIT,
    beit,
    folder_without,
    frames,
    hybrid,
    lively,
    tiny_dpt,
)


@pytest.mark.parametrize("config", [hybrid(), beit()], ids=["hybrid", "beit"])
def test_other_kinds_of_midas_give_the_output_of_transformers(config: DPTConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lively(config)
    pixels = torch.randn(2, 3, 64, 64)  # the only size at which transformers itself runs a hybrid
    expected = network(pixels).predicted_depth
    assert expected.std() > 0.1
    torch.testing.assert_close(dpt_inverse_depth(network, pixels), expected, rtol=1e-4, atol=1e-5)
    network.save_pretrained(tmp_path)
    estimator = DepthEstimator(DepthConfig(str(tmp_path), size=64))
    clip = frames(3, 64, 64)
    direct = network(clip.movedim(-1, 1).float() / 127.5 - 1).predicted_depth
    torch.testing.assert_close(estimator(clip), direct, rtol=1e-3, atol=1e-3)
    wide = estimator(frames(2, 48, 96))
    assert wide.shape == (2, 48, 96) and wide.isfinite().all() and wide.std() > 0.01
    assert torch.equal(estimator(clip), DepthEstimator(estimator.config)(clip))  # no other size before changes a value


@pytest.mark.parametrize("config", [hybrid(), beit()], ids=["hybrid", "beit"])
def test_other_kinds_see_where_things_are_at_any_aspect(config: DPTConfig) -> None:
    """Without attention a change in the picture has its effect where it is: rows and columns are not confused."""
    torch.manual_seed(0)
    network = lively(config)
    for name, parameter in network.named_parameters():
        if ".attention." in name:
            parameter.zero_()
    plain = torch.randn(1, 3, 64, 256)
    changed = plain.clone()
    changed[..., 224:] = plain[..., 224:].flip(1)
    difference = (dpt_inverse_depth(network, changed) - dpt_inverse_depth(network, plain)).abs()[0]
    assert difference[:, 192:].mean() > 3 * difference[:, :128].mean()


def swin() -> DPTConfig:
    backbone = Swinv2Config(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=STAGES
    )
    return DPTConfig(**COMMON, backbone_config=backbone, neck_hidden_sizes=[8, 16, 32, 64])


def dino() -> DPTConfig:
    backbone = Dinov2Config(**(VIT | {"mlp_ratio": 2}), patch_size=14, out_features=STAGES, reshape_hidden_states=False)
    return DPTConfig(**COMMON, hidden_size=16, backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16])


@pytest.mark.parametrize(
    ("config", "problem"), [(swin(), "its backbone is swinv2"), (dino(), "its backbone is dinov2")]
)
def test_a_kind_that_is_not_supported_is_refused_with_those_that_are(
    config: DPTConfig, problem: str, tmp_path: Path
) -> None:
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"supported: DPT-Large .* DPT-Hybrid .* DPT-BEiT, Depth Anything .* \({problem}\)$"
    ):
        DepthEstimator(DepthConfig(str(tmp_path)))


@pytest.fixture(scope="module")
def network() -> DPTForDepthEstimation:
    return tiny_dpt()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: DPTForDepthEstimation) -> Path:
    path = tmp_path_factory.mktemp("depth")
    network.save_pretrained(path)
    return path


@pytest.mark.parametrize("side", [32, 64])
def test_a_square_input_gives_the_output_of_transformers(network: DPTForDepthEstimation, side: int) -> None:
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, side, side)
    expected = network(pixels).predicted_depth
    depth = dpt_inverse_depth(network, pixels)
    assert expected.std() > 0.1 and depth.shape == (2, side, side)
    torch.testing.assert_close(depth, expected, rtol=1e-4, atol=1e-5)


def test_only_the_chosen_layers_are_tapped() -> None:
    """DPT-Large taps layers 5, 11, 17 and 23; others would also give a plausible depth map."""
    network = tiny_dpt(layers=6, taps=(0, 2, 3, 5))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        dpt_inverse_depth(network, pixels), network(pixels).predicted_depth, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(32, 64), (96, 32), (64, 96)])
def test_other_aspects_keep_their_shape(network: DPTForDepthEstimation, size: tuple[int, int]) -> None:
    depth = dpt_inverse_depth(network, torch.randn(1, 3, *size))
    assert depth.shape == (1, *size) and depth.isfinite().all()


@pytest.mark.parametrize("prefix", ["head.", "neck.fusion_stage.layers.1.", "dpt.encoder.layer.0.output."])
def test_missing_weights_are_refused(folder: Path, tmp_path: Path, prefix: str) -> None:
    """transformers only warns and leaves such layers random, so that the depth map would be meaningless."""
    with pytest.raises(UserError, match="cannot be loaded"):
        DepthEstimator(DepthConfig(str(folder_without(folder, tmp_path, prefix))))


def test_the_published_dpt_large_has_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    """Checkpoints in MiDaS's layout, such as Intel/dpt-large, lack a layer that transformers creates but never calls
    (huggingface/transformers#28292). It is random in every process, but training and editing compare fingerprints.
    """
    path = str(folder_without(folder, tmp_path, "neck.fusion_stage.layers.0.residual_layer1."))
    torch.manual_seed(1)
    one = DepthEstimator(DepthConfig(path, size=64))
    torch.manual_seed(2)
    two = DepthEstimator(DepthConfig(path, size=64))
    clip = frames(1, 64, 64)
    assert torch.equal(one(clip), two(clip))
    assert one.fingerprint == two.fingerprint


def hub_config(folder: Path) -> None:
    """Writes the config of a saved hybrid as that of Intel/dpt-hybrid-midas, which is of transformers 4, is written."""
    config = json.loads((folder / "config.json").read_text())
    del config["transformers_version"], config["use_bias_in_fusion_residual"], config["add_projection"]
    config["torch_dtype"] = config.pop("dtype")
    backbone = config["backbone_config"]
    backbone |= {"_name_or_path": "", "torch_dtype": None, "pruned_heads": {}, "transformers_version": "4.26.0.dev0"}
    backbone |= {"global_padding": "same", "hidden_sizes": [*backbone["hidden_sizes"], 128]}  # four, of three stages
    del backbone["out_indices"], backbone["dtype"]
    config |= {"_commit_hash": None, "use_auxiliary_head": True, "backbone_config": backbone}
    (folder / "config.json").write_text(json.dumps(config))


def test_dpt_hybrid_as_on_the_hub_makes_the_structure_of_a_set(tmp_path: Path) -> None:
    """Intel/dpt-hybrid-midas: gen1-data and gen1-data refresh estimate with it, and its record loads it again."""
    torch.manual_seed(0)
    network = lively(hybrid())
    network.save_pretrained(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    folder = folder_without(tmp_path / "saved", tmp_path / "hub", "neck.fusion_stage.layers.0.residual_layer1.")
    hub_config(folder)
    estimators = Estimators(quick_recipe(depth=DepthConfig(str(folder), resize="minimal")), "cpu")
    clip = frames(2, 48, 64)
    ((maps, span),) = estimators.maps(clip.numpy()[None])
    assert maps.shape == (2, 48, 64) and (maps.min(), maps.max()) == (0, 65535)
    raw = estimators.structure(clip)
    assert span == (raw.min(), raw.max())
    entry = estimators.description["structure"]
    settings = {"path": str(folder), "size": 64, "multiple": 32, "chunk": 8, "resize": "minimal"}  # as it was trained
    assert entry["config"] == settings
    again = DepthEstimator(recorded_config(DepthConfig, entry, "RUN"), recorded=True)
    assert (again.fingerprint, again.architecture) == (entry["fingerprint"], entry["architecture"])
    square = frames(1, 64, 64)
    expected = network(square.movedim(-1, 1).float() / 127.5 - 1).predicted_depth
    torch.testing.assert_close(again(square), expected, rtol=1e-3, atol=1e-3)
