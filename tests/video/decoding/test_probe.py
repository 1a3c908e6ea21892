"""Headers: their contents, and the files that are refused before they are decoded."""

import os
import resource
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video.decode import VideoError, count, probe, read_clips
from gen1_train.video.decoding.probe import read_header
from gen1_train.video.decoding.reading import read_frames
from tests.video.files import MEDIA, copy_stream, make_video, needs_media, number_of, picture


@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_the_size_of_a_rotated_video_is_upright(tmp_path: Path, rotation: int, width: int) -> None:
    info = probe(make_video(tmp_path / "rotated.mp4", frames=8, rotation=rotation, width=width))
    assert (info.width, info.height) == ((48, width) if rotation % 180 else (width, 48))
    assert (info.rotation, info.frames, info.seconds, info.fps) == (rotation, 8, 0.32, 25)
    assert (info.codec, info.pixel_format, info.pixel_aspect) == ("h264", "yuv420p", 1)


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_size_of_an_anamorphic_video_is_as_displayed(tmp_path: Path, rotation: int) -> None:
    path = make_video(tmp_path / "dv.mp4", frames=8, rotation=rotation, sample_aspect="4:3")
    info = probe(path)
    if rotation:  # 64x48 wide pixels, rotated to 48x64 tall ones
        assert (info.width, info.height, info.pixel_aspect) == (36, 64, pytest.approx(3 / 4))
    else:
        assert (info.width, info.height, info.pixel_aspect) == (85, 48, pytest.approx(4 / 3))


def test_an_absurd_pixel_aspect_is_ignored(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "odd.mp4", frames=8, sample_aspect="100:1"))
    assert (info.width, info.pixel_aspect) == (64, 1)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (63, 47)])
def test_tiny_and_odd_sizes_are_read(tmp_path: Path, width: int, height: int) -> None:
    path = make_video(tmp_path / "tiny.mkv", frames=3, codec="ffv1", pixel_format="bgr0", width=width, height=height)
    info = probe(path)
    assert (info.width, info.height, count(path)) == (width, height, 3)
    ((_, clip),) = read_clips(path, [[0, 2]])
    np.testing.assert_array_equal(clip, [picture(0, width, height), picture(2, width, height)])


def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    original = make_video(tmp_path / "original.mp4", frames=100)
    path = copy_stream(original, tmp_path / "trimmed.mp4", lambda stream: None, shift=30, start=24)
    info = probe(path)
    frames = [number_of(frame.rgb()) for frame in read_frames(path)]
    assert frames == list(range(30, 100)) and info.frames == len(frames)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > len(frames)


def huge_png(path: Path) -> None:
    """Writes PNG pictures into a MOV, whose headers claim 11000x11000 pixels."""
    make_video(path, frames=8, codec="png", pixel_format="rgb24")
    data = bytearray(path.read_bytes())
    start = 0
    while (start := data.find(b"IHDR", start)) >= 0:
        data[start + 4 : start + 12] = struct.pack(">II", 11000, 11000)
        data[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(data[start : start + 17]))
        start += 4
    path.write_bytes(data)


def huge_vp8(path: Path) -> None:
    make_video(path, frames=8, codec="libvpx")
    data = bytearray(path.read_bytes())
    start = 0
    data[12:16] = struct.pack("<HH", 16383, 16383)
    while (start := data.find(b"\x9d\x01\x2a", start)) >= 0:
        data[start + 3 : start + 7] = struct.pack("<HH", 16383, 16383)
        start += 3
    path.write_bytes(data)


def huge_h264(path: Path, width: int = 12000, height: int = 12000) -> None:
    """Writes a sequence and a picture parameter set by hand, and slices of noise."""

    def golomb(number: int) -> str:
        return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"

    def unit(start: bytes, bits: str) -> bytes:
        bits += "1" + "0" * (-(len(bits) + 1) % 8)
        return b"\0\0\0\1" + start + int(bits, 2).to_bytes(len(bits) // 8, "big")

    sizes = golomb(width // 16 - 1) + golomb(height // 16 - 1)
    sequence = unit(b"\x67\x42\x00\x3e", golomb(0) * 2 + golomb(2) + golomb(1) + "0" + sizes + "1100")
    pictures = unit(b"\x68", golomb(0) * 2 + "00" + golomb(0) * 3 + "000" + golomb(0) * 3 + "000")
    noise = np.random.default_rng(0).integers(1, 256, 4000, dtype=np.uint8).tobytes()
    path.write_bytes(sequence + pictures + (b"\0\0\0\1\x65\xb8" + noise) * 5)


@pytest.mark.parametrize(
    ("name", "make"),
    [("huge.mov", huge_png), ("huge.ivf", huge_vp8), ("huge.h264", huge_h264)],
    ids=["png", "vp8", "h264"],
)
def test_huge_frames_are_refused_without_allocating_them(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for attempt in (read_header, lambda p: next(read_frames(p, "pyav")), lambda p: next(read_frames(p, "decord"))):
        with pytest.raises(VideoError, match=r"its header has .*: frames may have at most 67108864 pixels") as caught:
            attempt(path)
        assert not caught.value.transient and not caught.value.unsupported
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB; one frame has 180 MB or more


def test_the_handmade_parameter_sets_are_valid(tmp_path: Path) -> None:
    """The huge file above is refused for its size, not because it is invalid."""
    huge_h264(tmp_path / "small.h264", 320, 240)
    with av.open(str(tmp_path / "small.h264")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height, context.name) == (320, 240, "h264")


@pytest.mark.parametrize(("transfer", "accepted"), [(16, False), (18, True), (1, True)], ids=["PQ", "HLG", "SDR"])
def test_pq_is_refused_and_hlg_is_accepted(tmp_path: Path, transfer: int, accepted: bool) -> None:
    path = make_video(tmp_path / "hdr.mp4", frames=8, color_tags={"color_trc": transfer, "colorspace": 9})
    if accepted:
        assert probe(path).frames == 8
        return
    for attempt in (lambda: probe(path), lambda: count(path)):
        with pytest.raises(VideoError, match=r"PQ.*tone-map it first") as caught:
            attempt()
        assert not caught.value.transient


@pytest.mark.parametrize("matrix", [8, 10, 14], ids=["YCgCo", "BT.2020 CL", "ICtCp"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_unsupported_color_matrices_are_refused(tmp_path: Path, matrix: int, decoder: str) -> None:
    path = make_video(tmp_path / "odd.mkv", frames=8, color_tags={"colorspace": matrix})
    with pytest.raises(VideoError, match="its color matrix is not supported") as caught:
        next(read_frames(path, decoder))
    assert not caught.value.transient


def empty(path: Path) -> None:
    path.touch()


def text(path: Path, content: str) -> None:
    path.write_text(content)


def audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 48000
        frame.pts = 0
        frame.time_base = Fraction(1, 48000)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def without_header(path: Path) -> None:
    """Writes an unfinished recording, whose header would come last."""
    complete = make_video(path.with_suffix(".mov"))
    data = complete.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    complete.unlink()


def list_of_files(path: Path) -> None:
    make_video(path.with_name("other.mp4"), frames=8)
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (empty, "the file is empty"),
        (partial(text, content="This is not a video\n" * 50), "Invalid data"),
        (partial(text, content="#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"), "a list of other files"),
        (partial(text, content="ffconcat version 1.0\nfile nowhere.mp4\n"), "a list of other files"),
        (partial(text, content="\n\nffconcat version 1.0\nfile nowhere.mp4\n"), "a list of other files"),
        (partial(text, content='<?xml version="1.0"?><MPD type="static">'), "a list of other files"),
        (list_of_files, "a list of other files"),
        (audio, "no video stream"),
        (without_header, "ends before its header"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
    ],
    ids=["empty", "text", "m3u", "dangling", "indented", "dash", "concat", "audio", "no moov", "fifo", "folder"],
)
def test_a_file_that_is_not_a_video_is_a_permanent_error(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "some.mp4"
    make(path)
    for attempt in (lambda: probe(path), lambda: count(path), lambda: list(read_clips(path, [[0]]))):
        with pytest.raises(VideoError, match=reason) as caught:
            attempt()
        assert not caught.value.transient


def test_a_missing_file_is_a_transient_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "some.mp4", frames=8)
    assert probe(path).frames == 8
    path.unlink()
    for attempt in (lambda: probe(path), lambda: count(path), lambda: list(read_clips(path, [[0]]))):
        with pytest.raises(VideoError, match="No such file") as caught:
            attempt()
        assert caught.value.transient


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_missing_permission_is_a_transient_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "some.mp4", frames=8)
    path.chmod(0)
    with pytest.raises(VideoError, match="Permission denied") as caught:
        probe(path)
    assert caught.value.transient


@pytest.mark.parametrize("name", ["http:clip.mp4", 'it\'s "a" name.mp4', "ünï\ncode.mp4", "%03d.mp4", "-i.mp4"])
def test_any_file_name_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "plain.mp4", frames=8).rename(name)
    assert probe(name).frames == count(name) == 8
    os.mkdir("below")
    assert probe(f"below/../{name}").frames == 8


def test_a_file_name_that_is_not_unicode_is_accepted(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    make_video(tmp_path / "plain.mp4", frames=8).rename(path)
    assert probe(path).frames == count(path) == 8


def test_a_url_is_opened_by_fsspec(tmp_path: Path) -> None:
    path = make_video(tmp_path / "some.mp4", frames=8)
    assert probe(f"file://{path}") == probe(path)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile some.mp4\n")
    with pytest.raises(VideoError):  # a list must not lead to other files
        probe(f"file://{tmp_path}/list.mp4")
    with pytest.raises(VideoError) as caught:
        probe(f"file://{tmp_path}/absent.mp4")
    assert caught.value.transient
    with pytest.raises(VideoError, match="fsspec does not know nothing://") as caught:
        probe("nothing://there/clip.mp4")
    assert not caught.value.transient


@needs_media
def test_the_header_of_the_default_stream_is_read() -> None:
    info = probe(MEDIA / "nasa_13013.mp4")
    assert (info.width, info.height, info.frames) == (480, 270, 390)  # not stream 0, of 320x180


@needs_media
def test_the_header_of_av1_has_no_frame_count() -> None:
    info = probe(MEDIA / "av1_video.mkv")
    assert (info.width, info.height, info.frames, info.expected_frames) == (640, 360, None, 125)
    assert count(MEDIA / "av1_video.mkv") == 125
