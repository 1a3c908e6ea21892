"""A source folder with all that people's folders hold: good files of every kind, odd names, and files gone wrong."""

import os
import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from gen1_train.video.frames import read_frames
from gen1_train.video.probe import VideoError
from tests.data_tools.source import WEIGHTS
from tests.video.files import copy_stream, flip_bit, make_video, picture

RECIPE = [  # of tests.data_tools.source, as a user gives it
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
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".png", ".jpg", ".tiff")  # of all the media files that are made here
ODD_NAMES = [
    b"a b.mp4",
    b"a_b.mp4",
    b"a-b.mp4",  # the three differ in nothing that a key can hold
    b"a..b.mp4",
    b"-dash.mp4",
    b"'quo\"te`$(x).mp4",
    b"new\nline.mp4",
    b"back\\slash %s {0} ${y}.mp4",
    b"a: b::c.mp4",
    "ünï 漢字.MP4".encode(),
    b"no utf-8 \xff\xfe.mp4",
    b"long" * 62 + b"abc.mp4",  # 255 bytes, the most that a file system takes
    b"folder.mp4/inside.mp4",
]
ODD_BAD_NAMES = [b"a first\xff.mp4", b"a\nsecond.png"]  # of files of which nothing can be made
FLIPS = 3


def make_good(folder: Path) -> dict[str, int]:
    """Good files; returns the number of frames of each video, and for image number i, which shows that number, -i."""
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
    """Image number i shows the number i, from 1."""
    pictures = [Image.fromarray(picture(number)) for number in range(1, 8)]
    deep = np.asarray(pictures[3].convert("L")).astype(np.uint16) * 257
    see_through = pictures[4].convert("RGBA")
    opacity = np.full((48, 64), 255, np.uint8)
    opacity[24:] = 0
    see_through.putalpha(Image.fromarray(opacity))
    return {
        "good.png": pictures[0],
        "good.jpg": pictures[1],
        "cmyk.jpg": pictures[2].convert("CMYK"),
        "deep.png": Image.fromarray(deep),
        "alpha.png": see_through,
        "grey.png": pictures[5].convert("L"),
        "palette.png": pictures[6].quantize(64),
    }


def make_bad(folder: Path, whole: Path) -> None:
    """Of none of them can all be made that they promise; `whole` gets those that are damaged as they were before."""
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
    """Takes away the last two fifths of a file."""
    os.truncate(path, path.stat().st_size * 3 // 5)


def make_flipped(folder: Path, whole: Path) -> None:
    """`flipped 0.mp4` and so on, each with one wrong bit that the decoder can notice.

    Half the bits of so small a video leave a stream that is valid and shows something else: that, nobody can notice.
    """
    original = make_video(whole / "flipped.mp4", frames=80)
    found, seed = 0, 0
    while found < FLIPS:
        path = flip_bit(original, folder / f"flipped {found}.mp4", np.random.default_rng(seed))
        found, seed = found + is_noticed(path), seed + 1
        shutil.copy(original, whole / path.name)


def is_noticed(path: Path) -> bool:
    try:
        return sum(1 for _ in read_frames(path)) < 0
    except VideoError:
        return True


def make_sound(path: Path) -> None:
    """A file with a sound track and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        tone = (np.sin(np.arange(15 * 1024) / 10) * 0.5).astype(np.float32).reshape(15, 1, 1024)
        for number, samples in enumerate(tone):
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, number * 1024, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def claim_size(path: Path, side: int) -> None:
    """Makes the headers of a PNG file, or of all pictures of a MOV of PNGs, tell so many pixels a side."""
    data, start = bytearray(path.read_bytes()), 0
    while (start := data.find(b"IHDR", start)) >= 0:
        data[start + 4 : start + 12] = struct.pack(">II", side, side)
        data[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(data[start : start + 17]))
        start += 4
    path.write_bytes(data)
