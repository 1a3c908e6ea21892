"""The input of a pair: checked before the run, read while it lasts."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from gen1_train.errors import UserError
from gen1_train.evaluation.pairs import Pair
from gen1_train.video.decode import VideoError, count, probe, read_clips
from gen1_train.video.geometry import nearest_bucket, parse_bucket, resize_and_crop
from gen1_train.video.image import image_size, read_image


def check_inputs(pairs: Iterable[Pair]) -> None:
    """Opens every image and decodes the last frame that is wanted of every video, and all before it.

    Before the first edit, since a run of GPU hours should not end at its last row. Raises UserError, naming the row.
    """
    wanted = list({(pair.video, pair.image, pair.start, pair.frames, pair.fps): pair for pair in pairs}.values())
    for pair in tqdm(wanted, desc="checking the inputs", unit="row", mininterval=0.5):
        if pair.image is not None:
            try:
                image_size(pair.image)
            except VideoError as error:
                raise UserError(f"line {pair.line} of data: image {pair.image} cannot be read: {error}") from error
        for _ in _decoded(pair):
            pass


def read_frames(pair: Pair, buckets: Sequence[str]) -> tuple[np.ndarray, float]:
    """The frames to edit as gen1-edit takes them, uint8 (n, h, w, 3) at the nearest bucket's size, and their rate."""
    frames, size, fps = [], (0, 0), 0.0
    for frame, (width, height), aspect, fps in _decoded(pair):
        size = size if frames else parse_bucket(nearest_bucket(width, height, buckets))
        frames.append(resize_and_crop(frame[None], *size, aspect)[0])
    return np.stack(frames), fps


def read_example(pair: Pair) -> np.ndarray:
    """The picture of the content, uint8 (h, w, 3)."""
    assert pair.image is not None
    try:
        return read_image(pair.image)
    except VideoError as error:
        raise UserError(f"line {pair.line} of data: image {pair.image} cannot be read: {error}") from error


def _decoded(pair: Pair) -> Iterator[tuple[np.ndarray, tuple[int, int], float, float]]:
    """Frames (h, w, 3) of the pair's part of its video, each with the size as displayed, pixel aspect and rate."""
    try:
        info = probe(pair.video)
        total = info.frames or count(pair.video)
        step = max(1.0, info.fps / pair.fps) if pair.fps else 1.0
        if pair.start >= total:
            raise VideoError(f"it has {total} frames: start={pair.start} is beyond its end")
        indices = [pair.start + int(i * step + 0.5) for i in range(math.ceil((total - pair.start) / step))]
        indices = [index for index in indices if index < total][: pair.frames]
        for _, frames in read_clips(pair.video, [[index] for index in indices]):
            yield frames[0], (info.width, info.height), info.pixel_aspect, info.fps / step
    except VideoError as error:
        raise UserError(f"line {pair.line} of data: video {pair.video} cannot be used: {error}") from error
