"""Frames: all of them, in order, in the right colours, and none that is damaged."""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video import frames as room
from gen1_train.video.frames import SMALL, Frame, held_back, read_any, read_frames
from gen1_train.video.probe import VideoError
from tests.video.files import MEDIA, copy_stream, flip_bit, make_video, needs_media, number_of, picture

COLOURS = np.array(
    [[200, 30, 30], [30, 200, 30], [30, 30, 200], [128, 128, 128], [255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8
)
BLOCK = 16  # pixels, the width of a flat colour
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def flat_video(path: Path, matrix: int, full_range: bool, pixel_format: str, codec: str, options: dict) -> Path:
    """A video of flat blocks of COLOURS, whose Y, U and V are made here by the standards' formulas."""
    kr, kb = MATRICES[matrix]
    rgb = COLOURS / 255
    luma = rgb @ [kr, 1 - kr - kb, kb]
    colour = [luma, (rgb[:, 2] - luma) / (2 - 2 * kb), (rgb[:, 0] - luma) / (2 - 2 * kr)]
    format = av.VideoFormat(pixel_format)
    bits = format.components[0].bits
    unit, top = 2 ** (bits - 8), 2**bits - 1
    if full_range:
        stored = [colour[0] * top, colour[1] * top + 128 * unit, colour[2] * top + 128 * unit]
    else:
        stored = [16 * unit + 219 * unit * colour[0], *(128 * unit + 224 * unit * c for c in colour[1:])]
    dtype = np.uint8 if bits == 8 else np.uint16
    tags = {"colorspace": matrix, "color_range": 2 if full_range else 1}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = BLOCK * len(COLOURS), 48, pixel_format
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
            frame.pts, frame.time_base = i, Fraction(1, 25)
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
def test_colours_are_right(tmp_path: Path, matrix: int, full_range: bool, pixel_format: str, codec: str) -> None:
    """By both decoders; decord refuses the formats in which it would not be right."""
    path = flat_video(tmp_path / "flat.mp4", matrix, full_range, pixel_format, codec, LOSSLESS[codec])
    for decoder in ("pyav", "decord"):
        try:
            frame = list(read_frames(path, decoder))[2]
        except VideoError as error:
            assert decoder == "decord" and str(error).startswith("decord is not asked for yuv")
            assert "10le" in pixel_format or pixel_format == "yuvj444p" or full_range
            continue
        for pixels in (frame.rgb(), frame.small()[..., ::-1]):
            assert pixels.dtype == np.uint8 and pixels.shape == (48, BLOCK * len(COLOURS), 3)
            assert np.abs(pixels[24, BLOCK // 2 :: BLOCK].astype(int) - COLOURS).max() <= 3


@pytest.mark.parametrize("full_range", [True, False])
def test_grey_videos_keep_their_range(tmp_path: Path, full_range: bool) -> None:
    greys = np.array([0, 40, 90, 128, 200, 255], np.uint8)
    stored = greys if full_range else (16 + 219 / 255 * greys).round().astype(np.uint8)
    with av.open(str(tmp_path / "grey.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 16 * len(greys), 48, "gray"
        frame = av.VideoFrame.from_ndarray(np.tile(stored.repeat(16), (48, 1)), format="gray")
        frame.color_range = stream.codec_context.color_range = 2 if full_range else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (shown,) = read_any(tmp_path / "grey.mp4")
    for pixels in (shown.rgb(), shown.small()):
        assert np.abs(pixels[24, 8::16].astype(int) - greys[:, None]).max() <= 1


@pytest.mark.parametrize("pixel_format", ["gray", "gray10le"])
def test_lossless_grey(tmp_path: Path, pixel_format: str) -> None:
    path = make_video(tmp_path / "grey.mkv", 3, "ffv1", pixel_format)
    expected = av.VideoFrame.from_ndarray(picture(2), format="rgb24").reformat(format="gray").to_ndarray()
    *_, frame = read_any(path)
    assert np.abs(frame.rgb().astype(int) - expected[..., None]).max() <= 2


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("png", "rgba"), ("qtrle", "argb"), ("prores_ks", "yuva444p10le"), ("png", "ya8")],
)
def test_what_is_transparent_comes_out_white(tmp_path: Path, codec: str, pixel_format: str) -> None:
    stored = np.zeros((48, 64, 4), np.uint8)
    stored[:, :, :3], stored[:, :32, 3], stored[:, 48:, 3] = 100, 255, 128
    with av.open(str(tmp_path / "alpha.mov"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        frame = av.VideoFrame.from_ndarray(stored, format="rgba").reformat(format=pixel_format)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (shown,) = read_any(tmp_path / "alpha.mov")
    for pixels in (shown.rgb(), shown.small()):
        for column, grey in ((16, 100), (40, 255), (56, 177)):
            assert np.abs(pixels[24, column].astype(int) - grey).max() <= 3


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (640, 200), (90, 1024), (1030, 20)])
def test_small_is_the_picture_shrunk(tmp_path: Path, decoder: str, width: int, height: int) -> None:
    path = make_video(tmp_path / "some.mp4", 2, width=width, height=height, pixel_format="yuv444p")
    try:
        frame = next(read_frames(path, decoder))
    except VideoError as error:
        assert decoder == "decord" and width % 32 and re.match(r"decord: frames of .* 4\)", str(error))
        return
    small, full = frame.small(), frame.rgb()
    scale = min(1, SMALL / max(width, height))
    assert small.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 3)
    for channel in range(3):
        assert small[..., 2 - channel].mean() == pytest.approx(full[..., channel].mean(), abs=1.5)
    if scale == 1:
        np.testing.assert_array_equal(small[..., ::-1], full)


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    starts = [3, 4, 5, 9, 10, 20, 21, 22, 40, 41]
    path = make_video(tmp_path / "variable.mp4", 10, options={"bf": "0"}, starts=starts)
    for decoder in ("pyav", "decord"):
        frames = list(read_frames(path, decoder))
        assert [frame.index for frame in frames] == list(range(10))
        assert [number_of(frame.rgb()) for frame in frames] == list(range(10))
        assert [frame.seconds for frame in frames] == pytest.approx([(s - 3) / 25 for s in starts], abs=1e-3)
        assert {frame.decoder for frame in frames} == {decoder}


def test_a_file_without_times_is_timed_by_its_rate(tmp_path: Path) -> None:
    path = make_video(tmp_path / "raw.h264", 10, options={"bf": "0"})
    assert [frame.seconds for frame in read_any(path)] == pytest.approx([i / 25 for i in range(10)])


def test_another_size_within_the_video_is_an_error(tmp_path: Path) -> None:
    first = make_video(tmp_path / "first.h264", 40)
    second = make_video(tmp_path / "second.h264", 40, width=96)
    path = tmp_path / "both.h264"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    came = []
    with pytest.raises(VideoError, match="size of the frames changes"):
        for frame in read_any(path):
            came.append(number_of(frame.rgb()))
    assert came and came == list(range(len(came)))


def until_error(path: Path) -> tuple[list[np.ndarray], str | None]:
    came: list[np.ndarray] = []
    try:
        for frame in read_any(path):
            came.append(frame.rgb())
    except VideoError as error:
        assert not error.transient
        return came, str(error)
    return came, None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = int(len(data) * 0.6)
    data[start : start + 2000] = np.random.default_rng(1).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))


def several_times(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 2, len(data) * 9 // 10, 3000):
        data[start : start + 200] = bytes(200)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [cut_short, overwrite, several_times])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_broken_file_gives_whole_frames_and_an_error(
    tmp_path: Path, suffix: str, harm: Callable[[Path], None]
) -> None:
    path = make_video(tmp_path / "broken.mp4", 200)
    if suffix == ".mkv":
        path = copy_stream(path, path.with_suffix(suffix), lambda stream: None)
    whole, no_error = until_error(path)
    assert len(whole) == 200 and no_error is None
    harm(path)
    came, reason = until_error(path)
    assert reason is not None and any(clause in reason for clause in ("ends early", "damaged at", "broken after"))
    assert 50 < len(came) < 150
    np.testing.assert_array_equal(came, whole[: len(came)])


def test_a_file_without_a_count_may_end_with_its_duration(tmp_path: Path) -> None:
    """The last picture of a slow video stands for long: that it started early is no sign of damage."""
    path = make_video(tmp_path / "slow.mkv", 6, options={"bf": "0"}, starts=[0, 75, 150, 225, 300, 375])
    assert len(list(read_any(path))) == 6


@needs_media
def test_flipped_bits_never_give_a_wrong_frame_of_a_real_file(tmp_path: Path) -> None:
    """decord, and PyAV without a look at its flags, give up to 94 frames of garbage for one bit."""
    whole, no_error = until_error(MEDIA / "bigbuckbunny.mp4")
    assert no_error is None
    whole = [frame[::8, ::8] for frame in whole]
    generator = np.random.default_rng(0)
    errors = 0
    for _ in range(6):
        came, error = until_error(flip_bit(MEDIA / "bigbuckbunny.mp4", tmp_path / "flipped.mp4", generator))
        assert all((a[::8, ::8] == b).all() for a, b in zip(came, whole, strict=False))
        assert error is not None or len(came) == len(whole)
        errors += error is not None
    assert errors >= 3


def test_most_flipped_bits_are_noticed(tmp_path: Path) -> None:
    """Not all can be: some leave a stream that is valid and shows something else; no decoder can tell."""
    path = make_video(tmp_path / "whole.mp4", 60, width=160, height=96)
    whole, _ = until_error(path)
    generator = np.random.default_rng(3)
    noticed = 0
    for _ in range(20):
        came, error = until_error(flip_bit(path, tmp_path / "flipped.mp4", generator))
        noticed += error is not None
        assert error is not None or len(came) == len(whole)
    assert noticed >= 14


@needs_media
def test_a_file_with_broken_packets_is_an_error() -> None:
    came, error = until_error(MEDIA / "corrupted.mp4")
    assert error == "broken after 28 frames: Invalid data found when processing input" and len(came) == 12


@needs_media
def test_av1_is_read() -> None:
    frames = list(read_any(MEDIA / "av1_video.mkv"))
    assert len(frames) == 125 and frames[-1].seconds == pytest.approx(124 / 25, abs=1e-3)
    with pytest.raises(VideoError, match="decord"):
        next(read_frames(MEDIA / "av1_video.mkv", "decord"))


def test_frames_are_held_back_until_they_are_known_to_be_whole() -> None:
    def breaks() -> Iterator[int]:
        yield from range(20)
        raise VideoError("broken")

    came = []
    with pytest.raises(VideoError):
        for number in held_back(breaks(), 64 * 48):
            came.append(number)
    assert came == [0, 1, 2, 3]
    assert list(held_back(iter(range(20)), 64 * 48)) == list(range(20))
    assert next(held_back(breaks(), 8192 * 8192)) == 0


class Tape:
    """Stands for two decoders, each of which gives some frames and then an error or the end."""

    def __init__(self, **endings: tuple[int, VideoError | None]) -> None:
        self.endings, self.asked = endings, list[str]()

    def __call__(self, path: str | Path, decoder: str) -> Iterator[Frame]:
        self.asked.append(decoder)
        count, error = self.endings[decoder]
        for index in range(count):
            yield room.PyAVFrame(index, index / 25, None, None, decoder)  # type: ignore[arg-type]
        if error is not None:
            raise error


UNSUPPORTED = VideoError("no decoder", unsupported=True)


@pytest.mark.parametrize(
    ("order", "pyav", "decord", "asked", "given"),
    [
        ("pyav decord", (5, None), (5, None), "pyav", "ppppp"),
        ("pyav decord", (0, UNSUPPORTED), (5, None), "pyav decord", "ddddd"),
        ("decord pyav", (5, None), (5, None), "decord", "ddddd"),
        ("decord pyav", (5, None), (2, VideoError("lost")), "decord pyav", "ddppp"),
    ],
)
def test_the_next_decoder_goes_on(
    monkeypatch: pytest.MonkeyPatch, order: str, pyav: tuple, decord: tuple, asked: str, given: str
) -> None:
    tape = Tape(pyav=pyav, decord=decord)
    monkeypatch.setattr(room, "read_frames", tape)
    frames = list(read_any("some.mp4", order.split()))
    assert "".join(frame.decoder[0] for frame in frames) == given
    assert [frame.index for frame in frames] == list(range(5))
    assert " ".join(tape.asked) == asked


@pytest.mark.parametrize(
    ("order", "pyav", "decord", "asked", "reason"),
    [
        ("pyav decord", (0, VideoError("damaged at frame 0")), (5, None), "pyav", "damaged at frame 0"),
        ("pyav decord", (3, VideoError("damaged at frame 3")), (5, None), "pyav", "damaged at frame 3"),
        ("pyav decord", (0, UNSUPPORTED), (0, VideoError("nor I")), "pyav decord", "no decoder"),
        ("decord pyav", (3, VideoError("damaged at frame 3")), (1, VideoError("lost")), "decord pyav", "damaged at"),
        ("decord", (0, None), (1, VideoError("lost")), "decord", "lost"),
    ],
)
def test_decord_is_not_asked_after_damage_and_pyav_tells_the_reason(
    monkeypatch: pytest.MonkeyPatch, order: str, pyav: tuple, decord: tuple, asked: str, reason: str
) -> None:
    tape = Tape(pyav=pyav, decord=decord)
    monkeypatch.setattr(room, "read_frames", tape)
    with pytest.raises(VideoError, match=reason):
        list(read_any("some.mp4", order.split()))
    assert " ".join(tape.asked) == asked


def test_an_unknown_codec_is_unsupported(tmp_path: Path) -> None:
    path = make_video(tmp_path / "some.mp4", 8)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(VideoError) as caught:
        list(read_frames(path))
    assert caught.value.unsupported and not caught.value.transient
    with pytest.raises(VideoError, match=str(caught.value)):
        list(read_any(path))


@pytest.mark.parametrize("frames", [2, 30])
def test_avi_has_no_presentation_times_and_its_frames_still_ascend(tmp_path: Path, frames: int) -> None:
    """ffmpeg guesses them from the packets, whose order is another one with B-frames."""
    path = make_video(tmp_path / "a.avi", frames)
    assert [frame.seconds for frame in read_frames(path)] == pytest.approx([i / 25 for i in range(frames)])
