"""Reads image files, and animations in the formats of images, as upright 8-bit sRGB with Pillow.

Runs in a child process (see sandbox.py).
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorTrc
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms, ImageOps

from gen1_train.system.remote import is_url
from gen1_train.video.decoding.container import MAX_PIXELS, open_container
from gen1_train.video.decoding.frames import Converter
from gen1_train.video.decoding.sandbox import heartbeat
from gen1_train.video.errors import VideoError
from gen1_train.video.formats import AVIF_BRANDS, HEAD, brands_of, open_bytes

SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
# The formats that PIL may detect from the content of a file. PostScript is not one of them: PIL would run it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
MAX_IMAGE_PIXELS = 2**27  # of a picture, 384 MiB: bounds what the parent receives; ours
PILLOW = "pillow"  # Frame.decoder
NO_DURATION = 0.1  # seconds for which a picture is shown whose duration is 0, as in browsers and ffmpeg
REDUCED = 1  # in the TIFF tag NewSubfileType: the picture is a smaller version of another one in the file
NEW_SUBFILE_TYPE = 254  # numbers of TIFF tags
IMAGE_WIDTH = 256
IMAGE_LENGTH = 257
SUB_IFDS = 330
DNG_VERSION = 50706
SRGB = ImageCms.createProfile("sRGB")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # issued at half the size that PIL refuses
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # our own processes use the cores


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, from the header alone; `path` may be a URL. Raises VideoError."""
    with opened(path) as image:
        return _upright_size(image)


def read_image(path: str | Path) -> np.ndarray:
    """See `gen1_train.video.image.read_image`."""
    with opened(path) as image:
        width, height = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise VideoError(f"it has {width}x{height} pixels: {MAX_IMAGE_PIXELS} pixels are the maximum")
        return _rgb(image)


@dataclass(frozen=True)
class Animation:
    """The facts of an animation that are not in the header of its file."""

    width: int  # pixels, upright
    height: int
    frames: int
    seconds: float


def read_animation(path: str | Path) -> Animation:
    """Decodes all pictures of an animation, because their durations are only in front of each. Raises VideoError."""
    with opened(path) as image:
        durations = [seconds for _, seconds in _pictures(image)]
        return Animation(*_upright_size(image), len(durations), sum(durations))


@dataclass
class PictureFrame:
    """A Frame read by Pillow, which is upright."""

    index: int
    seconds: float
    pixels: np.ndarray = field(repr=False)
    converter: Converter = field(repr=False)
    interlaced: bool = False
    decoder: str = PILLOW

    def rgb(self) -> np.ndarray:
        """See Frame."""
        return self.pixels

    def small(self) -> np.ndarray:
        """See Frame; it is upright here."""
        return self.converter.small(av.VideoFrame.from_ndarray(self.pixels, format="rgb24"))


def image_frames(path: str | Path) -> Iterator[PictureFrame]:
    """An image as a video of one frame. Raises VideoError."""
    yield PictureFrame(0, 0.0, read_image(path), Converter())


def animation_frames(path: str | Path) -> Iterator[PictureFrame]:
    """See `read_frames`. Raises VideoError."""
    converter = Converter()
    start = 0.0
    with opened(path) as image:
        for index, (picture, seconds) in enumerate(_pictures(image)):
            yield PictureFrame(index, start, _rgb(picture), converter)
            start += seconds


def _pictures(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    """Yields every picture of an animation, with the seconds for which it is shown. Raises VideoError."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise VideoError(f"its header has a frame size of {width}x{height} pixels: {MAX_PIXELS} pixels are the maximum")
    total: int = getattr(image, "n_frames", 1)
    if image.format == "WEBP":
        # the header may say that no picture is transparent, and yet they may leave parts of the frame empty
        image.rawmode = image._mode = "RGBA"  # type: ignore[attr-defined]
    first = int(getattr(image, "default_image", False))  # of a PNG: shown only where animations are not supported
    for number in range(first, total):
        heartbeat()
        try:
            image.seek(number)
            image.load()
        except Exception as error:
            if number == first or isinstance(error, MemoryError):
                raise
            raise VideoError(f"broken after {number - first} frames: {_reason(error)}") from error
        seconds = image.info.get("duration", 0) / 1000
        yield image, seconds or NO_DURATION


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":  # whose size PIL has already turned, but only for some ways to store the orientation
        width, height = image.tag_v2[IMAGE_WIDTH], image.tag_v2[IMAGE_LENGTH]  # type: ignore[attr-defined]
    sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    return (height, width) if sideways else (width, height)


def _rgb(opened: Image.Image) -> np.ndarray:
    """The current picture as uint8 RGB (h, w, 3), upright, on white."""
    profile = opened.info.get("icc_profile")
    image = _eight_bits(opened)
    image.load()  # which turns a TIFF
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # without one, a copy would only cost memory
        image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return np.asarray(_srgb(image, profile))
    rgba = image.convert("RGBA")
    colors = image.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    return np.asarray(Image.composite(_srgb(colors, profile), white, rgba.getchannel("A")))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit gray to 8 bits by its upper byte, as PIL does with colors; `convert` would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise VideoError("32-bit gray is not supported: its range is unknown")
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}  # that one is in 16 bits
    gray.getexif().load(image.getexif().tobytes())
    return gray


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts an image to RGB by its profile, if that fits the image's mode (perceptual intent, as viewers do)."""
    if image.mode not in ("L", "CMYK", "RGB"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, ImageCms.Intent.PERCEPTUAL, "RGB")
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")
        assert converted is not None  # None is returned only for conversion in place
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies an image of the same mode


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An open image; every error of PIL or the file system inside the block becomes a VideoError."""
    try:
        with ExitStack() as stack:
            if not is_url(path) and stat.S_ISFIFO(os.stat(path).st_mode):  # opening it would block
                raise VideoError("it is not a regular file")
            source = stack.enter_context(open_bytes(path))
            image = stack.enter_context(Image.open(source, formats=_formats(source.read(HEAD))))
            _check(path, image)
            yield image
    except VideoError:
        raise
    except Image.UnidentifiedImageError as error:
        raise VideoError("not an image that PIL can read") from error
    except MemoryError as error:
        raise VideoError("not enough memory to read it", transient=True) from error
    except Exception as error:  # PIL's decoders raise any error for a damaged file: struct.error, KeyError, …
        raise VideoError(_reason(error), transient=getattr(error, "errno", None) is not None) from error


def _reason(error: Exception) -> str:
    # errors of the system have a number, PIL's own OSErrors do not
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "it is damaged, or ends early" if reason == "could not create decoder object" else reason  # of WebP


def _formats(head: bytes) -> tuple[str, ...]:
    """PIL's names of the formats that a file with this start may have."""
    brands = brands_of(head)
    if not brands:
        return FORMATS
    if AVIF_BRANDS.intersection(brands):
        return ("AVIF",)
    # PIL has no reader of its own, and ffmpeg would read a single tile
    from pi_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return ("HEIF",)


def _check(path: str | Path, image: Image.Image) -> None:
    """Raises VideoError for a picture whose pixels would be wrong."""
    if image.mode.startswith("F"):
        raise VideoError("float pixels are not supported: their range is unknown")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        is_reduced = tags.get(NEW_SUBFILE_TYPE, 0) & REDUCED and (SUB_IFDS in tags or image.n_frames > 1)  # type: ignore[attr-defined]
        if is_reduced or DNG_VERSION in tags:
            raise VideoError("a raw photo, whose first picture is only a preview: develop it, and give that picture")
    if image.format in ("HEIF", "AVIF") and _transfer(path, image) == ColorTrc.SMPTE2084:
        raise VideoError("an HDR picture (PQ, SMPTE 2084), whose colors would be pale: tone-map it first")


def _transfer(path: str | Path, image: Image.Image) -> int | None:
    """The number of the transfer function of a HEIF or AVIF picture without an ICC profile; None if it has none."""
    if "icc_profile" in image.info:
        return None
    if image.format == "HEIF":
        return image.info.get("nclx_profile", {}).get("transfer_characteristics")
    try:  # Pillow does not report it
        with open_container(path) as container:
            return container.streams.video[0].codec_context.color_trc
    except (VideoError, IndexError, AttributeError):  # no video stream, or no decoder for it
        return None
