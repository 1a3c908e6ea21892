"""gen1-edit on real videos: they come out whole, with their sound, and memory does not grow with their length."""

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.made_checkpoint import write_checkpoint
from tests.running import REPOSITORY, run_well

MEDIA = REPOSITORY.parent / "shared" / "media"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not MEDIA.is_dir(), reason="shared/media does not exist"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("runs") / "stage5", buckets=("224x128",))


@pytest.fixture(scope="module")
def twenty_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bikes.mp4 twice in one file, 20 s: the packets of the camera's encoder, unchanged."""
    path = tmp_path_factory.mktemp("long") / "bikes-twice.mp4"
    with av.open(str(path), "w") as out:
        shift, stream = 0, None
        for _ in range(2):
            with av.open(str(MEDIA / "bikes.mp4")) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                end = 0
                for packet in source.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)
                shift += end
    return path


def edited(checkpoint: Path, source: Path, output: Path, **settings: object) -> int:
    """Edits in a separate process; returns the peak memory of arrays and objects, in MiB."""
    image = REPOSITORY / "docs" / "demo.jpg"
    config = {"checkpoint": str(checkpoint), "input": str(source), "image": str(image), "output": str(output)}
    config |= {"steps": 1, "omega": 1.0, "device": "cpu", **settings}
    printed = run_well("tests.editing.peak", json.dumps(config))
    return int(printed.rpartition("PEAK")[2])


def test_twenty_seconds_take_no_more_memory_than_one(checkpoint: Path, twenty_seconds: Path, tmp_path: Path) -> None:
    """As arrays, the frames and depths of the long video alone would take 20 MB more."""
    short = edited(checkpoint, twenty_seconds, tmp_path / "short.mp4", fps=6.25, frames=25)
    long = edited(checkpoint, twenty_seconds, tmp_path / "long.mp4", fps=6.25)
    with av.open(str(tmp_path / "long.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.frames == 125 and stream.average_rate == 6.25
        assert abs(float(stream.duration * stream.time_base) - 20) < 0.05  # type: ignore[operator]
    assert long - short < 8


def test_sound_and_frame_rate_are_those_of_the_input(checkpoint: Path, tmp_path: Path) -> None:
    edited(checkpoint, MEDIA / "nasa_13013.mp4", tmp_path / "nasa.mp4", start=60, frames=30)
    with av.open(str(tmp_path / "nasa.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.frames == 30 and video.average_rate == Fraction(30000, 1001)
        seconds = sum(frame.samples for frame in container.decode(audio)) / audio.rate
    assert abs(seconds - 30 * 1001 / 30000) < 0.06  # a packet of AAC has 1024 samples
