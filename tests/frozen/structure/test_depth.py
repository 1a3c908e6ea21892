"""Tests of the depth estimator: the sizes at which it runs, and its normalization over a clip."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DPTImageProcessor
from transformers.models.dpt.image_processing_dpt import get_resize_output_image_size

from gen1_train.errors import UserError
from gen1_train.frozen.networks import recorded_config
from gen1_train.frozen.structure.depth import RESIZES, DepthConfig, DepthEstimator, network_size, normalise_clip
from tests.frozen.structure.tiny_depth import frames, tiny_dpt
from tests.running import REPOSITORY, WEIGHTS


def test_a_model_of_another_type_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "zoedepth"}))
    with pytest.raises(UserError, match="its model_type is zoedepth, not dpt or depth_anything"):
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("depth")
    tiny_dpt().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def estimator(folder: Path) -> DepthEstimator:
    return DepthEstimator(DepthConfig(str(folder), size=64, multiple=32))


def inputs_of(estimator: DepthEstimator, clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The input of the network for frames that go through it together."""
    inputs = []

    def recording(network: Any, pixels: Tensor) -> Tensor:
        inputs.append(pixels)
        return family.inverse_depth(network, pixels)

    family = estimator.family
    monkeypatch.setattr(estimator, "family", replace(family, inverse_depth=recording))
    depth = estimator(clip)
    assert depth.shape == clip.shape[:3] and depth.dtype == torch.float32 and depth.isfinite().all()
    (pixels,) = inputs
    return pixels


@pytest.mark.parametrize(
    ("size", "input_size"), [((256, 448), (64, 128)), ((448, 256), (128, 64)), ((40, 40), (64, 64))]
)
def test_frames_are_processed_at_their_own_aspect(
    estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    """448x256 at 64 pixels is 112x64, rounded to 128x64, unlike the 64x64 of transformers' processor."""
    assert inputs_of(estimator, frames(2, *size), monkeypatch).shape[-2:] == input_size


@pytest.mark.parametrize(
    ("size", "lower_bound", "minimal"),
    [
        ((256, 448), (384, 672), (224, 384)),
        ((448, 256), (672, 384), (384, 224)),
        ((320, 320), (384, 384), (384, 384)),
        ((320, 384), (384, 448), (320, 384)),
        ((720, 1280), (384, 672), (384, 672)),
    ],
)
def test_the_network_size_of_the_papers_buckets(
    size: tuple[int, int], lower_bound: tuple[int, int], minimal: tuple[int, int]
) -> None:
    assert network_size(*size, 384, 32, "lower_bound") == lower_bound
    assert network_size(*size, 384, 32, "minimal") == minimal


def test_minimal_is_the_size_of_transformers() -> None:
    """Equal for all sizes, except that a side is never rounded to 0."""
    draw = random.Random(0)
    sizes = [(draw.randint(1, 3000), draw.randint(1, 3000)) for _ in range(3000)]
    sizes += [(side, other) for side in range(16, 640, 16) for other in range(16, 640, 16)]  # ties of both scales too
    for height, width in sizes:
        for size, multiple in ((384, 32), (518, 14), (64, 16)):
            picture = torch.empty(1, height, width, device="meta")
            theirs = get_resize_output_image_size(picture, (size, size), keep_aspect_ratio=True, multiple=multiple)
            expected = max(multiple, theirs.height), max(multiple, theirs.width)
            assert network_size(height, width, size, multiple, "minimal") == expected, (height, width)


def test_with_minimal_the_input_is_that_of_transformers_processor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor rounds the resized pixels to 8 bits, in each direction, and ours does not."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 7), (64, 112), mode="bilinear")
    clip = (255 * smooth).round().byte().movedim(1, -1)
    estimator = DepthEstimator(DepthConfig(str(folder), size=96, resize="minimal"))
    half = [0.5, 0.5, 0.5]
    processor = DPTImageProcessor(
        size={"height": 96, "width": 96}, keep_aspect_ratio=True, ensure_multiple_of=32, image_mean=half, image_std=half
    )
    expected = processor(images=list(clip.numpy()), return_tensors="pt")["pixel_values"]
    assert expected.shape[-2:] == (64, 96)
    torch.testing.assert_close(inputs_of(estimator, clip, monkeypatch), expected, rtol=0, atol=2 / 127.5)


def test_pixels_are_normalized_as_dpt_requires(estimator: DepthEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    """RGB with mean 0.5 and deviation 0.5, to the same bits as x / 127.5 - 1, by which older sets were made."""
    clip = frames(4, 64, 64)
    expected = clip.movedim(-1, 1).float() / 127.5 - 1
    torch.testing.assert_close(inputs_of(estimator, clip, monkeypatch), expected, rtol=0, atol=1e-6)
    assert torch.equal(clip.movedim(-1, 1).float() / estimator._scale - estimator._shift, expected)


def test_the_chunk_size_changes_no_value(folder: Path, estimator: DepthEstimator) -> None:
    small = DepthEstimator(DepthConfig(str(folder), size=64, multiple=32, chunk=2))
    whole, parts = (network(frames(5, 48, 64)) for network in (estimator, small))
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()
    assert small.fingerprint == estimator.fingerprint


def test_the_fingerprint_covers_everything_that_affects_the_depth(folder: Path, estimator: DepthEstimator) -> None:
    other = DepthEstimator(DepthConfig(str(folder), size=96, multiple=32))
    assert other.fingerprint != estimator.fingerprint
    other.size = estimator.size
    assert other.fingerprint == estimator.fingerprint
    other.config = replace(other.config, resize="minimal")
    assert other.fingerprint != estimator.fingerprint
    other.config = estimator.config
    assert other.fingerprint == estimator.fingerprint
    other.network.head.head[-2].bias.add_(1e-3)
    assert other.fingerprint != estimator.fingerprint


def test_the_sizes_are_by_default_what_the_network_was_trained_with(folder: Path) -> None:
    estimator = DepthEstimator(DepthConfig(str(folder)))
    assert (estimator.size, estimator.multiple) == (32, 32)  # 384 and 32 for DPT-Large
    given = DepthEstimator(DepthConfig(str(folder), size=32, multiple=32))
    assert estimator.fingerprint == given.fingerprint and estimator.record() == given.record()


def test_the_released_checkpoint_which_records_no_rule_is_by_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    info = json.loads((REPOSITORY / "miniature" / "released" / "checkpoint.json").read_text())
    entry: dict[str, Any] = info["estimators"]["structure"]
    assert "resize" not in entry["config"]
    config = recorded_config(DepthConfig, entry, "RUN")
    assert config.resize == "lower_bound"
    estimator = DepthEstimator(config, recorded=True)
    assert estimator.fingerprint == entry["fingerprint"] and estimator.record() == entry["config"]
    # the hash of the settings of versions that had DPT alone
    assert estimator.architecture == "d1476e0a188ed58cc49205d1b0a0e88e948d5d51a55240fc5620f88b922c81f2"


def test_a_recorded_rule_is_that_of_the_estimator(folder: Path) -> None:
    estimators = [DepthEstimator(DepthConfig(str(folder), resize=resize)) for resize in RESIZES]
    assert len({estimator.fingerprint for estimator in estimators}) == 2
    for estimator, resize in zip(estimators, RESIZES, strict=True):
        entry = {"config": estimator.record(), "fingerprint": estimator.fingerprint}
        assert entry["config"].get("resize") == (None if resize == "lower_bound" else resize)
        again = DepthEstimator(recorded_config(DepthConfig, entry, "RUN"), recorded=True)
        assert again.config.resize == resize and again.fingerprint == estimator.fingerprint


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UserError, match=r"^recipe\.depth\.resize=upper_bound is not one of lower_bound, minimal$"):
        DepthEstimator(DepthConfig(str(WEIGHTS / "depth"), resize="upper_bound"))


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
