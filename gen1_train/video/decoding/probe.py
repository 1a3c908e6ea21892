"""Reads and checks the header of a video file."""

from dataclasses import dataclass
from pathlib import Path

from av.video.stream import VideoStream

from gen1_train.video.decoding.container import open_container
from gen1_train.video.decoding.length import container_seconds, frame_count, frame_rate, stream_seconds
from gen1_train.video.decoding.orientation import Orientation
from gen1_train.video.decoding.pictures import image_size, read_animation
from gen1_train.video.decoding.streams import video_stream
from gen1_train.video.decoding.timeline import Timeline
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import Content, content_of

IMAGE_FPS = 25.0  # frames per second of an image as a video of one frame; ours
ASPECTS = (1 / 4, 4.0)  # range of the pixel aspect; ours: outside it, the header is broken and the pixels are square


@dataclass(frozen=True)
class VideoInfo:
    """The contents of the header, checked by decoding one frame."""

    width: int  # pixels as displayed, after rotation and stretched by pixel_aspect
    height: int  # pixels, after rotation
    fps: float  # mean frames per second
    frames: int | None  # as the header tells, see frame_count; None if it does not (Matroska, WebM, MPEG-TS)
    seconds: float | None  # the duration in the header
    rotation: int  # degrees counterclockwise by which the frames are rotated for display: 0, 90, 180 or 270
    codec: str  # ffmpeg's name of the decoder; "image" or "animation" if Pillow reads it
    pixel_format: str  # ffmpeg's name, for example yuv420p
    mirrored: bool = False  # the frames are mirrored left to right before that
    pixel_aspect: float = 1.0  # the width of a pixel over its height, after rotation

    @property
    def is_image(self) -> bool:
        """Whether it is not a video, but an image, which is read as a video of one frame."""
        return self.codec == Content.IMAGE.value

    @property
    def expected_frames(self) -> int:
        """The frame count in the header, or the duration times the rate; 0 if the header has neither."""
        return self.frames if self.frames is not None else int((self.seconds or 0) * self.fps + 0.5)


def read_header(path: str | Path) -> VideoInfo:
    """Reads the header and decodes the first frame; of an image, reads the header alone. Raises VideoError.

    It runs in this process: for unchecked files, use `gen1_train.video.decode.probe`.
    """
    content = content_of(path)
    if content is not Content.VIDEO:
        return _picture_header(path, content)
    with open_container(path) as container:
        stream = video_stream(container)
        frame = next(Timeline(container, stream).pictures(), None)
        if frame is None:
            raise VideoError("no frame can be decoded", unsupported=True)
        frames = frame_count(stream)
        rate = frame_rate(container, stream)
        orientation = Orientation.of(frame)
        turned = orientation.transposed
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        aspect = 1 / _pixel_aspect(stream) if turned else _pixel_aspect(stream)
        return VideoInfo(
            width=max(1, round(width * aspect)),
            height=height,
            fps=float(rate),
            frames=frames,
            seconds=stream_seconds(container, stream) or container_seconds(container),
            rotation=orientation.rotation,
            mirrored=orientation.mirrored,
            codec=stream.codec_context.name,
            pixel_format=frame.format.name,
            pixel_aspect=aspect,
        )


def _picture_header(path: str | Path, content: Content) -> VideoInfo:
    """The header of a file that Pillow reads."""
    if content is Content.IMAGE:
        width, height = image_size(path)
        frames = 1
        seconds = 1 / IMAGE_FPS
    else:
        animation = read_animation(path)
        width = animation.width
        height = animation.height
        frames = animation.frames
        seconds = animation.seconds
    fps = frames / seconds
    return VideoInfo(width, height, fps, frames, seconds, rotation=0, codec=content.value, pixel_format="rgb24")


def _pixel_aspect(stream: VideoStream) -> float:
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if ASPECTS[0] <= aspect <= ASPECTS[1] else 1.0
