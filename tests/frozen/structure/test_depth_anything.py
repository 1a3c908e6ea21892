"""Tests of Depth Anything: transformers' network on the input that it was trained on, without any setting."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DPTImageProcessor

from gen1_train.errors import UserError
from gen1_train.frozen.networks import recorded_config
from gen1_train.frozen.structure.depth import DepthConfig, DepthEstimator
from tests.frozen.structure.tiny_depth import depth_anything, folder_without, frames, lively

SIZE = 56  # of the squares that the small network is for; 518 in the published ones


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return lively(depth_anything())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: Any) -> Path:
    """The network with a config like that of depth-anything/Depth-Anything-V2-Small-hf."""
    path = tmp_path_factory.mktemp("depth_anything")
    network.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    for name in ("patch_size", "qkv_bias", "num_channels", "layer_norm_eps", "layerscale_value", "use_mask_token"):
        del config["backbone_config"][name]
    config |= {"backbone": None, "backbone_kwargs": None, "use_pretrained_backbone": False, "use_timm_backbone": False}
    config |= {"max_depth": None, "_commit_hash": None, "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("height", "width"), [(56, 56), (64, 112), (90, 50)])
def test_depth_is_that_of_transformers_on_the_input_of_its_processor(
    network: Any, folder: Path, height: int, width: int
) -> None:
    """Its published processor keeps the aspect, resizes as little as possible, and has ImageNet's mean and deviation.

    It rounds the resized pixels to 8 bits, in each direction, and ours does not.
    """
    estimator = DepthEstimator(DepthConfig(str(folder), resize="minimal"))
    assert (estimator.size, estimator.multiple) == (SIZE, 14)
    inputs = []
    hook = estimator.network.register_forward_pre_hook(lambda _, pixels: inputs.append(pixels[0]))
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 7), (height, width), mode="bilinear")
    clip = (255 * smooth).round().byte().movedim(1, -1)
    depth = estimator(clip)
    hook.remove()
    processor = DPTImageProcessor(
        size={"height": SIZE, "width": SIZE},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    expected = processor(images=list(clip.numpy()), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs[0], expected, rtol=0, atol=2 / 255 / 0.224)
    raw = network(inputs[0]).predicted_depth
    resized = torch.nn.functional.interpolate(raw[:, None], (height, width), mode="bicubic", align_corners=False)
    assert raw.std() > 0.1
    torch.testing.assert_close(depth, resized[:, 0], rtol=1e-5, atol=1e-5)


def test_it_runs_by_either_rule_and_records_what_it_did(folder: Path) -> None:
    for resize, sizes in (("minimal", {}), ("lower_bound", {}), ("lower_bound", {"size": 84, "multiple": 28})):
        estimator = DepthEstimator(DepthConfig(str(folder), resize=resize, **sizes))
        record = estimator.record()
        assert (record["size"], record["multiple"]) == (sizes.get("size", SIZE), sizes.get("multiple", 14))
        assert estimator(frames(1, 48, 96)).isfinite().all()
        entry = {"config": record, "fingerprint": estimator.fingerprint}
        again = DepthEstimator(recorded_config(DepthConfig, entry, "RUN"), recorded=True)
        assert again.fingerprint == estimator.fingerprint and again.architecture == estimator.architecture


def test_the_fingerprint_covers_everything_that_affects_the_depth(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(path: Path = folder, **settings: Any) -> DepthEstimator:
        return DepthEstimator(DepthConfig(str(path), **settings))

    estimator = build()
    others = [build(size=70), build(multiple=28), build(resize="minimal"), build()]
    others[3].network.head.conv3.bias.add_(1e-3)
    prints = {each.fingerprint for each in (estimator, *others)}
    assert len(prints) == 5 and len({each.architecture for each in (estimator, *others)}) == 1
    assert build(chunk=1).fingerprint == estimator.fingerprint
    monkeypatch.setattr(estimator, "family", build().family.__class__(**{**vars(estimator.family), "mean": (0, 0, 0)}))
    assert estimator.fingerprint not in prints


def test_an_unused_weight_that_is_missing_changes_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fewer = folder_without(folder, tmp_path / "a", "backbone.embeddings.mask_token")
    fewer = folder_without(fewer, tmp_path / "b", "neck.fusion_stage.layers.0.residual_layer1.")
    whole, part = (DepthEstimator(DepthConfig(str(path))) for path in (folder, fewer))
    clip = frames(1, 28, 42)
    assert part.fingerprint == whole.fingerprint and torch.equal(part(clip), whole(clip))


def test_a_metric_model_is_refused_because_it_estimates_distances(tmp_path: Path) -> None:
    lively(depth_anything(depth_estimation_type="metric", max_depth=20)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"estimates metric depth, in meters: give a model for relative depth") as error:
        DepthEstimator(DepthConfig(str(tmp_path)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backbone_config": None, "backbone": "facebook/dinov2-small"}, "its backbone is facebook/dinov2-small, not"),
        ({"backbone_config": {"model_type": "swin"}}, "its backbone is swin, not described as dinov2"),
        ({"backbone_config": "x"}, "its backbone is None, not described"),
        ({"patch_size": 28}, "its patch_size is 28, and 14 in DINOv2"),
        ({"patch_size": [14, 7]}, r"its patch_size is \[14, 7\], and 14 in DINOv2"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "its config has 'auto_map', and only plain weights are loaded"),
        ({"depth_estimation_type": "other"}, "it estimates other depth"),
        ({"head_in_index": 9}, "index"),
    ],
)
def test_another_config_is_refused_in_one_line(
    folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=problem) as error:
        DepthEstimator(DepthConfig(str(tmp_path)), recorded=True)
    assert "\n" not in str(error.value)
