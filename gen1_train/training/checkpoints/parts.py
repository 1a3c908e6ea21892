"""Files of tensors in parts: each process writes what it holds, and readers see whole tensors.

    unet.safetensors                  all tensors in one file, where one process holds everything, or
    unet.00003-of-00008.safetensors   one of the parts: flat pieces of some of the tensors, float32, by their names
    index.json                        the shape of each tensor, and which part holds which elements of it

A tensor is in one part, or its elements are in consecutive parts. Nothing of what a reader gets depends on the number
of parts. `torch.distributed.checkpoint` writes safetensors files, too, but knows blocks of tensors only, not ranges of
their flattened elements, which is what ZeRO's processes hold; it hashes nothing, and each of its readers opens every
file.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from gen1_train.errors import UserError
from gen1_train.model.pretrained import load_safetensors
from gen1_train.system.records import make_record, read_json, require

INDEX = "index.json"
MAX_INDEX = 1 << 27  # bytes of INDEX: what 1000 tensors in 1024 parts each, and their moments, need; ours
BYTES = 4  # of an element


@dataclass(frozen=True)
class Piece:
    """Some of the elements of a tensor, in a row."""

    name: str
    start: int  # position of the first one in the flattened tensor
    values: Tensor  # 1-D, float32, on the CPU


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor are."""

    shape: list[int]
    first: int  # number of the part in which it begins
    starts: list[int]  # of its piece in that part and in each following one

    @property
    def ends(self) -> list[int]:
        """Where each piece ends."""
        return [*self.starts[1:], math.prod(self.shape)]


def part_name(file: str, number: int, parts: int) -> str:
    """Returns the name of a part of a file, number 0 to parts - 1."""
    stem, _, suffix = file.rpartition(".")
    return f"{stem}.{number:05d}-of-{parts:05d}.{suffix}"


def write_part(path: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Writes and syncs a part; returns its size and hash, as checkpoint.json lists them. Raises OSError.

    The hash is of what was to be written, not of what the disk returns: a reader compares both.
    """
    content = list(_content(pieces))
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(_sha256, content)  # at the same time: hashing and writing both release the GIL
        with path.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
    path.chmod(path.parent.stat().st_mode & 0o666)
    return {"bytes": sum(map(len, content)), "sha256": hashing.result()}


def _sha256(content: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def _content(pieces: Sequence[Piece]) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a safetensors file: the length of its header, the header, the values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in pieces:
        begin, end = end, end + BYTES * piece.values.numel()
        header[piece.name] = {"dtype": "F32", "shape": [piece.values.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for piece in pieces:
        yield piece.values.numpy().view(np.uint8).data


def layouts(shapes: Mapping[str, Sequence[int]], starts: Sequence[Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    """Returns what INDEX records of a file. `starts`: of the pieces in each part. Raises ValueError for a gap."""
    found: dict[str, Layout] = {}
    for number, part in enumerate(starts):
        for name, start in part.items():
            layout = found.setdefault(name, Layout(list(shapes[name]), number, []))
            require(layout.first + len(layout.starts) == number, f"{name} is missing in part {number - 1}")
            layout.starts.append(start)
    require(set(found) == set(shapes), "a tensor is in no part")
    for name, layout in found.items():
        check(name, layout, len(starts))
    return {name: vars(found[name]) for name in sorted(found)}  # in the order of a file in one piece


def check(name: str, layout: Layout, parts: int) -> None:
    """Raises ValueError for a layout that `layouts` does not return."""
    ends = layout.ends
    require(all(side >= 0 for side in layout.shape), f"the shape of {name} is {layout.shape}")
    require(layout.starts[:1] == [0], f"{name} does not begin with its first element")
    require(all(a < b for a, b in zip(layout.starts, ends)) or ends == [0], f"the pieces of {name} are not in order")
    require(0 <= layout.first <= parts - len(layout.starts), f"{name} is in parts that are not there")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file in parts. They are memory-mapped, and put together when they are asked for."""

    def __init__(self, folder: Path, file: str, parts: int, index: Mapping[str, Layout]) -> None:
        self._folder = folder
        self._file = file
        self._parts = parts
        self._index = index
        self._open: dict[int, dict[str, Tensor]] = {}

    @override
    def __getitem__(self, name: str) -> Tensor:
        """Raises UserError for a part that is missing or that the index does not describe."""
        shape = self.shape(name)
        return self.flat(name, 0, shape.numel()).view(shape)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    @override
    def __len__(self) -> int:
        return len(self._index)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._index[name].shape)

    def flat(self, name: str, start: int, count: int) -> Tensor:
        """Returns `count` elements of a flattened tensor; only the parts that hold them are opened."""
        layout = self._index[name]
        pieces = []
        for number, (begin, end) in enumerate(zip(layout.starts, layout.ends), layout.first):
            low, high = max(begin, start), min(end, start + count)
            if low < high:
                pieces.append(self._piece(number, name, end - begin)[low - begin : high - begin])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else torch.empty(0)

    def _piece(self, number: int, name: str, count: int) -> Tensor:
        path = self._folder / part_name(self._file, number, self._parts)
        if number not in self._open:
            self._open[number] = load_safetensors(path)
        piece = self._open[number].get(name)
        if piece is None or piece.shape != (count,) or piece.dtype != torch.float32:
            raise UserError(f"{path} does not hold the {count} elements of {name} that {INDEX} lists; use another one")
        return piece


@dataclass(frozen=True)
class Index:
    """INDEX: the layout of every tensor by file and name."""

    parts: int
    files: dict[str, dict[str, Layout]]

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Raises UserError for an index that is missing or damaged."""
        try:
            index = make_record(cls, read_json(folder / INDEX, MAX_INDEX))
            for content in index.files.values():
                for name, layout in content.items():
                    check(name, layout, index.parts)
            return index
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / INDEX} cannot be read ({error}); use another checkpoint") from error


def shape_of(tensors: Mapping[str, Tensor], name: str) -> torch.Size:
    """Returns the shape of a tensor, without reading it."""
    return tensors.shape(name) if isinstance(tensors, Tensors) else tensors[name].shape


def elements(tensors: Mapping[str, Tensor], name: str, start: int, count: int) -> Tensor:
    """Returns some elements of a flattened tensor, without reading the others."""
    if isinstance(tensors, Tensors):
        return tensors.flat(name, start, count)
    return tensors[name].flatten()[start : start + count]


def pieces_by_name(pieces: Iterable[Piece]) -> dict[str, int]:
    return {piece.name: piece.start for piece in pieces}
