"""Image files and animations for tests, in all orientations and formats."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

register_heif_opener()

ORIENTATIONS = range(1, 9)
TAG = 0x0112  # of the orientation
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # how pixels are stored that are upright by an orientation
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
# the suffix, and options by which little is lost
FORMATS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 100, "subsampling": 0},
    ".png": {},
    ".webp": {"lossless": True},
    ".tif": {},
    ".heic": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
    ".avif": {"quality": 100, "subsampling": "4:4:4"},
}


def stored(pixels: np.ndarray, orientation: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[TAG] = orientation
    return exif


def xmp_of(orientation: int) -> bytes:
    description = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
    rdf = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{description}</rdf:RDF>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta>'.encode()


def write_image(path: Path, pixels: np.ndarray, orientation: int = 1, **options: Any) -> Path:
    """Writes uint8 pixels such that they are upright if the orientation is obeyed; the suffix gives the format."""
    exif = {} if orientation == 1 else {"exif": exif_of(orientation).tobytes()}
    stored(pixels, orientation).save(path, **FORMATS.get(path.suffix, {}), **exif, **options)
    return path


def write_animation(
    path: Path, pictures: Sequence[Image.Image | np.ndarray], milliseconds: int | Sequence[int], **options: Any
) -> Path:
    """Writes a GIF, an APNG (.png), or an animated WebP or AVIF."""
    first, *rest = [
        Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.copy() for picture in pictures
    ]
    durations = milliseconds if isinstance(milliseconds, int) else list(milliseconds)
    common = {"save_all": True, "append_images": rest, "duration": durations}
    first.save(path, **FORMATS.get(path.suffix, {}), **common, **options)
    return path
