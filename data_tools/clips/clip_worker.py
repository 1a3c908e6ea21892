"""The child process that decodes for a task: it sends the clips of a video, cut, checked and cropped, over a pipe.

The request "clips" yields these answers:

| | array |
|---|---|
| `{"is": "clip", "first", "seconds", "motion", "decoder", "interlaced"}` | uint8 (n, h, w, 3) of the bucket's size |
| `{"is": "still", "first", "decoder", "interlaced"}`, of that clip | uint8 (1, h, w, 3) of the image bucket's size |
| `{"is": "drop", "category", "reason", "seconds"}` | |
| `{"is": "progress", "seconds"}` | |

The request "image" yields one answer, with an empty header and uint8 (1, h, w, 3) of the bucket's size.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_tools.clips.cut import Clip, CutConfig, Drop, cut_clips
from gen1_train.video.decoding.pictures import read_image
from gen1_train.video.decoding.reading import read_any
from gen1_train.video.decoding.sandbox import Answer, serve
from gen1_train.video.geometry import resize_and_crop


def clips(request: dict[str, Any]) -> Iterator[Answer]:
    """Decodes one file from its start to its end. Raises VideoError."""
    frames = read_any(request["path"], request["decoders"])
    aspect, (width, height), still_size = request["pixel_aspect"], request["size"], request["still_size"]

    def crop(rgb: np.ndarray) -> np.ndarray:
        return resize_and_crop(rgb[None], width, height, aspect)[0]

    def still(rgb: np.ndarray) -> np.ndarray:
        return resize_and_crop(rgb[None], still_size[0], still_size[1], aspect)

    config = CutConfig(**request["cut"])
    for item in cut_clips(frames, config, request["frames"], crop, still if still_size else None):
        if isinstance(item, Clip):
            common = {"first": item.first, "decoder": item.decoder, "interlaced": item.interlaced}
            yield {"is": "clip", "seconds": item.seconds, "motion": item.motion, **common}, item.frames
            if item.still is not None:
                yield {"is": "still", **common}, item.still
        elif isinstance(item, Drop):
            yield {"is": "drop", "category": item.category, "reason": item.reason, "seconds": item.seconds}, None
        else:
            yield {"is": "progress", "seconds": item.seconds}, None


def image(request: dict[str, Any]) -> Iterator[Answer]:
    """Reads an image file. Raises VideoError."""
    width, height = request["size"]
    yield {}, resize_and_crop(read_image(request["path"])[None], width, height)


if __name__ == "__main__":
    serve({"clips": clips, "image": image})
