"""The input's audio in the output: copied or encoded, and what is heard stays with what is seen."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from gen1_train.video.audio import AudioSource
from gen1_train.video.decode import VideoError
from gen1_train.video.encode import VideoWriter
from gen1_train.video.stream import Selection, output_fps, probe_input, read_selected
from tests.video.files import MEDIA, make_video, needs_media, picture
from tests.video.talkies import EVENTS, codec_of, heard, make_talkie, seen

FRAME = 1 / 25  # s


def through(source: Path, target: Path, selection: Selection, until: float | None = None) -> Path:
    """What an edit does that changes nothing."""
    frames = list(read_selected(source, selection, 64, 48))
    start = frames[0].source_seconds
    audio = AudioSource(source, start, None if until is None else start + until)
    with VideoWriter(target, output_fps(probe_input(source), selection), audio_from=audio) as writer:
        for frame in frames:
            writer.write(frame.pixels, frame.seconds)
    return target


def lengths(path: Path) -> tuple[float, float]:
    """Seconds of the video and of the audio."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return float(video.duration * video.time_base), float(audio.duration * audio.time_base)


@pytest.mark.parametrize(
    ("name", "codec", "becomes"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.mp4", "libmp3lame", "mp3"),
        ("a.mp4", "ac3", "ac3"),
        ("a.mp4", "alac", "alac"),
        ("a.mp4", "flac", "flac"),
        ("a.mp4", "libopus", "opus"),
        ("a.mkv", "libopus", "opus"),
        ("a.mkv", "aac", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.avi", "pcm_s16le", "aac"),
        ("a.mov", "pcm_s16be", "aac"),
        ("a.mkv", "mp2", "aac"),
    ],
)
def test_what_is_heard_stays_with_what_is_seen(tmp_path: Path, name: str, codec: str, becomes: str) -> None:
    source = make_talkie(tmp_path / name, codec)
    for start in (0, 17):
        target = through(source, tmp_path / "out.mp4", Selection(start=start, frames=36))
        expected = [event - start * FRAME for event in EVENTS]
        assert seen(target) == pytest.approx(expected, abs=1e-3)
        assert heard(target) == pytest.approx(expected, abs=2e-3)
        assert codec_of(target) == becomes
        video, audio = lengths(target)
        assert video == pytest.approx(36 * FRAME) and video - 1e-3 <= audio < video + 0.1
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out.mp4"])


def test_copied_packets_are_the_same_bytes(tmp_path: Path) -> None:
    source = make_talkie(tmp_path / "a.mp4")
    target = through(source, tmp_path / "out.mp4", Selection())

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(target) == packets(source)[: len(packets(target))]
    assert len(packets(source)) - len(packets(target)) <= 1  # what the encoder added behind the last frame


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("layout", ["mono", "5.1"])
def test_channels(tmp_path: Path, codec: str, layout: str) -> None:
    source = make_talkie(tmp_path / "a.mkv", codec, 32_000, layout)
    target = through(source, tmp_path / "out.mp4", Selection(start=10))
    assert heard(target) == pytest.approx([event - 10 * FRAME for event in EVENTS], abs=2e-3)
    with av.open(str(target)) as container:
        channels = container.streams.audio[0].codec_context.channels
    assert channels == {"mono": 1, "5.1": 6 if codec == "aac" else 2}[layout]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize(("late", "video_late"), [(0.5, 0), (0, 10), (1.0, 3)])
def test_streams_that_do_not_begin_together(tmp_path: Path, codec: str, late: float, video_late: int) -> None:
    source = make_talkie(tmp_path / "a.mkv", codec, late=late, video_late=video_late)
    events = [event for event in EVENTS if event > late]
    for start in (0, 7):
        target = through(source, tmp_path / "out.mp4", Selection(start=start))
        assert seen(target) == pytest.approx([event - (start + video_late) * FRAME for event in EVENTS], abs=2e-3)
        assert heard(target) == pytest.approx([event - (start + video_late) * FRAME for event in events], abs=2e-3)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("selection", [Selection(stride=5), Selection(fps=5), Selection(fps=60, start=5)])
def test_the_pace_is_that_of_the_input(tmp_path: Path, codec: str, selection: Selection) -> None:
    """Also with fewer or more frames; a frame's time is exact within a frame of the output."""
    source = make_talkie(tmp_path / "a.mkv", codec)
    target = through(source, tmp_path / "out.mp4", selection)
    expected = [event - selection.start * FRAME for event in EVENTS]
    assert heard(target) == pytest.approx(expected, abs=2e-3)
    assert min(seen(target)) == pytest.approx(expected[0], abs=1 / 60)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_an_end_before_that_of_the_frames(tmp_path: Path, codec: str) -> None:
    source = make_talkie(tmp_path / "a.mkv", codec)
    target = through(source, tmp_path / "out.mp4", Selection(start=5), until=1.0)
    assert heard(target) == pytest.approx([EVENTS[0] - 5 * FRAME], abs=2e-3)
    assert lengths(target)[1] == pytest.approx(1.0, abs=0.05)


def test_no_audio_is_no_error(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 20)
    assert codec_of(through(source, tmp_path / "out.mp4", Selection())) is None


def test_audio_that_ends_early_or_has_holes(tmp_path: Path) -> None:
    """Damage in the packets of audio that has to be decoded is silence; the rest stays in its place."""
    source = make_talkie(tmp_path / "a.mkv", "pcm_s16le")
    with av.open(str(source)) as old, av.open(str(tmp_path / "holes.mkv"), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            hole = packet.stream.type == "audio" and packet.pts and 0.9 < packet.pts * packet.time_base < 1.2
            if packet.size and not hole:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    target = through(tmp_path / "holes.mkv", tmp_path / "out.mp4", Selection(start=3))
    assert heard(target) == pytest.approx([event - 3 * FRAME for event in EVENTS], abs=2e-3)


def test_a_file_that_cannot_be_read_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with (
        pytest.raises(VideoError, match="Invalid data"),
        VideoWriter(tmp_path / "out.mp4", 25, audio_from=AudioSource(tmp_path / "a.mp4")) as writer,
    ):
        writer.write(picture(0))
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_long_audio_is_not_held_in_memory(tmp_path: Path, codec: str) -> None:
    """It is read as the frames come: after the first frames, only their part is in the file."""
    source = make_talkie(tmp_path / "a.mkv", codec)
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=AudioSource(source, 0.5)) as writer:
        for number in range(10):
            writer.write(np.zeros((48, 64, 3), np.uint8), number / 25)
    assert lengths(tmp_path / "out.mp4")[1] == pytest.approx(0.4, abs=0.05)


@needs_media
@pytest.mark.parametrize(("name", "start"), [("bigbuckbunny.mp4", 30), ("nasa_13013.mp4", 100)])
def test_real_files(tmp_path: Path, name: str, start: int) -> None:
    target = through(MEDIA / name, tmp_path / "out.mp4", Selection(start=start, frames=40))
    assert codec_of(target) == "aac"
    video, audio = lengths(target)
    assert video == pytest.approx(audio, abs=0.15)
