"""The kinds of files: by suffix, to find them in folders and lists, and by content, to read them.

A suffix may be wrong, and the files of some formats (GIF, PNG, WebP, AVIF) are images or videos. So the content decides
how a file is read; the suffix decides only for a content that is not recognized.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from gen1_train.errors import UserError
from gen1_train.system.remote import is_url
from gen1_train.video.decoding.remote import open_remote
from gen1_train.video.errors import VideoError

# fmt: off
IMAGE_SUFFIXES = frozenset({  # animations of these formats are videos nevertheless
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs",
})
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe",
    ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".wmv", ".asf", ".flv", ".ogv", ".mxf", ".dv", ".rm",
    ".rmvb", ".y4m", ".mjpeg", ".mjpg",
})
# fmt: on
SUFFIXES = " ".join([*sorted(VIDEO_SUFFIXES), *sorted(IMAGE_SUFFIXES)])  # for messages
MOTION_JPEG = {".mjpeg", ".mjpg"}  # many JPEG files one after another: only the suffix says that they are a video

HEAD = 512  # bytes from the start of a file by which its format is recognized
JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
GIF = (b"GIF87a", b"GIF89a")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GIF_EXTENSION = b"\x21"  # kinds of blocks of a GIF file
GIF_PICTURE = b"\x2c"
CUT_OFF = b""
BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes of the second header of a BMP file
STILL_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif"}  # of HEIF and AVIF files, which share the
SEQUENCE_BRANDS = {b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis"}  # container of MP4
AVIF_BRANDS = {b"avif", b"avis"}
BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"}  # at the start of an MP4 or MOV file
VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"OggS",
    b"YUV4MPEG2",
)
TRANSPORT_PACKETS = ((0, 188), (4, 192))  # position of the first sync byte and distance to the next: TS, M2TS


class Content(Enum):
    """What a file contains, and so how it is read."""

    IMAGE = "image"  # by Pillow
    ANIMATION = "animation"  # a video in the format of an image that only Pillow reads completely: APNG, WebP, AVIF
    VIDEO = "video"  # by ffmpeg, like all that is not recognized


def content_of(path: str | Path) -> Content:
    """The kind of a local file or URL by its first bytes, or by its suffix if they are not recognized.

    A file that cannot be opened has the kind of its suffix: reading it raises the error.
    """
    suffix = os.path.splitext(str(path).partition("::")[0])[1].lower()
    named = Content.IMAGE if suffix in IMAGE_SUFFIXES else Content.VIDEO
    try:
        if not is_url(path) and not os.path.isfile(path):  # a pipe must not be opened
            return named
        with open_bytes(path) as stream:
            return recognized(stream, suffix) or named
    except (OSError, ValueError, UserError, VideoError):
        return named


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a local file or a URL. Raises OSError, VideoError and UserError."""
    if is_url(path):
        with open_remote(str(path)) as remote:
            yield remote
    else:
        with open(path, "rb") as local:
            yield local


def recognized(stream: BinaryIO, suffix: str) -> Content | None:
    """The kind of a file by its content; None if it is not recognized."""
    head = stream.read(HEAD)
    if head.startswith(JPEG):
        return Content.VIDEO if suffix in MOTION_JPEG else Content.IMAGE
    if head.startswith(PNG):
        return Content.ANIMATION if _is_animated_png(stream) else Content.IMAGE
    if head.startswith(GIF):
        return Content.VIDEO if _is_animated_gif(stream) else Content.IMAGE
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Content.ANIMATION if _is_animated_webp(stream) else Content.IMAGE
    if head.startswith(TIFF) or (head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS):
        return Content.IMAGE
    if brands := brands_of(head):
        return _by_brands(brands, stream)
    if head[4:8] in BOXES or head.startswith(VIDEO_STARTS) or (head[:4] == b"RIFF" and head[8:11] == b"AVI"):
        return Content.VIDEO
    if any(head[start::step][:2] == b"\x47\x47" for start, step in TRANSPORT_PACKETS):
        return Content.VIDEO
    return None


def brands_of(head: bytes) -> list[bytes]:
    """The brands in the first box of a HEIF, AVIF or MP4 file, the major one first; empty for other files."""
    if head[4:8] != b"ftyp":
        return []
    box = head[8 : int.from_bytes(head[:4], "big")]
    return [box[:4], *(box[start : start + 4] for start in range(8, len(box), 4))]


def _by_brands(brands: list[bytes], stream: BinaryIO) -> Content:
    """The major brand tells whether a file that has both is meant as one picture or as a sequence of them."""
    if brands[0] in STILL_BRANDS:
        return Content.IMAGE
    if brands[0] in SEQUENCE_BRANDS and AVIF_BRANDS.intersection(brands):
        return Content.ANIMATION if _has_several_samples(stream) else Content.IMAGE
    if brands[0] not in SEQUENCE_BRANDS and STILL_BRANDS.intersection(brands):
        return Content.IMAGE  # a brand of the future: Pillow refuses it, while ffmpeg would show one tile of it
    return Content.VIDEO


def _has_several_samples(stream: BinaryIO) -> bool:
    """Whether the first track of a file has more than one sample; also true if its table of samples is not found."""
    stream.seek(0)
    start = (data := stream.read(1 << 20)).find(b"stsz")
    return start < 0 or int.from_bytes(data[start + 12 : start + 16], "big") > 1


def _is_animated_png(stream: BinaryIO) -> bool:
    stream.seek(len(PNG))
    while len(chunk := stream.read(8)) == 8 and chunk[4:] != b"IDAT":
        length = int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"acTL":
            return int.from_bytes(stream.read(4), "big") > 1
        stream.seek(length + 4, os.SEEK_CUR)
    return False


def _is_animated_webp(stream: BinaryIO) -> bool:
    pictures = 0
    stream.seek(12)
    while pictures < 2 and len(chunk := stream.read(8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        pictures += chunk[:4] == b"ANMF"
        stream.seek(length + length % 2, os.SEEK_CUR)
    return pictures == 2


def _is_animated_gif(stream: BinaryIO) -> bool:
    pictures = (block for block in _gif_blocks(stream) if block == GIF_PICTURE)
    return len(list(islice(pictures, 2))) == 2


def ends_early(path: str | Path) -> bool:
    """Whether a GIF file ends in the middle of a picture, which ffmpeg does not report. Raises OSError, VideoError."""
    with open_bytes(path) as stream:
        return CUT_OFF in _gif_blocks(stream)


def _gif_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the kind of each block of a GIF file when it begins, and CUT_OFF if the file ends within one."""
    stream.seek(10)
    _skip_gif_palette(stream, stream.read(3))
    while (kind := stream.read(1)) in (GIF_EXTENSION, GIF_PICTURE):
        yield kind
        if kind == GIF_PICTURE:
            _skip_gif_palette(stream, stream.read(9)[8:])
        stream.seek(1, os.SEEK_CUR)
        while length := int.from_bytes(last := stream.read(1)):
            stream.seek(length, os.SEEK_CUR)
        if not last:
            yield CUT_OFF
            return


def _skip_gif_palette(stream: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        stream.seek(3 * 2 ** ((flags[0] & 7) + 1), os.SEEK_CUR)
