"""The copy of a process's part of the training state from which a checkpoint is written while training continues."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from gen1_train.training.checkpoints.parts import Piece
from gen1_train.training.checkpoints.state import Entries, PlainState


class Snapshot:
    """Host memory that is kept from one checkpoint to the next, so that training waits for one copy and nothing else.

    Fresh memory would be zeroed page by page, which takes longer than the copy. For GPUs it is pinned. Frozen weights
    are copied once, from a GPU, or not at all.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._frozen: dict[Parameter, Tensor] = {}

    def reserve(self, held: PlainState, files: Mapping[str, Entries]) -> None:
        """Allocates the memory, before training starts."""
        tensors = []
        for entries in files.values():
            for name, _, part in held.pieces(entries):
                weight, _ = entries[name]
                if weight.requires_grad:
                    tensors.append(part)
                elif weight not in self._frozen:
                    self._frozen[weight] = part.reshape(-1).to("cpu", torch.float32)
        pinned = any(tensor.is_cuda for tensor in tensors)
        self._buffer = torch.zeros(sum(tensor.numel() for tensor in tensors), pin_memory=pinned)

    def take(self, held: PlainState, files: Mapping[str, Entries]) -> dict[str, list[Piece]]:
        """Returns copies of what this process holds of each file. They are overwritten by the next call."""
        taken: dict[str, list[Piece]] = {}
        end = 0
        streams: set[torch.cuda.Stream] = set()
        for file, entries in files.items():
            taken[file] = []
            for name, start, part in held.pieces(entries):
                if (frozen := self._frozen.get(entries[name][0])) is not None:
                    taken[file].append(Piece(name, start, frozen))
                    continue
                begin, end = end, end + part.numel()
                copy = self._buffer[begin:end]
                copy.copy_(part.reshape(-1), non_blocking=True)
                if part.is_cuda:
                    streams.add(torch.cuda.current_stream(part.device))
                taken[file].append(Piece(name, start, copy))
        for stream in streams:
            stream.synchronize()
        return taken
