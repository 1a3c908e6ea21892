"""Decoded frames: all of them, in order, in the correct colors, at the correct times."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video.decode import probe
from gen1_train.video.decoding.frames import SMALL, delayed
from gen1_train.video.decoding.reading import read_any, read_frames
from gen1_train.video.errors import VideoError
from tests.video.files import FAULTS, make_video, number_of, picture

COLORS = np.array(
    [[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128], [255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8
)
BLOCK = 16  # pixels, the width of a flat color
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def flat_video(path: Path, matrix: int, full_range: bool, pixel_format: str, codec: str, options: dict) -> Path:
    """Writes a video of flat blocks of COLORS, with Y, U and V computed by the formulas of the standards."""
    kr, kb = MATRICES[matrix]
    rgb = COLORS / 255
    luma = rgb @ [kr, 1 - kr - kb, kb]
    color = [luma, (rgb[:, 2] - luma) / (2 - 2 * kb), (rgb[:, 0] - luma) / (2 - 2 * kr)]
    format = av.VideoFormat(pixel_format)
    bits = format.components[0].bits
    unit = 2 ** (bits - 8)
    top = 2**bits - 1
    if full_range:
        stored = [color[0] * top, color[1] * top + 128 * unit, color[2] * top + 128 * unit]
    else:
        stored = [16 * unit + 219 * unit * color[0], *(128 * unit + 224 * unit * c for c in color[1:])]
    dtype = np.uint8 if bits == 8 else np.uint16
    tags = {"colorspace": matrix, "color_range": 2 if full_range else 1}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = BLOCK * len(COLORS)
        stream.height = 48
        stream.pix_fmt = pixel_format
        frame = av.VideoFrame(stream.width, stream.height, pixel_format)
        for target in (stream.codec_context, frame):
            for tag, number in tags.items():
                setattr(target, tag, number)
        for plane, values in zip(frame.planes, stored, strict=True):
            row = np.clip(values.round(), 0, top).astype(dtype).repeat(BLOCK * plane.width // stream.width)
            line = np.zeros(plane.line_size, np.uint8)
            line[: row.nbytes] = row.view(np.uint8)
            plane.update(np.tile(line, plane.height))
        for i in range(20):
            frame.pts = i
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


LOSSLESS = {
    "libx264": {"qp": "0"},
    "libx265": {"x265-params": "lossless=1:log-level=none"},
    "libvpx-vp9": {"lossless": "1"},
}


@pytest.mark.parametrize(
    ("matrix", "full_range", "pixel_format", "codec"),
    [
        *((matrix, full, "yuv420p", "libx264") for matrix in MATRICES for full in (False, True)),
        (1, True, "yuvj420p", "libx264"),
        (1, False, "yuv422p", "libx264"),
        (6, False, "yuv444p", "libx264"),
        (1, True, "yuv444p", "libx264"),
        (1, False, "yuv420p10le", "libx264"),
        (9, False, "yuv422p10le", "libx264"),
        (9, True, "yuv444p10le", "libx264"),
        (1, False, "yuv420p", "libx265"),
        (1, True, "yuv420p", "libvpx-vp9"),
    ],
)
def test_colors_are_correct(tmp_path: Path, matrix: int, full_range: bool, pixel_format: str, codec: str) -> None:
    """With both decoders; decord refuses the formats in which its colors would be wrong."""
    path = flat_video(tmp_path / "flat.mp4", matrix, full_range, pixel_format, codec, LOSSLESS[codec])
    for decoder in ("pyav", "decord"):
        try:
            frame = list(read_frames(path, decoder))[2]
        except VideoError as error:
            assert decoder == "decord" and str(error).startswith("decord is not used for yuv")
            assert "10le" in pixel_format or pixel_format == "yuvj444p" or full_range
            continue
        for pixels in (frame.rgb(), frame.small()[..., ::-1]):
            assert pixels.dtype == np.uint8 and pixels.shape == (48, BLOCK * len(COLORS), 3)
            assert np.abs(pixels[24, BLOCK // 2 :: BLOCK].astype(int) - COLORS).max() <= 3


@pytest.mark.parametrize(("width", "height", "matrix"), [(1280, 544, 1), (1024, 768, 1), (768, 576, 6), (320, 240, 6)])
def test_untagged_video_has_the_colors_that_players_show(tmp_path: Path, width: int, height: int, matrix: int) -> None:
    """HD without a tag is BT.709 to mpv, VLC and browsers; smaller video is BT.601."""
    shown = []
    for name, tags in (("untagged", {"colorspace": 2}), ("tagged", {"colorspace": matrix})):
        path = tmp_path / f"{name}.mkv"
        make_video(path, 1, "ffv1", width=width, height=height, color_tags=tags)
        (frame,) = read_any(path)
        shown.append(frame)
    np.testing.assert_array_equal(shown[0].rgb(), shown[1].rgb())
    np.testing.assert_array_equal(shown[0].small(), shown[1].small())


def test_decord_does_not_read_untagged_hd(tmp_path: Path) -> None:
    path = make_video(tmp_path / "hd.mp4", 2, width=1280, height=720)
    with pytest.raises(VideoError, match="decord is not used for yuv420p of 1280x720"):
        list(read_frames(path, "decord"))


@pytest.mark.parametrize("full_range", [True, False])
def test_gray_videos_keep_their_range(tmp_path: Path, full_range: bool) -> None:
    grays = np.array([0, 40, 90, 128, 200, 255], np.uint8)
    stored = grays if full_range else (16 + 219 / 255 * grays).round().astype(np.uint8)
    with av.open(str(tmp_path / "gray.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width = 16 * len(grays)
        stream.height = 48
        stream.pix_fmt = "gray"
        frame = av.VideoFrame.from_ndarray(np.tile(stored.repeat(16), (48, 1)), format="gray")
        frame.color_range = stream.codec_context.color_range = 2 if full_range else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (shown,) = read_any(tmp_path / "gray.mp4")
    for pixels in (shown.rgb(), shown.small()):
        assert np.abs(pixels[24, 8::16].astype(int) - grays[:, None]).max() <= 1


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
def test_lossless_gray(tmp_path: Path, pixel_format: str) -> None:
    path = make_video(tmp_path / "gray.mkv", 3, "ffv1", pixel_format)
    expected = av.VideoFrame.from_ndarray(picture(2), format="rgb24").reformat(format="gray").to_ndarray()
    *_, frame = read_any(path)
    assert np.abs(frame.rgb().astype(int) - expected[..., None]).max() <= 2


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("png", "rgba"), ("qtrle", "argb"), ("prores_ks", "yuva444p10le"), ("png", "ya8")],
)
def test_transparent_pixels_become_white(tmp_path: Path, codec: str, pixel_format: str) -> None:
    stored = np.zeros((48, 64, 4), np.uint8)
    stored[:, :, :3] = 100
    stored[:, :32, 3] = 255
    stored[:, 48:, 3] = 128
    with av.open(str(tmp_path / "alpha.mov"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = pixel_format
        frame = av.VideoFrame.from_ndarray(stored, format="rgba").reformat(format=pixel_format)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (shown,) = read_any(tmp_path / "alpha.mov")
    for pixels in (shown.rgb(), shown.small()):
        for column, gray in ((16, 100), (40, 255), (56, 177)):
            assert np.abs(pixels[24, column].astype(int) - gray).max() <= 3


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_the_transparency_of_webm_becomes_white(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "alpha.webm"
    stored = np.zeros((48, 64, 4), np.uint8)
    stored[:, :, :3] = 100
    stored[:, :32, 3] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(stored, format="rgba").reformat(format="yuva420p")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = list(read_any(path))
    assert len(frames) == 6
    for pixels in (frames[5].rgb(), frames[5].small()):
        assert np.abs(pixels[24, 16].astype(int) - 100).max() <= 4 and pixels[24, 48].min() >= 250
    assert probe(path).frames is None


def test_a_transparent_webm_of_ffmpeg_is_white_where_it_is_transparent() -> None:
    frames = list(read_any(FAULTS / "alpha9.webm"))
    pixels = frames[0].rgb()
    assert len(frames) == 10 and (pixels == 255).all(axis=-1).any() and not (pixels == 255).all()


def interlaced_video(path: Path, frames: int) -> Path:
    """Writes a bar that moves 6 pixels a field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "b": "4M", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            pixels = np.zeros((240, 320, 3), np.uint8)
            for field in (0, 1):
                x = (2 * i + field) * 6
                pixels[field::2, x : x + 40] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def combs(pixels: np.ndarray) -> float:
    """The mean difference between neighboring rows, which a moving interlaced bar makes large."""
    return float(np.abs(np.diff(pixels[..., 0].astype(int), axis=0)).mean())


@pytest.mark.parametrize("suffix", ["mpg", "avi", "ts"])
def test_interlaced_frames_are_deinterlaced(tmp_path: Path, suffix: str) -> None:
    path = interlaced_video(tmp_path / f"a.{suffix}", 20)
    frames = list(read_any(path))
    assert len(frames) == 20 and all(frame.interlaced for frame in frames)
    assert np.allclose([frame.seconds for frame in frames], np.arange(20) / 25, atol=2e-3)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, pixels in zip(frames[1:], stored[1:]):
        assert combs(pixels) > 5 and combs(frame.rgb()) < 1 and combs(frame.small()) < 2


def test_progressive_frames_are_not_deinterlaced(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 10)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = list(read_any(path))
    assert not any(frame.interlaced for frame in frames)
    for frame, pixels in zip(frames, stored, strict=True):
        np.testing.assert_array_equal(frame.rgb(), pixels)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (640, 200), (90, 560), (1030, 20)])
def test_small_is_the_downscaled_picture(tmp_path: Path, decoder: str, width: int, height: int) -> None:
    path = make_video(tmp_path / "some.mp4", 2, width=width, height=height, pixel_format="yuv444p")
    try:
        frame = next(read_frames(path, decoder))
    except VideoError as error:
        assert decoder == "decord" and width % 32 and re.match(r"decord: frames of .* 4\)", str(error))
        return
    small = frame.small()
    full = frame.rgb()
    scale = min(1, SMALL / max(width, height))
    assert small.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 3)
    for channel in range(3):
        assert small[..., 2 - channel].mean() == pytest.approx(full[..., channel].mean(), abs=1.5)
    if scale == 1:
        np.testing.assert_array_equal(small[..., ::-1], full)


def test_times_are_read_from_the_file(tmp_path: Path) -> None:
    starts = [3, 4, 5, 9, 10, 20, 21, 22, 40, 41]
    path = make_video(tmp_path / "variable.mp4", 10, options={"bf": "0"}, starts=starts)
    for decoder in ("pyav", "decord"):
        frames = list(read_frames(path, decoder))
        assert [frame.index for frame in frames] == list(range(10))
        assert [number_of(frame.rgb()) for frame in frames] == list(range(10))
        assert [frame.seconds for frame in frames] == pytest.approx([(s - 3) / 25 for s in starts], abs=1e-3)
        assert {frame.decoder for frame in frames} == {decoder}


def test_times_follow_the_rate_if_the_file_has_none(tmp_path: Path) -> None:
    path = make_video(tmp_path / "raw.h264", 10, options={"bf": "0"})
    assert [frame.seconds for frame in read_any(path)] == pytest.approx([i / 25 for i in range(10)])


def test_a_change_of_the_frame_size_is_an_error(tmp_path: Path) -> None:
    first = make_video(tmp_path / "first.h264", 40)
    second = make_video(tmp_path / "second.h264", 40, width=96)
    path = tmp_path / "both.h264"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    numbers = []
    with pytest.raises(VideoError, match="size of the frames changes"):
        for frame in read_any(path):
            numbers.append(number_of(frame.rgb()))
    assert numbers and numbers == list(range(len(numbers)))


def test_the_last_frame_of_a_file_without_a_count_may_start_early(tmp_path: Path) -> None:
    """The last picture of a slow video is displayed for a long time: its early start is not a sign of damage."""
    path = make_video(tmp_path / "slow.mkv", 6, options={"bf": "0"}, starts=[0, 75, 150, 225, 300, 375])
    assert len(list(read_any(path))) == 6


def test_frames_are_delayed_until_they_are_known_to_be_intact() -> None:
    def breaks() -> Iterator[int]:
        yield from range(20)
        raise VideoError("broken")

    numbers = []
    with pytest.raises(VideoError):
        for number in delayed(breaks(), 64 * 48):
            numbers.append(number)
    assert numbers == [0, 1, 2, 3]
    assert list(delayed(iter(range(20)), 64 * 48)) == list(range(20))
    assert next(delayed(breaks(), 8192 * 8192)) == 0


@pytest.mark.parametrize("frames", [2, 30])
def test_the_times_of_avi_frames_ascend_though_the_format_has_none(tmp_path: Path, frames: int) -> None:
    """ffmpeg guesses them from the packets, whose order differs with B-frames."""
    path = make_video(tmp_path / "a.avi", frames)
    assert [frame.seconds for frame in read_frames(path)] == pytest.approx([i / 25 for i in range(frames)])
