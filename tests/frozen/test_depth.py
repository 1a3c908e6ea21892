"""Tests of depth: transformers' DPT at any aspect, and its normalization over a clip."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BeitConfig, BitConfig, Dinov2Config, DPTConfig, DPTForDepthEstimation, Swinv2Config

from gen1_train.errors import UserError
from gen1_train.frozen.depth import DepthConfig, DepthEstimator, dpt_inverse_depth, normalise_clip


def tiny_dpt(layers: int = 4, taps: tuple[int, ...] = (0, 1, 2, 3)) -> DPTForDepthEstimation:
    """Builds a network laid out like DPT-Large: four taps, the deepest at half the patch grid, full-size output."""
    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=list(taps),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        use_auxiliary_head=False,
    )
    return lively(config)


def lively(config: DPTConfig) -> DPTForDepthEstimation:
    """Builds a network with larger weights than transformers' initial ones, whose output would be constant."""
    network = DPTForDepthEstimation(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    network.head.head[-2].bias.fill_(1.0)  # otherwise the last ReLU could clip everything
    return network


COMMON: dict[str, Any] = {"fusion_hidden_size": 8, "use_auxiliary_head": False, "image_size": 64, "patch_size": 16}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def hybrid(**changes: Any) -> DPTConfig:
    """The config of DPT-Hybrid, made small: BiT with three stages, the last of which a ViT continues."""
    bit = BitConfig(
        global_padding="same",
        layer_type="bottleneck",
        embedding_dynamic_padding=True,
        out_features=STAGES[:3],
        depths=[1, 1, 1],
        hidden_sizes=[16, 32, 64],
        embedding_size=8,
        num_groups=2,
    )
    settings: dict[str, Any] = {
        "is_hybrid": True,
        "backbone_config": bit.to_dict(),
        "backbone_featmap_shape": [1, 64, 4, 4],
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16, 32, 16, 16],
        "reassemble_factors": [1, 1, 1, 0.5],
    }
    return DPTConfig(**COMMON, **VIT, **(settings | changes))


def beit() -> DPTConfig:
    """The config of DPT-BEiT, made small, with the relative positions of the published ones."""
    backbone = BeitConfig(
        **VIT,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        out_features=STAGES,
        reshape_hidden_states=False,
    )
    return DPTConfig(**COMMON, hidden_size=16, backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16])


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
    with pytest.raises(UserError, match=rf"supported: DPT-Large .* DPT-Hybrid .* DPT-BEiT \({problem}\)$"):
        DepthEstimator(DepthConfig(str(tmp_path)))


def test_a_model_of_another_type_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "depth_anything"}))
    with pytest.raises(UserError, match="its model_type is depth_anything, not dpt"):
        DepthEstimator(DepthConfig(str(tmp_path)))


def test_a_network_that_cannot_run_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """Three layers are tapped and the neck takes four: without a trial, every task would end in a traceback."""
    tiny_dpt(taps=(0, 1, 2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="number of hidden states should be equal to the number of neck hidden sizes"):
        DepthEstimator(DepthConfig(str(tmp_path)))


def test_a_size_that_cuts_patches_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"depth\.multiple=24 is not a multiple of 16 pixels, .*: give 32"):
        DepthEstimator(DepthConfig(str(folder), multiple=24))


@pytest.mark.parametrize("change", [{"size": 0}, {"multiple": 0}, {"chunk": 0}])
def test_a_setting_that_is_not_positive_is_refused(folder: Path, change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"^depth\.{next(iter(change))}=0 must be above 0$"):
        DepthEstimator(DepthConfig(str(folder), **change))


@pytest.fixture(scope="module")
def network() -> DPTForDepthEstimation:
    return tiny_dpt()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: DPTForDepthEstimation) -> Path:
    path = tmp_path_factory.mktemp("depth")
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def estimator(folder: Path) -> DepthEstimator:
    return DepthEstimator(DepthConfig(str(folder), size=64, multiple=32))


def frames(n: int, h: int, w: int) -> Tensor:
    torch.manual_seed(n)
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)


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


@pytest.mark.parametrize(
    ("size", "network_size"), [((256, 448), (64, 128)), ((448, 256), (128, 64)), ((40, 40), (64, 64))]
)
def test_frames_are_processed_at_their_own_aspect(
    estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], network_size: tuple[int, int]
) -> None:
    """448x256 at 64 pixels is 112x64, rounded to 128x64, unlike the 64x64 of transformers' processor."""
    sizes = []

    def recording(network: object, pixels: Tensor) -> Tensor:
        sizes.append(tuple(pixels.shape[-2:]))
        return dpt_inverse_depth(network, pixels)

    monkeypatch.setattr("gen1_train.frozen.depth.dpt_inverse_depth", recording)
    depth = estimator(frames(2, *size))
    assert depth.shape == (2, *size) and depth.dtype == torch.float32 and depth.isfinite().all()
    assert sizes == [network_size]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 448), (384, 672)), ((448, 256), (672, 384)), ((320, 320), (384, 384)), ((320, 384), (384, 448))],
)
def test_the_network_size_of_the_papers_buckets(size: tuple[int, int], expected: tuple[int, int]) -> None:
    estimator = DepthEstimator.__new__(DepthEstimator)
    estimator.config = DepthConfig()
    assert estimator._network_size(*size) == expected


def test_pixels_are_normalized_as_dpt_requires(estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = []
    monkeypatch.setattr(
        "gen1_train.frozen.depth.dpt_inverse_depth", lambda _, pixels: inputs.append(pixels) or pixels[:, 0]
    )
    picture = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    picture[..., 0], picture[..., 2] = 255, 51
    estimator(picture)
    channels = inputs[0].mean((0, 2, 3))  # RGB, with mean 0.5 and deviation 0.5
    torch.testing.assert_close(channels, torch.tensor([1.0, -1.0, -0.6]), rtol=1e-4, atol=1e-4)


def test_the_chunk_size_changes_no_value(folder: Path, estimator: DepthEstimator) -> None:
    small = DepthEstimator(DepthConfig(str(folder), size=64, multiple=32, chunk=2))
    whole, parts = (network(frames(5, 48, 64)) for network in (estimator, small))
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()
    assert small.fingerprint == estimator.fingerprint


def test_the_fingerprint_covers_everything_that_affects_the_depth(folder: Path, estimator: DepthEstimator) -> None:
    other = DepthEstimator(DepthConfig(str(folder), size=96, multiple=32))
    assert other.fingerprint != estimator.fingerprint
    other.config = estimator.config
    assert other.fingerprint == estimator.fingerprint
    other.network.head.head[-2].bias.add_(1e-3)
    assert other.fingerprint != estimator.fingerprint


def test_a_folder_that_cannot_be_loaded_gives_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            DepthEstimator(DepthConfig(str(path)))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(f"depth estimator '{path}' cannot be loaded: give")


def folder_without(folder: Path, target: Path, prefix: str) -> Path:
    """Copies the folder without the weights whose names start with `prefix`."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


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


def test_a_clip_is_normalized_as_a_whole() -> None:
    """Normalizing each frame would flicker: a distance must keep its gray value throughout the clip."""
    depth = torch.tensor([[[2.0, 4.0]], [[4.0, 10.0]]])
    normal, limits = normalise_clip(depth)
    torch.testing.assert_close(normal, torch.tensor([[[0.0, 0.25]], [[0.25, 1.0]]]))
    assert limits == (2.0, 10.0)


@pytest.mark.parametrize("value", [0.0, 7.5, 1e6])
def test_a_flat_clip_becomes_zero_without_nan(value: float) -> None:
    normal, limits = normalise_clip(torch.full((2, 3, 4), value))
    assert torch.equal(normal, torch.zeros(2, 3, 4)) and limits == (value, value)
