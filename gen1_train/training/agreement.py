"""Before the first step all ranks make sure that they are about to do the same."""

import hashlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from gen1_train.errors import UserError

SHOWN = 3  # hosts, or values, of a disagreement; the line is to stay readable with a thousand ranks


class Agreement(Callback):
    """Compares what the ranks are about to do (hashes of data, schedule, config; the step); stops all if it differs."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: by the name that the user knows it by."""
        self.values = values

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_agreement(self.values)


def check_agreement(values: Mapping[str, str]) -> None:
    """Raises the same UserError on every rank if these values are not the same on all. A collective."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, (socket.gethostname(), dict(values)))
    if line := disagreement([host for host, _ in found], [values for _, values in found]):
        raise UserError(line)


def code_hash() -> str:
    """sha256 over the modules of this package, by their places in it."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def disagreement(hosts: list[str], values: list[dict[str, str]]) -> str | None:
    """The line about values that differ between ranks; hosts and values by rank."""
    names = dict.fromkeys(name for rank in values for name in rank)
    parts = []
    for name in names:
        ranks: dict[str | None, list[int]] = {}
        for rank, own in enumerate(values):
            ranks.setdefault(own.get(name), []).append(rank)
        if len(ranks) > 1:
            groups = [f"{_short(value)} on {_named(which, hosts)}" for value, which in ranks.items()]
            parts.append(f"{name} ({_listed(groups)})")
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
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    spans = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends)]
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {_listed(spans)} ({_listed(list(dict.fromkeys(hosts[rank] for rank in ranks)))})"


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
