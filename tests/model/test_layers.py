"""Tests of the spatial layers: each optimized form computes the same function as its plain form."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.model.layers import (
    MIN_HEAD_WIDTH,
    Attention,
    Downsample,
    TokenConv,
    TransformerBlock,
    Upsample,
    UpsamplingConv,
    _Gate,
    attend,
)
from tests.model.comparing import agree, gradients, leaf, relative_error, saved_bytes

DOUBLE = torch.float64
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# Upsampling ----------------------------------------------------------------------------------------------------------


def upsampled(x: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    return F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, bias, padding=1)


def upsampling(channels: int, size: tuple[int, int]) -> tuple[UpsamplingConv, Callable[..., Tensor]]:
    """Returns the layer, and the layer as a function of its input, weight and bias."""
    layer = UpsamplingConv(channels).to(DOUBLE)
    return layer, lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x, size))


DOUBLED = [(1, 1), (1, 3), (3, 1), (2, 2), (4, 7), (5, 3)]
ODD = [((2, 3), (3, 6)), ((2, 3), (4, 5)), ((4, 4), (7, 7)), ((1, 1), (1, 1)), ((1, 2), (1, 3)), ((1, 1), (2, 1))]
SIZES = [((h, w), (2 * h, 2 * w)) for h, w in DOUBLED] + ODD


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("small", "large"), SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_upsampling_is_a_convolution_of_the_resized_map(
    batch: int, small: tuple[int, int], large: tuple[int, int], layout: str
) -> None:
    layer, function = upsampling(6, large)
    x = leaf(LAYOUTS[layout](torch.randn(batch, 6, *small, dtype=DOUBLE)))
    inputs = x, leaf(layer.weight), leaf(layer.bias)
    actual = gradients(function, *inputs)
    agree(actual, gradients(lambda *xs: upsampled(*xs, large), *inputs), 1e-12)
    assert actual[0].shape == (batch, 6, *large) and torch.equal(actual[0], layer(x, torch.Size(large)))


def test_a_doubled_map_is_channels_last_and_not_saved() -> None:
    layer, x = Upsample(4), leaf(LAYOUTS["channels last"](torch.randn(2, 4, 24, 16)))
    assert layer(x, (48, 32)).is_contiguous(memory_format=torch.channels_last)
    plain = saved_bytes(lambda: upsampled(x, layer.conv.weight, layer.conv.bias, (48, 32)), layer.parameters())
    assert plain == 4 * x.nbytes  # the doubled map
    actual = saved_bytes(lambda: layer(x, (48, 32)), layer.parameters())
    assert x.nbytes <= actual < 1.2 * x.nbytes  # the small map and the kernels


def test_upsampling_in_bfloat16_is_as_accurate_as_the_plain_form() -> None:
    """The kernels are sums of taps, rounded once more than the taps: an error of the same order as the plain form's."""
    layer, function = upsampling(32, (12, 16))
    layer.bfloat16()
    x = torch.randn(2, 32, 6, 8, dtype=torch.bfloat16)
    inputs = leaf(x), leaf(layer.weight), leaf(layer.bias)
    exact = gradients(lambda *xs: upsampled(*xs, (12, 16)), *(leaf(tensor.to(DOUBLE)) for tensor in inputs))
    plain = gradients(lambda *xs: upsampled(*xs, (12, 16)), *inputs)
    actual = gradients(function, *inputs)
    for name, result, plain_result, expected in zip(("y", "x", "w", "b"), actual, plain, exact, strict=True):
        assert result.dtype == torch.bfloat16
        error = relative_error(result.to(DOUBLE), expected)
        plain_error = relative_error(plain_result.to(DOUBLE), expected)
        assert error < 2 * plain_error + 2**-8, f"{name}: {error:.1e}, the plain form {plain_error:.1e}"


# Gate ----------------------------------------------------------------------------------------------------------------


def plain_gate(x: Tensor) -> Tensor:
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


STRIDED = {
    "contiguous": lambda x: x,
    "every second row": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "half of a wider tensor": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("layout", STRIDED)
def test_gate_is_the_first_half_times_gelu_of_the_second(layout: str) -> None:
    x = leaf(STRIDED[layout](torch.randn(3, 5, 12, dtype=DOUBLE)))
    agree(gradients(_Gate.apply, x), gradients(plain_gate, x), 1e-14)
    assert torch.autograd.gradcheck(_Gate.apply, x)
    assert torch.equal(_Gate.apply(x.detach()), plain_gate(x.detach()))  # without autograd too


CONSUMERS = {"transposed": lambda y: y.transpose(0, 2) * torch.arange(3.0), "expanded": lambda y: y.sum().expand(4)}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_gate_accepts_gradients_of_any_layout(consumer: str) -> None:
    x = leaf(torch.randn(3, 5, 12, dtype=DOUBLE))
    consume = CONSUMERS[consumer]
    agree(gradients(lambda x: consume(_Gate.apply(x)), x), gradients(lambda x: consume(plain_gate(x)), x), 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gate_rounds_like_the_plain_form(dtype: torch.dtype) -> None:
    x = leaf(torch.randn(4, 64, 128).to(dtype))
    for actual, expected in zip(gradients(_Gate.apply, x), gradients(plain_gate, x)):
        assert torch.equal(actual, expected)


def test_gate_saves_only_its_input() -> None:
    x = torch.randn(4, 8, 32, requires_grad=True)
    assert saved_bytes(lambda: _Gate.apply(x)) == x.nbytes
    assert saved_bytes(lambda: plain_gate(x)) == x.nbytes * 3 // 2  # also gelu of the gates


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, 8, 12, 16, 40])
@pytest.mark.parametrize("keys", [1, 5, 7])
def test_attention_with_heads_of_any_width_equals_the_plain_form(width: int, keys: int) -> None:
    q = leaf(torch.randn(2, 3, 7, width, dtype=DOUBLE))
    k, v = (leaf(torch.randn(2, 3, keys, width, dtype=DOUBLE)) for _ in range(2))
    actual = gradients(attend, q, k, v)
    agree(actual, gradients(softmax_attention, q, k, v), 1e-12)
    agree(actual, gradients(F.scaled_dot_product_attention, q, k, v), 1e-12)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def block(channels: int = 16, heads: int = 4, width: int = 10) -> TransformerBlock:
    layer = TransformerBlock(channels, heads, width).to(DOUBLE)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def general_form(layer: TransformerBlock, x: Tensor, content: Tensor) -> Tensor:
    x = x + layer.attn1(layer.norm1(x))
    x = x + layer.attn2(layer.norm2(x), content)
    return x + layer.ff(layer.norm3(x))


UNUSED = {"norm2.weight", "norm2.bias", "attn2.to_q.weight", "attn2.to_k.weight"}  # with a single token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 32])
def test_attention_of_half_precision_has_its_backward_pass_in_float32_on_a_cpu(dtype: torch.dtype, width: int) -> None:
    q, k, v = (leaf(torch.randn(2, 3, 20, width, dtype=dtype)) for _ in range(3))

    def under_autocast(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return attend(*inputs)

    mixed, *trained = gradients(under_autocast, q, k, v)
    _, *exact = gradients(lambda *inputs: attend(*(x.float() for x in inputs)).to(dtype), q, k, v)
    agree(trained, exact, 1e-6)
    assert torch.equal(mixed, under_autocast(q.detach(), k.detach(), v.detach()))  # as without a backward pass
    assert saved_bytes(lambda: under_autocast(q, k, v)) <= 3 * max(width, MIN_HEAD_WIDTH) * 2 * 3 * 20 * 2


@pytest.mark.parametrize("copies", [1, 2])
def test_a_single_content_token_equals_the_general_form(copies: int) -> None:
    """Compared with one token and with two equal ones. Gradients of queries and keys are zero in the general form."""
    layer = block()
    x, token = leaf(torch.randn(3, 6, 16, dtype=DOUBLE)), leaf(torch.randn(3, 1, 10, dtype=DOUBLE))
    names = [name for name, _ in layer.named_parameters() if name not in UNUSED]
    parameters = dict(layer.named_parameters())
    inputs = x, token, *(parameters[name] for name in names)
    actual = gradients(lambda *_: layer(x, token), *inputs)
    agree(actual, gradients(lambda *_: general_form(layer, x, token.expand(3, copies, 10)), *inputs), 1e-12)
    (general_form(layer, x, token.expand(3, copies, 10)).square().sum()).backward()
    largest = max(parameters[name].grad.abs().max() for name in names)
    assert all(parameters[name].grad.abs().max() < 1e-12 * largest for name in UNUSED)
    layer.zero_grad()
    layer(x, token).square().sum().backward()
    assert {name for name, p in parameters.items() if p.grad is None} == UNUSED


def test_attention_equals_separate_attention_per_head() -> None:
    layer = Attention(12, 3, context_dim=10).to(DOUBLE)
    x, context = torch.randn(2, 5, 12, dtype=DOUBLE), torch.randn(2, 4, 10, dtype=DOUBLE)
    heads = []
    for i in range(3):
        own = slice(4 * i, 4 * i + 4)
        q = x @ layer.to_q.weight[own].T
        k = context @ layer.to_k.weight[own].T
        v = context @ layer.to_v.weight[own].T
        heads.append(softmax_attention(q, k, v))
    agree([layer(x, context)], [layer.to_out[0](torch.cat(heads, dim=-1))], 1e-12)


# 1x1 convolution -----------------------------------------------------------------------------------------------------


def test_a_convolution_of_tokens_equals_a_1x1_convolution_of_the_map() -> None:
    layer, plain = TokenConv(6).to(DOUBLE), nn.Conv2d(6, 6, 1).to(DOUBLE)
    plain.load_state_dict(layer.state_dict())
    tokens = leaf(torch.randn(2, 3 * 4, 6, dtype=DOUBLE))
    actual = gradients(lambda *_: layer(tokens), tokens, layer.weight, layer.bias)

    def as_map(*_: Tensor) -> Tensor:
        return plain(tokens.mT.reshape(2, 6, 3, 4)).flatten(2).mT

    agree(actual, gradients(as_map, tokens, plain.weight, plain.bias), 1e-12)


# Downsampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (5, 2), (4, 7)])
def test_downsampling_equals_its_plain_convolution(size: tuple[int, int]) -> None:
    layer = Downsample(4).to(DOUBLE)

    def downsample(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"conv.weight": w, "conv.bias": b}, (x,))

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, stride=2, padding=1)

    inputs = (leaf(torch.randn(2, 4, *size, dtype=DOUBLE)), *layer.conv.parameters())
    agree(gradients(downsample, *inputs), gradients(plain, *inputs), 1e-12)


@pytest.mark.slow
def test_bfloat16_gradients_of_a_narrow_map_are_written_completely() -> None:
    """Memory is poisoned, so that elements that oneDNN leaves unwritten are huge."""
    code = """
import torch
from gen1_train.model.layers import Downsample

layer = Downsample(32).bfloat16()
layer(torch.ones(1, 32, 1, 1, dtype=torch.bfloat16)).sum().backward()
print(layer.conv.weight.grad.abs().amax((0, 1)).tolist())
"""
    environment = {**os.environ, "MALLOC_PERTURB_": "128"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout == "[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]\n", result.stderr
