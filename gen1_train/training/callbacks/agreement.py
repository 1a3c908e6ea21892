"""A check before the first step that all ranks are about to do the same work."""

import hashlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.errors import UserError

SHOWN = 3  # hosts, or values, of a disagreement: the line must stay readable with a thousand ranks


class Agreement(Callback):
    """Compares the hashes of data, schedule and config, and the step, between the ranks; stops all if any differs."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: by the names that the error message uses."""
        self.values = values

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_agreement(self.values)


def check_agreement(values: Mapping[str, str]) -> None:
    """Raises the same UserError on every rank unless the values are equal on all ranks. A collective."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, (socket.gethostname(), dict(values)))
    if line := disagreement([host for host, _ in ranks], [values for _, values in ranks]):
        raise UserError(line)


def code_hash() -> str:
    """Returns a sha256 over the modules of this package and their paths in it."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def disagreement(hosts: list[str], values: list[dict[str, str]]) -> str | None:
    """Returns a line about the values that differ between ranks, or None; `hosts` and `values` are indexed by rank."""
    names = dict.fromkeys(name for rank in values for name in rank)
    parts = []
    for name in names:
        ranks_by_value: dict[str | None, list[int]] = {}
        for rank, of_rank in enumerate(values):
            ranks_by_value.setdefault(of_rank.get(name), []).append(rank)
        if len(ranks_by_value) > 1:
            groups = [f"{_short(value)} on {_named(ranks, hosts)}" for value, ranks in ranks_by_value.items()]
            parts.append(f"{name} ({listed(groups)})")
    if not parts:
        return None
    return (
        f"the ranks do not agree on {' and '.join(parts)}: start all of them from the same code, with the same "
        "settings, data and run folder"
    )


def _short(value: str | None) -> str:
    return "nothing" if value is None else value[:12]


def _named(ranks: list[int], hosts: list[str]) -> str:
    """`ranks 0-3, 6 (node1, node2)`"""
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {listed(spans(ranks))} ({listed(list(dict.fromkeys(hosts[rank] for rank in ranks)))})"


def spans(ranks: Sequence[int]) -> list[str]:
    """Returns `0-3` and `6` for the ranks 0, 1, 2, 3 and 6."""
    known = set(ranks)
    starts = sorted(rank for rank in known if rank - 1 not in known)
    ends = sorted(rank for rank in known if rank + 1 not in known)
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends)]


def listed(items: Sequence[str]) -> str:
    """Returns the first SHOWN items, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
