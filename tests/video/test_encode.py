import os
import resource
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video.decode import VideoError, probe, read_clips
from gen1_train.video.encode import write_video
from tests.video.files import number_of, picture


def test_what_is_written_can_be_read_and_played(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, (picture(i) for i in range(30)), fps=30000 / 1001)
    info = probe(path)
    assert (info.width, info.height, info.frames, info.codec) == (64, 48, 30, "h264")
    assert info.pixel_format == "yuv420p"
    assert info.fps == pytest.approx(29.97, abs=0.001)
    ((_, clip),) = read_clips(path, [list(range(30))])
    assert [number_of(frame) for frame in clip] == list(range(30))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before it has everything
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_colours_survive_and_are_tagged(tmp_path: Path) -> None:
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128]], np.uint8)
    frame = colours.repeat(16, 0)[None].repeat(64, 0)
    write_video(tmp_path / "out.mp4", [frame] * 4, fps=8)
    ((_, clip),) = read_clips(tmp_path / "out.mp4", [[0]])
    assert np.abs(clip[0, 32, 8::16].astype(int) - colours).max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", [np.full((33, 47, 3), 100, np.uint8)] * 2, fps=8)
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height) == (48, 34)


def test_nothing_is_left_of_a_video_that_failed(tmp_path: Path) -> None:
    def breaks() -> Iterator[np.ndarray]:
        yield picture(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", breaks(), fps=8)
    with pytest.raises(VideoError, match="no frames"):
        write_video(tmp_path / "out.mp4", [], fps=8)
    with pytest.raises(VideoError, match="several sizes"):
        write_video(tmp_path / "out.mp4", [picture(0), picture(1, 32, 48)], fps=8)
    with pytest.raises(VideoError, match="No such file"):
        write_video(tmp_path / "absent" / "out.mp4", [picture(0)], fps=8)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_video_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    frames = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # "File too large" stands in for "No space left"
    try:
        with pytest.raises(VideoError) as caught:
            write_video(path, frames, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.transient
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.mp4"]
