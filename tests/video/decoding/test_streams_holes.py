"""Holes of zeros, as interrupted copies leave them, give no wrong frame."""

from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video.decoding.streams import hole_finder, video_stream
from tests.video.decoding.test_reading import read_until_error
from tests.video.files import MEDIA, copy_stream, make_video, needs_media


@pytest.mark.parametrize("size", [40, 400])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "libx264"), (".mp4", "libx265")])
def test_no_frame_before_the_error_is_wrong(tmp_path: Path, suffix: str, codec: str, size: int) -> None:
    """The file of 60 frames is a few KiB, so the holes begin in all parts of it."""
    if codec not in av.codecs_available:
        pytest.skip(f"this ffmpeg has no {codec}")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = make_video(tmp_path / "whole.mp4", 60, codec, options=options)
    if suffix == ".mkv":
        path = copy_stream(path, path.with_suffix(suffix), lambda stream: None)
    original, no_error = read_until_error(path)
    assert len(original) == 60 and no_error is None
    whole, damaged = path.read_bytes(), path.with_name(f"damaged{suffix}")
    begin = whole.index({".mp4": b"mdat", ".mkv": b"\x1f\x43\xb6\x75"}[suffix]) + 8  # after the tables
    for start in range(begin, len(whole) - size, len(whole) // 40):
        damaged.write_bytes(whole[:start] + bytes(size) + whole[start + size :])
        frames, reason = read_until_error(damaged)
        np.testing.assert_array_equal(frames, original[: len(frames)], err_msg=f"a hole at {start}: {reason}")
        assert reason is not None or len(frames) == 60  # x265 writes a text about itself, which may be damaged


@needs_media
@pytest.mark.parametrize("path", sorted(MEDIA.iterdir()) if MEDIA.is_dir() else [MEDIA], ids=lambda path: path.name)
def test_whole_files_have_none(path: Path) -> None:
    if path.suffix in (".mp4", ".mkv", ".mov"):
        with av.open(str(path)) as container:
            stream = video_stream(container)
            assert not any(map(hole_finder(stream), container.demux(stream)))
