"""bfloat16 by autocast on a CPU: whatever lay in memory before a step, its gradients are the same.

oneDNN 3.13 leaves parts of a weight's gradient unwritten for one kind of convolution (see layers.Downsample). Of 3120
convolutions of our kinds, sizes and strides this one alone was wrong; here every layer runs on every small map.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig
from tests.model.reference import SD1, perturb

SIZES = [(1, 1), (2, 4), (4, 2), (7, 5), (9, 1)]


@contextmanager
def memory_full_of(value: float) -> Iterator[None]:
    """New tensors hold `value` where nobody has written: torch fills them, and so are the blocks that it gets again."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # what torch.empty's filling needs
    blocks = [torch.full((2**i,), value, dtype=torch.bfloat16) for i in range(4, 19) for _ in range(4)]
    filled = torch.empty(3, dtype=torch.bfloat16).isnan().all()
    del blocks
    try:
        assert filled, "torch does not fill new memory any more"
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


def gradients(module: nn.Module, *given: Tensor | bool, garbage: float) -> list[Tensor]:
    module.zero_grad()
    with memory_full_of(garbage), torch.autocast("cpu", torch.bfloat16):
        module(*given).float().square().mean().backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_the_garbage_is_seen() -> None:
    """The test of the test: the convolution that is wrong, as it is without Downsample's padding."""
    torch.manual_seed(0)
    layer, maps = nn.Conv2d(64, 64, 3, stride=2, padding=1), torch.randn(2, 64, 4, 1)
    weight, _ = gradients(layer, maps, garbage=float("nan"))
    if weight.isfinite().all():
        pytest.skip("this oneDNN writes all of the gradient: layers.Downsample needs its padding no more")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temporal", [True, False])
def test_no_gradient_holds_what_lay_in_memory(size: tuple[int, int], temporal: bool) -> None:
    torch.manual_seed(0)
    unet = SpatioTemporalUNet(UNetConfig(**SD1, checkpointing=[True, False, True, False]))
    perturb(unet)
    width = unet.config.content_dim
    given = torch.randn(2, 3, unet.config.in_channels, *size), torch.tensor([3, 700]), torch.randn(2, 1, width)
    made, again = (gradients(unet, *given, temporal, garbage=value) for value in (float("nan"), 1e30))
    assert all(g.isfinite().all() for g in made)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
