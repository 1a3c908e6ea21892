"""The audio of a video file, as packets or as samples. Runs in a child process (see sandbox.py)."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from gen1_train.video.frames import UNTIMED
from gen1_train.video.probe import open_container, video_stream
from gen1_train.video.sandbox import Answer, alive

COPIED = {"mp3", "ac3"}  # what MP4 carries as it is
COPIED_WITH_HEADER = {"aac", "alac", "opus", "flac"}  # if the codec's header is beside the packets and not in them
BEFORE = 2  # packets before the first one that is heard, from which decoders start well
LEAD = 0.5  # seconds before the start from which on packets are decoded
CHUNK = 1024  # samples of silence that are given at once
JITTER = 0.02  # seconds by which the timestamps of samples may be off without a gap being meant; ours
RATES = {44_100, 48_000}


def read_audio(path: str | Path, start: float, end: float | None, copy: bool) -> Iterator[Answer]:
    """First what the audio is, then packets (uint8) or samples (float32 (channels, n)); nothing if there is no audio.

    Times count from `start` seconds after the first frame of the video. Packets, if `copy` is true and MP4 carries
    them, start BEFORE of the first one that is heard; samples start at 0, without gaps. Raises VideoError.
    """
    origin = _first_frame(path) + start
    duration = None if end is None else end - start
    with open_container(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            return
        context = stream.codec_context
        codec, header = context.codec.canonical_name, context.extradata or b""
        copied = copy and (codec in COPIED or (codec in COPIED_WITH_HEADER and bool(header)))
        what: dict[str, Any] = {"copied": copied, "codec": codec}
        if copied:
            base = stream.time_base
            assert base is not None
            what |= {"rate": context.sample_rate, "layout": context.layout.name}
            what |= {"time_base": [base.numerator, base.denominator]}
            yield what, np.frombuffer(header, np.uint8)
            length = None if duration is None else round(duration / base)
            yield from _packets(container, stream, round(origin / base), length)
        else:
            rate = context.sample_rate if context.sample_rate in RATES else max(RATES)
            layout = "mono" if context.channels == 1 else "stereo"
            yield {**what, "rate": rate, "layout": layout}, None
            resampler = AudioResampler("fltp", layout, rate)
            yield from _samples(_decoded(container, stream, resampler, origin), rate, origin, duration)


def _first_frame(path: str | Path) -> float:
    """The time in the file at which its first frame is shown, in seconds."""
    with open_container(path) as container:
        if container.format.name in UNTIMED:
            return 0.0
        frame = next(container.decode(video_stream(container)), None)
        return (frame.time if frame is not None else None) or 0.0


def _audio_stream(container: InputContainer) -> AudioStream | None:
    """The stream that a player would play, of those that can be decoded."""
    streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
    best = container.streams.best("audio")
    chosen = [stream for stream in streams if stream == best] or streams
    return chosen[0] if chosen else None


def _packets(container: InputContainer, stream: AudioStream, origin: int, duration: int | None) -> Iterator[Answer]:
    """Packets by times in ticks of the stream, from BEFORE of those on that end after the origin."""
    before: deque[Answer] = deque(maxlen=BEFORE)
    last: int | None = None
    for packet in container.demux(stream):
        alive()
        if packet.pts is None or not packet.size or (last is not None and packet.pts <= last):
            continue
        last = packet.pts
        pts = packet.pts - origin
        if duration is not None and pts >= duration:
            return
        length = packet.duration or 0
        answer: Answer = {"pts": pts, "duration": length}, np.frombuffer(bytes(packet), np.uint8)
        if pts + length <= 0:
            before.append(answer)
            continue
        yield from before
        before.clear()
        yield answer


def _decoded(
    container: InputContainer, stream: AudioStream, resampler: AudioResampler, origin: float
) -> Iterator[av.AudioFrame]:
    """The samples from a little before the origin; a packet that cannot be decoded is left out."""
    for packet in container.demux(stream):
        alive()
        if packet.pts is not None and packet.time_base and packet.pts * packet.time_base < origin - LEAD:
            continue
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _samples(frames: Iterator[av.AudioFrame], rate: int, origin: float, duration: float | None) -> Iterator[Answer]:
    """Samples from the origin on, each at its time: gaps are filled with silence, what overlaps is cut."""
    position = 0
    total = None if duration is None else round(duration * rate)
    for frame in frames:
        if frame.time is None:
            continue
        samples = frame.to_ndarray()
        gap = round((frame.time - origin) * rate) - position
        if position and abs(gap) < JITTER * rate:
            gap = 0
        while gap > 0 and (total is None or position < total):
            count = min(gap, CHUNK)
            yield {}, np.zeros((len(samples), count), np.float32)
            position, gap = position + count, gap - count
        samples = samples[:, max(0, -gap) : None if total is None else max(0, -gap) + max(0, total - position)]
        if samples.shape[1]:
            yield {}, samples
            position += samples.shape[1]
        if total is not None and position >= total:
            return
