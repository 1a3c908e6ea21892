"""Stage 1 in every format: the UNet that comes out is diffusers', frame by frame, and the report says whence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import WEIGHTS_FILE
from gen1_train.model.pretrained import WeightReport
from gen1_train.model.stable_diffusion import read_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.stages import InitConfig, StageConfig, build_unet
from miniature.tiny import write_stable_diffusion
from tests.model import published
from tests.model.published import (
    SD1,
    SD2,
    SMALL,
    Writer,
    as_diffusers,
    bare_compvis,
    checkpoint,
    file,
    folder,
    image_unet,
    whole_checkpoint,
)
from tests.model.reference import frame_by_frame, inputs

STAGE_1 = StageConfig("1", None, 0, temporal=False, structure=False, max_level=0, image_ratio=1.0)
SHARDS = "diffusion_pytorch_model{}-0000{}-of-0000{}.safetensors"

# format -> (config, in half precision, writer, files that the weights come from)
FORMATS: dict[str, tuple[UNetConfig, bool, Writer, set[str]]] = {
    "folder": (SD1, False, folder(), {WEIGHTS_FILE}),
    "unet/ itself": (SD1, False, folder(inner=True), {WEIGHTS_FILE}),
    "shards": (SD1, False, folder(shard="8MB"), {SHARDS.format("", i, 3) for i in (1, 2, 3)}),
    "fp16": (SD1, True, folder("fp16"), {"diffusion_pytorch_model.fp16.safetensors"}),
    "fp16 shards": (SMALL, True, folder("fp16", "1MB"), {SHARDS.format(".fp16", i, 2) for i in (1, 2)}),
    "older fp16 shards": (SMALL, True, published.legacy_index, {SHARDS.format(".fp16", i, 2) for i in (1, 2)}),
    "whole .safetensors": (SD1, False, file("sd-v1.safetensors", whole_checkpoint), {"sd-v1.safetensors"}),
    "whole .safetensors in half": (SD1, True, file("sd-v1.safetensors", whole_checkpoint), {"sd-v1.safetensors"}),
    "bare .safetensors": (SD1, False, file("unet.safetensors", bare_compvis), {"unet.safetensors"}),
    "diffusers' file alone": (SD1, False, file(WEIGHTS_FILE, as_diffusers), {WEIGHTS_FILE}),
    "diffusers' file and config": (
        replace(SMALL, heads=[4, 2]),
        False,
        file(WEIGHTS_FILE, as_diffusers, True),
        {WEIGHTS_FILE},
    ),
    ".ckpt": (SD1, False, checkpoint(whole_checkpoint), {"sd-v1.ckpt"}),
    ".ckpt in half": (SMALL, True, checkpoint(whole_checkpoint), {"sd-v1.ckpt"}),
    "bare .ckpt": (SMALL, False, checkpoint(bare_compvis, bare=True), {"sd-v1.ckpt"}),
    ".ckpt of Lightning": (SMALL, False, checkpoint(whole_checkpoint, lightning=True), {"sd-v1.ckpt"}),
    ".ckpt of old torch": (SMALL, False, checkpoint(whole_checkpoint, zipped=False), {"sd-v1.ckpt"}),
    "like SD 2, folder": (SD2, False, folder(), {WEIGHTS_FILE}),
    "like SD 2, whole": (SD2, False, file("sd-v2.safetensors", whole_checkpoint), {"sd-v2.safetensors"}),
}


def stage_1(config: UNetConfig, path: Path) -> tuple[SpatioTemporalUNet, WeightReport]:
    return build_unet(config, STAGE_1, InitConfig(from_=str(path)), path, seed=0)


def line_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", FORMATS)
def test_stage_1_equals_diffusers_frame_by_frame(what: str, tmp_path: Path) -> None:
    config, half, write, files = FORMATS[what]
    theirs = image_unet(config, half)
    path = write(tmp_path, config, theirs)
    unet, report = stage_1(config, path)
    latents, timesteps, content = inputs(config, b=1, n=2)
    given = latents.float(), timesteps, content.float()
    with torch.no_grad():
        expected, made = frame_by_frame(theirs.float(), *given), unet(*given)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()
    assert {weight.dtype for weight in unet.state_dict().values()} == {torch.float32}
    assert (report.widened, report.new) == ([], []) and set(report.copied) == set(theirs.state_dict())
    assert {origin.file for origin in report.origins.values()} == files
    assert {origin.dtype for origin in report.origins.values()} == {"float16" if half else "float32"}
    assert (" copied from float16," in report.summary()) == half


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    return file("sd-v1.safetensors", whole_checkpoint)(place, SMALL, image_unet(SMALL))


def test_the_report_tells_of_every_weight_where_it_lay_and_what_was_left_aside(whole: Path) -> None:
    unet, report = stage_1(SMALL, whole)
    count = len(unet.state_dict())
    aside = {"betas": 1, "alphas_cumprod": 1, "model_ema": count + 1, "first_stage_model": 2, "cond_stage_model": 3}
    assert report.left_aside == aside
    assert report.summary() == (
        f"weights from {whole}: {count} copied, 0 widened with zeros, 0 new; left aside: 3 cond_stage_model, "
        f"2 first_stage_model, {count + 1} model_ema, 2 others; heads and groups, which it does not tell, are Stable "
        "Diffusion's"
    )
    saved = json.loads(report.to_json())
    assert saved["parameters"].keys() == unet.state_dict().keys() and saved["left_aside"] == aside
    assert saved["files"] == {"sd-v1.safetensors": count}
    assert saved["parameters"]["up_blocks.0.upsamplers.0.conv.bias"] == {
        "how": "copied",
        "name": "model.diffusion_model.output_blocks.1.1.conv.bias",
        "file": "sd-v1.safetensors",
        "dtype": "float32",
    }


def test_only_the_unet_is_read(whole: Path) -> None:
    """There are whole numbers among the rest: read, they would be refused."""
    found = read_stable_diffusion(whole)
    assert found.weights.keys() == found.origins.keys() == image_unet(SMALL).state_dict().keys()


def test_from_stable_diffusion_takes_a_folder_or_a_file(whole: Path, tmp_path: Path) -> None:
    theirs = image_unet(SMALL)
    latents, timesteps, content = inputs(SMALL, b=1, n=2)
    given = latents.float(), timesteps, content.float()
    with torch.no_grad():
        expected = frame_by_frame(theirs, *given)
        for path in (whole, folder()(tmp_path, SMALL, theirs)):
            unet = SpatioTemporalUNet.from_stable_diffusion(path)
            assert unet.config == replace(SMALL, temporal=True)
            assert (unet(*given) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_config_of_another_network_beside_a_file_is_not_its_own(tmp_path: Path) -> None:
    path = file(WEIGHTS_FILE, as_diffusers)(tmp_path, SMALL, image_unet(SMALL))
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    assert read_stable_diffusion(path).untold == ("heads", "groups")
    image_unet(replace(SMALL, heads=[4, 4])).save_config(tmp_path)
    found = read_stable_diffusion(path)
    assert found.untold == () and found.config.heads == [4, 4]


def test_full_precision_goes_before_half(tmp_path: Path) -> None:
    folder("fp16")(tmp_path, SMALL, image_unet(SMALL, half=True))
    folder()(tmp_path, SMALL, image_unet(SMALL))
    found = read_stable_diffusion(tmp_path)
    assert {origin.dtype for origin in found.origins.values()} == {"float32"}


@pytest.mark.parametrize("changes", [{"heads": [4, 4]}, {"groups": 16}, {"heads": [4, 4], "groups": 16}])
def test_heads_and_groups_that_a_file_does_not_tell_are_not_guessed(whole: Path, changes: dict[str, object]) -> None:
    """A wrong number loads without a complaint and makes noise."""
    with pytest.raises(UserError) as error:
        stage_1(replace(SMALL, **changes), whole)
    line = line_of(error)
    assert f"{whole} does not tell its {' and '.join(changes)}" in line and "whose config.json tells them" in line
    for name in ("heads", "groups"):
        setting = f"model.{name}={getattr(SMALL, name)}".replace(" ", "")
        assert (setting in line) == (name in changes)
    with pytest.raises(UserError, match="is not of the chosen model"):
        stage_1(replace(SMALL, channels=[64, 64], **changes), whole)


def test_a_folder_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path, cross_attention_dim=24)
    found = read_stable_diffusion(str(tmp_path))
    assert found.config == UNetConfig(
        channels=[8, 16, 32, 32], groups=8, context_dim=24, content_dim=24, temporal=False
    )
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    assert len(found.weights) == 686 and found.weights.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in found.weights.items())
    assert (found.left_aside, found.untold) == ({}, ())
