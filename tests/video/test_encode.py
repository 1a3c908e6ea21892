"""Writing video files: complete or not at all, and with exact times."""

import errno
import os
import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.errors import UserError
from gen1_train.system import files
from gen1_train.video.decode import VideoError, probe, read_clips
from gen1_train.video.encode import VideoWriter, write_video
from tests.video.files import number_of, picture


def test_a_written_video_can_be_read_and_played(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, (picture(i) for i in range(30)), fps=30000 / 1001)
    info = probe(path)
    assert (info.width, info.height, info.frames, info.codec) == (64, 48, 30, "h264")
    assert info.pixel_format == "yuv420p"
    assert info.fps == pytest.approx(29.97, abs=0.001)
    ((_, clip),) = read_clips(path, [list(range(30))])
    assert [number_of(frame) for frame in clip] == list(range(30))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before the download ends
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_colors_are_kept_and_tagged(tmp_path: Path) -> None:
    colors = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128]], np.uint8)
    frame = colors.repeat(16, 0)[None].repeat(64, 0)
    write_video(tmp_path / "out.mp4", [frame] * 4, fps=8)
    ((_, clip),) = read_clips(tmp_path / "out.mp4", [[0]])
    assert np.abs(clip[0, 32, 8::16].astype(int) - colors).max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", [np.full((33, 47, 3), 100, np.uint8)] * 2, fps=8)
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.pixel_format) == (48, 34, "yuv420p")


@pytest.mark.parametrize(("size", "pixel_format"), [((33, 47), "yuv444p"), ((34, 48), "yuv420p")])
def test_odd_sizes_can_stay(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    frame = np.linspace(0, 255, 3 * size[0] * size[1]).reshape(*size, 3).astype(np.uint8)
    with VideoWriter(tmp_path / "out.mp4", 8, keep_odd=True) as writer:
        writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        (made,) = container.decode(video=0)
    assert made.format.name == pixel_format
    assert np.abs(made.to_ndarray(format="rgb24").astype(int) - frame).mean() < 3


def test_a_failed_video_leaves_no_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[np.ndarray]:
        yield picture(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", breaks(), fps=8)
    with pytest.raises(VideoError, match="no frames"):
        write_video(tmp_path / "out.mp4", [], fps=8)
    with pytest.raises(VideoError, match="the frames differ in size"):
        write_video(tmp_path / "out.mp4", [picture(0), picture(1, 32, 48)], fps=8)
    with pytest.raises(VideoError, match="No such file"):
        write_video(tmp_path / "absent" / "out.mp4", [picture(0)], fps=8)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_video_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    frames = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # "File too large" replaces "No space left" here
    try:
        with pytest.raises(VideoError) as caught:
            write_video(path, frames, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.transient
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.mp4"]


def times(path: Path) -> list[Fraction]:
    """The exact times of the frames, in seconds."""
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
            assert stream.duration * stream.time_base == 40 / Fraction(rate)  # the last frame has the same duration


def test_uneven_timestamps_are_kept(tmp_path: Path) -> None:
    moments = [0, 0.04, 0.05, 0.9, 1.234, 1.3, 3.0, 3.01]
    path = write_at(tmp_path / "out.mp4", 25, moments)
    assert [float(moment) for moment in times(path)] == pytest.approx(moments, abs=1.2e-3)
    ((_, clip),) = read_clips(path, [list(range(8))])
    assert [number_of(frame) for frame in clip] == list(range(8))


def test_a_tiny_mean_rate_is_accepted(tmp_path: Path) -> None:
    assert times(write_at(tmp_path / "out.mp4", 1e-5, [0, 7200])) == [0, 7200]


def test_timestamps_that_repeat_or_go_back_lose_no_frame(tmp_path: Path) -> None:
    path = write_at(tmp_path / "out.mp4", 25, [0, 0.5, 0.5, 0.3, 0.6])
    written = times(path)
    assert len(written) == 5 and written == sorted(set(written))
    assert float(written[-1]) == pytest.approx(0.6, abs=1e-3)


def test_errors_of_the_block_pass_unchanged(tmp_path: Path) -> None:
    for error in (UserError("another error"), OSError("another file")):
        with pytest.raises(type(error), match="another"), VideoWriter(tmp_path / "out.mp4", 25) as writer:
            writer.write(picture(0))
            raise error
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_writable_is_an_immediate_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(VideoError, match="Not a directory"), VideoWriter(tmp_path / "file" / "out.mp4", 25):
        raise AssertionError("the block was entered")


def test_a_disk_that_is_full_at_the_end_is_a_video_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(VideoError, match="No space left on device") as caught:
        write_video(tmp_path / "out.mp4", [picture(0)] * 3, fps=8)
    assert caught.value.transient and os.listdir(tmp_path) == []
