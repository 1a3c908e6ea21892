"""Takes the frames, masks and pictures that people have, and converts them exactly or refuses them in one line.

Accepted are uint8 arrays and tensors in 0..255, floating-point ones in [0, 1], PIL images, files, and lists of these.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen1_train.errors import UserError
from gen1_train.video.errors import VideoError
from gen1_train.video.geometry import resize_and_crop
from gen1_train.video.image import read_image
from gen1_train.video.mask import ASPECT_TOLERANCE, gray
from gen1_train.video.selection import Selection
from gen1_train.video.stream import probe_input, read_selected

PictureLike: TypeAlias = np.ndarray | Tensor | Image.Image | str | Path
FramesLike: TypeAlias = PictureLike | Iterable[PictureLike]


def to_frames(frames: FramesLike) -> np.ndarray:
    """Converts frames to uint8 (n, h, w, 3). A file is decoded whole, at its own size and pace.

    Arrays are (n, h, w, 3) or one frame (h, w, 3); tensors may also have their channels first, (n, 3, h, w). Raises
    UserError for frames that are none of that, have other values, or differ in size.
    """
    if isinstance(frames, str | Path):
        return read_frames(frames)
    if isinstance(frames, Image.Image):
        return to_picture(frames, "frames")[None]
    if isinstance(frames, np.ndarray | Tensor):
        array = _channels_last(frames, "frames")
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
            raise UserError(f"frames have the shape {tuple(frames.shape)}: give (n, height, width, 3), RGB")
        return to_bytes(array, "frames")
    if not isinstance(frames, Iterable):
        raise UserError(f"frames are a {type(frames).__name__}: give an array, a tensor, PIL images or a file")
    pictures = [to_picture(frame, f"frames[{i}]") for i, frame in enumerate(frames)]
    if not pictures:
        raise UserError("frames are empty: give at least one")
    height, width, _ = pictures[0].shape
    for i, (h, w, _) in enumerate(picture.shape for picture in pictures):
        if (h, w) != (height, width):
            raise UserError(f"frames[{i}] is {w}x{h}, and frames[0] is {width}x{height}: all must have one size")
    return np.stack(pictures)


def read_frames(path: str | Path) -> np.ndarray:
    """Reads all frames of a video or image file at its own size, uint8 (n, h, w, 3). Raises UserError."""
    if not Path(path).is_file():
        raise UserError(f"frames={path} does not exist: give a video or image file, or the frames themselves")
    try:
        info = probe_input(path)
        return np.stack([frame.pixels for frame in read_selected(path, Selection(), info.width, info.height)])
    except VideoError as error:
        raise UserError(f"frames={path} cannot be decoded: {error}") from error


def to_picture(picture: PictureLike, name: str) -> np.ndarray:
    """Converts a picture to uint8 (h, w, 3). `name`: for messages. Raises UserError."""
    if isinstance(picture, str | Path):
        try:
            return read_image(picture)
        except VideoError as error:
            raise UserError(f"{name}={picture} cannot be read: {error}") from error
    if isinstance(picture, Image.Image):
        if "A" in picture.getbands() or "transparency" in picture.info:  # becomes white, as in files
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        return np.asarray(picture.convert("RGB"))
    if not isinstance(picture, np.ndarray | Tensor):
        raise UserError(f"{name} is a {type(picture).__name__}: give an array, a tensor, a PIL image or a file")
    array = _channels_last(picture, name)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"{name} has the shape {tuple(picture.shape)}: give (height, width, 3), RGB")
    return to_bytes(array, name)


def to_mask(mask: FramesLike, shape: tuple[int, int, int]) -> np.ndarray:
    """Converts a mask to float32 (n, h, w) in [0, 1]; `shape` is that of the frames. Raises UserError.

    A mask of one picture holds for all frames. Booleans are 0 and 1, uint8 is divided by 255, and pictures in color
    count by their gray value. Files and PIL images may have another size, but only the aspect ratio of the frames.
    """
    n, h, w = shape
    if isinstance(mask, str | Path | Image.Image):
        pictures = to_frames(mask)
        if abs(pictures.shape[2] / pictures.shape[1] / (w / h) - 1) > ASPECT_TOLERANCE:
            size = f"{pictures.shape[2]}x{pictures.shape[1]}"
            raise UserError(f"mask is {size}, and the frames are {w}x{h}: a mask must have their aspect ratio")
        array = gray(resize_and_crop(pictures, w, h))
    elif isinstance(mask, np.ndarray | Tensor):
        array = _unit(_numpy(mask))
    else:
        array = np.stack([gray(to_picture(each, f"mask[{i}]")) for i, each in enumerate(mask)])
    array = array[None] if array.ndim == 2 else array
    if array.shape[1:] != (h, w) or len(array) not in (1, n):
        raise UserError(f"mask has the shape {array.shape}: give {(n, h, w)}, or {(h, w)} for all frames")
    return np.broadcast_to(array, shape)


def to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Converts uint8, or floating-point values in [0, 1], to uint8 in 0..255. Raises UserError for anything else."""
    if array.dtype == np.uint8:
        return array
    if np.issubdtype(array.dtype, np.floating):
        _check_unit(array, f"{name} has floating-point values", "give them in [0, 1], or uint8")
        return np.rint(array * 255).astype(np.uint8)
    raise UserError(f"{name} has the type {array.dtype}: give uint8 in 0..255, or floating-point values in [0, 1]")


def _unit(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        _check_unit(array, "mask has values", "give them in [0, 1]")
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    raise UserError(f"mask has the type {array.dtype}: give booleans, uint8 in 0..255, or floats in [0, 1]")


def _check_unit(array: np.ndarray, what: str, remedy: str) -> None:
    low = float(array.min())
    high = float(array.max())
    if not (0 <= low and high <= 1):  # nan fails the comparison
        raise UserError(f"{what} from {low:g} to {high:g}: {remedy}")


def _channels_last(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    """The array with its channels last; only tensors may have them first."""
    array = _numpy(values)
    if not isinstance(values, Tensor) or array.ndim not in (3, 4) or array.shape[-3] != 3:
        return array
    if array.shape[-1] == 3:
        raise UserError(f"{name} has the shape {tuple(array.shape)}: it is unclear which side holds the channels")
    return np.moveaxis(array, -3, -1)


def _numpy(values: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def padded(array: np.ndarray, multiple: int, height_axis: int) -> np.ndarray:
    """Repeats the last row and column until both sides are multiples of the autoencoder's factor."""
    pads = [(0, 0)] * array.ndim
    for axis in (height_axis, height_axis + 1):
        pads[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, pads, mode="edge")
