"""Tests of the group norm that GPUs use, on a CPU: against torch's in float64, its layout, memory and compilation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gen1_train.model.group_norm import GroupNorm, group_norm
from tests.model.comparing import agree, gradients, leaf, relative_error, saved_bytes

DOUBLE = torch.float64
EPS = 1e-5
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "channels of a wider map": lambda x: torch.cat([x, x], dim=1).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
}
SHAPES = [((2, 12, 3, 4), 4), ((3, 30, 7, 5), 3), ((2, 64, 1, 1), 1), ((1, 8, 9, 2), 8)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def plain(groups: int, silu: bool, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = F.group_norm(x, groups, weight, bias, EPS)
    return F.silu(y) if silu else y


def example(shape: tuple[int, ...], mean: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a random map, weight and bias."""
    return torch.randn(shape, dtype=DOUBLE) + mean, torch.randn(shape[1], dtype=DOUBLE), torch.randn(shape[1]).double()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_it_is_torchs_group_norm_in_channels_last_format(
    shape: tuple[int, ...], groups: int, layout: str, silu: bool
) -> None:
    x, weight, bias = example(shape)
    inputs = leaf(LAYOUTS[layout](x)), leaf(weight), leaf(bias)
    actual = gradients(lambda *xs: group_norm(*xs, groups, EPS, silu), *inputs)
    agree(actual, gradients(lambda *xs: plain(groups, silu, *xs), *inputs), 1e-12)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("silu", [True, False])
def test_gradients_pass_gradcheck(silu: bool) -> None:
    inputs = [leaf(x) for x in example((2, 6, 2, 3))]
    assert torch.autograd.gradcheck(lambda *xs: group_norm(*xs, 3, EPS, silu), inputs)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_rounds_no_worse_than_torchs(dtype: torch.dtype, mean: float, silu: bool) -> None:
    """Compares the errors of both against float64, also for maps whose mean is 30 times their deviation."""
    inputs = [leaf(x.to(dtype)) for x in example((2, 32, 16, 12), mean)]
    exact = gradients(lambda *xs: plain(4, silu, *xs), *(leaf(x.double()) for x in inputs))
    torchs = gradients(lambda *xs: plain(4, silu, *xs), *inputs)
    ours = gradients(lambda *xs: group_norm(*xs, 4, EPS, silu), *inputs)
    for name, actual, theirs, expected in zip(("y", "x", "weight", "bias"), ours, torchs, exact, strict=True):
        assert actual.dtype == dtype
        bound = 2 * relative_error(theirs, expected) + 4 * torch.finfo(dtype).eps
        assert relative_error(actual, expected) < bound, name


def test_half_precision_is_computed_in_float32_with_float32_weights() -> None:
    """As under autocast: the map is in bfloat16, the weights are not. The result has the map's dtype."""
    x, weight, bias = example((2, 32, 16, 12))
    inputs = leaf(x.bfloat16()), leaf(weight.float()), leaf(bias.float())
    with torch.autocast("cpu", torch.bfloat16):
        y, to_x, to_weight, to_bias = gradients(lambda *xs: group_norm(*xs, 4, EPS, True), *inputs)
    assert [v.dtype for v in (y, to_x, to_weight, to_bias)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    exact = gradients(lambda *xs: plain(4, True, *xs), *(leaf(v.double()) for v in inputs))
    assert relative_error(y, exact[0]) < 2**-8 and relative_error(to_weight, exact[2]) < 4e-3


def test_a_cpu_computes_exactly_torchs_group_norm() -> None:
    for silu in (True, False):
        norm = GroupNorm(4, 12, EPS, silu)
        x = LAYOUTS["channels last"](torch.randn(2, 12, 3, 4))
        assert torch.equal(norm(x), plain(4, silu, x, norm.weight, norm.bias))
    assert list(norm.state_dict()) == ["weight", "bias"]


def test_it_saves_its_input_and_not_that_of_the_silu() -> None:
    x = LAYOUTS["channels last"](torch.randn(2, 32, 16, 16)).requires_grad_()
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)
    saved = saved_bytes(lambda: group_norm(x, weight, bias, 4, EPS, True), [weight, bias])
    assert x.nbytes <= saved < 1.01 * x.nbytes
    assert saved_bytes(lambda: plain(4, True, x, weight, bias), [weight, bias]) >= 2 * x.nbytes


@pytest.mark.slow
def test_a_compiler_takes_it_as_one_graph() -> None:
    inputs = [leaf(x.float()) for x in example((2, 12, 3, 4))]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *xs: group_norm(*xs, 4, EPS, True), backend="aot_eager", fullgraph=True)
    agree(gradients(compiled, *inputs), gradients(lambda *xs: plain(4, True, *xs), *inputs), 1e-5)
    torch._dynamo.reset()
