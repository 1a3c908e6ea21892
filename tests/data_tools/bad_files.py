"""A source folder with everything that real folders contain: good files of every kind, odd names, and broken files."""

import os
import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from gen1_train.video.decoding.reading import read_frames
from gen1_train.video.errors import VideoError
from tests.data_tools.small_source import WEIGHTS
from tests.video.files import copy_stream, flip_bit, make_video, picture

RECIPE = [  # the recipe of tests.data_tools.small_source, as a user gives it
    "recipe=tiny",
    "recipe.cut.frames=2",
    "recipe.cut.stride=2",
    "recipe.video_buckets=[64x48]",
    "recipe.image_buckets=[48x48,64x48]",
    "recipe.depth.size=48",
    "recipe.task_seconds=2",
    f"recipe.autoencoder.path={WEIGHTS / 'autoencoder'}",
    f"recipe.depth.path={WEIGHTS / 'depth'}",
    f"recipe.clip.model=local-dir:{WEIGHTS / 'clip'}",
]
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".png", ".jpg", ".tiff")  # of all the media files that are written here
ODD_NAMES = [
    b"a b.mp4",
    b"a_b.mp4",
    b"a-b.mp4",  # these three differ only in characters that a key cannot contain
    b"a..b.mp4",
    b"-dash.mp4",
    b"'quo\"te`$(x).mp4",
    b"new\nline.mp4",
    b"back\\slash %s {0} ${y}.mp4",
    b"a: b::c.mp4",
    "ünï 漢字.MP4".encode(),
    b"no utf-8 \xff\xfe.mp4",
    b"long" * 62 + b"abc.mp4",  # 255 bytes, the longest name that a file system allows
    b"folder.mp4/inside.mp4",
]
ODD_BAD_NAMES = [b"a first\xff.mp4", b"a\nsecond.png"]  # of files that cannot be read
FLIPS = 3


def make_good(folder: Path) -> dict[str, int]:
    """Writes good files; returns the number of frames of each video, and -i for image number i, which shows i."""
    folder.mkdir(parents=True)
    quick = {"deadline": "realtime", "cpu-used": "8"}
    content = {"good.mp4": 40, "good.mkv": 30, "good.webm": 20}
    for name, frames in content.items():
        is_webm = name.endswith(".webm")
        make_video(folder / name, frames, "libvpx-vp9" if is_webm else "libx264", options=quick if is_webm else {})
    source = make_video(folder / "odd.mp4", frames=5)
    for name in map(os.fsdecode, ODD_NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, folder / name)
        content[name] = 5
    source.unlink()
    for number, (name, image) in enumerate(good_images().items(), 1):
        image.save(folder / name)
        content[name] = -number
    return content


def good_images() -> dict[str, Image.Image]:
    """Returns images by name; image number i, from 1, shows the number i."""
    pictures = [Image.fromarray(picture(number)) for number in range(1, 8)]
    deep = np.asarray(pictures[3].convert("L")).astype(np.uint16) * 257
    transparent = pictures[4].convert("RGBA")
    opacity = np.full((48, 64), 255, np.uint8)
    opacity[24:] = 0
    transparent.putalpha(Image.fromarray(opacity))
    return {
        "good.png": pictures[0],
        "good.jpg": pictures[1],
        "cmyk.jpg": pictures[2].convert("CMYK"),
        "deep.png": Image.fromarray(deep),
        "alpha.png": transparent,
        "gray.png": pictures[5].convert("L"),
        "palette.png": pictures[6].quantize(64),
    }


def make_bad(folder: Path, whole: Path) -> None:
    """Writes files that cannot be read completely; `whole` gets the damaged ones as they were before the damage."""
    for name in ("empty.mp4", "empty.mkv", "empty.png", "empty.jpg"):
        (folder / name).touch()
    for name in ("text.mp4", "text.jpg", *map(os.fsdecode, ODD_BAD_NAMES)):
        (folder / name).write_text("I am neither a video nor an image.\n" * 20)
    whole.mkdir()
    make_video(whole / "header first.mp4", frames=80)
    copy_stream(whole / "header first.mp4", whole / "header last.mp4", lambda stream: None)
    make_video(whole / "cut.mkv", frames=80)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(whole / name)
    for path in whole.iterdir():
        cut_short(Path(shutil.copy(path, folder)))
    make_flipped(folder, whole)
    make_video(folder / "one frame.mp4", frames=1)
    make_video(folder / "few pixels.mp4", frames=20, width=2, height=2)
    Image.fromarray(picture(0)[:1, :1]).save(folder / "one pixel.png")
    make_sound(folder / "sound.mp4")
    Image.fromarray(picture(0)).save(folder / "huge.png")
    make_video(folder / "huge.mov", frames=8, codec="png", pixel_format="rgb24")
    claim_size(folder / "huge.png", 20_000)
    claim_size(folder / "huge.mov", 11_000)
    Image.fromarray(np.random.default_rng(0).random((48, 64), np.float32)).save(folder / "float.tiff")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(folder / "nowhere.mp4")


def cut_short(path: Path) -> None:
    """Removes the last two fifths of a file."""
    os.truncate(path, path.stat().st_size * 3 // 5)


def make_flipped(folder: Path, whole: Path) -> None:
    """Writes `flipped 0.mp4` and so on, each with one flipped bit that the decoder can notice.

    Half of the bits of so small a video leave a valid stream that shows something else, which no decoder can notice.
    """
    original = make_video(whole / "flipped.mp4", frames=80)
    count, seed = 0, 0
    while count < FLIPS:
        path = flip_bit(original, folder / f"flipped {count}.mp4", np.random.default_rng(seed))
        count += is_damage_noticed(path)
        seed += 1
        shutil.copy(original, whole / path.name)


def is_damage_noticed(path: Path) -> bool:
    try:
        return sum(1 for _ in read_frames(path)) < 0
    except VideoError:
        return True


def make_sound(path: Path) -> None:
    """Writes a file with a sound track and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        tone = (np.sin(np.arange(15 * 1024) / 10) * 0.5).astype(np.float32).reshape(15, 1, 1024)
        for number, samples in enumerate(tone):
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate = 16000
            frame.pts = number * 1024
            frame.time_base = Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def claim_size(path: Path, side: int) -> None:
    """Makes the headers of a PNG file, or of all pictures in a MOV of PNGs, claim `side` x `side` pixels."""
    data, start = bytearray(path.read_bytes()), 0
    while (start := data.find(b"IHDR", start)) >= 0:
        data[start + 4 : start + 12] = struct.pack(">II", side, side)
        data[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(data[start : start + 17]))
        start += 4
    path.write_bytes(data)
