"""The inputs of pairs: checked before the run, and read during it."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gen1_train.errors import UserError
from gen1_train.evaluation.pairs import Pair
from gen1_train.system.console import progress
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.errors import VideoError
from gen1_train.video.geometry import nearest_bucket, parse_bucket
from gen1_train.video.image import read_image
from gen1_train.video.stream import Selection, output_fps, probe_input, read_selected

SMALL = "32x32"  # the size of frames that are decoded only as a check


def check_inputs(pairs: Iterable[Pair]) -> None:
    """Reads every image and decodes all selected frames of every video, so that hours on GPUs do not end at a bad row.

    Raises UserError, which names the row.
    """
    distinct = list({(pair.video, pair.image, pair.start, pair.frames, pair.fps): pair for pair in pairs}.values())
    for pair in progress(distinct, title="checking the inputs", unit="row"):
        if pair.image is not None:
            read_example(pair)
        for _ in _decode(pair, SMALL):
            pass


def read_frames(pair: Pair, buckets: Sequence[str]) -> tuple[np.ndarray, float]:
    """Reads the frames to edit as gen1-edit does, uint8 (n, h, w, 3) of the nearest bucket, and their rate."""
    info = _probe(pair)
    frames = list(_decode(pair, nearest_bucket(info.width, info.height, buckets)))
    return np.stack(frames), output_fps(info, _selection(pair))


def read_example(pair: Pair) -> np.ndarray:
    """Reads the example image, uint8 (h, w, 3)."""
    try:
        return read_image(str(pair.image_path))
    except VideoError as error:
        raise UserError(f"line {pair.line} of data=: the image {pair.image} cannot be read: {error}") from error


def _selection(pair: Pair) -> Selection:
    try:
        return Selection(start=pair.start, frames=pair.frames, fps=pair.fps)
    except UserError as error:
        raise UserError(f"line {pair.line} of data=: {error}") from error


def _probe(pair: Pair) -> VideoInfo:
    try:
        return probe_input(pair.video_path)
    except VideoError as error:
        raise _user_error(pair, error) from error


def _decode(pair: Pair, bucket: str) -> Iterator[np.ndarray]:
    """Yields frames (h, w, 3)."""
    try:
        for frame in read_selected(pair.video_path, _selection(pair), *parse_bucket(bucket)):
            yield frame.pixels
    except VideoError as error:
        raise _user_error(pair, error) from error


def _user_error(pair: Pair, error: VideoError) -> UserError:
    return UserError(f"line {pair.line} of data=: the video {pair.video} cannot be decoded: {error}")
