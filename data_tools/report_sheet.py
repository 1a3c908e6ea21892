"""The contact sheet of the report: samples drawn over all pools, with frames, structure and where they come from."""

import io
import math
from base64 import b64encode
from typing import Any

import numpy as np
from PIL import Image

from gen1_train.batch import Sample, SampleError
from gen1_train.data.shards import ShardSet
from gen1_train.errors import UserError
from gen1_train.keyed import permutation
from gen1_train.page import Child, Html, element, note, number, section, shorten

STRIP_WIDTH = 800  # pixels: of a clip as many frames are shown, evenly spread, as fit in there
GAP = 3  # pixels between the pictures of a strip
ALL_BYTES = 1_600_000  # of all pictures together; in the page they are a third larger
STEPS = (
    (112, 85),
    (112, 65),
    (96, 50),
    (64, 45),
    (48, 35),
)  # height in pixels, JPEG quality: the first that is small enough


def contact_sheet(shards: ShardSet, samples: int, seed: int) -> Html:
    """The section with `samples` samples, by pool."""
    drawn = draw(shards, samples, seed)
    limit = ALL_BYTES // max(1, sum(map(len, drawn.values())))
    blocks: list[Child] = []
    for pool, places in drawn.items():
        kind = shards.manifest.pools[pool].kind
        cards = [card(shards, pool, index, limit) for index in places]
        blocks += [element("h3", pool), element("div", *cards, class_=f"sheet {kind}")]
    said = f"Drawn at random (seed {seed}): frames above, their structure below; of a clip as many frames as have room."
    return section("Contact sheet", note(said), *blocks)


def draw(shards: ShardSet, samples: int, seed: int) -> dict[str, list[int]]:
    """Pool -> which of its samples are shown: every pool has the same part as long as it has samples."""
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
    """One sample as a figure; a damaged one says so in its place."""
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
    """What a card shows of a sample. Raises SampleError or UserError when it cannot be read."""
    shard, row = shards.locate(pool, index)
    entry = shards.entry(shard, row)
    fields = ("frames", "structure", "meta")
    return shards.read(pool, index, (*fields, "caption") if "caption.txt" in entry.members else fields)


def describe(sample: Sample) -> list[Child]:
    """The lines below a picture: key, source, place in the video, motion, caption."""
    meta = sample.meta if isinstance(sample.meta, dict) else {}
    facts = [shorten(meta["source"]) if "source" in meta else "", span(meta)]
    if isinstance(meta.get("motion"), int | float) and math.isfinite(meta["motion"]):
        facts.append(f"motion {number(meta['motion'])}")
    lines: list[Child] = [element("code", sample.key), element("br"), " · ".join(filter(None, facts))]
    return [*lines, element("q", shorten(sample.caption))] if sample.caption else lines


def span(meta: dict[str, Any]) -> str:
    """From which to which second of the video, as far as the metadata tell."""
    match meta:
        case {"seconds": [int() | float() as start, int() | float() as end]}:
            return f"{start:.2f}–{end:.2f} s"
        case {"first_frame": int(first), "fps": int() | float() as fps} if fps > 0:
            return f"from {first / fps:.2f} s"
    return ""


def picture(sample: Sample, limit: int) -> "Jpeg":
    """Frames above structure, as one JPEG of at most `limit` bytes if any of the steps gives one."""
    assert sample.frames is not None and sample.structure is not None
    n, h, w = sample.frames.shape[:3]
    step = math.ceil(n / max(1, int(STRIP_WIDTH * h / w / STEPS[0][0])))
    rows = [sample.frames[::step], (sample.structure[::step] >> 8).astype(np.uint8)]
    for height, quality in STEPS:
        made = Jpeg(montage(rows, height), quality)
        if len(made.data) <= limit:
            break
    return made


class Jpeg:
    """An encoded picture and its size in pixels."""

    def __init__(self, image: Image.Image, quality: int) -> None:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        self.data, (self.width, self.height) = stream.getvalue(), image.size


def montage(rows: list[np.ndarray], height: int) -> Image.Image:
    """Rows of pictures of one size, each `height` pixels high, on grey (which fits a light and a dark page)."""
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
