"""Time continues where a file's clock restarts or jumps, for the picture and the sound."""

from pathlib import Path

import numpy as np
import pytest

from gen1_train.video.decoding.container import open_container
from gen1_train.video.decoding.frames import pyav_frames
from gen1_train.video.decoding.streams import audio_stream, video_stream
from gen1_train.video.decoding.timeline import Timeline
from gen1_train.video.stream import Selection, read_selected
from tests.video.audio_files import make_video_with_audio
from tests.video.files import FAULTS, make_video


def seconds_of(path: Path) -> np.ndarray:
    return np.array([frame.seconds for frame in pyav_frames(path)])


def test_joined_files_are_one_video() -> None:
    seconds = seconds_of(FAULTS / "concat.ts")
    assert len(seconds) == 100 and np.allclose(np.diff(seconds), 0.04, atol=1e-4)


def test_a_selection_by_time_covers_joined_files() -> None:
    frames = list(read_selected(FAULTS / "concat.ts", Selection(fps=5), 64, 48))
    assert len(frames) == 20 and [frame.index for frame in frames[:3]] == [0, 5, 10]


@pytest.mark.parametrize("start", [0, 1.0, 3.5, 1000, 20, 90_000])
def test_picture_and_sound_continue_together(tmp_path: Path, start: float) -> None:
    """The second of two joined files starts at this time; the first one ends at 4 s."""
    first = make_video_with_audio(tmp_path / "a.ts", seconds=4.0)
    second = moved(first, tmp_path / "b.ts", start)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    times = seconds_of(joined)
    assert len(times) == 200 and np.allclose(np.diff(times), 0.04, atol=0.05)
    assert times[-1] == pytest.approx(7.96, abs=0.1)
    assert end_of_sound(joined) - times[-1] == pytest.approx(end_of_sound(first) - 3.96, abs=0.1)


@pytest.mark.parametrize("pause", [1.0, 5.0])
def test_a_short_jump_forward_is_a_pause(tmp_path: Path, pause: float) -> None:
    first = make_video_with_audio(tmp_path / "a.ts", seconds=4.0)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + moved(first, tmp_path / "b.ts", 4.0 + pause).read_bytes())
    assert seconds_of(joined)[-1] == pytest.approx(7.96 + pause, abs=0.1)


def test_a_format_without_jumps_keeps_its_times(tmp_path: Path) -> None:
    starts = [*range(10), *range(1000, 1010)]  # 39.6 s in between
    assert seconds_of(make_video(tmp_path / "a.mkv", 20, starts=starts, options={"bf": "0"}))[-1] > 40


def test_a_recording_may_begin_between_keyframes(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.ts", 200, options={"g": "100", "sc_threshold": "0"})
    cut = tmp_path / "b.ts"
    cut.write_bytes(source.read_bytes()[188 * 60 :])
    assert 90 < len(seconds_of(cut)) < 150


def moved(source: Path, target: Path, seconds: float) -> Path:
    """Copies a TS file with all its times moved, in the bytes of the file, because a muxer would correct them."""
    data = bytearray(source.read_bytes())
    for start in range(0, len(data), 188):
        if not data[start + 1] & 0x40:  # a PES packet does not begin here
            continue
        payload = start + 4 + (1 + data[start + 4] if data[start + 3] & 0x20 else 0)
        if data[payload : payload + 3] != b"\0\0\1" or data[payload + 3] not in (0xE0, 0xC0):
            continue
        for place in (payload + 9, payload + 14)[: 2 if data[payload + 7] >> 6 == 3 else 1]:
            stamp = read_stamp(data[place : place + 5]) + round(seconds * 90_000)
            data[place : place + 5] = written_stamp(stamp, data[place] >> 4)
    target.write_bytes(data)
    return target


def read_stamp(data: bytes) -> int:
    return (data[0] >> 1 & 7) << 30 | data[1] << 22 | (data[2] >> 1) << 15 | data[3] << 7 | data[4] >> 1


def written_stamp(stamp: int, prefix: int) -> bytes:
    stamp %= 1 << 33
    high, middle, low = stamp >> 30, stamp >> 15 & 0x7FFF, stamp & 0x7FFF
    return bytes([prefix << 4 | high << 1 | 1, middle >> 7, (middle & 0x7F) << 1 | 1, low >> 7, (low & 0x7F) << 1 | 1])


def end_of_sound(path: Path) -> float:
    """Seconds from the first frame of the video to the last packet of the audio."""
    with open_container(path) as container:
        picture = next(Timeline(container, video_stream(container)).pictures())
    with open_container(path) as container:
        stream = audio_stream(container)
        assert stream is not None
        times = [packet.pts * packet.time_base for packet in Timeline(container, stream).packets() if packet.size]
    return float(max(times)) - picture.time
