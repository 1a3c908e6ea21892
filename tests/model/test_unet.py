"""Tests of the fundamental identity: the inflated UNet equals Stable Diffusion's, frame by frame."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.errors import UserError
from gen1_train.model.temporal import TemporalConv
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, SD2, diffusers_unet, frame_by_frame, inflated, inputs, perturb

Pair = tuple[UNet2DConditionModel, SpatioTemporalUNet]


def pair(config: UNetConfig) -> Pair:
    """Builds a random image UNet and its inflation, in float64, in which even a wrong epsilon is visible."""
    torch.manual_seed(0)
    image_unet = diffusers_unet(config).double().eval().requires_grad_(False)
    return image_unet, inflated(config, image_unet).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sd1() -> Pair:
    return pair(UNetConfig(**SD1))


@pytest.fixture(scope="module")
def trained() -> Pair:
    image_unet, unet = pair(UNetConfig(**SD1))
    perturb(unet)
    return image_unet, unet


CONFIGS = {
    "like SD 1": (SD1, (8, 8), 1),
    "five tokens": (SD1, (8, 8), 5),
    "112x64 pixels": (SD1, (8, 14), 1),
    "odd sizes": (SD1, (7, 5), 2),
    "like SD 2": (SD2, (8, 8), 1),
    "like SD 2, odd sizes": (SD2, (5, 6), 5),
    "with structure": ({**SD1, "in_channels": 12}, (8, 8), 1),
    "three levels": ({**SD1, "channels": [8, 16, 16], "attention": [True, False, True], "heads": [2, 2, 4]}, (4, 6), 1),
    "one layer per level": ({**SD1, "layers": 1}, (8, 8), 1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_inflated_equals_diffusers_frame_by_frame(name: str) -> None:
    values, size, tokens = CONFIGS[name]
    config = UNetConfig(**values)
    image_unet, unet = pair(config)
    example = inputs(config, size=size, tokens=tokens)
    expected = frame_by_frame(image_unet, *example)
    assert expected.shape == (2, 3, 4, *size) and expected.std() > 1e-2
    for temporal in (False, True):
        error = (unet(*example, temporal=temporal) - expected).abs().max() / expected.abs().max()
        assert error < 1e-9, f"{error:.1e}"


def test_inflated_equals_diffusers_in_float32() -> None:
    image_unet, unet = pair(UNetConfig(**SD1))
    latents, timesteps, content = inputs(unet.config)
    example = latents.float(), timesteps, content.float()
    expected = frame_by_frame(image_unet.float(), *example)
    error = (unet.float()(*example) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporal_layers_start_as_the_exact_identity(dtype: torch.dtype) -> None:
    _, unet = pair(UNetConfig(**SD1))
    unet.to(dtype)
    latents, timesteps, content = inputs(unet.config)
    example = latents.to(dtype), timesteps, content.to(dtype)
    on, off = unet(*example), unet(*example, temporal=False)
    assert torch.equal(on, off) and on.dtype == dtype
    image_only = SpatioTemporalUNet(UNetConfig(**SD1, temporal=False)).to(dtype)
    image_only.load_state_dict({k: v for k, v in unet.state_dict().items() if ".temporal_" not in k})
    assert torch.equal(image_only(*example), off)


def test_trained_temporal_layers_do_not_change_the_image_model(trained: Pair) -> None:
    image_unet, unet = trained
    example = inputs(unet.config)
    expected = frame_by_frame(image_unet, *example)
    torch.testing.assert_close(unet(*example, temporal=False), expected, rtol=1e-9, atol=1e-9)
    assert (unet(*example) - expected).abs().max() > 0.1 * expected.abs().max()


def test_frames_mix_only_within_their_clip(trained: Pair) -> None:
    _, unet = trained
    latents, timesteps, content = inputs(unet.config)
    other = latents.clone()
    other[1, 2] += 1.0  # the last frame of clip 1
    changed = (unet(other, timesteps, content) - unet(latents, timesteps, content)).abs().amax((2, 3, 4))
    assert (changed[0] < 1e-12).all()  # clip 0 is unaffected
    assert (changed[1] > 1e-4).all()  # every frame of clip 1 changes
    changed = unet(other, timesteps, content, temporal=False) - unet(latents, timesteps, content, temporal=False)
    assert (changed.abs().amax((2, 3, 4)) > 1e-12).tolist() == [[False] * 3, [False, False, True]]


def test_clips_have_their_own_timestep_and_content(trained: Pair) -> None:
    _, unet = trained
    latents, timesteps, content = inputs(unet.config)
    together = unet(latents, timesteps, content)
    for i in range(2):
        part = slice(i, i + 1)
        alone = unet(latents[part], timesteps[part], content[part])
        torch.testing.assert_close(alone, together[part], rtol=1e-9, atol=1e-10)


def test_the_order_of_frames_matters_only_to_the_video_model(trained: Pair) -> None:
    _, unet = trained
    latents, timesteps, content = inputs(unet.config)
    reversed_order = unet(latents.flip(1), timesteps, content).flip(1)
    assert (reversed_order - unet(latents, timesteps, content)).abs().max() > 1e-3
    reversed_order = unet(latents.flip(1), timesteps, content, temporal=False).flip(1)
    torch.testing.assert_close(reversed_order, unet(latents, timesteps, content, temporal=False), rtol=1e-9, atol=1e-10)


def test_images_are_processed_as_videos_of_one_frame(trained: Pair) -> None:
    image_unet, unet = trained
    example = inputs(unet.config, b=3, n=1)
    expected = frame_by_frame(image_unet, *example)
    torch.testing.assert_close(unet(*example, temporal=False), expected, rtol=1e-9, atol=1e-9)
    assert unet(*example).shape == expected.shape


def test_more_frames_than_positions_are_refused(sd1: Pair) -> None:
    _, unet = sd1
    example = inputs(unet.config, b=1, n=9, size=(4, 4))
    with pytest.raises(ValueError, match=r"9 frames.*8"):
        unet(*example)
    assert unet(*example, temporal=False).shape == example[0].shape  # only the temporal layers have positions


def test_content_with_another_width_is_projected() -> None:
    torch.manual_seed(0)
    wide = SpatioTemporalUNet(UNetConfig(**{**SD1, "content_dim": 40})).double()
    plain = SpatioTemporalUNet(UNetConfig(**SD1)).double()
    state = wide.state_dict()
    weight, bias = state.pop("content_projection.weight"), state.pop("content_projection.bias")
    plain.load_state_dict(state)
    latents, timesteps, content = inputs(wide.config, size=(4, 4), tokens=2)
    expected = plain(latents, timesteps, content @ weight.T + bias)
    torch.testing.assert_close(wide(latents, timesteps, content), expected, rtol=1e-9, atol=1e-10)


def test_each_level_needs_a_number_of_heads() -> None:
    with pytest.raises(ValueError):
        SpatioTemporalUNet(UNetConfig(**{**SD1, "heads": [8, 8]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_kernel": 0}, "model.temporal_kernel=0 must be odd"),
        ({"temporal_kernel": 2}, "model.temporal_kernel=2 must be odd"),
        ({"temporal_kernel": -1}, "model.temporal_kernel=-1 must be odd"),
        ({"max_frames": 0}, "model.max_frames=0 must be above 0"),
        ({"layers": 0}, "model.layers=0 must be above 0"),
        ({"groups": 0}, "model.groups=0 must be above 0"),
        ({"content_dim": 0}, "model.content_dim=0 must be above 0"),
        ({"heads": [8, 8, 0, 8]}, "model.heads=[8, 8, 0, 8]: all must be 1 or more"),
        ({"channels": []}, "model.channels=[]"),
        (
            {"channels": [5], "heads": [1], "attention": [True], "groups": 5},
            "model.channels=[5]: the first must be even",
        ),
    ],
)
def test_a_unet_that_cannot_take_a_clip_is_refused_by_its_config(change: dict[str, Any], message: str) -> None:
    UNetConfig().check()
    with pytest.raises(UserError) as error:
        replace(UNetConfig(), **change).check()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_every_odd_kernel_keeps_the_length_of_a_clip(kernel: int) -> None:
    assert TemporalConv(8, kernel)(torch.randn(5, 8, 2, 2), frames=5).shape == (5, 8, 2, 2)


def test_new_layers_first_train_their_outputs_then_everything() -> None:
    """Layers that start at zero can train: the outputs change in the first step, everything else in the second."""
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(**SD1))
    latents, timesteps, content = inputs(unet.config, n=2, size=(16, 16), tokens=2)
    target = torch.randn_like(latents).float()
    convs = [f"temporal_conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    outputs = (*convs, ".attn.to_out.weight", ".attn.to_out.bias", ".ff.net.2.weight", ".ff.net.2.bias")

    def without_gradient() -> set[str]:
        """Runs a step of SGD and returns the temporal parameters that had no gradient in it."""
        unet.zero_grad()
        (unet(latents.float(), timesteps, content.float()) - target).square().mean().backward()
        names = {k for k, p in unet.named_parameters() if ".temporal_" in k and not p.grad.any()}
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter -= 0.5 * parameter.grad
        return names

    inner = {k for k, _ in unet.named_parameters() if ".temporal_" in k and not k.endswith(outputs)}
    assert without_gradient() == inner
    assert without_gradient() == set()


def test_an_image_step_gives_the_temporal_layers_no_gradient() -> None:
    unet = SpatioTemporalUNet(UNetConfig(**SD1)).double()
    unet(*inputs(unet.config, n=1, size=(16, 16), tokens=2), temporal=False).sum().backward()
    no_gradient = {k for k, p in unet.named_parameters() if p.grad is None}
    assert no_gradient == {k for k, _ in unet.named_parameters() if ".temporal_" in k}


def test_spatial_names_equal_those_of_diffusers(sd1: Pair) -> None:
    image_unet, unet = sd1
    spatial = {k for k in unet.state_dict() if ".temporal_" not in k}
    assert spatial == set(image_unet.state_dict()) and len(spatial) == 686


def test_the_full_size_unet_has_the_shapes_of_stable_diffusion_1_5() -> None:
    """Compares all names and shapes on the meta device, and counts the paper's temporal layers."""
    with torch.device("meta"):
        image_unet = diffusers_unet(UNetConfig())
        unet = SpatioTemporalUNet(UNetConfig())
        image_only = SpatioTemporalUNet(UNetConfig(temporal=False))
    expected = {k: v.shape for k, v in image_unet.state_dict().items()}
    assert {k: v.shape for k, v in image_only.state_dict().items()} == expected
    assert {k: v.shape for k, v in unet.state_dict().items() if ".temporal_" not in k} == expected
    assert sum(p.numel() for p in image_only.parameters()) == 859_520_964
    names = [name for name, _ in unet.named_modules()]
    # one after each spatial convolution of each residual block, one after each spatial transformer block
    assert sum(name.endswith((".temporal_conv1", ".temporal_conv2")) for name in names) == 2 * 22
    assert sum(name.endswith(".temporal_transformer_blocks.0") for name in names) == 16
    assert sum(name.endswith(".transformer_blocks.0") for name in names) == 16


def test_the_model_needs_only_torch() -> None:
    code = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ImportError(f"the model package imports {name}")


NAMES = {
    "lightning", "pytorch_lightning", "lightning_fabric", "deepspeed", "hydra", "omegaconf", "diffusers",
    "transformers", "open_clip", "webdataset", "wandb", "yaml", "PIL", "safetensors",
}
sys.meta_path.insert(0, Refuse())

import torch
from gen1_train.model import SpatioTemporalUNet, UNetConfig
from gen1_train.diffusion import content, guidance, loss, sampler, structure
NAMES.remove("safetensors")
from gen1_train.frozen import autoencoder
from gen1_train.model import pretrained

config = UNetConfig(channels=[8, 8], attention=[True, False], heads=[2, 2], groups=2, context_dim=4, content_dim=4)
out = SpatioTemporalUNet(config)(torch.zeros(1, 2, 4, 4, 4), torch.tensor([3]), torch.zeros(1, 1, 4))
print(tuple(out.shape))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "(1, 2, 4, 4, 4)\n", result.stderr
