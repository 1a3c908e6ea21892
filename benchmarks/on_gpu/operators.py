"""The operators that a GPU has to be fast at: temporal attention, group norm, and convolutions in each layout.

Each is measured forward and backward in bfloat16, on the maps of a UNet, with inputs that are not in the GPU's cache.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.runner import attempt
from benchmarks.on_gpu.scale import Scale
from benchmarks.on_gpu.timing import median_ms, peak_bytes, release
from benchmarks.questions import Row
from gen1_train.model.kernels import Case, Heads, NormMap
from gen1_train.model.temporal import MAX_HEADS, ExplicitAttention
from gen1_train.model.unet import temporal_heads

DTYPE = torch.bfloat16
EPS = 1e-5

Way = Callable[..., Tensor]


def attention_rows(scale: Scale) -> Iterator[Row]:
    """Yields the time and peak memory of temporal attention, by way, size, level and clips."""
    for size, level, (height, width) in levels(scale):
        channels = scale.unet.channels[level]
        heads = temporal_heads(channels, scale.unet)
        for clips in scale.kernel_clips:
            case = Heads((clips, height * width * heads, scale.frames, channels // heads))
            for way, run in (("explicit", explicit), ("triton", triton_attention), ("sdpa in parts", sdpa_in_parts)):
                labels = {"size": size, "level": level, "clips": clips, "heads": clips * case.shape[1], "way": way}
                yield attempt(
                    labels, lambda run=run, case=case: passes(run, case.inputs(random(scale), DTYPE, DTYPE), scale)
                )
                release(scale)


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ExplicitAttention.apply(q, k, v, False)


def triton_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ExplicitAttention.apply(q, k, v, True)


def sdpa_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention on as many heads as it takes, see `attend_frames`."""
    size = MAX_HEADS // len(q)
    parts = [
        F.scaled_dot_product_attention(*(x[:, i : i + size] for x in (q, k, v))) for i in range(0, q.shape[1], size)
    ]
    return parts[0] if len(parts) == 1 else torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)


def norm_rows(scale: Scale) -> Iterator[Row]:
    """Yields the time and peak memory of a group norm with SiLU, by way, size, level and clips.

    `torch, then channels last` includes the copy that the next convolution would make, because torch's group norm
    returns its map channels first on a GPU.
    """
    for size, level, (height, width) in levels(scale):
        for clips in scale.kernel_clips:
            shape = (clips * scale.frames, scale.unet.channels[level], height, width)
            case = NormMap(shape, scale.unet.groups, EPS, silu=True)

            def ours(*inputs: Tensor, case: NormMap = case) -> Tensor:
                return case.run(list(inputs), triton=False)

            def triton(*inputs: Tensor, case: NormMap = case) -> Tensor:
                return case.run(list(inputs), triton=True)

            def plain(x: Tensor, weight: Tensor, bias: Tensor, case: NormMap = case) -> Tensor:
                return F.silu(F.group_norm(x, case.groups, weight, bias, case.eps))

            def plain_then_channels_last(*inputs: Tensor, plain: Way = plain) -> Tensor:
                return plain(*inputs).contiguous(memory_format=torch.channels_last)

            ways = {
                "torch": plain,
                "torch, then channels last": plain_then_channels_last,
                "ours from torch operations": ours,
                "ours, triton": triton,
            }
            for way, run in ways.items():
                labels = {"size": size, "level": level, "clips": clips, "way": way}
                yield attempt(
                    labels, lambda run=run, case=case: passes(run, case.inputs(random(scale), DTYPE, DTYPE), scale)
                )
                release(scale)


def convolution_rows(scale: Scale) -> Iterator[Row]:
    """Yields the time of a 3x3 convolution, by layout of the map and of the weight, at each level."""
    formats = {"last": torch.channels_last, "first": torch.contiguous_format}
    for size, level, (height, width) in levels(scale):
        channels = scale.unet.channels[level]
        for maps, map_format in formats.items():
            for weights, weight_format in formats.items():
                draw = random(scale)
                x = draw(scale.usual_clips * scale.frames, channels, height, width).to(DTYPE)
                weight = draw(channels, channels, 3, 3).to(DTYPE)
                inputs = [x.to(memory_format=map_format), weight.to(memory_format=weight_format)]
                labels = {"size": size, "level": level, "clips": scale.usual_clips}
                labels |= {"maps": f"channels {maps}", "weights": f"channels {weights}"}
                yield attempt(labels, lambda inputs=inputs: passes(conv, inputs, scale))
                release(scale)


def conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def levels(scale: Scale) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yields the size in pixels, the number of the level, finest first, and the level's height and width."""
    for height, width in scale.sizes:
        for level in range(len(scale.unet.channels)):
            yield f"{8 * width}x{8 * height}", level, (max(1, height >> level), max(1, width >> level))


def random(scale: Scale) -> Callable[..., Tensor]:
    """Returns torch.randn on the device, always with the same numbers."""
    generator = torch.Generator(scale.device).manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device=scale.device)


def measured(labels: Row, case: Case, run: Way, scale: Scale) -> Row:
    """Returns the row of a way to compute what a kernel is given."""
    row = attempt(labels, lambda: passes(run, case.inputs(random(scale), DTYPE, DTYPE), scale))
    release(scale)
    return row


def passes(run: Way, inputs: list[Tensor], scale: Scale) -> Row:
    """Returns milliseconds of the forward pass and of both, and the memory that they need besides the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    gradient = torch.randn_like(run(*leaves).detach())

    def both() -> None:
        torch.autograd.grad(run(*leaves), leaves, gradient)

    def forward() -> None:
        with torch.no_grad():
            run(*leaves)

    row = {"forward_ms": round(median_ms(forward, scale), 4), "both_ms": round(median_ms(both, scale), 4)}
    held = torch.cuda.memory_allocated(scale.device) if scale.gpu else 0
    peak = peak_bytes(both, scale)
    return {**row, "peak_MB": None if peak is None else round((peak - held) / 1e6, 1)}
