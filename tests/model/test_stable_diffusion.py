"""Tests of stage 1 for every format: the UNet equals diffusers' frame by frame, and the report names the sources."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.errors import UserError
from gen1_train.model.diffusers_layout import WEIGHTS_FILE
from gen1_train.model.pretrained import WeightReport
from gen1_train.model.stable_diffusion import prediction_of, read_stable_diffusion, unet_from_stable_diffusion
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from gen1_train.training.stages import InitConfig, StageConfig, build_unet
from miniature.tiny import write_stable_diffusion
from tests.model import published
from tests.model.published import (
    SD1,
    SD2,
    SMALL,
    Writer,
    bare_compvis,
    checkpoint,
    complete_checkpoint,
    diffusers_weights,
    file,
    folder,
    image_unet,
)
from tests.model.reference import frame_by_frame, inputs

STAGE_1 = StageConfig("1", None, 0, temporal=False, structure=False, max_level=0, image_ratio=1.0)
SHARDS = "diffusion_pytorch_model{}-0000{}-of-0000{}.safetensors"

# format -> (config, in half precision, writer, files of the weights)
FORMATS: dict[str, tuple[UNetConfig, bool, Writer, set[str]]] = {
    "folder": (SD1, False, folder(), {WEIGHTS_FILE}),
    "unet/ itself": (SD1, False, folder(inner=True), {WEIGHTS_FILE}),
    "shards": (SD1, False, folder(shard="8MB"), {SHARDS.format("", i, 3) for i in (1, 2, 3)}),
    "fp16": (SD1, True, folder("fp16"), {"diffusion_pytorch_model.fp16.safetensors"}),
    "fp16 shards": (SMALL, True, folder("fp16", "1MB"), {SHARDS.format(".fp16", i, 2) for i in (1, 2)}),
    "older fp16 shards": (SMALL, True, published.legacy_index, {SHARDS.format(".fp16", i, 2) for i in (1, 2)}),
    "complete .safetensors": (SD1, False, file("sd-v1.safetensors", complete_checkpoint), {"sd-v1.safetensors"}),
    "complete .safetensors in half": (SD1, True, file("sd-v1.safetensors", complete_checkpoint), {"sd-v1.safetensors"}),
    "bare .safetensors": (SD1, False, file("unet.safetensors", bare_compvis), {"unet.safetensors"}),
    "diffusers' file alone": (SD1, False, file(WEIGHTS_FILE, diffusers_weights), {WEIGHTS_FILE}),
    "diffusers' file and config": (
        replace(SMALL, heads=[4, 2]),
        False,
        file(WEIGHTS_FILE, diffusers_weights, True),
        {WEIGHTS_FILE},
    ),
    ".ckpt": (SD1, False, checkpoint(complete_checkpoint), {"sd-v1.ckpt"}),
    ".ckpt in half": (SMALL, True, checkpoint(complete_checkpoint), {"sd-v1.ckpt"}),
    "bare .ckpt": (SMALL, False, checkpoint(bare_compvis, bare=True), {"sd-v1.ckpt"}),
    ".ckpt of Lightning": (SMALL, False, checkpoint(complete_checkpoint, lightning=True), {"sd-v1.ckpt"}),
    ".ckpt of old torch": (SMALL, False, checkpoint(complete_checkpoint, zipped=False), {"sd-v1.ckpt"}),
    "like SD 2, folder": (SD2, False, folder(), {WEIGHTS_FILE}),
    "like SD 2, complete": (SD2, False, file("sd-v2.safetensors", complete_checkpoint), {"sd-v2.safetensors"}),
}


def stage_1(config: UNetConfig, path: Path) -> tuple[SpatioTemporalUNet, WeightReport]:
    return build_unet(config, STAGE_1, InitConfig(from_=str(path)), None, seed=0)


def line_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_stage_1_equals_diffusers_frame_by_frame(name: str, tmp_path: Path) -> None:
    config, half, write, files = FORMATS[name]
    reference = image_unet(config, half)
    path = write(tmp_path, config, reference)
    unet, report = stage_1(config, path)
    latents, timesteps, content = inputs(config, b=1, n=2)
    example = latents.float(), timesteps, content.float()
    with torch.no_grad():
        expected, actual = frame_by_frame(reference.float(), *example), unet(*example)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()
    assert {weight.dtype for weight in unet.state_dict().values()} == {torch.float32}
    assert (report.widened, report.new) == ([], []) and set(report.copied) == set(reference.state_dict())
    assert {origin.file for origin in report.origins.values()} == files
    assert {origin.dtype for origin in report.origins.values()} == {"float16" if half else "float32"}
    assert (" copied from float16," in report.summary()) == half


@pytest.fixture(scope="module")
def complete_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    return file("sd-v1.safetensors", complete_checkpoint)(folder, SMALL, image_unet(SMALL))


def test_the_report_lists_the_source_of_every_weight_and_the_unused_tensors(complete_file: Path) -> None:
    unet, report = stage_1(SMALL, complete_file)
    count = len(unet.state_dict())
    unused = {"betas": 1, "alphas_cumprod": 1, "model_ema": count + 1, "first_stage_model": 2, "cond_stage_model": 3}
    assert report.unused == unused
    assert report.summary() == (
        f"weights from {complete_file}: {count} copied, 0 widened with zeros, 0 new; not used: 3 cond_stage_model, "
        f"2 first_stage_model, {count + 1} model_ema, 2 others; heads and groups: not specified, "
        "Stable Diffusion's are assumed"
    )
    saved = json.loads(report.to_json())
    assert saved["parameters"].keys() == unet.state_dict().keys() and saved["left_aside"] == unused
    assert saved["files"] == {"sd-v1.safetensors": count}
    assert saved["parameters"]["up_blocks.0.upsamplers.0.conv.bias"] == {
        "how": "copied",
        "name": "model.diffusion_model.output_blocks.1.1.conv.bias",
        "file": "sd-v1.safetensors",
        "dtype": "float32",
    }


def test_only_the_unet_is_read(complete_file: Path) -> None:
    """The other tensors include integers, which would be refused if they were read."""
    pretrained = read_stable_diffusion(complete_file)
    assert pretrained.weights.keys() == pretrained.origins.keys() == image_unet(SMALL).state_dict().keys()


def test_unet_from_stable_diffusion_accepts_a_folder_or_a_file(complete_file: Path, tmp_path: Path) -> None:
    reference = image_unet(SMALL)
    latents, timesteps, content = inputs(SMALL, b=1, n=2)
    example = latents.float(), timesteps, content.float()
    with torch.no_grad():
        expected = frame_by_frame(reference, *example)
        for path in (complete_file, folder()(tmp_path, SMALL, reference)):
            unet = unet_from_stable_diffusion(path)
            assert unet.config == replace(SMALL, temporal=True)
            assert (unet(*example) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_config_of_another_network_next_to_a_file_is_ignored(tmp_path: Path) -> None:
    path = file(WEIGHTS_FILE, diffusers_weights)(tmp_path, SMALL, image_unet(SMALL))
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    assert read_stable_diffusion(path).assumed == ("heads", "groups")
    image_unet(replace(SMALL, heads=[4, 4])).save_config(tmp_path)
    pretrained = read_stable_diffusion(path)
    assert pretrained.assumed == () and pretrained.config.heads == [4, 4]


def test_full_precision_is_preferred_to_half(tmp_path: Path) -> None:
    folder("fp16")(tmp_path, SMALL, image_unet(SMALL, half=True))
    folder()(tmp_path, SMALL, image_unet(SMALL))
    pretrained = read_stable_diffusion(tmp_path)
    assert {origin.dtype for origin in pretrained.origins.values()} == {"float32"}


@pytest.mark.parametrize("changes", [{"heads": [4, 4]}, {"groups": 16}, {"heads": [4, 4], "groups": 16}])
def test_heads_and_groups_that_a_file_does_not_specify_are_not_guessed(
    complete_file: Path, changes: dict[str, object]
) -> None:
    """A wrong number would load without an error and generate noise."""
    with pytest.raises(UserError) as error:
        stage_1(replace(SMALL, **changes), complete_file)
    line = line_of(error)
    assert (
        f"{complete_file} does not specify its {' and '.join(changes)}" in line and "config.json specifies them" in line
    )
    for name in ("heads", "groups"):
        setting = f"model.{name}={getattr(SMALL, name)}".replace(" ", "")
        assert (setting in line) == (name in changes)
    with pytest.raises(UserError, match="does not match the chosen model"):
        stage_1(replace(SMALL, channels=[64, 64], **changes), complete_file)


def test_a_folder_is_read_as_in_diffusers(tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path, cross_attention_dim=24)
    pretrained = read_stable_diffusion(str(tmp_path))
    assert pretrained.config == UNetConfig(
        channels=[8, 16, 32, 32], groups=8, context_dim=24, content_dim=24, temporal=False
    )
    reference = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    assert len(pretrained.weights) == 686 and pretrained.weights.keys() == reference.keys()
    assert all(torch.equal(weight, reference[name]) for name, weight in pretrained.weights.items())
    assert (pretrained.unused, pretrained.assumed) == ({}, ())


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"prediction_type": "epsilon"}', "eps"),
        ('{"prediction_type": "v_prediction"}', "v"),
        ("{}", "eps"),  # diffusers' default, and the scheduler of Stable Diffusion 1.x
        ('{"prediction_type": ["v_prediction"]}', None),
        ('{"prediction_type": "flow"}', None),
        ("{", None),
        (None, None),
    ],
)
def test_the_scheduler_tells_what_a_model_predicts(tmp_path: Path, text: str | None, form: str | None) -> None:
    (tmp_path / "unet").mkdir()
    if text is not None:
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
    assert prediction_of(tmp_path) == prediction_of(tmp_path / "unet") == form
