"""Packets on one continuous timeline, also where the clock of a file restarts or jumps.

A recording of television jumps where the broadcaster switches programs, and restarts where files were joined byte by
byte. The rule is that of the ffmpeg command (`ts_discontinuity_detect` in its ffmpeg_demux.c): in formats that permit
discontinuities, a packet that decodes more than JUMP away from its expected time, or more than BACK before the packet
before it, moves the times of all streams from there on such that it decodes when it was expected. In other formats, a
time that is off by ABSURD is a mistake and is not used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.format import Flags
from av.video.stream import VideoStream

from gen1_train.video.decoding.streams import alpha_decoder, audio_stream, hole_finder, video_stream
from gen1_train.video.errors import VideoError

Stream = VideoStream | AudioStream

JUMP = 10  # seconds, ffmpeg's dts_delta_threshold
BACK = Fraction(1, 10)  # seconds
ABSURD = 30 * 3600  # seconds, ffmpeg's dts_error_threshold


class Timeline:
    """Reads the packets of a stream and corrects their times. All times are in seconds.

    The correction depends on all streams that are read. So that picture and sound stay together, a format that permits
    jumps is always read with its video and its audio stream.
    """

    def __init__(self, container: InputContainer, stream: Stream) -> None:
        self.jumps = 0  # found so far
        self.undecodable = 0  # pictures before the first one, which refer to others that the file does not contain
        self._may_jump = bool(container.format.flags & cast(int, Flags.ts_discont.value))
        self._container = container
        self._stream = stream
        both = (video_stream(container), audio_stream(container)) if self._may_jump else ()
        self._clocks = {each.index: _StreamClock(each) for each in (stream, *both) if each is not None}
        self._offset = Fraction(0)  # what is added to the times from here on
        self._newest: Fraction | None = None  # decoding time of the newest packet of any stream

    def packets(self) -> Iterator[av.Packet]:
        """Yields every packet of the stream, and an empty one at the end."""
        for packet in self._container.demux([clock.stream for clock in self._clocks.values()]):
            if packet.size and packet.dts is not None:
                self._correct(packet, self._clocks[packet.stream.index])
            if packet.stream.index == self._stream.index:  # `stream_index` of an empty packet is always 0
                yield packet

    def pictures(self) -> Iterator[av.VideoFrame]:
        """Yields every picture of a video stream, and counts the `undecodable`. Raises av.FFmpegError, VideoError."""
        assert isinstance(self._stream, VideoStream)
        decoder = alpha_decoder(self._stream)
        has_hole = hole_finder(self._stream)
        waiting: list[int] = []  # presentation times, in ticks, of packets before the first picture
        first: int | None = None
        for number, packet in enumerate(self.packets()):
            if has_hole(packet):
                raise VideoError(f"damaged at packet {number}, which has a hole of zeros")
            if packet.size and packet.pts is not None and not packet.is_discard:
                waiting.append(packet.pts)
            for picture in packet.decode() if decoder is None else decoder.decode(packet if packet.size else None):
                first = picture.pts if first is None else first
                yield picture
            if first is not None:
                self.undecodable += sum(time < first for time in waiting)
                waiting.clear()

    def _correct(self, packet: av.Packet, clock: "_StreamClock") -> None:
        assert packet.dts is not None
        time = packet.dts * packet.time_base + self._offset
        if self._may_jump:
            shift = self._shift(time, clock)
            self._offset += shift
            self.jumps += shift != 0
            _move(packet, self._offset)
        elif clock.expected is not None and abs(time - clock.expected) > ABSURD:
            packet.dts = None
            packet.pts = None
        clock.advance(packet)
        if packet.dts is not None:
            self._newest = packet.dts * packet.time_base

    def _shift(self, time: Fraction, clock: "_StreamClock") -> Fraction:
        """What has to be added to the times of this packet and of all later ones."""
        if clock.expected is not None:
            assert clock.last is not None
            delta = time - clock.expected
            return -delta if abs(delta) > JUMP or time + BACK < clock.last else Fraction(0)
        if self._newest is not None and abs(time - self._newest) > JUMP:
            return self._newest - time
        return Fraction(0)


@dataclass
class _StreamClock:
    """When the packets of one stream are decoded."""

    stream: Stream
    last: Fraction | None = None  # the newest packet
    expected: Fraction | None = None  # the one after it

    def advance(self, packet: av.Packet) -> None:
        self.last = self.expected if packet.dts is None else packet.dts * packet.time_base
        if self.last is not None:
            self.expected = self.last + self._duration(packet)

    def _duration(self, packet: av.Packet) -> Fraction:
        if isinstance(self.stream, AudioStream):
            context = self.stream.codec_context
            if context.sample_rate and context.frame_size:
                return Fraction(context.frame_size, context.sample_rate)
        if packet.duration:
            return packet.duration * packet.time_base
        rate = self.stream.guessed_rate if isinstance(self.stream, VideoStream) else None
        return 1 / rate if rate else Fraction(0)


def _move(packet: av.Packet, seconds: Fraction) -> None:
    ticks = round(seconds / packet.time_base)
    if packet.dts is not None:
        packet.dts += ticks
    if packet.pts is not None:
        packet.pts += ticks
