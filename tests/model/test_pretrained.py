"""How weights pass on: every key copied, widened or declared new; anything else is refused and nothing is changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.model.pretrained import check_same_family, is_temporal, load_safetensors, load_weights
from gen1_train.model.stable_diffusion import WEIGHTS, read_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from miniature.tiny import write_stable_diffusion
from tests.model.reference import SD1, frame_by_frame, inputs, perturb

IMAGE = UNetConfig(**SD1, temporal=False)
VIDEO = replace(IMAGE, temporal=True)
GUIDED = replace(VIDEO, in_channels=12)


def random_unet(config: UNetConfig, seed: int = 0) -> SpatioTemporalUNet:
    torch.manual_seed(seed)
    return SpatioTemporalUNet(config).double().requires_grad_(False)


def line_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    write_stable_diffusion(folder, cross_attention_dim=24)
    return folder


def copied(folder: Path, target: Path) -> Path:
    """A folder's `unet/` to damage."""
    (target / "unet").mkdir(parents=True)
    for path in (folder / "unet").iterdir():
        (target / "unet" / path.name).write_bytes(path.read_bytes())
    return target


def test_stage_1_reads_stable_diffusion_as_diffusers_does(stable_diffusion: Path) -> None:
    config, weights = read_stable_diffusion(stable_diffusion)
    assert config == replace(IMAGE, groups=8, content_dim=24)
    assert len(weights) == 686 and all(tensor.dtype == torch.float32 for tensor in weights.values())
    unet = SpatioTemporalUNet(config).double()
    report = load_weights(unet, weights, "here")
    assert (sorted(report.copied), report.widened, report.new) == (sorted(weights), [], [])
    assert report.summary() == "weights from here: 686 copied, 0 widened with zeros, 0 new"
    theirs = UNet2DConditionModel.from_pretrained(stable_diffusion / "unet").double()
    given = inputs(config)
    torch.testing.assert_close(unet(*given), frame_by_frame(theirs, *given), rtol=1e-9, atol=1e-9)


def test_the_folder_itself_may_be_given(stable_diffusion: Path) -> None:
    assert read_stable_diffusion(str(stable_diffusion / "unet"))[0] == read_stable_diffusion(stable_diffusion)[0]


def test_half_precision_weights_become_float32(stable_diffusion: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copied(stable_diffusion, tmp_path)
    weights = load_safetensors(folder / "unet" / WEIGHTS)
    save_file({k: v.half() for k, v in weights.items()}, folder / "unet" / WEIGHTS)
    assert {v.dtype for v in read_stable_diffusion(folder)[1].values()} == {torch.float32}


def test_stage_2_takes_stage_1_as_it_is() -> None:
    before, after = random_unet(IMAGE), random_unet(IMAGE, seed=1)
    report = load_weights(after, before.state_dict(), "stage1")
    assert report.new == report.widened == [] and len(report.copied) == 686
    wanted = before.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in after.state_dict().items())


def test_stage_2_may_add_a_projection_of_the_content() -> None:
    after = random_unet(replace(IMAGE, content_dim=40))
    report = load_weights(after, random_unet(IMAGE).state_dict(), "stage1")
    assert report.new == ["content_projection.weight", "content_projection.bias"]


def test_stage_3_adds_the_temporal_layers_and_nothing_else() -> None:
    before, after = random_unet(IMAGE), random_unet(VIDEO, seed=1)
    report = load_weights(after, before.state_dict(), "stage2")
    assert len(report.copied) == 686 and report.widened == []
    assert set(report.new) == {k for k in after.state_dict() if is_temporal(k)} and len(report.new) > 100
    given = inputs(VIDEO)
    torch.testing.assert_close(after(*given), before(*given), rtol=0, atol=0)


def test_stage_4_widens_the_input_and_changes_no_output() -> None:
    before, after = random_unet(VIDEO), random_unet(GUIDED, seed=1)
    perturb(before)
    report = load_weights(after, before.state_dict(), "stage3")
    assert report.widened == ["conv_in.weight"] and report.new == []
    assert set(report.copied) == set(after.state_dict()) - {"conv_in.weight"}
    latents, timesteps, content = inputs(VIDEO)
    expected = before(latents, timesteps, content)
    for scale in (0.0, 1.0, 100.0):
        structure = scale * torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
        made = after(torch.cat([latents, structure], dim=2), timesteps, content)
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


def test_stage_5_and_a_resume_take_everything() -> None:
    before, after = random_unet(GUIDED), random_unet(GUIDED, seed=1)
    perturb(before)
    report = load_weights(after, before.state_dict(), "stage4")
    assert report.new == report.widened == []
    given = inputs(GUIDED)
    assert torch.equal(after(*given), before(*given))


@pytest.mark.parametrize(("old", "new"), [("IMAGE", "VIDEO"), ("VIDEO", "GUIDED")])
def test_a_resume_and_an_editor_take_nothing_as_new(old: str, new: str) -> None:
    """Their checkpoint is of this very model: temporal layers that are missing there were lost, not added."""
    configs = {"IMAGE": IMAGE, "VIDEO": VIDEO, "GUIDED": GUIDED}
    with pytest.raises(UserError, match="are not those of this model"):
        load_weights(random_unet(configs[new]), random_unet(configs[old]).state_dict(), "step-00000100", grow=False)


def without(weights: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if not k.startswith(starts)}


PROJECTED = replace(GUIDED, content_dim=40)
WIDE = torch.zeros(8, 16, 3, 3)
# what -> (what is made of good weights, what the line has to say)
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda good: without(good, "conv_norm_out.bias"), "missing conv_norm_out.bias"),
    "left over": (lambda good: {**good, "extra.weight": WIDE}, "left over extra.weight"),
    "misshapen": (lambda good: {**good, "conv_out.bias": WIDE[0, 0, 0]}, "conv_out.bias is (3,), wanted (4,)"),
    "too wide": (
        lambda good: {**good, "conv_in.weight": WIDE},
        "conv_in.weight is (8, 16, 3, 3), wanted (8, 12, 3, 3)",
    ),
    "other kernel": (
        lambda good: {**good, "conv_in.weight": WIDE[:, :4, 1:2]},
        "conv_in.weight is (8, 4, 1, 3), wanted",
    ),
    "half temporal": (
        lambda good: without(good, "up_blocks.1.resnets.0.temporal_conv2."),
        "missing up_blocks.1.resnets.0.temporal_conv2.conv.weight",
    ),
    "half a projection": (
        lambda good: without(good, "content_projection.bias"),
        "missing content_projection.bias",
    ),
    "nothing": (lambda good: {}, "missing conv_in.weight"),
}


@pytest.fixture(scope="module")
def projected() -> SpatioTemporalUNet:
    return random_unet(PROJECTED)


@pytest.mark.parametrize("what", DAMAGE)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(projected: SpatioTemporalUNet, what: str) -> None:
    damage, says = DAMAGE[what]
    before = {k: v.clone() for k, v in projected.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(projected, damage({k: torch.zeros_like(v) for k, v in before.items()}), "FOLDER")
    assert "FOLDER" in line_of(error) and says in line_of(error)
    assert all(torch.equal(v, before[k]) for k, v in projected.state_dict().items())


def test_a_long_list_of_problems_is_cut() -> None:
    with pytest.raises(UserError, match=r"; and \d+ more\)"):
        load_weights(random_unet(IMAGE), {}, "FOLDER")


def test_a_video_model_does_not_become_an_image_model() -> None:
    with pytest.raises(UserError, match=r"left over .*temporal"):
        load_weights(random_unet(IMAGE), random_unet(VIDEO).state_dict(), "FOLDER")


def test_a_folder_that_holds_no_unet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_stable_diffusion(tmp_path / "sd")
    assert "no Stable Diffusion UNet" in line_of(error) and str(tmp_path / "sd") in line_of(error)


def test_weights_that_are_not_there_are_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    folder = copied(stable_diffusion, tmp_path)
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(UserError) as error:
        read_stable_diffusion(folder)
    assert f"no weights at {folder / 'unet' / WEIGHTS}" in line_of(error)


@pytest.mark.parametrize("damage", ["cut off", "no safetensors", "empty"])
def test_damaged_safetensors_are_refused(stable_diffusion: Path, tmp_path: Path, damage: str) -> None:
    path = copied(stable_diffusion, tmp_path) / "unet" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes({"cut off": data[:-100], "no safetensors": b"\x80\x02}q\x00." * 9, "empty": b""}[damage])
    with pytest.raises(UserError) as error:
        read_stable_diffusion(tmp_path)
    assert f"{path} cannot be read as safetensors" in line_of(error)


def with_config(folder: Path, target: Path, **changes: object) -> Path:
    folder = copied(folder, target)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("content", ["{", "[]", "", "\xff"])
def test_a_config_that_is_none_is_refused(stable_diffusion: Path, tmp_path: Path, content: str) -> None:
    path = copied(stable_diffusion, tmp_path) / "unet" / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_stable_diffusion(tmp_path)
    assert str(path.parent) in line_of(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4},
        {"block_out_channels": None},
        {"down_block_types": []},
    ],
)
def test_other_kinds_of_unet_are_refused(stable_diffusion: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"not a Stable Diffusion 1\.x or 2\.x UNet") as error:
        read_stable_diffusion(with_config(stable_diffusion, tmp_path, **changes))
    line_of(error)


def test_heads_by_level_are_read_as_in_stable_diffusion_2(stable_diffusion: Path, tmp_path: Path) -> None:
    changes = {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "cross_attention_dim": 1024}
    config, _ = read_stable_diffusion(with_config(stable_diffusion, tmp_path, **changes))
    assert config.heads == [5, 10, 20, 20] and config.linear_projection and config.context_dim == 1024


def test_a_unet_of_other_widths_is_refused_by_name(stable_diffusion: Path) -> None:
    pretrained, _ = read_stable_diffusion(stable_diffusion)
    with pytest.raises(UserError) as error:
        check_same_family(replace(pretrained, channels=[32, 64, 64, 64], heads=[4] * 4), pretrained, "FOLDER")
    line = line_of(error)
    assert "FOLDER" in line and "channels [8, 16, 32, 32] (model: [32, 64, 64, 64])" in line
    assert "heads [8, 8, 8, 8] (model: [4, 4, 4, 4])" in line and "groups" not in line


def test_what_inflation_changes_is_not_another_family(stable_diffusion: Path) -> None:
    pretrained, _ = read_stable_diffusion(stable_diffusion)
    grown = replace(pretrained, in_channels=12, temporal=True, max_frames=16, temporal_kernel=5, content_dim=768)
    check_same_family(grown, pretrained, "FOLDER")
