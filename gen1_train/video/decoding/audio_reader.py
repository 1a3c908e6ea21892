"""Reads the audio of a video file as packets or as samples. Runs in a child process (see sandbox.py)."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from gen1_train.video.decoding.container import open_container
from gen1_train.video.decoding.frames import UNTIMED
from gen1_train.video.decoding.sandbox import Answer, heartbeat
from gen1_train.video.decoding.streams import audio_stream, video_stream
from gen1_train.video.decoding.timeline import Timeline
from gen1_train.video.formats import Content, content_of

COPIED = {"mp3", "ac3"}  # codecs whose packets MP4 carries unchanged
COPIED_WITH_HEADER = {"aac", "alac", "opus", "flac"}  # the same, if the codec's header is separate from the packets
PREROLL = 2  # packets before the first audible one, which decoders need for a clean start
LEAD = 0.5  # seconds before the start at which reading begins
CHUNK = 1024  # maximum samples of silence in one answer
JITTER = 0.02  # seconds by which timestamps of samples may be off without a gap; ours
RATES = {44_100, 48_000}


def read_audio(path: str | Path, start: float, end: float | None, copy: bool) -> Iterator[Answer]:
    """Yields a description of the audio, then packets (uint8) or samples (float32 (channels, n)); nothing if none.

    Times count from `start` seconds after the first frame of the video. Packets, used if `copy` is true and MP4 carries
    them, begin PREROLL packets before the first audible one; samples begin at 0 and have no gaps. Raises VideoError.
    """
    if content_of(path) is not Content.VIDEO:
        return
    origin = _first_frame(path) + start
    duration = None if end is None else end - start
    with open_container(path) as container:
        stream = audio_stream(container)
        if stream is None:
            return
        context = stream.codec_context
        codec = context.codec.canonical_name
        header = context.extradata or b""
        copied = copy and (codec in COPIED or (codec in COPIED_WITH_HEADER and bool(header)))
        description: dict[str, Any] = {"copied": copied, "codec": codec}
        if copied:
            base = stream.time_base
            assert base is not None
            description |= {"rate": context.sample_rate, "layout": context.layout.name}
            description |= {"time_base": [base.numerator, base.denominator]}
            yield description, np.frombuffer(header, np.uint8)
            length = None if duration is None else round(duration / base)
            yield from _packets(container, stream, round(origin / base), length)
        else:
            rate = context.sample_rate if context.sample_rate in RATES else max(RATES)
            layout = "mono" if context.channels == 1 else "stereo"
            yield {**description, "rate": rate, "layout": layout}, None
            frames = _resampled(_decoded(container, stream, origin), layout, rate)
            yield from _samples(frames, rate, origin, duration)


def _first_frame(path: str | Path) -> float:
    """The timestamp of the first frame of the video, in seconds."""
    with open_container(path) as container:
        if container.format.name in UNTIMED:
            return 0.0
        frame = next(Timeline(container, video_stream(container)).pictures(), None)
        return (frame.time if frame is not None else None) or 0.0


def _packets(container: InputContainer, stream: AudioStream, origin: int, duration: int | None) -> Iterator[Answer]:
    """Packets from PREROLL before the first one that ends after the origin; times are in ticks of the stream."""
    assert stream.time_base is not None
    preroll: deque[Answer] = deque(maxlen=PREROLL)
    last: int | None = None
    for packet in Timeline(container, stream).packets():
        heartbeat()
        if packet.pts is None or not packet.size or (last is not None and packet.pts <= last):
            continue
        last = packet.pts
        pts = packet.pts - origin
        if pts * stream.time_base < -LEAD:
            continue
        if duration is not None and pts >= duration:
            return
        length = packet.duration or 0
        answer: Answer = {"pts": pts, "duration": length}, np.frombuffer(bytes(packet), np.uint8)
        if pts + length <= 0:
            preroll.append(answer)
            continue
        yield from preroll
        preroll.clear()
        yield answer


def _decoded(container: InputContainer, stream: AudioStream, origin: float) -> Iterator[av.AudioFrame]:
    """The decoded audio from LEAD before the origin on; a packet that cannot be decoded is skipped."""
    for packet in Timeline(container, stream).packets():
        heartbeat()
        if packet.pts is not None and packet.time_base and packet.pts * packet.time_base < origin - LEAD:
            continue
        try:
            yield from stream.decode(packet)
        except av.InvalidDataError:
            continue


def _resampled(frames: Iterator[av.AudioFrame], layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """The audio in one layout and rate, whatever those of its parts: a broadcast switches from stereo to surround."""
    resampler: AudioResampler | None = None
    kind: tuple[str, str, int] | None = None
    for frame in frames:
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
            if resampler is not None:
                yield from resampler.resample(None)
            resampler = AudioResampler("fltp", layout, rate)
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        assert resampler is not None
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def _samples(frames: Iterator[av.AudioFrame], rate: int, origin: float, duration: float | None) -> Iterator[Answer]:
    """Samples from the origin on, each at its time: gaps are filled with silence, overlaps are cut."""
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
            position += count
            gap -= count
        samples = samples[:, max(0, -gap) : None if total is None else max(0, -gap) + max(0, total - position)]
        if samples.shape[1]:
            yield {}, samples
            position += samples.shape[1]
        if total is not None and position >= total:
            return
