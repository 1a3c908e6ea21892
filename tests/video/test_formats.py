"""What a file is: by its content, or by its suffix if the content is not recognized."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.source.locations import kind_of
from gen1_train.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Content, content_of
from tests.video.files import FAULTS, MEDIA, make_video, needs_media, picture
from tests.video.pictures import FORMATS, write_animation, write_image
from tests.video.web import serve

ANIMATED = {".gif": Content.VIDEO, ".png": Content.ANIMATION, ".webp": Content.ANIMATION, ".avif": Content.ANIMATION}
WRONG = ("a.jpg", "a.mp4", "a.heic", "a.gif", "a")  # names for files of all formats


@pytest.mark.parametrize("suffix", [*FORMATS, ".bmp", ".gif"])
def test_a_still_picture_is_an_image_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    content = write_image(tmp_path / f"still{suffix}", picture(3)).read_bytes()
    for name in WRONG:
        (tmp_path / name).write_bytes(content)
        assert content_of(tmp_path / name) is Content.IMAGE


@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animation_is_a_video_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    content = write_animation(tmp_path / f"moving{suffix}", [picture(n) for n in range(3)], 100).read_bytes()
    for name in WRONG:
        (tmp_path / name).write_bytes(content)
        assert content_of(tmp_path / name) is ANIMATED[suffix]


@pytest.mark.parametrize("suffix", ANIMATED)
def test_an_animation_of_one_picture_is_an_image(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a{suffix}", [picture(3)], 100)
    assert content_of(path) is Content.IMAGE


def test_a_png_whose_animation_has_one_picture_is_an_image(tmp_path: Path) -> None:
    pictures = [picture(3), picture(3)]  # which PIL merges to one
    path = write_animation(tmp_path / "a.png", pictures, 100, default_image=True)
    assert b"acTL" in path.read_bytes() and content_of(path) is Content.IMAGE


def test_a_gif_with_a_palette_for_each_picture_and_extensions_is_walked_through(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    write_animation(tmp_path / "a.gif", list(noise), [40, 50, 60], comment=b"c" * 600, loop=0, disposal=2)
    assert content_of(tmp_path / "a.gif") is Content.VIDEO
    Image.fromarray(noise[0]).quantize(2).save(tmp_path / "b.gif", comment=b"c" * 600)
    assert content_of(tmp_path / "b.gif") is Content.IMAGE


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".flv", ".3gp"])
def test_a_video_is_a_video_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    codec = {".webm": "libvpx", ".mpg": "mpeg2video", ".avi": "mpeg4"}.get(suffix, "libx264")
    content = make_video(tmp_path / f"v{suffix}", 5, codec).read_bytes()
    for name in WRONG:
        (tmp_path / name).write_bytes(content)
        assert content_of(tmp_path / name) is Content.VIDEO


def test_the_suffix_decides_for_a_content_that_is_not_recognized(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would block forever
    for name in ("text.png", "text.mp4", "text", "empty.png"):
        (tmp_path / name).write_text("" if name == "empty.png" else "BMW, GIF and RIFF are words")
    for name in ("text.png", "empty.png", "pipe.png", "absent.png", "absent.HEIC"):
        assert content_of(tmp_path / name) is Content.IMAGE
    for name in ("text.mp4", "text", "absent.mp4", "."):
        assert content_of(tmp_path / name) is Content.VIDEO


def test_motion_jpeg_is_known_by_its_suffix(tmp_path: Path) -> None:
    content = write_image(tmp_path / "a.jpg", picture(0)).read_bytes()
    (tmp_path / "a.mjpeg").write_bytes(content * 3)
    assert content_of(tmp_path / "a.mjpeg") is Content.VIDEO


def test_any_bytes_have_a_kind(tmp_path: Path) -> None:
    """Cut off or damaged after the signature."""
    random = np.random.default_rng(0)
    contents = [write_image(tmp_path / f"a{suffix}", picture(3)).read_bytes() for suffix in FORMATS]
    contents += [
        write_animation(tmp_path / f"b{suffix}", [picture(0), picture(1)], 90).read_bytes() for suffix in ANIMATED
    ]
    for content in contents:
        for length in (*range(0, 60, 3), len(content) // 2):
            (tmp_path / "cut").write_bytes(content[:length])
            assert content_of(tmp_path / "cut") in Content
        for _ in range(20):
            damaged = bytearray(content)
            damaged[random.integers(min(len(content), 200))] ^= 1 << random.integers(8)
            (tmp_path / "damaged").write_bytes(damaged)
            assert content_of(tmp_path / "damaged") in Content


def test_remote_files_are_recognized(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", [picture(n) for n in range(3)], 100)
    write_image(tmp_path / "b.mp4.heic", picture(3)).rename(tmp_path / "b.mp4")
    with serve(tmp_path) as web:
        assert content_of(f"{web.url}/a.gif") is Content.VIDEO
        assert content_of(f"{web.url}/b.mp4") is Content.IMAGE
        assert content_of(f"{web.url}/absent.jpg") is Content.IMAGE


def test_there_is_one_table_of_suffixes() -> None:
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    for suffix in ("mts", "m2ts", "3gp", "3g2", "mp4", "mov"):
        assert kind_of(f"sub.folder/a.{suffix.upper()}") == "video"
    for suffix in ("avif", "heic", "heif", "hif", "apng", "gif", "webp", "jfif"):
        assert kind_of(f"a.{suffix}") == "image"
    assert kind_of("a.txt") is None


def test_the_documentation_lists_all_suffixes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for kind, suffixes in (("videos", VIDEO_SUFFIXES), ("images", IMAGE_SUFFIXES)):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {kind} | `.")]
        assert set(row.split("`")[1].split()) == suffixes


@needs_media
def test_real_files_are_recognized() -> None:
    for path in (*MEDIA.glob("*.m[kop]*"), *FAULTS.iterdir()):
        expected = Content.IMAGE if path.suffix == ".jpg" else Content.VIDEO
        assert content_of(path) is expected
