"""Tests of the channels-last format in the UNet: the same numbers as in any format, without copies between layers."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gen1_train.model import unet as unet_file
from gen1_train.model.temporal import TemporalConv
from gen1_train.model.unet import ResidualBlock, SpatioTemporalTransformer, SpatioTemporalUNet, UNetConfig
from tests.model.comparing import agree, gradients, leaf
from tests.model.reference import SD1, inputs, perturb

COPIES = {"aten.clone.default", "aten.copy_.default", "aten._to_copy.default", "aten.contiguous.default"}
# heads of 16 or more channels: narrower ones are padded with zeros on a CPU, which copies
WIDE = {**SD1, "channels": [32, 64, 64, 64], "heads": [2, 2, 2, 2], "groups": 8, "temporal_head_width": 16}


class Copies(TorchDispatchMode):
    """Counts the floating-point tensors that are copied in the block, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function) in COPIES and args[0].is_floating_point():
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **(kwargs or {}))


def random_unet(config: UNetConfig) -> SpatioTemporalUNet:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(config)
    perturb(unet)
    return unet


def strided(x: Tensor) -> Tensor:
    """Returns the same values as every second column of a wider map."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


LAYOUTS = {
    "channels last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
    "frames first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": strided,
    "three of four frames": lambda x: torch.cat([x, x[:, :1]], dim=1)[:, :3],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_of_any_layout_give_the_same_prediction(layout: str, size: tuple[int, int]) -> None:
    unet = random_unet(UNetConfig(**SD1)).double()
    latents, timesteps, content = inputs(unet.config, size=size)
    example = LAYOUTS[layout](latents)
    actual, expected = unet(example, timesteps, content), unet(example.contiguous(), timesteps, content)
    assert not example.is_contiguous() and torch.equal(actual, expected)


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize(("size", "tokens"), [((8, 8), 1), ((7, 5), 3)], ids=str)
def test_the_memory_format_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tokens: int, temporal: bool
) -> None:
    unet = random_unet(UNetConfig(**SD1)).double()
    latents, timesteps, content = inputs(unet.config, size=size, tokens=tokens)
    example = leaf(latents), leaf(content), *unet.parameters()

    def prediction(latents: Tensor, content: Tensor, *_: Tensor) -> Tensor:
        return unet(latents, timesteps, content, temporal)

    actual = gradients(prediction, *example)
    monkeypatch.setattr(unet_file, "MEMORY_FORMAT", torch.contiguous_format)
    agree(actual, gradients(prediction, *example), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_prediction_has_the_dtype_and_layout_of_the_latents(dtype: torch.dtype) -> None:
    """The frames are contiguous, each in channels-last format."""
    unet = random_unet(UNetConfig(**{**SD1, "out_channels": 3})).to(dtype)
    latents, timesteps, content = inputs(unet.config)
    prediction = unet(latents.to(dtype), timesteps, content.to(dtype))
    assert prediction.dtype == dtype and prediction.shape == (2, 3, 3, 8, 8)
    assert prediction.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 10)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("linear", [True, False])
def test_maps_are_not_copied_between_layers(linear: bool, tokens: int, size: tuple[int, int]) -> None:
    """Only the input latents, the conditions for each frame and kernels are copied; all folds are views.

    This holds on CPUs, for maps more than one pixel high. For GPUs, see test_unet_gpu_layouts.py.
    """
    config = UNetConfig(**WIDE, linear_projection=linear)
    unet = random_unet(config)
    latents, timesteps, content = inputs(config, size=size, tokens=tokens)
    example = latents.float(), timesteps, content.float()
    with Copies() as copies:
        unet(*example)
    kernels = {(3, 3, c, c, 1, 1, 1, 1) for c in config.channels} | {(2, 2, c, c, 2, 2) for c in config.channels}
    once = {(6, 4, *size), (2, 3, 4 * 32), (2, 3, tokens, 24)}
    assert {shape: count for shape, count in copies.shapes.items() if shape not in kernels} == dict.fromkeys(once, 1)


def test_the_same_folds_copy_in_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the test above can fail."""
    monkeypatch.setattr(unet_file, "MEMORY_FORMAT", torch.contiguous_format)
    unet = random_unet(UNetConfig(**WIDE))
    latents, timesteps, content = inputs(unet.config)
    with Copies() as copies:
        unet(latents.float(), timesteps, content.float())
    assert copies.shapes[(2, 3, 64, 32)] == 2 * 5  # each temporal convolution of the finest maps, b n (h w) c


def test_layers_return_channels_last_maps() -> None:
    config = UNetConfig(**WIDE)
    torch.manual_seed(0)
    x = torch.randn(6, 32, 8, 6).contiguous(memory_format=torch.channels_last)
    time, content = torch.randn(6, 128), torch.randn(6, 2, 24)
    layers = {
        "residual": lambda: ResidualBlock(config, 32, 64)(x, time, 3),
        "transformer": lambda: SpatioTemporalTransformer(config, 32, 2)(x, content, 3),
        "convolution": lambda: TemporalConv(32, 5)(x, 3),
    }
    for name, layer in layers.items():
        with Copies() as copies:
            output = layer()
        assert not copies.shapes and output.is_contiguous(memory_format=torch.channels_last), name
