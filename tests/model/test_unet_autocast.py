"""Tests of bfloat16 autocast on a CPU: gradients do not depend on the earlier contents of memory.

oneDNN 3.13 leaves parts of a weight's gradient unwritten for one kind of convolution (see layers.Downsample). Of 3120
convolutions of our kinds, sizes and strides only this one was wrong; here every layer runs on every small map.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, perturb

SIZES = [(1, 1), (2, 4), (4, 2), (7, 5), (9, 1), (12, 2)]


@contextmanager
def memory_full_of(value: float) -> Iterator[None]:
    """Fills uninitialized memory with `value`: torch fills new tensors, and reused blocks were filled before."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # required for torch.empty to fill
    blocks = [torch.full((2**i,), value, dtype=torch.bfloat16) for i in range(4, 19) for _ in range(4)]
    filled = torch.empty(3, dtype=torch.bfloat16).isnan().all()
    del blocks
    try:
        assert filled, "torch no longer fills new memory"
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


def gradients(module: nn.Module, *inputs: Tensor | bool, garbage: float) -> list[Tensor]:
    module.zero_grad()
    with memory_full_of(garbage), torch.autocast("cpu", torch.bfloat16):
        module(*inputs).float().square().mean().backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_unwritten_gradients_are_detected() -> None:
    """Verifies the method with the faulty convolution, without Downsample's padding."""
    torch.manual_seed(0)
    layer, maps = nn.Conv2d(64, 64, 3, stride=2, padding=1), torch.randn(2, 64, 4, 1)
    weight, _ = gradients(layer, maps, garbage=float("nan"))
    if weight.isfinite().all():
        pytest.skip("this oneDNN writes the whole gradient: layers.Downsample no longer needs its padding")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temporal", [True, False])
def test_gradients_do_not_depend_on_uninitialized_memory(size: tuple[int, int], temporal: bool) -> None:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(**SD1, checkpointing=[True, False, True, False]))
    perturb(unet)
    width = unet.config.content_dim
    example = torch.randn(2, 3, unet.config.in_channels, *size), torch.tensor([3, 700]), torch.randn(2, 1, width)
    first, second = (gradients(unet, *example, temporal, garbage=value) for value in (float("nan"), 1e30))
    assert all(gradient.isfinite().all() for gradient in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
