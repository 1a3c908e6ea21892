"""Copies the audio of a video file into another file: its packets if MP4 can carry them, otherwise encoded as AAC.

The child reads the files (see audio_reader.py), and sends only packets, or samples, with their description.
"""

import io
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

from gen1_train.video.decode import absolute, run_in_child
from gen1_train.video.decoding.container import video_errors
from gen1_train.video.decoding.sandbox import Answer
from gen1_train.video.errors import VideoError

# ffmpeg's names of the codecs that MP4 carries and players support, and of an encoder for each
ENCODERS = {"aac": "aac", "mp3": "libmp3lame", "ac3": "ac3", "alac": "alac", "opus": "libopus", "flac": "flac"}
FOREVER = Fraction(10**9)  # seconds
CHANNEL_BITS = 96_000  # bits per second and channel of the AAC that is encoded here; ours


@dataclass(frozen=True)
class AudioSource:
    """A part of the audio of a file."""

    path: str | Path
    start: float = 0.0  # seconds since the first frame of the file's video; the new file starts there
    end: float | None = None  # seconds since the same frame; None: as long as the new file has frames
    copy: bool = True  # keep its packets if MP4 carries them; otherwise it is always encoded again


class AudioTrack:
    """Audio that is being written to a file, as packets with a `template` and as samples without one.

    `description`: the first answer of `read_audio`.
    """

    def __init__(
        self, answers: Generator[Answer, None, None], description: dict[str, Any], template: AudioStream | None
    ) -> None:
        self._answers = answers
        self._description = description
        self._template = template
        self._stream: AudioStream | None = None
        self._samples_written = 0
        self.seconds = Fraction(0)  # up to which audio was written
        self.error: VideoError | None = None  # why the audio ends there, if not because the source does
        self._next: Answer | None = None
        self._advance()

    def add_to(self, container: OutputContainer) -> None:
        """Adds a stream for the audio to the container."""
        self._container = container
        if self._template is not None:
            self._stream = container.add_stream_from_template(self._template)
            self._stream.codec_context.extradata = self._description["extradata"] or None
        else:
            rate, layout = self._description["rate"], self._description["layout"]
            self._stream = container.add_stream("aac", rate=rate, layout=layout)
            self._stream.codec_context.bit_rate = CHANNEL_BITS * self._stream.codec_context.channels

    def mux_until(self, seconds: Fraction) -> None:
        """Writes the audio that starts before a time in the new file, as far as it can be read."""
        while self._next is not None:
            header, array = self._next
            assert array is not None and self._stream is not None
            if self._template is not None:
                start = header["pts"] * Fraction(*self._description["time_base"])
                if start >= seconds:
                    return
                self._mux_packet(header, array)
                self.seconds = max(self.seconds, start)
            else:
                if self.seconds >= seconds:
                    return
                self._mux_samples(array)
                self.seconds = Fraction(self._samples_written, self._description["rate"])
            self._advance()

    def _advance(self) -> None:
        try:
            self._next = next(self._answers, None)
        except VideoError as error:
            self._next = None
            self.error = error

    def finish(self) -> None:
        """Flushes the encoder."""
        if self._template is None and self._samples_written:
            assert self._stream is not None
            self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Stops reading; call it at the end in any case."""
        self._answers.close()

    def _mux_packet(self, header: dict[str, Any], data: np.ndarray) -> None:
        packet = av.Packet(data.tobytes())
        packet.time_base = Fraction(*self._description["time_base"])
        packet.pts = packet.dts = header["pts"]
        packet.duration = header["duration"]
        packet.is_keyframe = True
        assert self._stream is not None
        packet.stream = self._stream
        self._container.mux(packet)

    def _mux_samples(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._description["layout"])
        frame.sample_rate = self._description["rate"]
        frame.pts = self._samples_written
        frame.time_base = Fraction(1, self._description["rate"])
        self._samples_written += samples.shape[1]
        assert self._stream is not None
        self._container.mux(self._stream.encode(frame))


def open_audio(source: AudioSource) -> AudioTrack | None:
    """The audio of a file; None if it has none. Raises VideoError."""
    for copy in (True, False) if source.copy else (False,):
        request = {"do": "audio", "path": absolute(source.path), "start": source.start, "end": source.end}
        answers = run_in_child({**request, "copy": copy})
        first = next(answers, None)
        if first is None:
            return None
        description, extradata = first
        if not description["copied"]:
            return AudioTrack(answers, description, None)
        assert extradata is not None
        try:
            template = _template(description)
        except (av.FFmpegError, ValueError):  # an unusual kind of audio: it is encoded instead
            answers.close()
            continue
        return AudioTrack(answers, {**description, "extradata": extradata.tobytes()}, template)
    raise VideoError("its audio can be neither copied nor decoded")


def usable_audio(source: AudioSource) -> tuple[AudioSource | None, VideoError | None]:
    """Returns what of a file's audio a `VideoWriter` can write, None for nothing, and the reason if that is not all.

    It reads and writes all of it once, because an error found only when the video is written would come too late.
    """
    error: VideoError | None = None
    for copy in (True, False) if source.copy else (False,):
        track: AudioTrack | None = None
        try:
            with video_errors(), tempfile.TemporaryFile() as file:
                track = open_audio(replace(source, copy=copy))
                if track is None:
                    return None, None
                with av.open(file, "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as container:
                    track.add_to(container)
                    track.mux_until(FOREVER)
                    track.finish()
        except (VideoError, ValueError) as failure:
            error = failure if isinstance(failure, VideoError) else VideoError(str(failure))
            continue
        finally:
            if track is not None:
                track.close()
        if track.error is None:
            return replace(source, copy=copy), None
        if track.seconds > 0:
            return replace(source, copy=copy, end=source.start + float(track.seconds)), track.error
        error = track.error
    return None, error


def _template(description: dict[str, Any]) -> AudioStream:
    """A stream of the same kind as the described one. Raises av.FFmpegError, ValueError.

    PyAV can add a stream for packets only by copying another stream, and the file itself must not be opened here.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        rate, layout = description["rate"], description["layout"]
        stream = container.add_stream(ENCODERS[description["codec"]], rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        silence = av.AudioFrame(format=stream.codec_context.format.name, layout=layout, samples=4608)
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate = rate
        silence.pts = 0
        silence.time_base = Fraction(1, rate)
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    buffer.seek(0)
    stream = av.open(buffer, format="matroska").streams.audio[0]
    stream.time_base = Fraction(*description["time_base"])
    return stream
