"""Maps keep their channels-last format on a GPU, forward and backward, as far as torch's fake CUDA tensors tell."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gen1_train.model import unet as unet_file
from gen1_train.model.group_norm import GroupNorm
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.fake_gpu import backward, fake_gpu

COPIES = {"aten.clone.default", "aten.copy_.default", "aten._to_copy.default"}
CONFIG = UNetConfig(channels=[64, 128, 128, 128], heads=[2] * 4, groups=8, context_dim=64, content_dim=64)
FRAMES = 8
SMALLEST_MAP = 2 * FRAMES * 128 * 4 * 7  # elements


class Layouts(TorchDispatchMode):
    """Counts convolutions by the format of their maps, and the maps that are copied to another layout.

    Temporal attention copies each head into a float32 temporary, which is no map and does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: Counter[str] = Counter()
        self.copies: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = str(function), function(*args, **(kwargs or {}))
        if name.startswith("aten.convolution"):
            for x in args[: 2 if "backward" in name else 1]:  # the gradient and the map
                self.convolutions[layout(x)] += 1
        elif name in COPIES and result.numel() >= SMALLEST_MAP and result.stride() != args[0].stride():
            shape = tuple(result.shape)
            if shape[2:] != (FRAMES, CONFIG.temporal_head_width):
                self.copies[shape] += 1
        return result


def layout(x: Tensor) -> str:
    if x.is_contiguous(memory_format=torch.channels_last):
        return "channels last"
    return "channels of a wider map" if x.stride(1) == 1 else "other"


def layouts(config: UNetConfig, temporal: bool = True) -> tuple[Layouts, Layouts]:
    """Returns those of a forward pass, and of its backward pass."""
    with fake_gpu():
        unet = SpatioTemporalUNet(config)
        latents, content = torch.empty(2, FRAMES, 4, 32, 56), torch.empty(2, 1, 64)
        with Layouts() as forward_pass:
            prediction = unet(latents, torch.empty(2), content, temporal=temporal)
        with Layouts() as backward_pass:
            backward(prediction)
    return forward_pass, backward_pass


@pytest.mark.slow
@pytest.mark.parametrize("temporal", [True, False])
def test_no_map_changes_its_layout_between_layers_on_a_gpu(temporal: bool) -> None:
    """Forward, only the latents and the kernels of upsampling are laid out again.

    Backward, the gradients of concatenated maps are parts of a wider one. Only at the coarsest resolution, without
    attention, do they reach a convolution as such.
    """
    forward_pass, backward_pass = layouts(CONFIG, temporal)
    convolutions = 65 + 44 * temporal
    assert forward_pass.convolutions == {"channels last": convolutions}
    assert forward_pass.copies == {(16, 4, 32, 56): 1, (2, 2, 128, 128, 2, 2): 3}
    assert backward_pass.convolutions["other"] == 0 and not backward_pass.copies
    assert 0 < backward_pass.convolutions["channels of a wider map"] <= 5


@pytest.mark.slow
def test_torchs_group_norm_would_lose_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the test above can fail.

    On a GPU, torch's group norm makes its map contiguous (ATen/native/group_norm.cpp), which fake tensors leave out.
    """

    def forward(norm: GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x.contiguous(), norm.num_groups, norm.weight, norm.bias, norm.eps).contiguous()

    monkeypatch.setattr(GroupNorm, "forward", forward)
    forward_pass, backward_pass = layouts(CONFIG)
    assert forward_pass.convolutions["other"] > 40 and forward_pass.copies.total() > 20
    assert backward_pass.convolutions["other"] > 40


def test_maps_in_another_format_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet_file, "MEMORY_FORMAT", torch.contiguous_format)
    with fake_gpu(), Layouts() as counted:
        SpatioTemporalUNet(CONFIG).conv_in(torch.empty(16, 4, 32, 56))
    assert counted.convolutions == {"other": 1}
