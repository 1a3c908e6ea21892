"""The tensors of checkpoints, whether these are in parts or not."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gen1_train.training.checkpoints.checkpoint import CONFIG, read_checkpoint
from gen1_train.training.checkpoints.info import write_info
from gen1_train.training.checkpoints.parts import INDEX, Index, Piece, layouts, part_name, pieces_by_name, write_part
from gen1_train.training.checkpoints.writing import entry_of


def tensors_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors of a checkpoint by file, under the file's name in a checkpoint of one process, and by name."""
    found = read_checkpoint(folder)
    files = Index.read(folder).files if found.info.parts else found.info.files
    return {file: dict(found.tensors(file)) for file in sorted(files) if file.endswith(".safetensors")}


def split(folder: Path, parts: int) -> None:
    """Divides the files of a checkpoint, as this number of ranks would have written them. Parts cut through tensors."""
    found = read_checkpoint(folder)
    info = replace(found.info, parts=parts, files={CONFIG: found.info.files[CONFIG]})
    index = {}
    for file, tensors in tensors_of(folder).items():
        total, before = sum(tensor.numel() for tensor in tensors.values()), 0
        pieces: list[list[Piece]] = [[] for _ in range(parts)]
        for name, tensor in tensors.items():
            for number, part in enumerate(pieces):
                low, high = (edge * total // parts - before for edge in (number, number + 1))
                if (values := tensor.flatten()[max(0, low) : max(0, high)].clone()).numel():
                    part.append(Piece(name, max(0, low), values))
            before += tensor.numel()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        index[file] = layouts(shapes, [pieces_by_name(part) for part in pieces])
        (folder / file).unlink()
        for number, part in enumerate(pieces):
            name = part_name(file, number, parts)
            info.files[name] = write_part(folder / name, part)
    (folder / INDEX).write_text(json.dumps({"parts": parts, "files": index}))
    info.files[INDEX] = entry_of(folder / INDEX)
    write_info(folder, info)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(folder).weights("raw"))


def assert_same_tensors(folder: Path, other: Path) -> None:
    """Two checkpoints have the same files of tensors, and these are equal to the bit."""
    made, wanted = tensors_of(folder), tensors_of(other)
    assert made.keys() == wanted.keys()
    for file, tensors in wanted.items():
        assert made[file].keys() == tensors.keys(), file
        for name, tensor in tensors.items():
            bits = (made[file][name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else (tensor, tensor)
            assert made[file][name].dtype == tensor.dtype and torch.equal(*bits), f"{file}: {name}"
