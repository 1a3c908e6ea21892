"""Tests of the temporal layers: against plain references in float64, and float32 against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen1_train.model.temporal import TemporalConv, TemporalTransformerBlock
from gen1_train.model.unet import SpatioTemporalUNet, UNetConfig, temporal_heads
from tests.model.comparing import gradients, leaf
from tests.model.reference import SD1, inputs, perturb

B = 2
N = 5
C = 12
H = 3
W = 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_equals_conv1d_over_the_frames_of_every_pixel(kernel: int) -> None:
    layer = TemporalConv(C, kernel).double()
    randomize(layer)
    x = torch.randn(B, N, C, H, W, dtype=torch.float64)
    pixels = x.permute(0, 3, 4, 2, 1).reshape(B * H * W, C, N)  # (b h w) c n
    plain = nn.Conv1d(C, C, kernel, padding=kernel // 2).double()
    plain.load_state_dict(layer.state_dict())
    expected = x + plain(pixels).view(B, H, W, C, N).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(layer(x.flatten(0, 1), N), expected.flatten(0, 1), rtol=1e-12, atol=1e-12)


def test_convolution_accepts_any_memory_layout() -> None:
    """Convolutions return channels_last outputs for channels_last inputs; the fold must not depend on it."""
    layer = TemporalConv(C, 3).double()
    randomize(layer)
    x = torch.randn(B * N, C, H, W, dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last, N), layer(x, N), rtol=1e-12, atol=1e-12)


def naive_attention(block: TemporalTransformerBlock, x: Tensor, heads: int) -> Tensor:
    """Computes the block for the frames (n, c) of one token, head by head and frame by frame."""
    n, c = x.shape
    attn = block.attn
    d = c // heads
    attended = F.layer_norm(x, (c,), block.norm1.weight, block.norm1.bias) + block.positions[:n]
    q = attended @ attn.to_q.weight.T
    k = attended @ attn.to_k.weight.T
    v = attended @ attn.to_v.weight.T
    mixed = torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * d, (head + 1) * d)
        for i in range(n):
            weights = torch.stack([q[i, own] @ k[j, own] / math.sqrt(d) for j in range(n)]).softmax(0)
            mixed[i, own] = sum(weights[j] * v[j, own] for j in range(n))
    x = x + mixed @ attn.to_out.weight.T + attn.to_out.bias
    gelu, out = block.ff.net[0].proj, block.ff.net[2]
    inner = F.layer_norm(x, (c,), block.norm2.weight, block.norm2.bias) @ gelu.weight.T + gelu.bias
    hidden, gate = inner.chunk(2, dim=1)
    return x + (hidden * F.gelu(gate)) @ out.weight.T + out.bias


@pytest.mark.parametrize("expansion", [1, 4])
@pytest.mark.parametrize("heads", [1, 4])
def test_transformer_block_equals_attention_across_the_frames_of_every_token(heads: int, expansion: int) -> None:
    block = TemporalTransformerBlock(C, heads, max_frames=N + 2, expansion=expansion).double()
    randomize(block)
    tokens = torch.randn(B, N, H * W, C, dtype=torch.float64)
    actual = block(tokens.flatten(0, 1), N).view(tokens.shape)
    for b in range(B):
        for s in range(H * W):
            expected = naive_attention(block, tokens[b, :, s], heads)
            torch.testing.assert_close(actual[b, :, s], expected, rtol=1e-10, atol=1e-10)


def test_only_the_positions_distinguish_frames() -> None:
    block = TemporalTransformerBlock(C, 2, max_frames=N, expansion=4).double()
    randomize(block)
    tokens = torch.randn(N, H * W, C, dtype=torch.float64)
    assert (block(tokens.flip(0), N).flip(0) - block(tokens, N)).abs().max() > 0.1
    with torch.no_grad():
        block.positions.zero_()
    torch.testing.assert_close(block(tokens.flip(0), N).flip(0), block(tokens, N), rtol=1e-10, atol=1e-10)


def test_both_layers_start_as_the_exact_identity() -> None:
    x = torch.randn(B * N, C, H, W)
    assert torch.equal(TemporalConv(C, 3)(x, N), x)
    tokens = torch.randn(B * N, H * W, C)
    block = TemporalTransformerBlock(C, 2, max_frames=N, expansion=4)
    assert torch.equal(block(tokens, N), tokens)
    assert block.positions.std() > 0  # but the frame index is encoded


@pytest.mark.parametrize("frames", [1, 2])
def test_gradients_pass_gradcheck(frames: int) -> None:
    """The strided views and the unsqueezed kernel must pass gradients to the right elements."""
    conv, block = TemporalConv(2, 3).double(), TemporalTransformerBlock(4, 2, 2, 3).double()
    randomize(conv)
    randomize(block)
    x = torch.randn(2 * frames, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, frames), x)
    tokens = torch.randn(2 * frames, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block(x, frames), tokens)


# the channels of SD's finest maps, and a number that is not a multiple of a vector register's width
@pytest.mark.parametrize("channels", [320, 36])
@pytest.mark.parametrize("layer", ["kernel 3", "kernel 5", "head width 4", "head width 20", "head width 64"])
def test_float32_equals_float64_except_for_rounding(layer: str, channels: int) -> None:
    """Compares the result and all gradients, each relative to its largest value."""
    kind, size = layer.rsplit(" ", 1)
    shape: tuple[int, ...]
    module: nn.Module
    if kind == "kernel":
        module = TemporalConv(channels, int(size))
        shape = (B * N, channels, 6, 5)
    else:
        module = TemporalTransformerBlock(channels, max(1, channels // int(size)), N, 1)
        shape = (B * N, 30, channels)
    with torch.no_grad():  # weights as large as in trained layers: outputs of about 1
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    x = torch.randn(shape)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    parameters = dict(module.named_parameters())

    def run(*values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(parameters, values[1:])), (values[0], N))

    values = [x, *parameters.values()]
    exact = gradients(run, *(leaf(value.double()) for value in values))
    for name, value, expected in zip(["y", "x", *parameters], gradients(run, *map(leaf, values)), exact, strict=True):
        error = (value - expected).abs().max() / expected.abs().max()
        assert value.dtype == torch.float32 and error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("channels", "width", "heads"), [(320, 64, 5), (1280, 64, 20), (32, 64, 1), (64, 64, 1), (48, 16, 3), (80, 32, 2)]
)
def test_the_number_of_heads_follows_the_head_width(channels: int, width: int, heads: int) -> None:
    assert temporal_heads(channels, UNetConfig(temporal_head_width=width)) == heads


def test_the_config_sets_heads_width_and_kernel_of_every_temporal_layer() -> None:
    config = UNetConfig(**SD1, temporal_head_width=8, temporal_expansion=3, temporal_kernel=5, max_frames=4)
    unet = SpatioTemporalUNet(config)
    convs = [m for m in unet.modules() if isinstance(m, TemporalConv)]
    blocks = [m for m in unet.modules() if isinstance(m, TemporalTransformerBlock)]
    assert len(convs) == 2 * 22 and len(blocks) == 16
    assert all(conv.weight.shape == (conv.out_channels, conv.in_channels, 5) for conv in convs)
    for block in blocks:
        channels = block.norm1.weight.numel()
        assert block.attn.heads == channels // 8 and block.positions.shape == (4, channels)
        assert block.ff.net[0].proj.weight.shape == (2 * 3 * channels, channels)
    perturb(unet)
    latents, timesteps, content = inputs(config, n=4)
    assert unet(latents.float(), timesteps, content.float()).isfinite().all()


def test_the_number_of_heads_matters() -> None:
    """Otherwise the other tests could not detect an ignored head width."""
    blocks = {heads: TemporalTransformerBlock(C, heads, N, 1) for heads in (1, 2, 4)}
    randomize(blocks[1])
    for block in blocks.values():
        block.load_state_dict(blocks[1].state_dict())
    tokens = torch.randn(B * N, H * W, C)
    one, two, four = (block(tokens, N) for block in blocks.values())
    assert (one - two).abs().max() > 0.01 and (two - four).abs().max() > 0.01
