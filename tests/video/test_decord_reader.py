"""decord gives the frames that PyAV gives, or a VideoError."""

from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.frames import read_frames
from gen1_train.video.probe import VideoError
from tests.video.files import MEDIA, make_video, needs_media, number_of

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}


def assert_equal(path: Path) -> None:
    pairs = list(zip(read_frames(path, "decord"), read_frames(path, "pyav"), strict=True))
    assert pairs
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.rgb(), theirs.rgb())
        assert (ours.index, ours.decoder, theirs.decoder) == (theirs.index, "decord", "pyav")
        assert ours.seconds == pytest.approx(theirs.seconds, abs=1e-3)


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
def test_its_frames_are_those_of_pyav(tmp_path: Path, name: str, options: dict) -> None:
    path = make_video(tmp_path / name, **options)
    assert_equal(path)
    turns = options.get("rotation", 0) // 90
    numbers = [number_of(np.rot90(frame.rgb(), -turns)) for frame in read_frames(path, "decord")]
    assert numbers == list(range(60))


@needs_media
@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "carphone_pristine.mp4", "video_90.mov"])
def test_real_files_are_equal_in_both(name: str) -> None:
    assert_equal(MEDIA / name)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ten_bits.mp4", {"pixel_format": "yuv420p10le"}, "not asked for yuv420p10le"),
        ("wide.mp4", {"width": 72}, r"frames of \(48, 72, 4\)"),
        ("turned.mp4", {"rotation": 90}, r"frames of \(64, 48, 4\)"),
        # its seek by timestamp gave frame 50 for frame 0 of such a file, without an error
        ("repeated.mp4", {"options": {"bf": "0"}, "starts": [0] * 20 + list(range(1, 41))}, "do not ascend"),
    ],
)
def test_it_is_not_trusted_with_what_it_does_wrong(tmp_path: Path, name: str, options: dict, reason: str) -> None:
    path = make_video(tmp_path / name, **options)
    with pytest.raises(VideoError, match=reason) as caught:
        list(read_frames(path, "decord"))
    assert not caught.value.transient
    assert [frame.index for frame in read_frames(path, "pyav")] == list(range(60))


def test_a_file_that_ends_early_gives_no_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", 120)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(VideoError, match=r"ends early|decord"):
        next(read_frames(path, "decord"))


@needs_media
def test_av1_is_beyond_it() -> None:
    with pytest.raises(VideoError, match="decord"):
        next(read_frames(MEDIA / "av1_video.mkv", "decord"))
