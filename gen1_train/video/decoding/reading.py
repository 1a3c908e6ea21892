"""Reads the frames of a video file with the first decoder that supports it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gen1_train.video.decoding.frames import DECODERS, Frame, pyav_frames
from gen1_train.video.decoding.pictures import animation_frames, image_frames
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import Content, content_of


def read_frames(path: str | Path, decoder: str = "pyav") -> Iterator[Frame]:
    """Every frame of the video stream, once, in order.

    Raises VideoError at the first damaged frame, or at the end if there were fewer frames than the header counts. A
    frame is yielded only after REORDERING more frames were decoded, or the stream ended without an error. Raises
    ValueError for an unknown decoder.
    """
    if decoder not in DECODERS:
        raise ValueError(f"{decoder!r} is not a decoder; choose from {', '.join(DECODERS)}")
    if decoder == "decord":  # imported here, because most readers never need decord
        from gen1_train.video.decoding.decord_reader import decord_frames

        return decord_frames(path)
    return pyav_frames(path)


def read_any(path: str | Path, decoders: Sequence[str] = DECODERS) -> Iterator[Frame]:
    """Reads frames like `read_frames`, with the first decoder that supports the file. Raises VideoError.

    Images and animations are read with Pillow, whatever the decoders. An error of PyAV is final, unless it does not
    support the file at all: it detects damage that decord turns into wrong frames. If decord fails, PyAV continues from
    the same frame.
    """
    content = content_of(path)
    if content is not Content.VIDEO:
        yield from image_frames(path) if content is Content.IMAGE else animation_frames(path)
        return
    yielded = 0
    failures: dict[str, VideoError] = {}
    for decoder in decoders:
        try:
            for frame in read_frames(path, decoder):
                if frame.index == yielded:
                    yielded += 1
                    yield frame
            return
        except VideoError as error:
            failures[decoder] = error
            if decoder == "pyav" and not error.unsupported:
                break
    raise failures.get("pyav") or failures[decoders[-1]]
