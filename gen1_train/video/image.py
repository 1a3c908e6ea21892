"""Image files: whatever PIL can read becomes upright sRGB of 8 bits."""

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from gen1_train.remote import is_url
from gen1_train.video.probe import VideoError
from gen1_train.video.remote import open_remote

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}  # no GIF: it may move, and is a video
SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
# What PIL may take a file for, by its content; among the others is PostScript, which it would have run.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
SRGB = ImageCms.createProfile("sRGB")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # it comes at half of what PIL refuses


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, by the header alone; `path` may be a URL. Raises VideoError."""
    with _open(path) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def read_image(path: str | Path) -> np.ndarray:
    """uint8 sRGB (h, w, 3), turned upright by its EXIF tag; the first picture of an animation. Raises VideoError.

    Transparent pixels come out white. Grey of 16 bits keeps its upper 8. Colours are brought to sRGB by the profile in
    the file; without one, or with a broken one, the numbers are taken for sRGB, and CMYK is converted plainly.
    """
    with _open(path) as opened:
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(_eight_bits(opened))
        if not image.has_transparency_data:
            return np.asarray(_srgb(image, profile))
        rgba = image.convert("RGBA")
        colours = image.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB")
        white = Image.new("RGB", image.size, "white")
        return np.asarray(Image.composite(_srgb(colours, profile), white, rgba.getchannel("A")))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits, by the upper byte as PIL does with colours; a conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise VideoError("grey of 32 bits is not supported: its range is not known")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}  # that counts in 16 bits
    grey.getexif().load(image.getexif().tobytes())
    return grey


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB pixels, converted by the profile if it is one for such an image (perceptual, as viewers do)."""
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, ImageCms.Intent.PERCEPTUAL, "RGB")
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")
        assert converted is not None  # only in place is nothing given back
        return converted
    return image.convert("RGB")


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """An open image; whatever PIL or the file system says inside the block becomes a VideoError."""
    try:
        with ExitStack() as stack:
            source = stack.enter_context(open_remote(str(path))) if is_url(path) else path
            image = stack.enter_context(Image.open(source, formats=FORMATS))
            if image.mode.startswith("F"):
                raise VideoError("float pixels are not supported: their range is not known")
            yield image
    except VideoError:
        raise
    except Image.UnidentifiedImageError as error:
        raise VideoError("no image that PIL can read") from error
    except MemoryError as error:
        raise VideoError("not enough memory for it", transient=True) from error
    except Exception as error:  # PIL's decoders say anything to a damaged file: struct.error, KeyError, …
        # the system's errors have a number, PIL's own OSErrors have none
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(reason, transient=getattr(error, "errno", None) is not None) from error
