"""Opens video files, and only those: no playlists that would make ffmpeg open other files or URLs."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from gen1_train.errors import UserError
from gen1_train.system.remote import is_url
from gen1_train.video.errors import VideoError

MAX_PIXELS = 2**26  # of a frame, 8192x8192; ours: a header with more is broken, or meant to exhaust the memory
BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid"}  # top-level boxes of MP4 and MOV files

# A playlist that is named .mp4 must not make ffmpeg open URLs or other files: ffmpeg opens them with the playlist, so
# it may only try the other formats.
PLAYLISTS = {"concat", "dash", "hls", "image2", "imf", "rtsp", "sap", "sdp", "webm_dash_manifest"}  # ffmpeg's names
LIST_STARTS = (b"ffconcat", b"#EXTM3U", b"<MPD", b"v=0")
IS_LIST = "it is a list of other files, not a video"
HEAD = 512  # bytes by which a list is recognized
ONLY_FILES = {"protocol_whitelist": "file"}
NO_PROTOCOLS = {"protocol_whitelist": "none"}


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """An open PyAV container; every error of ffmpeg or the file system inside the block becomes a VideoError.

    `path`: a local file, or a URL that fsspec opens; only the bytes that are read are fetched.
    """
    from gen1_train.video.decoding.remote import open_remote

    with video_errors():
        # ffmpeg decodes some frames when it opens a file, and those beyond the limit must not exhaust the memory either
        options = {"max_pixels": str(MAX_PIXELS), "format_whitelist": _formats()}
        if is_url(path):
            with open_remote(str(path)) as stream:
                is_list = _is_list(stream.read(HEAD))
                stream.seek(0)
                if is_list:
                    raise VideoError(IS_LIST)
                with _opened(stream, options | NO_PROTOCOLS) as container:
                    yield container
            return
        _check_file(path)
        try:
            # in an absolute path, a colon in a name is not read as a protocol
            container = _opened(os.path.abspath(path), options | ONLY_FILES)
        except av.InvalidDataError:
            if _lacks_header(path):
                reason = "the file ends before its header (no moov box): the recording or copy is incomplete"
                raise VideoError(reason) from None
            raise
        with container:
            yield container


def _opened(source: Any, options: dict[str, str]) -> InputContainer:
    """Opens a container, for which ffmpeg reads its first packets. Raises VideoError if it has skipped some."""
    av.logging.set_level(av.logging.ERROR)  # for `reported`, here and while its packets are read
    av.logging.set_skip_repeated(False)
    with reported("at its start"):
        return av.open(source, "r", options=options)


@contextmanager
def reported(where: str) -> Iterator[None]:
    """Raises VideoError after a block in which ffmpeg's Matroska reader has skipped data.

    That reader continues after damage and only logs it; in other containers, the frame count reveals missing frames.
    """
    with av.logging.Capture() as messages:
        yield
    for _, source, message in messages:
        if source == "matroska,webm":
            raise VideoError(f"broken {where}: {message.strip()}")


@contextmanager
def video_errors() -> Iterator[None]:
    """Turns the errors of ffmpeg and of the file system into VideoError."""
    try:
        yield
    except UserError as error:  # a package for this kind of URL is missing
        raise VideoError(str(error)) from error
    except (av.DecoderNotFoundError, av.PatchWelcomeError) as error:
        raise VideoError(error.strerror or type(error).__name__, unsupported=True) from error
    except av.EOFError as error:
        raise VideoError("the file ends early, within its header") from error
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise VideoError(reason, transient=isinstance(error, OSError)) from error


@cache
def _formats() -> str:
    """The names of all formats that ffmpeg reads, except playlists, as ffmpeg expects them in a list."""
    names = set()
    for name in av.formats_available - PLAYLISTS:
        with suppress(ValueError):  # a format that is only written
            names.add(av.ContainerFormat(name, "r").name)
    return ",".join(sorted(names))


def _is_list(head: bytes) -> bool:
    """Whether a file with this start is a playlist or another list of files."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(LIST_STARTS) or b"<MPD" in head


def _check_file(path: str | Path) -> None:
    """Raises VideoError or OSError for files that make ffmpeg wait, or for which its message is unclear."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("it is not a regular file")
    if status.st_size == 0:
        raise VideoError("the file is empty")
    with open(path, "rb") as stream:
        if _is_list(stream.read(HEAD)):
            raise VideoError(IS_LIST)


def _lacks_header(path: str | Path) -> bool:
    """Whether it is an MP4 or MOV file without the box that describes its streams."""
    kinds = set()
    size = os.stat(path).st_size
    with open(path, "rb") as stream:
        offset = 0
        while offset + 8 <= size:
            stream.seek(offset)
            start = stream.read(16)
            length, kind = int.from_bytes(start[:4], "big"), start[4:8]
            if kind not in BOXES:
                break
            kinds.add(kind)
            if length == 1:  # the actual length follows, in 64 bits
                length = int.from_bytes(start[8:16], "big")
            if length < 8:  # 0: the box extends to the end of the file
                break
            offset += length
    return bool(kinds) and b"moov" not in kinds
