"""FLOPs of a training step from the UNet's config, and the rate of this machine that they are compared with (MFU).

Convolutions, matrix products and attention count with two FLOPs per multiply-add, exactly as in torch's
FlopCounterMode (tests/training/planning/test_throughput.py). The functions go from leaf to root, as in
gen1_train.model.unet; a layer is the list of its products, in the order of their computation.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gen1_train.data.schedule import Schedule
from gen1_train.model.unet import UNetConfig


@dataclass(frozen=True)
class Flops:
    spatial: int
    temporal: int  # of temporal convolutions and temporal transformer blocks

    @property
    def total(self) -> int:
        return self.spatial + self.temporal


@dataclass(frozen=True)
class Product:
    """A matrix product, or a convolution expressed as one."""

    flops: int
    gradients: int = 2  # products of the same size in the backward pass: one for each factor that needs a gradient
    again: int = 0  # how often the backward pass recomputes it
    temporal: bool = False


@dataclass(frozen=True)
class Clip:
    """The input of a forward pass."""

    frames: int
    tokens: int  # of content
    temporal: bool  # whether temporal layers run


Map = tuple[int, int]  # height, width
Encoding = Callable[[int, int], int]  # FLOPs of the frozen autoencoder for a frame of this height and width in pixels


def unet_flops(
    config: UNetConfig, height: int, width: int, frames: int, tokens: int = 1, temporal: bool = True
) -> Flops:
    """Returns the FLOPs of the forward pass of one clip with `height` x `width` latents and `tokens` content tokens.

    With temporal=False, or in a UNet without temporal layers, frames are independent; an image is a clip of one frame.
    """
    return _sum(unet(config, (height, width), Clip(frames, tokens, temporal and config.temporal)), lambda _: 1)


def step_flops(
    config: UNetConfig,
    height: int,
    width: int,
    frames: int,
    tokens: int = 1,
    temporal: bool = True,
    recomputed: bool = False,
) -> Flops:
    """Returns the FLOPs of the forward and backward pass of one clip: a little less than three forward passes.

    With `recomputed`, recomputation counts too: the layers under `config.checkpointing`, and the products of queries
    and keys, which fused attention kernels do not keep. Utilization is computed without it.
    """
    products = unet(config, (height, width), Clip(frames, tokens, temporal and config.temporal))
    return _sum(products, lambda product: 1 + product.gradients + (product.again if recomputed else 0))


def step_cost(unet: UNetConfig, schedule: Schedule, encoding: Encoding | None = None) -> str:
    """Returns a line about the FLOPs of a step on the largest pool, of a video step if there is one.

    `encoding`: the FLOPs of the frozen autoencoder for a frame, if it runs in the step.
    """
    kind, samples = ("video", "clips") if schedule.share < 1 else ("image", "images")
    pool = max(schedule.shards.pools(kind), key=lambda pool: pool.samples)
    factor = schedule.shards.manifest.estimators["autoencoder"]["factor"]
    count = schedule.batch_size(pool.frames)
    one = step_flops(unet, pool.height // factor, pool.width // factor, pool.frames, temporal=kind == "video")
    encoded = pool.frames * encoding(pool.height, pool.width) if encoding is not None else 0
    parts = {"spatial": one.spatial, "temporal": one.temporal, "autoencoder": encoded}
    units = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}
    whole = count * sum(parts.values())
    name = next((name for name, unit in units.items() if whole >= unit), "MFLOP")
    shown = [f"{part} {count * flops / units[name]:.1f}" for part, flops in parts.items() if flops]
    described = f" ({', '.join(shown)})" if len(shown) > 1 else ""
    return f"a step of {count} {samples} of {pool.width}x{pool.height} is {whole / units[name]:.1f} {name}{described}"


def _sum(products: list[Product], times: Callable[[Product], int]) -> Flops:
    spatial, temporal = (sum(times(p) * p.flops for p in products if p.temporal == kind) for kind in (False, True))
    return Flops(spatial, temporal)


def linear(rows: int, c_in: int, c_out: int, gradients: int = 2) -> list[Product]:
    return [Product(2 * rows * c_in * c_out, gradients)]


def conv(pixels: int, c_in: int, c_out: int, taps: int, gradients: int = 2) -> list[Product]:
    """`pixels`: of the output; taps in the padding count like all others."""
    return linear(pixels, taps * c_in, c_out, gradients)


def attend(queries: int, keys: int, channels: int) -> list[Product]:
    """`queries` in total, each attending to `keys`; the number of heads does not matter."""
    product = Product(2 * queries * keys * channels)
    return [replace(product, again=1), product]


def feed_forward(rows: int, c: int, expansion: int) -> list[Product]:
    return linear(rows, c, 2 * expansion * c) + linear(rows, expansion * c, c)


def temporal_conv(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    return _temporal(conv(clip.frames * pixels, c, c, config.temporal_kernel)) if clip.temporal else []


def temporal_transformer_block(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows = clip.frames * pixels
    attention = 3 * linear(rows, c, c) + attend(rows, clip.frames, c) + linear(rows, c, c)
    return _temporal(attention + feed_forward(rows, c, config.temporal_expansion)) if clip.temporal else []


def _temporal(products: list[Product]) -> list[Product]:
    return [replace(product, temporal=True) for product in products]


def cross_attention(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows, read = clip.frames * pixels, clip.frames * clip.tokens
    # the content needs a gradient only if it passed through our projection
    gradients = 1 + (config.content_dim != config.context_dim)
    if clip.tokens == 1:  # Attention.to_single_token: neither queries nor keys
        return linear(read, config.context_dim, c, gradients) + linear(read, c, c)
    keys_and_values = 2 * linear(read, config.context_dim, c, gradients)
    return linear(rows, c, c) + keys_and_values + attend(rows, clip.tokens, c) + linear(rows, c, c)


def transformer_block(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    rows = clip.frames * pixels
    attention = 3 * linear(rows, c, c) + attend(rows, pixels, c) + linear(rows, c, c)
    return attention + cross_attention(config, clip, pixels, c) + feed_forward(rows, c, expansion=4)


def transformer(config: UNetConfig, clip: Clip, pixels: int, c: int) -> list[Product]:
    project = linear(clip.frames * pixels, c, c)
    blocks = transformer_block(config, clip, pixels, c) + temporal_transformer_block(config, clip, pixels, c)
    return project + blocks + project


def residual_block(config: UNetConfig, clip: Clip, pixels: int, c_in: int, c: int) -> list[Product]:
    n = clip.frames
    first = conv(n * pixels, c_in, c, 9) + temporal_conv(config, clip, pixels, c)
    time = linear(n, 4 * config.channels[0], c)
    second = conv(n * pixels, c, c, 9) + temporal_conv(config, clip, pixels, c)
    shortcut = conv(n * pixels, c_in, c, 1) if c_in != c else []
    return first + time + second + shortcut


def block_layer(config: UNetConfig, clip: Clip, level: int, pixels: int, c_in: int, c: int) -> list[Product]:
    products = residual_block(config, clip, pixels, c_in, c)
    if config.attention[level]:
        products += transformer(config, clip, pixels, c)
    if not (config.checkpointing and config.checkpointing[level]):
        return products
    # torch does not recompute the last product: the backward pass needs its factors but not its result
    return [replace(product, again=product.again + 1) for product in products[:-1]] + products[-1:]


def upsample(clip: Clip, small: Map, size: Map, c: int) -> list[Product]:
    h, w = small
    if size != (2 * h, 2 * w):
        return conv(clip.frames * _pixels(size), c, c, 9)
    return conv(clip.frames * (h + 1) * (w + 1), c, 4 * c, 4)  # UpsamplingConv: four 2x2 kernels, one per parity


def entry(config: UNetConfig, size: Map, clip: Clip) -> list[Product]:
    """The first convolution, the timestep embedding and the content projection, whose inputs need no gradient."""
    c = config.channels[0]
    first = conv(clip.frames * _pixels(size), config.in_channels, c, 9, gradients=1)
    time = linear(1, c, 4 * c, gradients=1) + linear(1, 4 * c, 4 * c)
    if config.content_dim == config.context_dim:
        return first + time
    return first + time + linear(clip.tokens, config.content_dim, config.context_dim, gradients=1)


def unet(config: UNetConfig, size: Map, clip: Clip) -> list[Product]:
    """Returns the products of the forward pass of a clip with latents of this size."""
    channels, last, n = config.channels, len(config.channels) - 1, clip.frames
    products = entry(config, size, clip)
    sizes = [size]
    skips = [channels[0]]
    width = channels[0]
    for i, c in enumerate(channels):
        for c_in in [width] + [c] * (config.layers - 1):
            products += block_layer(config, clip, i, _pixels(sizes[i]), c_in, c)
        if i != last:
            sizes.append(_half(sizes[i]))
            products += conv(n * _pixels(sizes[i + 1]), c, c, 9)  # Downsample
        skips += [c] * (config.layers + (i != last))
        width = c
    middle = residual_block(config, clip, _pixels(sizes[last]), width, width)
    products += middle + transformer(config, clip, _pixels(sizes[last]), width) + middle
    for i, c in reversed(list(enumerate(channels))):
        for _ in range(config.layers + 1):
            products += block_layer(config, clip, i, _pixels(sizes[i]), width + skips.pop(), c)
            width = c
        if i != 0:
            products += upsample(clip, sizes[i], sizes[i - 1], c)
    return products + conv(n * _pixels(size), channels[0], config.out_channels, 9)


def _pixels(size: Map) -> int:
    return size[0] * size[1]


def _half(size: Map) -> Map:
    """Returns the output size of a 3x3 convolution with stride 2 and padding 1, which rounds odd sizes up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def gemm_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Measures the FLOP/s of a large square matrix product on this device: the best of five, after a warmup.

    This is ours, instead of a table of peak rates: it works on any machine, and for a CPU process it measures its own
    threads. On a GPU, float32 runs with torch's settings, by default without TF32, which convolutions do use.
    """
    device = torch.device(device)
    n, times = (8192, 8) if device.type == "cuda" else (1024, 1)
    generator = torch.Generator(device).manual_seed(0)  # not the global generator, which a run draws from
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()
    return times * 2 * n**3 / min(seconds() for _ in range(5))
