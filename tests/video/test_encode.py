import errno
import os
import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train import files
from gen1_train.errors import UserError
from gen1_train.video.decode import VideoError, probe, read_clips
from gen1_train.video.encode import VideoWriter, write_video
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


def times(path: Path) -> list[Fraction]:
    """When the frames are shown, in seconds, exactly."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def write_at(path: Path, fps: float, seconds: list[float]) -> Path:
    with VideoWriter(path, fps) as writer:
        for number, moment in enumerate(seconds):
            writer.write(picture(number), moment)
    return path


@pytest.mark.parametrize("rate", ["25", "24000/1001", "30000/1001", "60000/1001", "12.5", "30", "2/3", "120"])
def test_a_constant_rate_is_kept_exactly(tmp_path: Path, rate: str) -> None:
    exact = [number / Fraction(rate) for number in range(40)]
    for moments in ([float(moment) for moment in exact], [round(float(moment), 3) for moment in exact]):
        path = write_at(tmp_path / "out.mp4", float(Fraction(rate)), moments)
        assert times(path) == exact
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == Fraction(rate)
            assert stream.duration * stream.time_base == 40 / Fraction(rate)  # the last frame is shown as long too


def test_uneven_timestamps_are_kept(tmp_path: Path) -> None:
    moments = [0, 0.04, 0.05, 0.9, 1.234, 1.3, 3.0, 3.01]
    path = write_at(tmp_path / "out.mp4", 25, moments)
    assert [float(moment) for moment in times(path)] == pytest.approx(moments, abs=1.2e-3)
    ((_, clip),) = read_clips(path, [list(range(8))])
    assert [number_of(frame) for frame in clip] == list(range(8))


def test_timestamps_that_repeat_or_go_back_lose_no_frame(tmp_path: Path) -> None:
    path = write_at(tmp_path / "out.mp4", 25, [0, 0.5, 0.5, 0.3, 0.6])
    came = times(path)
    assert len(came) == 5 and came == sorted(set(came))
    assert float(came[-1]) == pytest.approx(0.6, abs=1e-3)


def test_errors_of_the_block_pass_as_they_are(tmp_path: Path) -> None:
    for error in (UserError("another matter"), OSError("another file")):
        with pytest.raises(type(error), match="another"), VideoWriter(tmp_path / "out.mp4", 25) as writer:
            writer.write(picture(0))
            raise error
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(VideoError, match="Not a directory"), VideoWriter(tmp_path / "file" / "out.mp4", 25):
        raise AssertionError("hours of editing")


def test_a_disk_that_fills_up_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(VideoError, match="No space left on device") as caught:
        write_video(tmp_path / "out.mp4", [picture(0)] * 3, fps=8)
    assert caught.value.transient and os.listdir(tmp_path) == []
