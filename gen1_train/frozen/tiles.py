"""Frames too large for the memory: the autoencoder's layers run on overlapping tiles that share their group norms.

diffusers' own tiles normalize each tile by its own values, which changes colors everywhere (benchmarks/RESULTS.md).
Here all tiles are normalized by the mean and deviation of the whole frame. Those are not known before the layers have
run, so the tiles pass several times: each pass measures what the next one uses. What a layer measures is exact once all
norms before it are, and the errors shrink with each pass. Tiles overlap by as much as the layers see, so a tile's
inside has the values of the whole frame. The middle of the network, with its attention, is small and runs on the whole
frame. All of this is ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 3  # the last one gives the result


@dataclass(frozen=True)
class Tile:
    """A part of the latents: what goes through the layers, and its inside, which they compute exactly."""

    outer: tuple[slice, slice]  # rows and columns of the frame's latents
    inner: tuple[slice, slice]

    def inside(self, values: Tensor, rows: int) -> Tensor:
        """Returns the inside of values (..., h, w) of this tile at any resolution. `rows`: of the tile's latents."""
        scale = values.shape[-2] / rows
        parts = [
            slice(round((inner.start - outer.start) * scale), round((inner.stop - outer.start) * scale))
            for outer, inner in zip(self.outer, self.inner)
        ]
        return values[..., parts[0], parts[1]]


def tiles(height: int, width: int, most: int, halo: int) -> list[Tile]:
    """Returns tiles over height x width latents with about `most` latents each, and a `halo` around that."""
    side = max(1, int(sqrt(most)))
    rows, columns = (even_parts(length, ceil(length / side)) for length in (height, width))

    def wider(part: slice, length: int) -> slice:
        return slice(max(0, part.start - halo), min(length, part.stop + halo))

    return [Tile((wider(row, height), wider(column, width)), (row, column)) for row, column in product(rows, columns)]


def even_parts(length: int, count: int) -> list[slice]:
    """Splits an axis into parts of about equal length."""
    ends = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@dataclass
class Norms:
    """The statistics of group norms over all tiles: measured in this pass, and used from the pass before."""

    used: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = field(default_factory=dict)  # mean, variance: (1, groups)
    sums: dict[nn.GroupNorm, Tensor] = field(default_factory=dict)  # (3, groups): of 1, x, x²
    tile: Tile | None = None
    rows: int = 0  # of the tile's latents

    def normalize(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """x (1, c, h, w) -> its normalized values, float32 as those of a group norm under autocast."""
        assert self.tile is not None
        groups = norm.num_groups
        inside = self.tile.inside(x, self.rows).reshape(groups, -1).double()
        sums = torch.stack([torch.full_like(inside[:, 0], inside.shape[1]), inside.sum(1), inside.square().sum(1)])
        self.sums[norm] = self.sums.get(norm, torch.zeros_like(sums)) + sums
        mean, variance = self.used[norm] if norm in self.used else moments(sums)
        scale = (variance + norm.eps).rsqrt().repeat_interleave(x.shape[1] // groups)
        shift = -mean.repeat_interleave(x.shape[1] // groups) * scale
        if norm.affine:
            scale, shift = norm.weight * scale, norm.weight * shift + norm.bias
        return x.float() * scale.float()[:, None, None] + shift.float()[:, None, None]

    def next_pass(self) -> None:
        self.used = {norm: moments(sums) for norm, sums in self.sums.items()}
        self.sums = {}


def moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)


@contextmanager
def shared_norms(layers: nn.Module, norms: Norms) -> Iterator[None]:
    """Normalizes by `norms` in all group norms of the layers."""
    found = [module for module in layers.modules() if isinstance(module, nn.GroupNorm)]
    for norm in found:
        norm.forward = lambda x, norm=norm: norms.normalize(norm, x)  # type: ignore[method-assign,misc]
    try:
        yield
    finally:
        for norm in found:
            del norm.forward


def run_tiles(
    layers: nn.Module,
    run: Callable[[Tensor], Tensor],
    source: Tensor,
    places: list[Tile],
    scales: tuple[int, int],
    out: Tensor,
    passes: int = PASSES,
) -> Tensor:
    """Fills `out` (1, c, H, W) with run(source) (1, C, h, w), tile by tile.

    `layers`: of `run`. `scales`: pixels of source and of out for one latent.
    """
    norms = Norms()

    def scaled(part: tuple[slice, slice], scale: int) -> tuple[Any, ...]:
        return (..., *(slice(side.start * scale, side.stop * scale) for side in part))

    with shared_norms(layers, norms):
        for number in range(passes):
            for tile in places:
                norms.tile, norms.rows = tile, tile.outer[0].stop - tile.outer[0].start
                made = run(source[scaled(tile.outer, scales[0])])
                if number == passes - 1:
                    out[scaled(tile.inner, scales[1])] = tile.inside(made, norms.rows)
            norms.next_pass()
    return out


def decode(kl: Any, latents: Tensor, most: int, passes: int = PASSES) -> Tensor:
    """Decodes unscaled latents (1, c, h, w) of one frame to (1, 3, H, W), with tiles of about `most` pixels."""
    decoder, config = kl.decoder, kl.config
    levels = len(config.block_out_channels)
    factor = 2 ** (levels - 1)
    reach = sum(2 * (config.layers_per_block + 1) / 2**i for i in range(levels))
    halo = ceil(reach + sum(1 / 2 ** (i + 1) for i in range(levels - 1)) + 1 / factor)
    middle = latents if kl.post_quant_conv is None else kl.post_quant_conv(latents)
    middle = decoder.mid_block(decoder.conv_in(middle))

    def run(part: Tensor) -> Tensor:
        for block in decoder.up_blocks:
            part = block(part)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(part)))

    layers = nn.ModuleList([decoder.up_blocks, decoder.conv_norm_out])
    h, w = latents.shape[-2:]
    out = middle.new_empty(1, config.out_channels, factor * h, factor * w)
    return run_tiles(layers, run, middle, tiles(h, w, most // factor**2, halo), (1, factor), out, passes)


def encode(kl: Any, frames: Tensor, most: int, passes: int = PASSES) -> Tensor:
    """Encodes one frame (1, 3, H, W) to moments (1, 2c, h, w), with tiles of about `most` pixels."""
    encoder, config = kl.encoder, kl.config
    levels = len(config.block_out_channels)
    factor = 2 ** (levels - 1)
    reach = 1 + sum(2 * config.layers_per_block * 2**i for i in range(levels))
    halo = ceil((reach + sum(2 * 2**i for i in range(levels - 1))) / factor)

    def run(part: Tensor) -> Tensor:
        part = encoder.conv_in(part)
        for block in encoder.down_blocks:
            part = block(part)
        return part

    h, w = (side // factor for side in frames.shape[-2:])
    middle = frames.new_empty(1, config.block_out_channels[-1], h, w)
    places = tiles(h, w, most // factor**2, halo)
    middle = run_tiles(encoder.down_blocks, run, frames, places, (factor, 1), middle, passes)
    made = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(middle))))
    return made if kl.quant_conv is None else kl.quant_conv(made)
