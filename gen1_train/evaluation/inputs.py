"""The input of a pair: checked before the run, read while it lasts."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from gen1_train.errors import UserError
from gen1_train.evaluation.pairs import Pair
from gen1_train.video.geometry import nearest_bucket, parse_bucket
from gen1_train.video.image import read_image
from gen1_train.video.probe import VideoError, VideoInfo
from gen1_train.video.stream import Selection, output_fps, probe_input, read_selected

SMALL = "32x32"  # what frames are thrown away at


def check_inputs(pairs: Iterable[Pair]) -> None:
    """Reads every image and decodes all the frames that are wanted of every video.

    Before the first edit, since hours on GPUs should not end at a last row. Raises UserError, naming the row.
    """
    wanted = list({(pair.video, pair.image, pair.start, pair.frames, pair.fps): pair for pair in pairs}.values())
    for pair in tqdm(wanted, desc="checking the inputs", unit="row", mininterval=0.5):
        if pair.image is not None:
            read_example(pair)
        for _ in _decoded(pair, SMALL):
            pass


def read_frames(pair: Pair, buckets: Sequence[str]) -> tuple[np.ndarray, float]:
    """The frames to edit as gen1-edit takes them, uint8 (n, h, w, 3) at the nearest bucket's size, and their rate."""
    info = _probed(pair)
    frames = list(_decoded(pair, nearest_bucket(info.width, info.height, buckets)))
    return np.stack(frames), output_fps(info, _selection(pair))


def read_example(pair: Pair) -> np.ndarray:
    """The picture of the content, uint8 (h, w, 3)."""
    try:
        return read_image(str(pair.image_path))
    except VideoError as error:
        raise UserError(f"line {pair.line} of data=: the image {pair.image} cannot be read: {error}") from error


def _selection(pair: Pair) -> Selection:
    try:
        return Selection(start=pair.start, frames=pair.frames, fps=pair.fps)
    except UserError as error:
        raise UserError(f"line {pair.line} of data=: {error}") from error


def _probed(pair: Pair) -> VideoInfo:
    try:
        return probe_input(pair.video_path)
    except VideoError as error:
        raise _refused(pair, error) from error


def _decoded(pair: Pair, bucket: str) -> Iterator[np.ndarray]:
    """Frames (h, w, 3)."""
    try:
        for frame in read_selected(pair.video_path, _selection(pair), *parse_bucket(bucket)):
            yield frame.pixels
    except VideoError as error:
        raise _refused(pair, error) from error


def _refused(pair: Pair, error: VideoError) -> UserError:
    return UserError(f"line {pair.line} of data=: the video {pair.video} cannot be decoded: {error}")
