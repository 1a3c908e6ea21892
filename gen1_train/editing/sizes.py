"""The size of an edit, and that of the windows that go through the UNet at once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen1_train.editing.config import INPUT_SIZE, EditConfig
from gen1_train.editing.inputs import padded
from gen1_train.errors import UserError
from gen1_train.video.decoding.probe import VideoInfo
from gen1_train.video.geometry import NAMED_CROP, kept_share, nearest_bucket, parse_bucket, similar_bucket

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditSize:
    """Widths and heights in pixels."""

    output: tuple[int, int]
    window: tuple[int, int]  # of the part of a frame that goes through the UNet at once: a bucket's
    factor: int  # of the autoencoder

    @property
    def area(self) -> tuple[int, int]:
        """The rows and columns of latents of a window."""
        width, height = self.window
        return height // self.factor, width // self.factor

    def padded(self, picture: np.ndarray) -> np.ndarray:
        """Returns a picture (h, w, ...) of the output's size with sides that the autoencoder takes."""
        return padded(picture, self.factor, height_axis=0)

    def cropped(self, picture: np.ndarray) -> np.ndarray:
        """Returns the part of a padded picture that the output has."""
        width, height = self.output
        return picture[:height, :width]


def choose_size(config: EditConfig, buckets: Sequence[str], factor: int, info: VideoInfo) -> EditSize:
    """Returns the size to edit at: by default that of a bucket, else `config.size` in windows of a bucket's size.

    `buckets`: of the checkpoint; `factor`: of its autoencoder. Warns if much of the input is cropped, and if a window
    is not filled. Raises UserError for a bucket that the model cannot take.
    """
    if config.size is None:
        window = choose_window(config.bucket, buckets, factor, info.width, info.height)
        warn_of_crop(config, info, window, factor)
        return EditSize(window, window, factor)
    width, height = (info.width, info.height) if config.size == INPUT_SIZE else parse_bucket(config.size)
    window = choose_window(config.bucket, buckets, factor, width, height)
    warn_of_crop(config, info, (width, height), factor=1)
    if width < window[0] or height < window[1]:
        logger.warning(
            "size=%s: %dx%d is smaller than %dx%d, the size at which the model is at its best: leave size= out",
            config.size, width, height, *window,
        )  # fmt: skip
    return EditSize((width, height), window, factor)


def choose_window(
    bucket: str | None, buckets: Sequence[str], factor: int, width: int, height: int, setting: str = "bucket"
) -> tuple[int, int]:
    """Returns width and height of `bucket`, or of the one of `buckets` with the aspect nearest to width x height.

    Raises UserError for one that the model cannot take; `setting`: which names it.
    """
    try:
        chosen = parse_bucket(nearest_bucket(width, height, [bucket] if bucket else buckets))
    except ValueError as error:
        raise UserError(f"{setting}={bucket}: {error}") from error
    if any(side % factor for side in chosen):
        raise UserError(f"{setting}={bucket}: both sides must be multiples of {factor} pixels")
    return chosen


def window_area(
    window_size: str | None, buckets: Sequence[str], factor: int, width: int, height: int
) -> tuple[int, int] | None:
    """Returns rows and columns of latents of the windows over frames; None if the whole frame is one.

    `window_size`: see `Gen1Editor.__call__`. Raises UserError for one that the model cannot take.
    """
    if window_size is None:
        return None
    bucket = None if window_size == "nearest" else window_size
    window = choose_window(bucket, buckets, factor, width, height, "window_size")
    return EditSize((width, height), window, factor).area


def warn_of_crop(config: EditConfig, info: VideoInfo, size: tuple[int, int], factor: int) -> None:
    """Warns if an edit of this width and height loses much of the input, and names a size of its shape."""
    width, height = size
    lost = 1 - kept_share(info.width, info.height, width, height)
    if lost <= NAMED_CROP:
        return
    setting = "bucket" if config.size is None else "size"
    logger.warning(
        "only the center of input=%s (%dx%d) is edited: %.0f %% of the picture is cropped to fit %dx%d; "
        "%s=WIDTHxHEIGHT chooses another shape, as in %s=%s",
        config.input, info.width, info.height, 100 * lost, width, height, setting, setting,
        similar_bucket(info.width, info.height, width * height, factor),
    )  # fmt: skip
