"""Depth: transformers' DPT at any aspect, and its normalisation over a clip."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation

from gen1_train.errors import UserError
from gen1_train.estimators.depth import DepthConfig, DepthEstimator, dpt_inverse_depth, normalise_clip


def tiny_dpt(layers: int = 4, taps: tuple[int, ...] = (0, 1, 2, 3)) -> DPTForDepthEstimation:
    """Laid out as DPT-Large: four taps, the deepest at half the patch grid, output as large as the input."""
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
    network = DPTForDepthEstimation(config).eval().requires_grad_(False)
    for parameter in network.parameters():  # transformers' own are so small that nothing would reach the output
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
    network.head.head[-2].bias.fill_(1.0)  # or the last ReLU may hide everything
    return network


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
def test_square_input_gives_what_transformers_gives(network: DPTForDepthEstimation, side: int) -> None:
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, side, side)
    expected = network(pixels).predicted_depth
    made = dpt_inverse_depth(network, pixels)
    assert expected.std() > 0.1 and made.shape == (2, side, side)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_only_the_chosen_layers_are_tapped() -> None:
    """DPT-Large taps layers 5, 11, 17 and 23: the wrong ones would still give a picture."""
    network = tiny_dpt(layers=6, taps=(0, 2, 3, 5))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        dpt_inverse_depth(network, pixels), network(pixels).predicted_depth, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(32, 64), (96, 32), (64, 96)])
def test_other_aspects_keep_their_shape(network: DPTForDepthEstimation, size: tuple[int, int]) -> None:
    made = dpt_inverse_depth(network, torch.randn(1, 3, *size))
    assert made.shape == (1, *size) and made.isfinite().all()


@pytest.mark.parametrize(("size", "inside"), [((256, 448), (64, 128)), ((448, 256), (128, 64)), ((40, 40), (64, 64))])
def test_frames_go_through_at_their_own_aspect(
    estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], inside: tuple[int, int]
) -> None:
    """448x256 at 64 pixels: 112x64, which multiples of 32 make 128x64, not the 64x64 of transformers' processor."""
    seen = []

    def watched(network: object, pixels: Tensor) -> Tensor:
        seen.append(tuple(pixels.shape[-2:]))
        return dpt_inverse_depth(network, pixels)

    monkeypatch.setattr("gen1_train.estimators.depth.dpt_inverse_depth", watched)
    made = estimator(frames(2, *size))
    assert made.shape == (2, *size) and made.dtype == torch.float32 and made.isfinite().all()
    assert seen == [inside]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 448), (384, 672)), ((448, 256), (672, 384)), ((320, 320), (384, 384)), ((320, 384), (384, 448))],
)
def test_the_papers_buckets_at_midas_own_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    estimator = DepthEstimator.__new__(DepthEstimator)
    estimator.config = DepthConfig()
    assert estimator._network_size(*size) == expected


def test_the_pixels_are_normalised_as_dpt_wants_them(
    estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "gen1_train.estimators.depth.dpt_inverse_depth", lambda _, pixels: seen.append(pixels) or pixels[:, 0]
    )
    picture = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    picture[..., 0], picture[..., 2] = 255, 51
    estimator(picture)
    channels = seen[0].mean((0, 2, 3))  # RGB, mean 0.5 and deviation 0.5
    torch.testing.assert_close(channels, torch.tensor([1.0, -1.0, -0.6]), rtol=1e-4, atol=1e-4)


def test_chunks_change_no_value(folder: Path, estimator: DepthEstimator) -> None:
    small = DepthEstimator(DepthConfig(str(folder), size=64, multiple=32, chunk=2))
    whole, parts = (network(frames(5, 48, 64)) for network in (estimator, small))
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()
    assert small.fingerprint == estimator.fingerprint


def test_the_fingerprint_is_of_all_that_changes_the_depth(folder: Path, estimator: DepthEstimator) -> None:
    other = DepthEstimator(DepthConfig(str(folder), size=96, multiple=32))
    assert other.fingerprint != estimator.fingerprint
    other.config = estimator.config
    assert other.fingerprint == estimator.fingerprint
    other.network.head.head[-2].bias.add_(1e-3)
    assert other.fingerprint != estimator.fingerprint


def test_a_folder_that_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path) -> None:
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
    """The folder without the weights whose names begin so."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("prefix", ["head.", "neck.fusion_stage.layers.1.", "dpt.encoder.layer.0.output."])
def test_weights_that_are_not_all_there_are_refused(folder: Path, tmp_path: Path, prefix: str) -> None:
    """transformers only warns and leaves such layers at random: a depth map that looks like one and is none."""
    with pytest.raises(UserError, match="cannot be loaded"):
        DepthEstimator(DepthConfig(str(folder_without(folder, tmp_path, prefix))))


def test_dpt_large_as_it_is_published_has_one_fingerprint(folder: Path, tmp_path: Path) -> None:
    """Checkpoints in MiDaS's layout, Intel/dpt-large too, lack a layer that transformers makes and never calls
    (huggingface/transformers#28292). It comes out at random in every process; training and editing compare
    fingerprints.
    """
    path = str(folder_without(folder, tmp_path, "neck.fusion_stage.layers.0.residual_layer1."))
    torch.manual_seed(1)
    one = DepthEstimator(DepthConfig(path, size=64))
    torch.manual_seed(2)
    two = DepthEstimator(DepthConfig(path, size=64))
    clip = frames(1, 64, 64)
    assert torch.equal(one(clip), two(clip))
    assert one.fingerprint == two.fingerprint


def test_a_clip_is_normalised_as_one() -> None:
    """Frame by frame would flicker: the same distance has to keep its grey value throughout the clip."""
    depth = torch.tensor([[[2.0, 4.0]], [[4.0, 10.0]]])
    normal, limits = normalise_clip(depth)
    torch.testing.assert_close(normal, torch.tensor([[[0.0, 0.25]], [[0.25, 1.0]]]))
    assert limits == (2.0, 10.0)


@pytest.mark.parametrize("value", [0.0, 7.5, 1e6])
def test_a_flat_clip_is_zero_and_not_nan(value: float) -> None:
    normal, limits = normalise_clip(torch.full((2, 3, 4), value))
    assert torch.equal(normal, torch.zeros(2, 3, 4)) and limits == (value, value)
