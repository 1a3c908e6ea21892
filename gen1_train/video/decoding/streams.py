"""Chooses the streams of a file that a player would show and play, and their decoders."""

from collections.abc import Callable

from av import Packet
from av.audio.stream import AudioStream
from av.codec import CodecContext, codecs_available
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from gen1_train.video.decoding.container import MAX_PIXELS
from gen1_train.video.errors import VideoError

MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # ffmpeg's numbers of the color matrices that are converted correctly
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's names
ZEROS = b"\0\0\0"
SIZE_AT = {"h264": 4, "hevc": 21}  # codec -> byte of its header whose last two bits are the size of a length, minus 1


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream that a player would show (not cover art). Raises VideoError if none can be decoded."""
    streams = [stream for stream in container.streams.video if not is_cover_art(stream)]
    # a sequence of pictures in a HEIF file comes with still pictures, which are streams to ffmpeg
    streams = [stream for stream in streams if stream.duration or stream.frames != 1] or streams
    if not streams:
        raise VideoError("it contains no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("there is no decoder for its codec", unsupported=True)
    pixels = context.width * context.height
    if not 0 < pixels <= MAX_PIXELS:  # 0: the header has no size, or ffmpeg has refused it by our limit
        size = f"a frame size of {context.width}x{context.height} pixels" if pixels else "no usable frame size"
        raise VideoError(f"its header has {size}: frames may have at most {MAX_PIXELS} pixels")
    if context.color_trc == ColorTrc.SMPTE2084:  # HLG is accepted: it is designed to be shown without conversion
        raise VideoError("it is HDR video (PQ, SMPTE 2084), whose colors would be pale: tone-map it first")
    if context.colorspace not in MATRICES:
        raise VideoError(f"its color matrix is not supported: colorspace {context.colorspace}")
    # one thread: with more, a broken file would fail at a random frame
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}  # frames may be larger than the header says
    return stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream that a player would play, among those that can be decoded."""
    streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
    best = container.streams.best("audio")
    preferred = [stream for stream in streams if stream == best] or streams
    return preferred[0] if preferred else None


def alpha_decoder(stream: VideoStream | AudioStream) -> VideoCodecContext | None:
    """A decoder for VP8 and VP9 with transparency, which ffmpeg's own decoders ignore; None for any other stream."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in codecs_available:
        return None
    decoder = CodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    return decoder


def is_cover_art(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def hole_finder(stream: VideoStream) -> Callable[[Packet], bool]:
    """Returns a function that tells whether a packet of a stream has a hole of zeros, which decoders do not report.

    Interrupted copies and downloads leave such holes, and entropy decoding may turn them into a picture. A unit of
    H.264 and H.265 never contains three zero bytes, because an encoder inserts a byte to prevent it (ITU-T H.264
    section 7.4.1 and H.265 section 7.4.2, emulation_prevention_three_byte), except for padding at its end. The function
    finds nothing in other codecs, and in streams whose units are separated by start codes, as in MPEG-TS.
    """
    at = SIZE_AT.get(stream.codec_context.name)
    header = stream.codec_context.extradata or b""
    if at is None or len(header) <= at or header[0] != 1:
        return lambda packet: False
    size = (header[at] & 3) + 1
    return lambda packet: _has_hole(bytes(packet), size)


def _has_hole(data: bytes, size: int) -> bool:
    """`size`: bytes of the length before each unit."""
    start = 0
    while data.find(ZEROS, start) >= 0:
        end = start + size + int.from_bytes(data[start : start + size], "big")
        if end > len(data) or end == start + size:  # ffmpeg reports it
            return False
        if ZEROS in data[start + size : end].rstrip(b"\0"):
            return True
        start = end
    return False
