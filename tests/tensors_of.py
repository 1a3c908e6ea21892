"""The tensors of checkpoints, whether these are in parts or not."""

from pathlib import Path

import torch
from torch import Tensor

from gen1_train.training.checkpoints.checkpoint import read_checkpoint
from gen1_train.training.checkpoints.parts import Index


def tensors_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors of a checkpoint by file, under the file's name in a checkpoint of one process, and by name."""
    found = read_checkpoint(folder)
    files = Index.read(folder).files if found.info.parts else found.info.files
    return {file: dict(found.tensors(file)) for file in sorted(files) if file.endswith(".safetensors")}


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
