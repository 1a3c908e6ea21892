"""Two decoders, one truth: the same frames, the frames that were asked for, or a VideoError."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.decode import DecordReader, PyAVReader, VideoError, VideoReader, probe, read_clips
from tests.video.files import MEDIA, make_video, needs_media, number_of

PAIRS = [[i, i + 4] for i in range(0, 112, 8)]
NUMBERS = [[0, 4, 8, 12], [16, 20, 24, 28], [32, 36, 40, 44]]
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}


@pytest.fixture(scope="module")
def decord() -> Iterator[DecordReader]:
    reader = DecordReader()
    yield reader
    reader.close()


def served(path: Path, windows: Sequence[Sequence[int]], *readers: VideoReader) -> list[tuple[str, list[int]]]:
    """Who served each window, and which frames came."""
    return [(name, [number_of(frame) for frame in clip]) for name, clip in read_clips(path, windows, readers)]


def until_error(path: Path, *readers: VideoReader) -> tuple[list[np.ndarray], str]:
    """The windows of a broken file that came before the VideoError, and its message."""
    came = []
    with pytest.raises(VideoError) as caught:
        for _, clip in read_clips(path, PAIRS, readers):
            came.append(clip)
    assert 0 < len(came) < len(PAIRS)
    return came, str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("plain.mkv", {}),
        ("open_gop.mp4", {"options": OPEN_GOP}),
        ("h265.mp4", {"codec": "libx265", "options": {"x265-params": "open-gop=1:keyint=12:log-level=none"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("ten_bits.mp4", {"pixel_format": "yuv420p10le"}),
        ("repeated.mp4", {"options": {"bf": "0"}, "starts": [0] * 20 + list(range(1, 41))}),
    ],
)
def test_both_ways_give_the_frames_that_were_asked_for(
    tmp_path: Path, decord: DecordReader, name: str, options: dict
) -> None:
    path = make_video(tmp_path / name, **options)
    first = [clip for _, clip in read_clips(path, NUMBERS, [decord, PyAVReader()])]
    second = list(PyAVReader().clips(path, NUMBERS))
    assert [[number_of(frame) for frame in clip] for clip in second] == NUMBERS
    for a, b in zip(first, second, strict=True):
        assert a.dtype == np.uint8 and a.shape == (4, 48, 64, 3)
        np.testing.assert_array_equal(a, b)


def test_decord_serves_first(tmp_path: Path, decord: DecordReader) -> None:
    path = make_video(tmp_path / "plain.mp4")
    assert served(path, NUMBERS, decord, PyAVReader()) == [("decord", numbers) for numbers in NUMBERS]
    assert decord.count(path) == PyAVReader().count(path) == 60


@pytest.mark.parametrize("starts", [[0] * 20 + list(range(1, 41))])
def test_decord_is_not_trusted_with_repeated_timestamps(
    tmp_path: Path, decord: DecordReader, starts: list[int]
) -> None:
    """Its seek by timestamp gave frame 50 for frame 0 of such a file, without an error."""
    path = make_video(tmp_path / "repeated.mp4", options={"bf": "0"}, starts=starts)
    assert served(path, NUMBERS, decord, PyAVReader()) == [("pyav", numbers) for numbers in NUMBERS]


@pytest.mark.parametrize("width", [64, 72])  # 72: decord gives four channels, and 48 of a turned 64x48 likewise
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_tags_are_applied(tmp_path: Path, decord: DecordReader, rotation: int, width: int) -> None:
    path = make_video(tmp_path / "turned.mp4", frames=8, rotation=rotation, width=width)
    info = probe(path)
    assert (info.width, info.height) == ((48, width) if rotation % 180 else (width, 48))
    assert info.rotation == rotation
    ((_, a),), (b,) = read_clips(path, [[0, 7]], [decord, PyAVReader()]), PyAVReader().clips(path, [[0, 7]])
    np.testing.assert_array_equal(a, b)
    assert number_of(np.rot90(b[1], -rotation // 90)) == 7


def test_overlapping_windows_are_served(tmp_path: Path, decord: DecordReader) -> None:
    path = make_video(tmp_path / "plain.mp4")
    windows = [[0, 1, 2, 3], [2, 4, 6], [3, 20]]
    assert [numbers for _, numbers in served(path, windows, decord, PyAVReader())] == windows


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = int(len(data) * 0.6)
    data[start : start + 2000] = np.random.default_rng(1).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [cut_short, overwrite])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_broken_file_gives_its_whole_clips_whoever_reads(
    tmp_path: Path, decord: DecordReader, suffix: str, harm: Callable[[Path], None]
) -> None:
    """decord's threads notice the damage sooner or later; what comes out must not depend on it."""
    path = make_video(tmp_path / f"broken{suffix}", frames=120)
    whole = list(PyAVReader().clips(path, PAIRS))
    harm(path)
    came, reason = until_error(path, PyAVReader())
    assert any(clause in reason for clause in ("ends early", "was asked for", "broken after"))
    for _ in range(3):
        again, reason_again = until_error(path, decord, PyAVReader())
        assert len(again) == len(came) and reason_again == reason
        for a, b in zip(again, whole[: len(came)], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("content", [b"I am no video\n" * 50, b"", b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"])
def test_what_is_no_video_is_a_permanent_error(tmp_path: Path, decord: DecordReader, content: bytes) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    for attempt in (lambda: probe(path), lambda: list(read_clips(path, [[0]], [decord, PyAVReader()]))):
        with pytest.raises(VideoError) as caught:
            attempt()
        assert not caught.value.transient


def test_a_missing_file_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file") as caught:
        probe(tmp_path / "absent.mp4")
    assert caught.value.transient


def test_a_colon_in_the_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "plain.mp4", frames=8).rename("http:clip.mp4")
    assert probe("http:clip.mp4").frames == 8


@needs_media
@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "carphone_pristine.mp4", "video_90.mov"])
def test_real_files_are_equal_in_both(decord: DecordReader, name: str) -> None:
    info = probe(MEDIA / name)
    windows = [[i, i + 2] for i in range(0, min(info.expected_frames, 120) - 2, 40)]
    ours, theirs = list(decord.clips(MEDIA / name, windows)), list(PyAVReader().clips(MEDIA / name, windows))
    assert len(ours) == len(theirs) == len(windows)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == (2, info.height, info.width, 3)


@needs_media
def test_what_decord_cannot_read_is_served_by_pyav(decord: DecordReader) -> None:
    clips = list(read_clips(MEDIA / "av1_video.mkv", [[0, 4], [120, 124]], [decord, PyAVReader()]))
    assert [name for name, _ in clips] == ["pyav", "pyav"]


@needs_media
def test_the_stream_that_a_player_shows_is_read() -> None:
    info = probe(MEDIA / "nasa_13013.mp4")
    assert (info.width, info.height, info.frames) == (480, 270, 390)  # not stream 0, of 320x180
