"""Tests of loading weights: every key is copied, widened or declared new; anything else is refused without changes."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.pretrained import check_same_family, is_temporal, listed, load_safetensors, load_weights
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, inputs, perturb

IMAGE = UNetConfig(**SD1, temporal=False)
VIDEO = replace(IMAGE, temporal=True)
GUIDED = replace(VIDEO, in_channels=12)


def random_unet(config: UNetConfig, seed: int = 0) -> SpatioTemporalUNet:
    torch.manual_seed(seed)
    return SpatioTemporalUNet(config).double().requires_grad_(False)


def line_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_stage_2_copies_all_weights_of_stage_1() -> None:
    before, after = random_unet(IMAGE), random_unet(IMAGE, seed=1)
    report = load_weights(after, before.state_dict(), "stage1")
    assert report.new == report.widened == [] and len(report.copied) == 686
    expected = before.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in after.state_dict().items())


def test_stage_2_may_add_a_content_projection() -> None:
    after = random_unet(replace(IMAGE, content_dim=40))
    report = load_weights(after, random_unet(IMAGE).state_dict(), "stage1")
    assert report.new == ["content_projection.weight", "content_projection.bias"]


def test_stage_3_adds_only_the_temporal_layers() -> None:
    before, after = random_unet(IMAGE), random_unet(VIDEO, seed=1)
    report = load_weights(after, before.state_dict(), "stage2")
    assert len(report.copied) == 686 and report.widened == []
    assert set(report.new) == {k for k in after.state_dict() if is_temporal(k)} and len(report.new) > 100
    example = inputs(VIDEO)
    torch.testing.assert_close(after(*example), before(*example), rtol=0, atol=0)


def test_stage_4_widens_the_input_without_changing_the_output() -> None:
    before, after = random_unet(VIDEO), random_unet(GUIDED, seed=1)
    perturb(before)
    report = load_weights(after, before.state_dict(), "stage3")
    assert report.widened == ["conv_in.weight"] and report.new == []
    assert set(report.copied) == set(after.state_dict()) - {"conv_in.weight"}
    latents, timesteps, content = inputs(VIDEO)
    expected = before(latents, timesteps, content)
    for scale in (0.0, 1.0, 100.0):
        structure = scale * torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
        actual = after(torch.cat([latents, structure], dim=2), timesteps, content)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_stage_5_and_a_resumed_run_copy_everything() -> None:
    before, after = random_unet(GUIDED), random_unet(GUIDED, seed=1)
    perturb(before)
    report = load_weights(after, before.state_dict(), "stage4")
    assert report.new == report.widened == []
    example = inputs(GUIDED)
    assert torch.equal(after(*example), before(*example))


@pytest.mark.parametrize("frames", [8, 9, 15, 16])
def test_longer_clips_move_through_the_same_positions(frames: int) -> None:
    before, after = random_unet(GUIDED), random_unet(replace(GUIDED, max_frames=frames), seed=1)
    perturb(before)
    report = load_weights(after, before.state_dict(), "stage4")
    names = [k for k in after.state_dict() if k.endswith(".positions")]
    assert report.stretched == (names if frames > 8 else []) and report.new == report.widened == []
    assert ("stretched to more frames" in report.summary()) == (frames > 8)
    for name in names:
        old, new = before.state_dict()[name], after.state_dict()[name]
        assert new.shape == (frames, old.shape[1])
        torch.testing.assert_close(new[[0, -1]], old[[0, -1]], rtol=0, atol=1e-12)
        if frames == 15:  # each second one is an old one, and the others are between two
            torch.testing.assert_close(new[::2], old, rtol=0, atol=1e-12)
            torch.testing.assert_close(new[1::2], (old[1:] + old[:-1]) / 2, rtol=0, atol=1e-12)


def test_positions_are_neither_cut_off_nor_stretched_where_nothing_may_be_new() -> None:
    longer, shorter = replace(GUIDED, max_frames=16), GUIDED
    for old, new, kinds in ((longer, shorter, ("positions",)), (shorter, longer, ()), (shorter, longer, ("input",))):
        with pytest.raises(UserError, match=r"of another shape: .*positions is"):
            load_weights(random_unet(new), random_unet(old).state_dict(), "stage4", may_be_new=kinds)


@pytest.mark.parametrize(("old", "new"), [("IMAGE", "VIDEO"), ("VIDEO", "GUIDED")])
def test_a_resumed_run_and_an_editor_accept_no_new_weights(old: str, new: str) -> None:
    """Their checkpoint is of the same model: missing temporal layers mean that it is damaged."""
    configs = {"IMAGE": IMAGE, "VIDEO": VIDEO, "GUIDED": GUIDED}
    with pytest.raises(UserError, match="do not fit this model"):
        load_weights(random_unet(configs[new]), random_unet(configs[old]).state_dict(), "step-00000100", may_be_new=())


def without(weights: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if not k.startswith(starts)}


PROJECTED = replace(GUIDED, content_dim=40)
WIDE = torch.zeros(8, 16, 3, 3)
# name -> (damage to good weights, expected part of the message)
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda good: without(good, "conv_norm_out.bias"), "(1 missing: conv_norm_out.bias)"),
    "unexpected": (lambda good: {**good, "extra.weight": WIDE}, "1 unexpected: extra.weight"),
    "misshapen": (
        lambda good: {**good, "conv_out.bias": WIDE[0, 0, 0]},
        "1 of another shape: conv_out.bias is (3,), expected (4,)",
    ),
    "too wide": (
        lambda good: {**good, "conv_in.weight": WIDE},
        "conv_in.weight is (8, 16, 3, 3), expected (8, 12, 3, 3)",
    ),
    "other kernel": (
        lambda good: {**good, "conv_in.weight": WIDE[:, :4, 1:2]},
        "conv_in.weight is (8, 4, 1, 3), expected",
    ),
    "half temporal": (
        lambda good: without(good, "up_blocks.1.resnets.0.temporal_conv2."),
        "2 missing: up_blocks.1.resnets.0.temporal_conv2.weight",
    ),
    "half a projection": (
        lambda good: without(good, "content_projection.bias"),
        "1 missing: content_projection.bias",
    ),
    "nothing": (lambda good: {}, "missing: conv_in.weight, conv_in.bias, "),
}


@pytest.fixture(scope="module")
def projected() -> SpatioTemporalUNet:
    return random_unet(PROJECTED)


@pytest.mark.parametrize("name", DAMAGE)
def test_weights_that_do_not_fit_are_refused_without_changes(projected: SpatioTemporalUNet, name: str) -> None:
    damage, message = DAMAGE[name]
    before = {k: v.clone() for k, v in projected.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(projected, damage({k: torch.zeros_like(v) for k, v in before.items()}), "FOLDER")
    assert "FOLDER" in line_of(error) and message in line_of(error)
    assert all(torch.equal(v, before[k]) for k, v in projected.state_dict().items())


def test_a_long_list_of_problems_is_counted_by_part() -> None:
    with pytest.raises(UserError) as error:
        load_weights(random_unet(IMAGE), {"extra.weight": WIDE}, "FOLDER")
    line = line_of(error)
    assert line.startswith("the weights in FOLDER do not fit this model (686 missing: conv_in.weight, conv_in.bias, ")
    assert ", 46 in mid_block, 2 in conv_norm_out, 2 in conv_out; 1 unexpected: extra.weight); check model=" in line


def test_weights_of_a_video_model_do_not_fit_an_image_model() -> None:
    with pytest.raises(UserError, match=r"312 unexpected: .*temporal"):
        load_weights(random_unet(IMAGE), random_unet(VIDEO).state_dict(), "FOLDER")


def test_nonfinite_weights_are_refused_by_name(projected: SpatioTemporalUNet) -> None:
    before = {k: v.clone() for k, v in projected.state_dict().items()}
    weights = {k: torch.zeros_like(v) for k, v in before.items()}
    weights["conv_out.bias"][1] = float("nan")
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = float("-inf")
    with pytest.raises(UserError) as error:
        load_weights(projected, weights, "FOLDER")
    line = (
        "2 weights in FOLDER are not finite (mid_block.resnets.0.conv1.weight, conv_out.bias); fetch or train it again"
    )
    assert line_of(error) == line
    assert all(torch.equal(v, before[k]) for k, v in projected.state_dict().items())


def test_the_report_lists_copied_widened_and_new_weights(tmp_path: Path) -> None:
    after = random_unet(PROJECTED)
    report = load_weights(after, random_unet(IMAGE).float().half().state_dict(), "runs/step-9/unet.safetensors")
    new = len(after.state_dict()) - 686
    assert report.summary() == (
        f"weights from runs/step-9/unet.safetensors: 685 copied from float16, 1 widened with zeros, {new} new"
    )
    saved = json.loads(report.to_json())
    assert saved["summary"] == report.summary() and saved["files"] == {"unet.safetensors": 686}
    rows = saved["parameters"]
    assert rows.keys() == after.state_dict().keys()
    assert rows["conv_in.weight"] == {
        "how": "widened",
        "name": "conv_in.weight",
        "file": "unet.safetensors",
        "dtype": "float16",
    }
    assert rows["content_projection.bias"] == {"how": "new"}
    assert Counter(row["how"] for row in rows.values()) == {"copied": 685, "widened": 1, "new": new}
    assert len(report.to_json().splitlines()) < len(rows) + 20  # one line per parameter


def test_only_few_names_are_listed_in_full() -> None:
    assert listed(["a.weight", "b"]) == "a.weight, b"
    names = [f"down_blocks.{i}.resnets.{j}.norm1.bias" for i in range(2) for j in range(5)] + ["conv_in.bias"]
    assert listed(names) == f"{', '.join(names[:3])}, …: 5 in down_blocks.0, 5 in down_blocks.1, 1 in conv_in"


def test_a_unet_with_other_widths_is_refused_by_field() -> None:
    pretrained = replace(IMAGE, groups=8)
    with pytest.raises(UserError) as error:
        check_same_family(replace(pretrained, channels=[32, 64, 64, 64], heads=[4] * 4), pretrained, "FOLDER")
    line = line_of(error)
    assert "FOLDER" in line and "channels [8, 16, 32, 32] (model: [32, 64, 64, 64])" in line
    assert "heads [8, 8, 8, 8] (model: [4, 4, 4, 4])" in line and "groups" not in line


def test_fields_that_inflation_changes_may_differ() -> None:
    grown = replace(IMAGE, in_channels=12, temporal=True, max_frames=16, temporal_kernel=5, content_dim=768)
    check_same_family(grown, IMAGE, "FOLDER")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_unreadable_weights_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "unet.safetensors"
    if damage == "damaged":
        path.write_bytes(b"no weights")
    with pytest.raises(UserError) as error:
        load_safetensors(path)
    assert str(path) in line_of(error)
