"""The input's audio in the output: copied or encoded, and in sync with the frames."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gen1_train.video import audio
from gen1_train.video.audio import AudioSource, usable_audio
from gen1_train.video.decode import VideoError
from gen1_train.video.decoding.sandbox import Answer
from gen1_train.video.encode import VideoWriter
from gen1_train.video.stream import Selection, output_fps, probe_input, read_selected
from tests.video.audio_files import EVENTS, click_times, codec_of, flash_times, make_video_with_audio
from tests.video.files import FAULTS, MEDIA, make_video, needs_media, picture

FRAME = 1 / 25  # seconds


def copy_with_audio(source: Path, target: Path, selection: Selection, until: float | None = None) -> Path:
    """Writes the selected frames with their audio, like an edit that changes nothing."""
    frames = list(read_selected(source, selection, 64, 48))
    start = frames[0].source_seconds
    sound = AudioSource(source, start, None if until is None else start + until)
    with VideoWriter(target, output_fps(probe_input(source), selection), audio_from=sound) as writer:
        for frame in frames:
            writer.write(frame.pixels, frame.seconds)
    return target


def lengths(path: Path) -> tuple[float, float]:
    """The seconds of the video and of the audio."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return float(video.duration * video.time_base), float(audio.duration * audio.time_base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "output_codec"),
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
def test_audio_stays_in_sync(tmp_path: Path, name: str, codec: str, output_codec: str) -> None:
    source = make_video_with_audio(tmp_path / name, codec)
    for start in (0, 17):
        target = copy_with_audio(source, tmp_path / "out.mp4", Selection(start=start, frames=36))
        expected = [event - start * FRAME for event in EVENTS]
        assert flash_times(target) == pytest.approx(expected, abs=1e-3)
        assert click_times(target) == pytest.approx(expected, abs=2e-3)
        assert codec_of(target) == output_codec
        video, audio = lengths(target)
        assert video == pytest.approx(36 * FRAME) and video - 1e-3 <= audio < video + 0.1
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out.mp4"])


def test_copied_packets_have_the_same_bytes(tmp_path: Path) -> None:
    source = make_video_with_audio(tmp_path / "a.mp4")
    target = copy_with_audio(source, tmp_path / "out.mp4", Selection())

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(target) == packets(source)[: len(packets(target))]
    assert len(packets(source)) - len(packets(target)) <= 1  # which the encoder added after the last frame


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("layout", ["mono", "5.1"])
def test_the_layout_is_kept_or_becomes_stereo(tmp_path: Path, codec: str, layout: str) -> None:
    source = make_video_with_audio(tmp_path / "a.mkv", codec, 32_000, layout)
    target = copy_with_audio(source, tmp_path / "out.mp4", Selection(start=10))
    assert click_times(target) == pytest.approx([event - 10 * FRAME for event in EVENTS], abs=2e-3)
    with av.open(str(target)) as container:
        channels = container.streams.audio[0].codec_context.channels
    assert channels == {"mono": 1, "5.1": 6 if codec == "aac" else 2}[layout]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize(("audio_start", "video_start"), [(0.5, 0), (0, 10), (1.0, 3)])
def test_streams_may_begin_at_different_times(tmp_path: Path, codec: str, audio_start: float, video_start: int) -> None:
    source = make_video_with_audio(tmp_path / "a.mkv", codec, audio_start=audio_start, video_start=video_start)
    events = [event for event in EVENTS if event > audio_start]
    for start in (0, 7):
        target = copy_with_audio(source, tmp_path / "out.mp4", Selection(start=start))
        assert flash_times(target) == pytest.approx(
            [event - (start + video_start) * FRAME for event in EVENTS], abs=2e-3
        )
        assert click_times(target) == pytest.approx(
            [event - (start + video_start) * FRAME for event in events], abs=2e-3
        )


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("selection", [Selection(stride=5), Selection(fps=5), Selection(fps=60, start=5)])
def test_the_pace_of_the_input_is_kept(tmp_path: Path, codec: str, selection: Selection) -> None:
    """Also with fewer or more frames; the time of a frame is exact to one frame of the output."""
    source = make_video_with_audio(tmp_path / "a.mkv", codec)
    target = copy_with_audio(source, tmp_path / "out.mp4", selection)
    expected = [event - selection.start * FRAME for event in EVENTS]
    assert click_times(target) == pytest.approx(expected, abs=2e-3)
    assert min(flash_times(target)) == pytest.approx(expected[0], abs=1 / 60)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_audio_may_end_before_the_frames(tmp_path: Path, codec: str) -> None:
    source = make_video_with_audio(tmp_path / "a.mkv", codec)
    target = copy_with_audio(source, tmp_path / "out.mp4", Selection(start=5), until=1.0)
    assert click_times(target) == pytest.approx([EVENTS[0] - 5 * FRAME], abs=2e-3)
    assert lengths(target)[1] == pytest.approx(1.0, abs=0.05)


def test_a_video_without_audio_is_accepted(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 20)
    assert codec_of(copy_with_audio(source, tmp_path / "out.mp4", Selection())) is None


def test_damaged_audio_becomes_silence(tmp_path: Path) -> None:
    """Missing packets of audio that has to be decoded become silence; the rest keeps its time."""
    source = make_video_with_audio(tmp_path / "a.mkv", "pcm_s16le")
    with av.open(str(source)) as old, av.open(str(tmp_path / "damaged.mkv"), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            missing = packet.stream.type == "audio" and packet.pts and 0.9 < packet.pts * packet.time_base < 1.2
            if packet.size and not missing:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    target = copy_with_audio(tmp_path / "damaged.mkv", tmp_path / "out.mp4", Selection(start=3))
    assert click_times(target) == pytest.approx([event - 3 * FRAME for event in EVENTS], abs=2e-3)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_only_the_child_opens_the_input(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_video_with_audio(tmp_path / "a.mkv", codec)
    opened = []
    original_open = av.open
    monkeypatch.setattr(
        av, "open", lambda file, *args, **options: opened.append(file) or original_open(file, *args, **options)
    )
    copy_with_audio(source, tmp_path / "out.mp4", Selection())
    assert opened and str(source) not in map(str, opened)


def test_audio_that_is_unreadable_does_not_cost_the_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    source = AudioSource(tmp_path / "a.mp4")
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=source) as writer:
        writer.write(picture(0))
    assert "Invalid data" in str(writer.audio_error) and codec_of(tmp_path / "out.mp4") is None
    usable, error = usable_audio(source)
    assert usable is None and "Invalid data" in str(error)


def test_audio_is_kept_up_to_its_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = AudioSource(make_video_with_audio(tmp_path / "a.mkv", "pcm_s16le"))
    read = audio.run_in_child

    def damaged(request: dict[str, Any]) -> Iterator[Answer]:
        yield from islice(read(request), 40)
        raise VideoError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(audio, "run_in_child", damaged)
        usable, error = usable_audio(source)
    assert usable is not None and usable.end is not None and 0.5 < usable.end < 1.0 and str(error) == "broken"
    assert usable_audio(source) == (source, None)


@pytest.mark.parametrize(
    ("name", "seconds"), [("chan_cont.ts", 3.94), ("concat.ts", 4.0), ("ffmpeg_mp3.avi", 4.0), ("alpha9.webm", None)]
)
def test_audio_that_switches_or_restarts_is_whole(tmp_path: Path, name: str, seconds: float | None) -> None:
    """Broadcasts switch from stereo to surround; joined files start their clock again."""
    usable, error = usable_audio(AudioSource(FAULTS / name))
    assert error is None and (usable is None) == (seconds is None)
    if seconds is not None:
        with VideoWriter(tmp_path / "out.mp4", 25, audio_from=usable) as writer:
            for number in range(100):
                writer.write(np.zeros((48, 64, 3), np.uint8), number / 25)
        assert writer.audio_error is None
        assert lengths(tmp_path / "out.mp4")[1] == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_long_audio_is_not_held_in_memory(tmp_path: Path, codec: str) -> None:
    """It is read as the frames are written: after the first frames, the file contains only their part."""
    source = make_video_with_audio(tmp_path / "a.mkv", codec)
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=AudioSource(source, 0.5)) as writer:
        for number in range(10):
            writer.write(np.zeros((48, 64, 3), np.uint8), number / 25)
    assert lengths(tmp_path / "out.mp4")[1] == pytest.approx(0.4, abs=0.05)


@needs_media
@pytest.mark.parametrize(("name", "start"), [("bigbuckbunny.mp4", 30), ("nasa_13013.mp4", 100)])
def test_audio_of_real_files(tmp_path: Path, name: str, start: int) -> None:
    target = copy_with_audio(MEDIA / name, tmp_path / "out.mp4", Selection(start=start, frames=40))
    assert codec_of(target) == "aac"
    video, audio = lengths(target)
    assert video == pytest.approx(audio, abs=0.15)
