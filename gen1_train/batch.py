"""THE CONTRACT: what a sample in a shard holds, and what a training batch holds.

`data_tools` writes samples with `encode_sample` and the loader reads them with `decode_sample`. Both sides check them
with the same `validate`, so they cannot disagree. All samples of a pool have the same shape; nothing is ever padded.

A sample is a group of members of one WebDataset tar that share a key (keys have no dots). For n frames of h x w pixels,
an autoencoder with c latent channels and factor f, and CLIP width d:

| member | content |
|---|---|
| `frame00.jpg` ... | uint8 RGB (h, w, 3), JPEG |
| `structure00.png` ... | structure: lossless 16-bit gray PNG (h, w); depth: 0..65535 is farthest..nearest in the clip |
|  | of p planes, 2 or 3: one above the other, (p h, w) |
| `moments.npy` | float16 (n, 2c, h/f, w/f): mean and log-variance of the frames' latents, before the latent scale |
| `structure_latent.npy` | float16 (n, c, h/f, w/f): latent of the structure at t_s = 0, times the latent scale |
| `image_embedding.npy` | float16 (n, d): CLIP image embedding of every frame, as CLIP returns it |
| `text_embedding.npy` | float16 (d,): CLIP text embedding of the caption; only with a caption |
| `caption.txt` | UTF-8; only with a caption; `captioned_by` in `meta.json` names the kind of network that made it |
| `meta.json` | where the sample comes from and how it was made |
| `structure_latent1.npy` ... | as `structure_latent.npy`, at t_s = 1, 2, …; optional, and only the drawn one is read |
"""

import dataclasses
import io
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
MAX_PLANES = 3  # of a structure: the autoencoder encodes them as one picture, with red, green and blue
MAX_PIXELS = 1 << 25  # of a picture, which 8K has: no header of a hostile picture may take all memory; ours
MAX_REASON = 300  # characters of the reason that a decoder gives; ours
STRUCTURE_MAX = 65535  # 16 bits: 8 would cost 0.2 % of the range
LATENT = "structure_latent"  # the field of the structure's latent at t_s = 0
POOL = re.compile(r"(image|video)-([1-9]\d{0,4})x([1-9]\d{0,4})(?:-([1-9]\d?)f)?")  # the name of a pool, see Pool.named
LATENT_AT = re.compile(rf"{LATENT}([1-9])?")  # the fields at any t_s, see `latent_field`
ARRAYS = ("moments", LATENT, "image_embedding", "text_embedding")  # fields that are arrays in .npy


# Why a sample cannot be used: a member does not exist, cannot be read, does not match its crc32, cannot be decoded,
# does not have the shape of its pool, or holds values that are not finite.
Reason = Literal["missing", "read", "checksum", "decode", "shape", "not_finite"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class SampleError(ValueError):
    """A sample that breaks the contract; the message names the member and the problem."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)  # both arguments, so that the error can be pickled between processes
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Pool:
    """All samples of one kind, one size and one length. Each batch is drawn from one pool."""

    kind: str  # "image" or "video"
    width: int  # pixels
    height: int  # pixels
    frames: int  # frames in a sample; 1 for images
    longer: bool = False  # clips of one of the longer lengths of a set: the name of the pool has its length

    @property
    def name(self) -> str:
        """For example `video-448x256` (width x height), or `video-448x256-16f` for longer clips, of 16 frames."""
        return f"{self.kind}-{self.width}x{self.height}" + (f"-{self.frames}f" if self.longer else "")

    @classmethod
    def named(cls, name: str, frames: int) -> "Pool":
        """Returns the pool of a name; `frames`: in a clip, if the name does not have them. Raises ValueError."""
        match = POOL.fullmatch(name)
        if match is None or (match[1] == "image" and match[4]):
            raise ValueError(f"{name[:80]!a} is not the name of a pool")
        clip = int(match[4] or frames)
        return cls(match[1], int(match[2]), int(match[3]), 1 if match[1] == "image" else clip, bool(match[4]))


@dataclass
class Sample:
    """One decoded sample. Members that were not read, or that the sample does not have, are None."""

    key: str
    frames: np.ndarray | None = None  # uint8 (n, h, w, 3)
    structure: np.ndarray | None = None  # uint16 (n, h, w); of several planes (n, p, h, w)
    moments: np.ndarray | None = None  # float16 (n, 2c, h/f, w/f)
    structure_latent: np.ndarray | None = None  # float16 (n, c, h/f, w/f), at t_s = 0
    image_embedding: np.ndarray | None = None  # float16 (n, d)
    text_embedding: np.ndarray | None = None  # float16 (d,)
    caption: str | None = None
    meta: dict[str, Any] | None = None
    # t_s from 1 on -> float16 (n, c, h/f, w/f)
    degraded_latents: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def latent_field(level: int) -> str:
    """Returns the field that holds the structure's latent at t_s = `level` (0..9), which is also its member's name."""
    return f"{LATENT}{level}" if level else LATENT


def latent_level(field: str) -> int | None:
    """Returns the t_s of such a field; None for any other field."""
    match = LATENT_AT.fullmatch(field)
    return int(match[1] or 0) if match else None


def set_array(sample: Sample, field: str, array: np.ndarray) -> None:
    """Sets a field that is an array, at any t_s; another name is ignored."""
    if level := latent_level(field):
        sample.degraded_latents[level] = array
    elif field in ARRAYS:
        setattr(sample, field, array)


def frame_members(frames: int) -> list[str]:
    return [f"frame{i:02d}.jpg" for i in range(frames)]


def structure_members(frames: int) -> list[str]:
    return [f"structure{i:02d}.png" for i in range(frames)]


def members_of(field: str, frames: int) -> list[str]:
    """Returns the names of the tar members that hold one field of a Sample. Raises KeyError for an unknown field."""
    match field:
        case "frames":
            return frame_members(frames)
        case "structure":
            return structure_members(frames)
        case "caption":
            return ["caption.txt"]
        case "meta":
            return ["meta.json"]
        case "moments" | "image_embedding" | "text_embedding":
            return [f"{field}.npy"]
    if LATENT_AT.fullmatch(field):
        return [f"{field}.npy"]
    raise KeyError(f"a Sample has no field {field!r}")


def encode_sample(sample: Sample, jpeg_quality: int = 95) -> dict[str, bytes]:
    """Encodes the members of a sample as bytes; fields that are None are left out."""
    members: dict[str, bytes] = {}
    for image, name in zip(_each(sample.frames), frame_members(99)):
        # 4:4:4, because chroma subsampling blurs the very colors that content describes
        members[name] = _encode_image(Image.fromarray(image), "JPEG", quality=jpeg_quality, subsampling=0)
    for map_, name in zip(_each(sample.structure), structure_members(99)):
        plane = map_.reshape(-1, map_.shape[-1])  # several are stacked, since no PNG has 16-bit planes without meaning
        # run lengths only: 16-bit planes hardly compress otherwise, and a full search would take three times as long
        members[name] = _encode_image(Image.fromarray(plane), "PNG", compress_type=zlib.Z_RLE)
    for name in ARRAYS:
        array = getattr(sample, name)
        if array is not None:
            members[f"{name}.npy"] = _encode_array(array)
    if sample.caption is not None:
        members["caption.txt"] = sample.caption.encode()
    if sample.meta is not None:
        members["meta.json"] = json.dumps(sample.meta, sort_keys=True).encode()
    for level, latent in sorted(sample.degraded_latents.items()):  # last: what all stages read stays adjacent
        members[f"{latent_field(level)}.npy"] = _encode_array(latent)
    return members


def decode_sample(key: str, members: dict[str, bytes], pool: Pool | None = None) -> Sample:
    """Decodes the members that were read into a Sample. With `pool`, larger pictures than its are not decoded.

    Raises SampleError for a member that cannot be decoded, and for frames of different sizes.
    """
    sample = Sample(key)
    pixels = pool.width * pool.height if pool else MAX_PIXELS
    try:
        decoded = {name: decode_member(name, data, pixels) for name, data in members.items()}
    except SampleError as error:
        raise SampleError(f"{key}: {error}", error.reason) from error
    frames = [decoded[name] for name in sorted(decoded) if name.startswith("frame")]
    maps = [decoded[name] for name in sorted(decoded) if name.startswith("structure") and name.endswith(".png")]
    try:
        sample.frames = np.stack(frames) if frames else None
        sample.structure = split_planes(np.stack(maps), pool) if maps else None
    except ValueError as error:
        raise SampleError(f"{key}: its frames have different sizes", "shape") from error
    for name, value in decoded.items():
        if name.endswith(".npy"):
            set_array(sample, name.removesuffix(".npy"), value)
    sample.caption = decoded.get("caption.txt")
    sample.meta = decoded.get("meta.json")
    return sample


def split_planes(maps: np.ndarray, pool: Pool | None) -> np.ndarray:
    """Returns maps (n, h, w) as they are, and those of several planes (n, p h, w), of a known pool, as (n, p, h, w)."""
    planes, rest = divmod(maps.shape[1], pool.height) if pool else (1, 0)
    return maps.reshape(len(maps), planes, -1, maps.shape[2]) if not rest and 1 < planes <= MAX_PLANES else maps


def decode_member(name: str, data: bytes, pixels: int = MAX_PIXELS) -> Any:
    """Decodes one member into an array, a string or a dict. Nothing is ever unpickled. Raises SampleError.

    A picture is opened only in the format that the contract gives to its name, and only if it has no more than
    `pixels`, a plane: Pillow chooses by the content otherwise, and would start Ghostscript for an EPS.

    Images are decoded with Pillow. OpenCV is faster, but its libpng can pick up a different zlib when PyAV is loaded in
    the same process, and then fails.
    """
    try:
        match name.rpartition(".")[2]:
            case "jpg":
                return np.array(_open_image(data, "JPEG", pixels).convert("RGB"))
            case "png":
                image = _open_image(data, "PNG", MAX_PLANES * pixels)
                if image.mode != "I;16":  # an 8-bit image would be read as depth that is nearly flat
                    raise ValueError(f"its mode is {image.mode}, not 16-bit gray")
                return np.array(image)
            case "npy":
                return _decode_array(data)
            case "txt":
                return data.decode()
            case "json":
                return json.loads(data)
    except Exception as error:  # the decoders raise any error for hostile data: struct.error, OverflowError, …
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise SampleError(f"member {name} cannot be decoded: {reason}", "decode") from error
    raise SampleError(f"member {name} does not belong to the sample format", "shape")


def _open_image(data: bytes, codec: str, pixels: int) -> Image.Image:
    """Opens a picture, without decoding it. Raises ValueError if it has too many pixels, and errors of Pillow."""
    image = Image.open(io.BytesIO(data), formats=(codec,))
    if image.width * image.height > pixels:
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than {pixels}")
    return image


def _decode_array(data: bytes) -> np.ndarray:
    """Decodes what `np.save` wrote. Raises ValueError.

    np.load is not used because it also accepts pickles and zip archives. Parsed headers are cached, since all samples
    of a pool share theirs.
    """
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran_order, dtype = _parse_array_header(data[:length])
    array = np.frombuffer(data, dtype, offset=length)  # refuses object arrays
    return array.reshape(shape, order="F" if fortran_order else "C").copy()  # torch needs a writable array


@lru_cache(maxsize=64)
def _parse_array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("its format version is not the 1.0 that np.save writes")
    return np.lib.format.read_array_header_1_0(stream)


def validate(sample: Sample, pool: Pool) -> None:
    """Checks every present field against its pool: shapes, dtypes, finite values. Raises SampleError."""
    if not KEY.fullmatch(sample.key):
        problem = "must have 1 to 200 characters out of A-Z a-z 0-9 _ -"
        raise SampleError(f"key {sample.key!r} {problem}", "shape")
    n = pool.frames
    h, w = pool.height, pool.width
    _expect(sample, "frames", sample.frames, np.uint8, (n, h, w, 3))
    planes = () if sample.structure is None or sample.structure.ndim == 3 else sample.structure.shape[1:2]
    _expect(sample, "structure", sample.structure, np.uint16, (n, *planes, h, w))
    _expect(sample, "moments", sample.moments, np.float16, (n, None, None, None))
    latents = {LATENT: sample.structure_latent}
    latents |= {latent_field(level): latent for level, latent in sample.degraded_latents.items()}
    size: tuple[int | None, ...] = (None, None, None)
    for name, latent in latents.items():  # at all t_s of one size
        _expect(sample, name, latent, np.float16, (n, *size))
        size = size if latent is None else latent.shape[1:]
    _expect(sample, "image_embedding", sample.image_embedding, np.float16, (n, None))
    _expect(sample, "text_embedding", sample.text_embedding, np.float16, (None,))
    channels, *rest = size
    if sample.moments is not None and channels is not None:
        _expect(sample, "moments", sample.moments, np.float16, (n, 2 * channels, *rest))


def _expect(sample: Sample, field: str, array: np.ndarray | None, dtype: type, shape: tuple[int | None, ...]) -> None:
    if array is None:
        return
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape))
    if not fits or array.dtype != dtype:
        want = "x".join("*" if size is None else str(size) for size in shape)
        problem = f"{field} is {array.dtype} {array.shape}, but the pool has {np.dtype(dtype)} {want}"
        raise SampleError(f"{sample.key}: {problem}", "shape")
    if array.dtype == np.float16 and not _finite(array):
        raise SampleError(f"{sample.key}: {field} holds values that are not finite", "not_finite")


def _finite(array: np.ndarray) -> bool:
    """np.isfinite(array).all() for float16, in a tenth of its time.

    Read as integers, infinities and NaNs are the largest bit patterns: from 0x7C00 on without the sign bit, and from
    0xFC00 on with it.
    """
    return not array.size or bool(array.view(np.int16).max() < 0x7C00 and array.view(np.uint16).max() < 0xFC00)


def _each(array: np.ndarray | None) -> np.ndarray | tuple[()]:
    return () if array is None else array


def _encode_array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _encode_image(image: Image.Image, codec: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, codec, **options)
    return stream.getvalue()


@dataclass
class Batch:
    """One micro-batch of one pool, as a rank reads it. An image is a video of one frame (n = 1).

    The shapes and dtypes below are those after `to`, under every strategy and precision. Before it, tensors keep the
    float16 and uint16 in which they are stored, which halves the bytes that are copied between processes and to a GPU.
    """

    kind: str  # "image" or "video"; the same on every rank in every step
    step: int  # the optimizer step that this batch belongs to
    slots: list[int]  # b positions in the global batch: with the step, the key of all randomness
    keys: list[str]  # b sample keys
    moments: Tensor | None  # float32 (b, n, 2c, h/f, w/f); None in a set without latents
    embeddings: Tensor  # float32 (b, n, d): CLIP image embedding of every frame
    structure_latents: Tensor | None = None  # float32 (b, n, c, h/f, w/f): latent of the structure at its t_s, scaled
    structure_levels: list[int] | None = None  # b t_s of the structure_latents; None: all are 0
    # float32 (b, n, h, w) in [0, 1], for depth 1 is nearest, or (b, n, p, h, w) of p planes; encoded during training
    structure: Tensor | None = None
    structure_rows: list[int] | None = None  # the samples that `structure` is of, if it is not all b of them
    frames: Tensor | None = None  # uint8 (b, n, h, w, 3), encoded during training; None in a set with latents
    draws: Any = (
        None  # the noise and other draws of a training step, gen1_train.training.draws.Draws; None: not yet made
    )
    # bad samples that were replaced by others: a description of each, and why it is bad
    replaced_samples: list[tuple[str, Reason]] = dataclasses.field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with its tensors on `device`; float16 becomes float32, and uint16 float32 in [0, 1]."""
        moved = self._map(lambda tensor: _widen(tensor.to(device, non_blocking=True)))
        return replace(moved, draws=None if self.draws is None else self.draws.to(device))

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory; called by DataLoader."""
        pinned = self._map(Tensor.pin_memory)
        return replace(pinned, draws=None if self.draws is None else self.draws.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def _widen(tensor: Tensor) -> Tensor:
    match tensor.dtype:
        case torch.float16:
            return tensor.float()
        case torch.uint16:
            return tensor.float().div_(STRUCTURE_MAX)
    return tensor


# Sample field -> the Batch field that stacks it
BATCH_FIELDS = {
    "moments": "moments",
    "image_embedding": "embeddings",
    "structure": "structure",
    "frames": "frames",
}


def collate(kind: str, step: int, slots: list[int], samples: list[Sample]) -> Batch:
    """Stacks samples of one pool into a Batch. Fields that were not read stay None; `structure` may be of some only.

    Each sample may have its structure's latent at another t_s; the lowest is taken if it has several.
    """
    columns: dict[str, Tensor | None] = {"moments": None}
    rows = [row for row, sample in enumerate(samples) if sample.structure is not None]
    for source, target in BATCH_FIELDS.items():
        read_of = [samples[row] for row in rows] if source == "structure" and rows else samples
        columns[target] = _stack([getattr(sample, source) for sample in read_of])
    read = [_read_latent(sample) for sample in samples]
    columns["structure_latents"] = _stack([latent for _, latent in read])
    keys = [sample.key for sample in samples]
    batch = Batch(kind=kind, step=step, slots=slots, keys=keys, **columns)  # type: ignore[arg-type]
    if batch.structure_latents is not None:
        batch.structure_levels = [level for level, _ in read]
    if 0 < len(rows) < len(samples):
        batch.structure_rows = rows
    return batch


def _read_latent(sample: Sample) -> tuple[int, np.ndarray | None]:
    """Returns the t_s and the structure's latent that was read; None without one."""
    if sample.structure_latent is not None or not sample.degraded_latents:
        return 0, sample.structure_latent
    return min(sample.degraded_latents.items())


def _stack(arrays: list[np.ndarray | None]) -> Tensor | None:
    if arrays[0] is None:
        return None
    # in a loader worker, default_collate stacks directly into memory shared with the training process
    return default_collate(list(map(torch.from_numpy, arrays)))
