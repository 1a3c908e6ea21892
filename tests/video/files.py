"""Video files for tests, in which every frame shows its own number, so that a wrong frame is detected."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from gen1_train.video.encode import REPRODUCIBLE

MEDIA = Path(__file__).parents[2].parent / "shared" / "media"
FAULTS = Path(__file__).parent / "faults"  # small files that were read wrongly once
needs_media = pytest.mark.skipif(not MEDIA.is_dir(), reason="there is no folder shared/media")


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 RGB (h, w, 3): noise that shifts by one pixel per frame, and the number in 8 black or white blocks."""
    noise = np.random.default_rng(0).integers(60, 180, (-(-height // 4), -(-width // 4), 3))
    frame = np.roll(noise.repeat(4, 0).repeat(4, 1), number, axis=1)[:height, :width].astype(np.uint8)
    for bit in range(8):
        frame[:8, bit * 8 : bit * 8 + 8] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame shows."""
    return sum((frame[2:6, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(8))


def make_video(
    path: Path,
    frames: int = 60,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    starts: list[int] | None = None,
    width: int = 64,
    height: int = 48,
    sample_aspect: str = "1:1",
    color_tags: dict[str, int] | None = None,
) -> Path:
    """Writes a video of 25 frames per second; `starts` are timestamps of the frames in 1/25 s, for an irregular rate.

    `color_tags` are ffmpeg's numbers for color_range, colorspace, color_primaries, color_trc.
    """
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as container:
        options = {"g": "12", "bf": "2"} | (options or {})
        if codec == "libx264":
            given = options.pop("x264-params", "")
            options["x264-params"] = f"{given}:{REPRODUCIBLE}".strip(":")
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = width
        stream.height = height
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1  # the number of x264's threads changes the file
        stream.codec_context.sample_aspect_ratio = Fraction(sample_aspect.replace(":", "/"))
        for tag, number in (color_tags or {}).items():
            setattr(stream.codec_context, tag, number)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, width, height), format="rgb24")
            frame.pts = i
            frame.time_base = Fraction(1, 25)
            for packet in stream.encode(frame):
                container.mux(packet)
        packets = stream.encode()
        container.mux(packets)
    if starts is not None:
        _restamp(path, starts)
    return path


def _restamp(path: Path, starts: list[int]) -> None:
    """Replaces the timestamps of a video, keeping the order of its packets."""
    copy = path.with_name(f"restamped-{path.name}")
    with av.open(str(path)) as source, av.open(str(copy), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        for packet, start in zip(packets, starts, strict=True):
            packet.pts = packet.dts = int(start * Fraction(1, 25) / stream.time_base)
            packet.stream = out
            target.mux(packet)
    copy.replace(path)


def copy_stream(
    source: Path, target: Path, change: Callable[[VideoStream], None], shift: int = 0, start: int = 0
) -> Path:
    """Copies the packets from `start` on and subtracts `shift` from their times, both in 1/25 s.

    `change` edits the new stream. An MP4 hides the frames before 0 with an edit list.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        change(out)
        ticks = int(1 / stream.time_base / 25)
        for packet in old.demux(stream):
            if packet.size and packet.pts >= start * ticks:
                packet.pts -= shift * ticks
                packet.dts -= shift * ticks
                packet.stream = out
                new.mux(packet)
    return target


def cut_short(path: Path) -> None:
    """Cuts off the last 40 % of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def overwrite(path: Path) -> None:
    """Overwrites 2000 bytes of a file with noise."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * 0.6)
    data[start : start + 2000] = np.random.default_rng(1).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))


def overwrite_repeatedly(path: Path) -> None:
    """Overwrites 200 of every 3000 bytes of a file, in its second half, with zeros."""
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 2, len(data) * 9 // 10, 3000):
        data[start : start + 200] = bytes(200)
    path.write_bytes(bytes(data))


def flip_bit(source: Path, target: Path, generator: np.random.Generator) -> Path:
    """Writes a copy with one bit flipped, at a random position after the header."""
    data = bytearray(source.read_bytes())
    data[int(generator.integers(len(data) // 5, len(data) * 9 // 10))] ^= 1 << int(generator.integers(8))
    target.write_bytes(data)
    return target


def is_alive(pid: int) -> bool:
    """Whether a process is running and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
