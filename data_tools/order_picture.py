"""A picture of a schedule: which shards are read in which step, and by whom."""

import colorsys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from gen1_train.data.schedule import Schedule
    from gen1_train.data.shards import ShardSet

MARGIN, TOP, BOTTOM, GAP = 130, 28, 22, 6  # pixels: for the names of pools, the legend, the axis; between pools
WIDTH, HEIGHT = 900, 560  # pixels at the most for the steps, and for the shards of all pools
CELL = 12  # pixels at the most for a step or a shard
HUES = 0.8  # of the circle: the last rank shall not look like the first
PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (235, 235, 235)


def draw_order(shards: "ShardSet", schedule: "Schedule", start: int, steps: int) -> Image.Image:
    """Steps from left to right, the shards of each pool from top to bottom; a shard that is read in a step is coloured
    by its readers' place in the global batch: red is the first rank, violet the last.

    A pixel stands for several steps or shards where there are many.
    """
    counts = {pool.pool.name: len(pool.shards) for kind in ("video", "image") for pool in shards.pools(kind)}
    across = _Scale(steps, WIDTH)
    down = {name: _Scale(count, HEIGHT * count // sum(counts.values())) for name, count in counts.items()}
    sizes = [scale.pixels for scale in down.values()]
    image = Image.new("RGB", (MARGIN + across.pixels + GAP, TOP + sum(sizes) + GAP * len(sizes) + BOTTOM), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    draw.text((MARGIN, 6), "colour: place in the global batch, from the first rank", INK, font)
    for x in range(120):
        draw.line((MARGIN + 310 + x, 8, MARGIN + 310 + x, 20), _colour(x / 120))
    draw.text((MARGIN + 440, 6), "to the last", INK, font)
    top = TOP
    for name, scale in down.items():
        place = (MARGIN, top, MARGIN + across.pixels - 1, top + scale.pixels - 1)
        draw.rectangle(place, GRID)
        draw.text((4, top), name, INK, font)
        if scale.pixels >= 34:
            draw.text((4, top + 15), f"{counts[name]} shards", INK, font)
        for step, shard, where in _reads(shards, schedule, name, start, steps):
            (left, right), (upper, lower) = across.span(step), scale.span(shard)
            draw.rectangle((MARGIN + left, top + upper, MARGIN + right, top + lower), _colour(where))
        top += scale.pixels + GAP
    draw.text((MARGIN, top), f"step {start}", INK, font)
    draw.text((MARGIN + across.pixels, top), f"{start + steps - 1}", INK, font, anchor="ra")
    return image


class _Scale:
    """Lays `count` things on at most `limit` pixels."""

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.pixels = count, max(1, min(limit, count * CELL))

    def span(self, number: int) -> tuple[int, int]:
        """First and last pixel of one of them."""
        first, end = (n * self.pixels // self.count for n in (number, number + 1))
        return first, max(first, end - 1)


def _reads(
    shards: "ShardSet", schedule: "Schedule", pool: str, start: int, steps: int
) -> Iterator[tuple[int, int, float]]:
    """(step, number of the shard, mean place of its readers in the global batch, 0..1) of one pool."""
    starts = np.cumsum([shard.samples for shard in shards.manifest.pools[pool].shards])
    for number in range(start, start + steps):
        step = schedule.at(number)
        if step.pool != pool:
            continue
        samples = [schedule.sample(step, slot) for slot in range(step.size)]
        read = np.searchsorted(starts, samples, side="right")
        for shard in np.unique(read):
            yield number - start, int(shard), float(np.flatnonzero(read == shard).mean() / step.size)


def _colour(where: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(where * HUES, 0.85, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
