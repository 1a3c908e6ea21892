"""The audio of a video file into another file: by its own packets where MP4 carries them, otherwise encoded as AAC.

The files are read in the child (see audio_reader.py): only packets, or samples, and what they are come over.
"""

import io
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

from gen1_train.video.decode import absolute, ask
from gen1_train.video.probe import VideoError
from gen1_train.video.sandbox import Answer

# ffmpeg's names of the codecs that MP4 carries and players know, and of an encoder for each
ENCODERS = {"aac": "aac", "mp3": "libmp3lame", "ac3": "ac3", "alac": "alac", "opus": "libopus", "flac": "flac"}
CHANNEL_BITS = 96_000  # bits a second and channel of AAC that is encoded here; ours


@dataclass(frozen=True)
class AudioSource:
    """What shall be heard: the audio of a file, from one moment to another."""

    path: str | Path
    start: float = 0.0  # seconds since the first frame of the file's video; there the new file starts
    end: float | None = None  # seconds since the same; None: as long as the new file has frames


class AudioTrack:
    """Audio on its way into a file."""

    def __init__(self, answers: Generator[Answer, None, None], what: dict[str, Any], template: AudioStream | None):
        self._answers, self._what, self._template = answers, what, template
        self._stream: AudioStream | None = None
        self._given = 0  # samples
        self._next = next(answers, None)

    def add_to(self, container: OutputContainer) -> None:
        """Makes a stream for it."""
        self._container = container
        if self._template is not None:
            self._stream = container.add_stream_from_template(self._template)
            self._stream.codec_context.extradata = self._what["extradata"] or None
        else:
            self._stream = container.add_stream("aac", rate=self._what["rate"], layout=self._what["layout"])
            self._stream.codec_context.bit_rate = CHANNEL_BITS * self._stream.codec_context.channels

    def mux_until(self, seconds: Fraction) -> None:
        """Writes what starts before that time in the new file. Raises VideoError."""
        while self._next is not None:
            header, array = self._next
            assert array is not None and self._stream is not None
            if self._template is not None:
                if header["pts"] * Fraction(*self._what["time_base"]) >= seconds:
                    return
                self._mux_packet(header, array)
            else:
                if Fraction(self._given, self._what["rate"]) >= seconds:
                    return
                self._mux_samples(array)
            self._next = next(self._answers, None)

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if self._template is None and self._given:
            assert self._stream is not None
            self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Ends the reading; called at the end in any case."""
        self._answers.close()

    def _mux_packet(self, header: dict[str, Any], data: np.ndarray) -> None:
        packet = av.Packet(data.tobytes())
        packet.time_base = Fraction(*self._what["time_base"])
        packet.pts = packet.dts = header["pts"]
        packet.duration = header["duration"]
        packet.is_keyframe = True
        assert self._stream is not None
        packet.stream = self._stream
        self._container.mux(packet)

    def _mux_samples(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._what["layout"])
        frame.sample_rate = self._what["rate"]
        frame.pts, frame.time_base = self._given, Fraction(1, self._what["rate"])
        self._given += samples.shape[1]
        assert self._stream is not None
        self._container.mux(self._stream.encode(frame))


def open_audio(source: AudioSource) -> AudioTrack | None:
    """The audio of a file; None if it has none. Raises VideoError."""
    for copy in (True, False):
        request = {"do": "audio", "path": absolute(source.path), "start": source.start, "end": source.end}
        answers = ask({**request, "copy": copy})
        first = next(answers, None)
        if first is None:
            return None
        what, extradata = first
        if not what["copied"]:
            return AudioTrack(answers, what, None)
        assert extradata is not None
        try:
            template = _template(what)
        except (av.FFmpegError, ValueError):  # of a kind that is rare: it is encoded anew
            answers.close()
            continue
        return AudioTrack(answers, {**what, "extradata": extradata.tobytes()}, template)
    raise VideoError("its audio can neither be copied nor decoded")


def _template(what: dict[str, Any]) -> AudioStream:
    """A stream of the same kind. Raises av.FFmpegError, ValueError.

    PyAV makes a stream for packets only after another one, and that of the file must not be opened here.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(ENCODERS[what["codec"]], rate=what["rate"], layout=what["layout"])
        assert isinstance(stream, AudioStream)
        silence = av.AudioFrame(format=stream.codec_context.format.name, layout=what["layout"], samples=4608)
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate, silence.pts = what["rate"], 0
        silence.time_base = Fraction(1, what["rate"])
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    buffer.seek(0)
    stream = av.open(buffer, format="matroska").streams.audio[0]
    stream.time_base = Fraction(*what["time_base"])
    return stream
