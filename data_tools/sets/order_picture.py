"""Draws a schedule: which shards each step reads, and which ranks read them."""

import colorsys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from gen1_train.data.schedule import Schedule
    from gen1_train.data.shards import ShardSet

MARGIN = 130  # pixels for the names of the pools
TOP = 28  # pixels for the legend
BOTTOM = 22  # pixels for the axis
GAP = 6  # pixels between pools
WIDTH = 900  # pixels for the steps, at most
HEIGHT = 560  # pixels for the shards of all pools, at most
CELL = 12  # pixels for a step or a shard, at most
HUES = 0.8  # share of the color circle in use: the last rank must not look like the first
PAPER = (255, 255, 255)
INK = (40, 40, 40)
GRID = (235, 235, 235)


def draw_order(shards: "ShardSet", schedule: "Schedule", start: int, steps: int) -> Image.Image:
    """Draws steps from left to right and the shards of each pool from top to bottom.

    A shard that is read in a step is colored by its readers' position in the global batch: red is the first rank,
    violet the last. With many steps or shards, a pixel stands for several of them.
    """
    counts = {pool.pool.name: len(pool.shards) for kind in ("video", "image") for pool in shards.pools(kind)}
    across = _Scale(steps, WIDTH)
    down = {name: _Scale(count, HEIGHT * count // sum(counts.values())) for name, count in counts.items()}
    sizes = [scale.pixels for scale in down.values()]
    image = Image.new("RGB", (MARGIN + across.pixels + GAP, TOP + sum(sizes) + GAP * len(sizes) + BOTTOM), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    draw.text((MARGIN, 6), "color: position in the global batch, from the first rank", INK, font)
    for x in range(120):
        draw.line((MARGIN + 310 + x, 8, MARGIN + 310 + x, 20), _color(x / 120))
    draw.text((MARGIN + 440, 6), "to the last", INK, font)
    top = TOP
    for name, scale in down.items():
        draw.rectangle((MARGIN, top, MARGIN + across.pixels - 1, top + scale.pixels - 1), GRID)
        draw.text((4, top), name, INK, font)
        if scale.pixels >= 34:
            draw.text((4, top + 15), f"{counts[name]} shards", INK, font)
        for step, shard, position in _reads(shards, schedule, name, start, steps):
            (left, right), (upper, lower) = across.span(step), scale.span(shard)
            draw.rectangle((MARGIN + left, top + upper, MARGIN + right, top + lower), _color(position))
        top += scale.pixels + GAP
    draw.text((MARGIN, top), f"step {start}", INK, font)
    draw.text((MARGIN + across.pixels, top), f"{start + steps - 1}", INK, font, anchor="ra")
    return image


class _Scale:
    """Distributes `count` items over at most `limit` pixels."""

    def __init__(self, count: int, limit: int) -> None:
        self.count = count
        self.pixels = max(1, min(limit, count * CELL))

    def span(self, number: int) -> tuple[int, int]:
        """Returns the first and the last pixel of an item."""
        first, end = (n * self.pixels // self.count for n in (number, number + 1))
        return first, max(first, end - 1)


def _reads(
    shards: "ShardSet", schedule: "Schedule", pool: str, start: int, steps: int
) -> Iterator[tuple[int, int, float]]:
    """Yields (step, number of the shard, mean position of its readers in the global batch, 0..1) for one pool."""
    starts = np.cumsum([shard.samples for shard in shards.manifest.pools[pool].shards])
    for number in range(start, start + steps):
        step = schedule.at(number)
        if step.pool != pool:
            continue
        samples = [schedule.sample(step, slot) for slot in range(step.size)]
        shard_of_slot = np.searchsorted(starts, samples, side="right")
        for shard in np.unique(shard_of_slot):
            yield number - start, int(shard), float(np.flatnonzero(shard_of_slot == shard).mean() / step.size)


def _color(position: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(position * HUES, 0.85, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
