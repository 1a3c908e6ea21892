"""The identity that everything rests on: inflated, the UNet is Stable Diffusion's, frame by frame."""

import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, SD2, diffusers_unet, frame_by_frame, inflated, inputs, perturb

Pair = tuple[UNet2DConditionModel, SpatioTemporalUNet]


def pair(config: UNetConfig) -> Pair:
    """A random image UNet and its inflation, in float64: a wrong epsilon shows there, in float32 it does not."""
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
    "one layer a level": ({**SD1, "layers": 1}, (8, 8), 1),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_inflated_equals_diffusers_frame_by_frame(what: str) -> None:
    values, size, tokens = CONFIGS[what]
    config = UNetConfig(**values)
    image_unet, unet = pair(config)
    given = inputs(config, size=size, tokens=tokens)
    expected = frame_by_frame(image_unet, *given)
    assert expected.shape == (2, 3, 4, *size) and expected.std() > 1e-2
    for temporal in (False, True):
        error = (unet(*given, temporal=temporal) - expected).abs().max() / expected.abs().max()
        assert error < 1e-9, f"{error:.1e}"


def test_inflated_equals_diffusers_in_float32() -> None:
    image_unet, unet = pair(UNetConfig(**SD1))
    latents, timesteps, content = inputs(unet.config)
    given = latents.float(), timesteps, content.float()
    expected = frame_by_frame(image_unet.float(), *given)
    error = (unet.float()(*given) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temporal_layers_start_as_the_identity_to_the_bit(dtype: torch.dtype) -> None:
    _, unet = pair(UNetConfig(**SD1))
    unet.to(dtype)
    latents, timesteps, content = inputs(unet.config)
    given = latents.to(dtype), timesteps, content.to(dtype)
    on, off = unet(*given), unet(*given, temporal=False)
    assert torch.equal(on, off) and on.dtype == dtype
    without = SpatioTemporalUNet(UNetConfig(**SD1, temporal=False)).to(dtype)
    without.load_state_dict({k: v for k, v in unet.state_dict().items() if ".temporal_" not in k})
    assert torch.equal(without(*given), off)


def test_training_changes_the_video_model_and_leaves_the_image_model(trained: Pair) -> None:
    image_unet, unet = trained
    given = inputs(unet.config)
    expected = frame_by_frame(image_unet, *given)
    torch.testing.assert_close(unet(*given, temporal=False), expected, rtol=1e-9, atol=1e-9)
    assert (unet(*given) - expected).abs().max() > 0.1 * expected.abs().max()


def test_frames_mix_within_their_clip_only(trained: Pair) -> None:
    _, unet = trained
    latents, timesteps, content = inputs(unet.config)
    other = latents.clone()
    other[1, 2] += 1.0  # the last frame of clip 1
    changed = (unet(other, timesteps, content) - unet(latents, timesteps, content)).abs().amax((2, 3, 4))
    assert (changed[0] < 1e-12).all()  # clip 0 knows nothing of it
    assert (changed[1] > 1e-4).all()  # every frame of clip 1 does
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


def test_the_order_of_frames_matters_to_the_video_model_alone(trained: Pair) -> None:
    _, unet = trained
    latents, timesteps, content = inputs(unet.config)
    backwards = unet(latents.flip(1), timesteps, content).flip(1)
    assert (backwards - unet(latents, timesteps, content)).abs().max() > 1e-3
    backwards = unet(latents.flip(1), timesteps, content, temporal=False).flip(1)
    torch.testing.assert_close(backwards, unet(latents, timesteps, content, temporal=False), rtol=1e-9, atol=1e-10)


def test_an_image_is_a_video_of_one_frame(trained: Pair) -> None:
    image_unet, unet = trained
    given = inputs(unet.config, b=3, n=1)
    expected = frame_by_frame(image_unet, *given)
    torch.testing.assert_close(unet(*given, temporal=False), expected, rtol=1e-9, atol=1e-9)
    assert unet(*given).shape == expected.shape


def test_more_frames_than_positions_are_refused(sd1: Pair) -> None:
    _, unet = sd1
    given = inputs(unet.config, b=1, n=9, size=(4, 4))
    with pytest.raises(ValueError, match=r"9 frames.*8"):
        unet(*given)
    assert unet(*given, temporal=False).shape == given[0].shape  # positions are of the temporal layers


def test_content_of_another_width_is_projected() -> None:
    torch.manual_seed(0)
    wide = SpatioTemporalUNet(UNetConfig(**{**SD1, "content_dim": 40})).double()
    plain = SpatioTemporalUNet(UNetConfig(**SD1)).double()
    state = wide.state_dict()
    weight, bias = state.pop("content_projection.weight"), state.pop("content_projection.bias")
    plain.load_state_dict(state)
    latents, timesteps, content = inputs(wide.config, size=(4, 4), tokens=2)
    expected = plain(latents, timesteps, content @ weight.T + bias)
    torch.testing.assert_close(wide(latents, timesteps, content), expected, rtol=1e-9, atol=1e-10)


def test_each_level_needs_its_number_of_heads() -> None:
    with pytest.raises(ValueError):
        SpatioTemporalUNet(UNetConfig(**{**SD1, "heads": [8, 8]}))


def test_new_layers_learn_outputs_first_then_everything() -> None:
    """Zero outputs are the identity, not a dead end: they move in the first step, and all behind them in the next."""
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(**SD1))
    latents, timesteps, content = inputs(unet.config, n=2, size=(16, 16), tokens=2)
    target = torch.randn_like(latents).float()
    convs = [f"temporal_conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    outputs = (*convs, ".attn.to_out.weight", ".attn.to_out.bias", ".ff.net.2.weight", ".ff.net.2.bias")

    def still() -> set[str]:
        """The temporal parameters without any gradient, after a backward pass and a step of SGD."""
        unet.zero_grad()
        (unet(latents.float(), timesteps, content.float()) - target).square().mean().backward()
        names = {k for k, p in unet.named_parameters() if ".temporal_" in k and not p.grad.any()}
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter -= 0.5 * parameter.grad
        return names

    inner = {k for k, _ in unet.named_parameters() if ".temporal_" in k and not k.endswith(outputs)}
    assert still() == inner
    assert still() == set()


def test_an_image_step_leaves_the_temporal_layers_alone() -> None:
    unet = SpatioTemporalUNet(UNetConfig(**SD1)).double()
    unet(*inputs(unet.config, n=1, size=(16, 16), tokens=2), temporal=False).sum().backward()
    without = {k for k, p in unet.named_parameters() if p.grad is None}
    assert without == {k for k, _ in unet.named_parameters() if ".temporal_" in k}


def test_spatial_names_are_those_of_diffusers(sd1: Pair) -> None:
    image_unet, unet = sd1
    spatial = {k for k in unet.state_dict() if ".temporal_" not in k}
    assert spatial == set(image_unet.state_dict()) and len(spatial) == 686


def test_stable_diffusion_1_5_in_full() -> None:
    """On the meta device, so at no cost: every name and shape of the real thing, and the paper's temporal layers."""
    with torch.device("meta"):
        image_unet = diffusers_unet(UNetConfig())
        unet, image_only = SpatioTemporalUNet(UNetConfig()), SpatioTemporalUNet(UNetConfig(temporal=False))
    wanted = {k: v.shape for k, v in image_unet.state_dict().items()}
    assert {k: v.shape for k, v in image_only.state_dict().items()} == wanted
    assert {k: v.shape for k, v in unet.state_dict().items() if ".temporal_" not in k} == wanted
    assert sum(p.numel() for p in image_only.parameters()) == 859_520_964
    names = [name for name, _ in unet.named_modules()]
    # one after each spatial convolution of each residual block, one after each spatial transformer block
    assert sum(name.endswith((".temporal_conv1", ".temporal_conv2")) for name in names) == 2 * 22
    assert sum(name.endswith(".temporal_transformer_blocks.0") for name in names) == 16
    assert sum(name.endswith(".transformer_blocks.0") for name in names) == 16


def test_the_model_needs_torch_alone() -> None:
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
from gen1_train.model import autoencoder, pretrained

config = UNetConfig(channels=[8, 8], attention=[True, False], heads=[2, 2], groups=2, context_dim=4, content_dim=4)
out = SpatioTemporalUNet(config)(torch.zeros(1, 2, 4, 4, 4), torch.tensor([3]), torch.zeros(1, 1, 4))
print(tuple(out.shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(1, 2, 4, 4, 4)\n", done.stderr
