"""decord returns the same frames as PyAV, or raises VideoError."""

from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.decoding.reading import read_frames
from gen1_train.video.errors import VideoError
from tests.video.files import MEDIA, cut_short, make_video, needs_media, number_of

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}


def assert_equal(path: Path) -> None:
    pairs = list(zip(read_frames(path, "decord"), read_frames(path, "pyav"), strict=True))
    assert pairs
    for decord_frame, pyav_frame in pairs:
        np.testing.assert_array_equal(decord_frame.rgb(), pyav_frame.rgb())
        assert decord_frame.index == pyav_frame.index
        assert (decord_frame.decoder, pyav_frame.decoder) == ("decord", "pyav")
        assert decord_frame.seconds == pytest.approx(pyav_frame.seconds, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("444.mp4", {"pixel_format": "yuv444p"}),
        ("422.mp4", {"pixel_format": "yuv422p"}),
        ("full_range.mp4", {"pixel_format": "yuvj420p"}),
        ("odd.mp4", {"pixel_format": "yuv444p", "height": 47}),
        ("open_gop.mp4", {"options": OPEN_GOP}),
        ("h265.mp4", {"codec": "libx265", "options": {"x265-params": "open-gop=1:keyint=12:log-level=none"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("mpeg4.mp4", {"codec": "mpeg4"}),
        ("turned.mp4", {"rotation": 180}),
    ],
)
def test_its_frames_equal_those_of_pyav(tmp_path: Path, name: str, options: dict) -> None:
    path = make_video(tmp_path / name, **options)
    assert_equal(path)
    turns = options.get("rotation", 0) // 90
    numbers = [number_of(np.rot90(frame.rgb(), -turns)) for frame in read_frames(path, "decord")]
    assert numbers == list(range(60))


@needs_media
@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "carphone_pristine.mp4", "video_90.mov"])
def test_frames_of_real_files_equal_those_of_pyav(name: str) -> None:
    assert_equal(MEDIA / name)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ten_bits.mp4", {"pixel_format": "yuv420p10le"}, "not used for yuv420p10le"),
        ("wide.mp4", {"width": 72}, r"frames of \(48, 72, 4\)"),
        ("turned.mp4", {"rotation": 90}, r"frames of \(64, 48, 4\)"),
        # its seek by timestamp returns frame 50 as frame 0 of such a file, without an error
        ("repeated.mp4", {"options": {"bf": "0"}, "starts": [0] * 20 + list(range(1, 41))}, "are not ascending"),
    ],
)
def test_it_refuses_files_that_it_would_decode_incorrectly(
    tmp_path: Path, name: str, options: dict, reason: str
) -> None:
    path = make_video(tmp_path / name, **options)
    with pytest.raises(VideoError, match=reason) as caught:
        list(read_frames(path, "decord"))
    assert not caught.value.transient
    assert [frame.index for frame in read_frames(path, "pyav")] == list(range(60))


def test_a_truncated_file_yields_no_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", 120)
    cut_short(path)
    with pytest.raises(VideoError, match=r"ends early|decord"):
        next(read_frames(path, "decord"))


@needs_media
def test_av1_is_not_supported() -> None:
    with pytest.raises(VideoError, match="decord"):
        next(read_frames(MEDIA / "av1_video.mkv", "decord"))
