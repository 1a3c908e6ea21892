"""THE CONTRACT: what a sample in a shard holds, and what a training batch holds.

`data_tools` writes by `encode_sample`, the loader reads by `decode_member`, and both are checked by the one `validate`,
so they cannot disagree. All samples of a pool have one shape; nothing is ever padded.

A sample is a group of members of one WebDataset tar that share a key (keys have no dots). For n frames of h x w pixels,
an autoencoder with c latent channels and factor f, and CLIP width d:

| member | content |
|---|---|
| `frame00.jpg` ... | uint8 RGB (h, w, 3), JPEG |
| `structure00.png` ... | structure: lossless 16-bit grey PNG (h, w); depth: 0..65535 is farthest..nearest in the clip |
| `moments.npy` | float16 (n, 2c, h/f, w/f): mean and log-variance of the frames' latents, before the latent scale |
| `structure_latent.npy` | float16 (n, c, h/f, w/f): latent of the structure at t_s = 0, times the latent scale |
| `image_embedding.npy` | float16 (n, d): CLIP image embedding of every frame, as the tower gives it |
| `text_embedding.npy` | float16 (d,): CLIP text embedding of the caption; only with a caption |
| `caption.txt` | UTF-8; only with a caption |
| `meta.json` | where the sample comes from and how it was made |
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
STRUCTURE_MAX = 65535  # 16 bits: 8 would cost 0.2 % of the range


# why a sample cannot be used: a part of it is not there, cannot be read, has another crc32, cannot be decoded, is not
# what its pool has, or holds values that are not finite
Reason = Literal["missing", "read", "checksum", "decode", "shape", "not_finite"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class SampleError(ValueError):
    """A sample that breaks the contract; the message names the member and what is wrong with it."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)  # both, so that it can travel between processes
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Pool:
    """All samples of one kind and one size; the unit from which batches are drawn."""

    kind: str  # "image" or "video"
    width: int  # pixels
    height: int  # pixels
    frames: int  # frames in a sample; 1 for images

    @property
    def name(self) -> str:
        """For example `video-448x256` (width x height)."""
        return f"{self.kind}-{self.width}x{self.height}"


@dataclass
class Sample:
    """One decoded sample; members that were not read, or that the sample does not have, are None."""

    key: str
    frames: np.ndarray | None = None  # uint8 (n, h, w, 3)
    structure: np.ndarray | None = None  # uint16 (n, h, w)
    moments: np.ndarray | None = None  # float16 (n, 2c, h/f, w/f)
    structure_latent: np.ndarray | None = None  # float16 (n, c, h/f, w/f)
    image_embedding: np.ndarray | None = None  # float16 (n, d)
    text_embedding: np.ndarray | None = None  # float16 (d,)
    caption: str | None = None
    meta: dict[str, Any] | None = None


def frame_members(frames: int) -> list[str]:
    return [f"frame{i:02d}.jpg" for i in range(frames)]


def structure_members(frames: int) -> list[str]:
    return [f"structure{i:02d}.png" for i in range(frames)]


def members_of(field: str, frames: int) -> list[str]:
    """The tar members that carry one field of a Sample with n frames."""
    match field:
        case "frames":
            return frame_members(frames)
        case "structure":
            return structure_members(frames)
        case "caption":
            return ["caption.txt"]
        case "meta":
            return ["meta.json"]
        case "moments" | "structure_latent" | "image_embedding" | "text_embedding":
            return [f"{field}.npy"]
    raise KeyError(f"a Sample has no field {field!r}")


def encode_sample(sample: Sample, jpeg_quality: int = 95) -> dict[str, bytes]:
    """The members of a sample as bytes; absent fields are left out."""
    members: dict[str, bytes] = {}
    for image, name in zip(_each(sample.frames), frame_members(99)):
        # 4:4:4: chroma subsampling blurs exactly the colours that content is about
        members[name] = _encode_image(Image.fromarray(image), "JPEG", quality=jpeg_quality, subsampling=0)
    for plane, name in zip(_each(sample.structure), structure_members(99)):
        # runs alone: in 16 bits there is little else to find, and a search would take three times as long
        members[name] = _encode_image(Image.fromarray(plane), "PNG", compress_type=zlib.Z_RLE)
    for field in ("moments", "structure_latent", "image_embedding", "text_embedding"):
        array = getattr(sample, field)
        if array is not None:
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            members[f"{field}.npy"] = stream.getvalue()
    if sample.caption is not None:
        members["caption.txt"] = sample.caption.encode()
    if sample.meta is not None:
        members["meta.json"] = json.dumps(sample.meta, sort_keys=True).encode()
    return members


def decode_sample(key: str, members: dict[str, bytes]) -> Sample:
    """A Sample from whichever of its members were read.

    Raises SampleError for a member that cannot be decoded.
    """
    sample = Sample(key)
    try:
        decoded = {name: decode_member(name, data) for name, data in members.items()}
    except SampleError as error:
        raise SampleError(f"{key}: {error}", error.reason) from error
    frames = [decoded[name] for name in sorted(decoded) if name.startswith("frame")]
    planes = [decoded[name] for name in sorted(decoded) if name.startswith("structure") and name.endswith(".png")]
    try:
        sample.frames = np.stack(frames) if frames else None
        sample.structure = np.stack(planes) if planes else None
    except ValueError as error:
        raise SampleError(f"{key}: its frames are of several sizes", "shape") from error
    for field in ("moments", "structure_latent", "image_embedding", "text_embedding"):
        setattr(sample, field, decoded.get(f"{field}.npy"))
    sample.caption, sample.meta = decoded.get("caption.txt"), decoded.get("meta.json")
    return sample


def decode_member(name: str, data: bytes) -> Any:
    """One member's bytes as an array, a string or a dict. Nothing is ever unpickled.

    Pictures by Pillow: OpenCV is quicker, but beside PyAV in one process its libpng may meet another zlib, and fails.
    """
    try:
        match name.rpartition(".")[2]:
            case "jpg":
                return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            case "png":
                image = Image.open(io.BytesIO(data))
                if image.mode != "I;16":  # 8 bits would be read as depth that is nearly flat
                    raise ValueError(f"it is of mode {image.mode}, not 16-bit grey")
                return np.array(image)
            case "npy":
                return _decode_array(data)
            case "txt":
                return data.decode()
            case "json":
                return json.loads(data)
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise SampleError(f"member {name} cannot be decoded: {error}", "decode") from error
    raise SampleError(f"member {name} is none that a sample has", "shape")


def _decode_array(data: bytes) -> np.ndarray:
    """What `np.save` wrote. Raises ValueError.

    Not by np.load, which takes pickles and zip archives too. A header is parsed once: all samples of a pool share it.
    """
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran_order, dtype = _parse_array_header(data[:length])
    array = np.frombuffer(data, dtype, offset=length)  # refuses objects
    return array.reshape(shape, order="F" if fortran_order else "C").copy()  # torch takes none that is read-only


@lru_cache(maxsize=64)
def _parse_array_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("np.save would have written version 1.0")
    return np.lib.format.read_array_header_1_0(stream)


def validate(sample: Sample, pool: Pool) -> None:
    """Checks every field that is there against its pool: shapes, dtypes, finite values. Raises SampleError."""
    if not KEY.fullmatch(sample.key):
        problem = "has characters outside of A-Z a-z 0-9 _ -, or is longer than 200"
        raise SampleError(f"key {sample.key!r} {problem}", "shape")
    n, h, w = pool.frames, pool.height, pool.width
    _expect(sample, "frames", np.uint8, (n, h, w, 3))
    _expect(sample, "structure", np.uint16, (n, h, w))
    _expect(sample, "moments", np.float16, (n, None, None, None))
    _expect(sample, "structure_latent", np.float16, (n, None, None, None))
    _expect(sample, "image_embedding", np.float16, (n, None))
    _expect(sample, "text_embedding", np.float16, (None,))
    if sample.moments is not None and sample.structure_latent is not None:
        channels = sample.structure_latent.shape[1]
        _expect(sample, "moments", np.float16, (n, 2 * channels, *sample.structure_latent.shape[2:]))


def _expect(sample: Sample, field: str, dtype: type, shape: tuple[int | None, ...]) -> None:
    array = getattr(sample, field)
    if array is None:
        return
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape))
    if not fits or array.dtype != dtype:
        want = "x".join("*" if size is None else str(size) for size in shape)
        raise SampleError(
            f"{sample.key}: {field} is {array.dtype} {array.shape}, the pool has {np.dtype(dtype)} {want}", "shape"
        )
    if array.dtype == np.float16 and not _finite(array):
        raise SampleError(f"{sample.key}: {field} holds values that are not finite", "not_finite")


def _finite(array: np.ndarray) -> bool:
    """np.isfinite(array).all() of halves by their bits, in a tenth of its time: as numbers, infinities and NaNs are the
    largest of those without a sign bit, and of all."""
    return not array.size or bool(array.view(np.int16).max() < 0x7C00 and array.view(np.uint16).max() < 0xFC00)


def _each(array: np.ndarray | None) -> np.ndarray | tuple[()]:
    return () if array is None else array


def _encode_image(image: Image.Image, codec: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, codec, **options)
    return stream.getvalue()


@dataclass
class Batch:
    """One micro-batch of one pool, as a rank reads it. An image is a video of one frame (n = 1).

    Until `to` brings it to a device, the tensors are as they are stored, float16 and uint16: half the bytes on their
    way between processes and to a GPU.
    """

    kind: str  # "image" or "video"; the same on every rank in every step
    step: int  # the optimizer step that this batch belongs to
    slots: list[int]  # b places in the global batch: with the step, the key of all randomness
    keys: list[str]  # b sample keys
    moments: Tensor | None  # float32 (b, n, 2c, h/f, w/f); None in a set without latents
    embeddings: Tensor  # float32 (b, n, d): CLIP image embedding of every frame
    structure_latents: Tensor | None = None  # float32 (b, n, c, h/f, w/f): latent of the structure at t_s = 0, scaled
    structure: Tensor | None = None  # float32 (b, n, h, w) in [0, 1], for depth 1 is nearest; to be encoded now
    frames: Tensor | None = None  # uint8 (b, n, h, w, 3), to be encoded now; None in a set with latents
    # bad samples, in whose places others stand, and why they are bad
    replaced: list[tuple[str, Reason]] = dataclasses.field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """The same batch as the model takes it, with its tensors on another device."""
        return self._map(lambda tensor: _widen(tensor.to(device, non_blocking=True)))

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; what DataLoader calls."""
        return self._map(Tensor.pin_memory)

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


# the Sample fields that a Batch is made of
BATCH_FIELDS = {
    "moments": "moments",
    "image_embedding": "embeddings",
    "structure_latent": "structure_latents",
    "structure": "structure",
    "frames": "frames",
}


def collate(kind: str, step: int, slots: list[int], samples: list[Sample]) -> Batch:
    """Stacks samples of one pool into a Batch; fields that were not read stay None."""
    columns: dict[str, Tensor | None] = {"moments": None}
    for source, target in BATCH_FIELDS.items():
        arrays = [getattr(sample, source) for sample in samples]
        if arrays[0] is not None:
            # torch's: in a loader worker it stacks straight into the memory that the training process will see
            columns[target] = default_collate(list(map(torch.from_numpy, arrays)))
    keys = [sample.key for sample in samples]
    return Batch(kind=kind, step=step, slots=slots, keys=keys, **columns)  # type: ignore[arg-type]
