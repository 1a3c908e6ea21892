"""The contact sheet of the report: samples from all pools, with frames, structure and origin."""

import io
import math
from base64 import b64encode
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_tools.stats import CAPTIONED_BY
from gen1_train.batch import Sample, SampleError
from gen1_train.data.shards import ShardSet
from gen1_train.diffusion.planes import kinds_of
from gen1_train.errors import UserError
from gen1_train.frozen.autoencoder import as_pictures
from gen1_train.html import Child, Html, element, note, number, section, shorten
from gen1_train.keyed import permutation

STRIP_WIDTH = 800  # pixels: as many evenly spread frames of a clip are shown as fit
COLORS = ("red", "green", "blue")  # of the planes of a structure
GAP = 3  # pixels between the pictures of a strip
ALL_BYTES = 1_600_000  # of all pictures together; in the page (base64) they take a third more
STEPS = ((112, 85), (112, 65), (96, 50), (64, 45), (48, 35))  # height in pixels, JPEG quality: the first that fits


def contact_sheet(shards: ShardSet, samples: int, seed: int) -> Html:
    """Returns the section with `samples` samples, by pool."""
    drawn = draw(shards, samples, seed)
    limit = ALL_BYTES // max(1, sum(map(len, drawn.values())))
    blocks: list[Child] = []
    for pool, indices in drawn.items():
        kind = shards.manifest.pools[pool].kind
        cards = [card(shards, pool, index, limit) for index in indices]
        blocks += [element("h3", pool), element("div", *cards, class_=f"sheet {kind}")]
    kinds = kinds_of(str(shards.manifest.estimators["structure"].get("kind")))
    colors = ", ".join(f"{kind} in {color}" for kind, color in zip(kinds, COLORS))
    planes = f" ({colors})" if len(kinds) > 1 else ""
    shown = f"frames above, structure{planes} below; as many frames of a clip as fit."
    explanation = f"Drawn at random (seed {seed}): {shown}"
    return section("Contact sheet", note(explanation), *blocks)


def draw(shards: ShardSet, samples: int, seed: int) -> dict[str, list[int]]:
    """Returns pool -> indices of its samples on the sheet: each pool gets an equal share while it has samples left."""
    pools = sorted(shards.manifest.pools.items(), key=lambda item: (item[1].kind != "video", item[0]))
    sizes = {name: pool.samples for name, pool in pools if pool.samples}
    parts = dict.fromkeys(sizes, 0)
    for _ in range(min(samples, sum(sizes.values()))):
        open_pools = [name for name in sizes if parts[name] < sizes[name]]
        parts[min(open_pools, key=parts.__getitem__)] += 1
    return {
        name: [permutation(sizes[name], "report", seed, name)(i) for i in range(part)]
        for name, part in parts.items()
        if part
    }


def card(shards: ShardSet, pool: str, index: int, limit: int) -> Html:
    """Returns one sample as a figure, or a note if it is damaged."""
    try:
        sample = read_sample(shards, pool, index)
    except (SampleError, UserError) as error:
        return element("div", element("b", f"Sample {index} cannot be shown. "), shorten(error), class_="damaged")
    image = picture(sample, limit)
    shown = element(
        "img",
        src=f"data:image/jpeg;base64,{b64encode(image.data).decode()}",
        width=image.width,
        height=image.height,
        alt=f"frames and structure of {sample.key}",
    )
    return element("figure", shown, element("figcaption", *describe(sample)))


def read_sample(shards: ShardSet, pool: str, index: int) -> Sample:
    """Reads the fields that a card shows. Raises SampleError or UserError if the sample cannot be read."""
    shard, row = shards.locate(pool, index)
    entry = shards.entry(shard, row)
    fields = ("frames", "structure", "meta")
    return shards.read(pool, index, (*fields, "caption") if "caption.txt" in entry.members else fields)


def describe(sample: Sample) -> list[Child]:
    """Returns the lines below a picture: key, source, position in the video, motion, caption."""
    meta = sample.meta if isinstance(sample.meta, dict) else {}
    facts = [shorten(meta["source"]) if "source" in meta else "", span(meta)]
    if isinstance(meta.get("motion"), int | float) and math.isfinite(meta["motion"]):
        facts.append(f"motion {number(meta['motion'])}")
    lines: list[Child] = [element("code", sample.key), element("br"), " · ".join(filter(None, facts))]
    if sample.caption:
        lines.append(element("q", shorten(sample.caption)))
        if kind := meta.get(CAPTIONED_BY):
            lines.append(f" by {shorten(kind)}")
    return lines


def span(meta: dict[str, Any]) -> str:
    """Returns the start and end of a clip in seconds of the video, as far as the metadata give them."""
    match meta:
        case {"seconds": [int() | float() as start, int() | float() as end]}:
            return f"{start:.2f}–{end:.2f} s"
        case {"first_frame": int(first), "fps": int() | float() as fps} if fps > 0:
            return f"from {first / fps:.2f} s"
    return ""


def picture(sample: Sample, limit: int) -> "Jpeg":
    """Returns frames above structure as one JPEG of at most `limit` bytes, if any of the STEPS is small enough."""
    assert sample.frames is not None and sample.structure is not None
    n, h, w = sample.frames.shape[:3]
    step = math.ceil(n / max(1, int(STRIP_WIDTH * h / w / STEPS[0][0])))
    rows = [sample.frames[::step], shades(sample.structure[::step])]
    for height, quality in STEPS:
        jpeg = Jpeg(montage(rows, height), quality)
        if len(jpeg.data) <= limit:
            break
    return jpeg


def shades(structure: np.ndarray) -> np.ndarray:
    """Returns structure in 8 bits: gray (n, h, w), or of several planes in red, green and blue (n, h, w, 3)."""
    gray = (structure >> 8).astype(np.uint8)
    several = gray.ndim == 4
    return as_pictures(torch.from_numpy(gray), several).movedim(1, -1).numpy() if several else gray


class Jpeg:
    """An encoded picture and its size in pixels."""

    def __init__(self, image: Image.Image, quality: int) -> None:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        self.data = stream.getvalue()
        self.width, self.height = image.size


def montage(rows: list[np.ndarray], height: int) -> Image.Image:
    """Returns rows of pictures of one size, each `height` pixels high, on gray, which suits light and dark pages."""
    width = max(1, round(rows[0].shape[2] * height / rows[0].shape[1]))
    sheet = Image.new("RGB", (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), (128, 128, 128))
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            small = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (x * (width + GAP), y * (height + GAP)))
    return sheet


SHEET_STYLE = """
.sheet { display: grid; gap: 1.2rem 1rem; }
.video { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.image { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.sheet img { display: block; max-width: 100%; height: auto; }
.sheet figcaption { margin-top: .3rem; line-height: 1.4; overflow-wrap: anywhere; }
.sheet q { color: var(--ink); display: block; unicode-bidi: isolate; }
.damaged { border: 1px dashed var(--alarm); color: var(--alarm); padding: .8rem; font-size: .87rem;
  overflow-wrap: anywhere; }
@media print { .video { grid-template-columns: 1fr 1fr; } .image { grid-template-columns: repeat(5, 1fr); } }
"""
