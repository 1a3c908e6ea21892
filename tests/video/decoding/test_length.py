"""How many frames a video has, and at which rate, whatever its header says."""

from pathlib import Path

import av
import pytest

from gen1_train.video.decode import VideoError
from gen1_train.video.decoding.frames import pyav_frames
from gen1_train.video.decoding.probe import read_header
from tests.video.files import FAULTS, make_video

FRAGMENTED = ["frag_keyframe+empty_moov", "frag_keyframe", "frag_keyframe+delay_moov", "dash+frag_keyframe+global_sidx"]


def count(path: Path) -> int:
    return sum(1 for _ in pyav_frames(path))


@pytest.mark.parametrize(
    ("name", "frames", "decodable"),
    [
        ("trimmed_end.mp4", 50, 50),
        ("gap_in_the_middle.mp4", 73, 73),
        ("ffmpeg_mp3.avi", 100, 100),
        ("starts_between_keyframes.mp4", 93, 75),
    ],
)
def test_the_index_counts_frames_better_than_the_header(name: str, frames: int, decodable: int) -> None:
    assert read_header(FAULTS / name).frames == frames
    assert count(FAULTS / name) == decodable


@pytest.mark.parametrize("flags", FRAGMENTED)
def test_all_fragments_are_counted(tmp_path: Path, flags: str) -> None:
    path = fragmented(tmp_path / "a.mp4", flags)
    info = read_header(path)
    assert info.frames in (100, None) and 98 <= info.expected_frames <= 103 and count(path) == 100


@pytest.mark.parametrize("flags", FRAGMENTED)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_truncated_fragmented_file_is_noticed(tmp_path: Path, flags: str, share: float) -> None:
    path = fragmented(tmp_path / "a.mp4", flags)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"ends early|broken after|Invalid data"):
        count(path)


@pytest.mark.parametrize("name", ["ffmpeg_mp3.avi", "trimmed_end.mp4"])
def test_a_truncated_file_is_noticed(tmp_path: Path, name: str) -> None:
    data = (FAULTS / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoError):
        count(tmp_path / name)


def fragmented(path: Path, flags: str) -> Path:
    plain = make_video(path.with_name("plain.mp4"), 100, options={"g": "25"})
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": flags}) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return path


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30, 60])
def test_a_rate_of_ticks_is_replaced_by_the_measured_one(tmp_path: Path, rate: float) -> None:
    """FLV and Matroska without a frame duration: the header only says 1000 ticks a second."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"bf": "2", "g": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(150):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = round(i * 1000 / rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = read_header(path)
    assert info.fps == pytest.approx(rate, rel=1e-6)
    assert info.expected_frames == pytest.approx(150, abs=2)


def test_the_rate_of_an_uneven_video_is_the_mean(tmp_path: Path) -> None:
    starts = [*range(30), *range(30, 150, 4)]
    info = read_header(make_video(tmp_path / "a.mp4", 60, starts=starts, options={"bf": "0"}))
    assert info.fps == pytest.approx(60 / 147 * 25, rel=0.03)
