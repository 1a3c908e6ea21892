"""Targets that are videos, pictures and sound, which the child process of the sandbox decodes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gen1_train.video.audio import AudioSource, usable_audio
from gen1_train.video.decode import count, probe
from gen1_train.video.errors import VideoError
from gen1_train.video.image import image_size, read_image
from gen1_train.video.selection import Selection
from gen1_train.video.stream import read_selected
from tests.fuzzing import material
from tests.fuzzing.byte_mutations import byte_changes
from tests.fuzzing.documents import write
from tests.fuzzing.target import Target
from tests.video.audio_files import make_video_with_audio
from tests.video.files import make_video, picture
from tests.video.pictures import write_animation, write_image

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "libx264", ".ts": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}
SOUND = {".mp4": "aac", ".mkv": "libopus", ".mov": "pcm_s16le"}  # suffix -> codec
ANIMATIONS = (".gif", ".webp", ".png", ".avif")
PICTURES = (".jpg", ".png", ".webp", ".tif", ".heic", ".avif", ".bmp", ".gif")


def video(suffix: str) -> bytes:
    return make_video(material.folder(f"video{suffix}"), 6, codec=CODECS[suffix], width=32, height=32).read_bytes()


def animation(suffix: str) -> bytes:
    frames = [picture(number, 16, 16) for number in range(3)]
    return write_animation(material.folder(f"animation{suffix}"), frames, 100).read_bytes()


def image(suffix: str) -> bytes:
    return write_image(material.folder(f"picture{suffix}"), picture(0, 16, 16)).read_bytes()


def sound(suffix: str) -> bytes:
    path = material.folder(f"sound{suffix}")
    return make_video_with_audio(path, codec=SOUND[suffix], rate=16_000, seconds=1.4).read_bytes()


def decode_video(suffix: str, folder: Path, data: bytes) -> Any:
    """Reads a video as gen1-data and gen1-edit do. Each of them may refuse it."""
    path = write(folder, f"x{suffix}", data)
    refused: VideoError | None = None
    try:
        for frame in read_selected(path, Selection(), 16, 16):
            assert frame.pixels.shape == (16, 16, 3)
    except VideoError as error:
        refused = error
    info = probe(path)
    number = count(path)
    if refused is not None:
        raise refused
    return info, number


def decode_image(suffix: str, folder: Path, data: bytes) -> Any:
    path = write(folder, f"x{suffix}", data)
    width, height = image_size(path)
    pixels = read_image(path)
    assert pixels.ndim == 3 and pixels.dtype == np.uint8
    return width, height


def decode_sound(suffix: str, folder: Path, data: bytes) -> Any:
    source, error = usable_audio(AudioSource(str(write(folder, f"x{suffix}", data))))
    if error is not None:
        raise error
    return source


def media_target(kind: str, suffix: str, seed: Any, read: Any, examples: int) -> Target:
    return Target(
        f"{kind}{suffix}", partial(seed, suffix), byte_changes, partial(read, suffix), (VideoError,), examples
    )


MEDIA = [
    *(media_target("video", suffix, video, decode_video, 15) for suffix in CODECS),
    *(media_target("animation", suffix, animation, decode_video, 15) for suffix in ANIMATIONS),
    *(media_target("picture", suffix, image, decode_image, 20) for suffix in PICTURES),
    *(media_target("sound", suffix, sound, decode_sound, 10) for suffix in SOUND),
]
