"""The training state as whole float32 tensors by name, however a strategy spreads it over however many processes.

A run's state is its weights, AdamW's two moments of each, and the number of optimizer steps done. The rest follows from
that number: the learning rate, AdamW's own count of steps, the place in the data; and all randomness is keyed by it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from typing_extensions import override

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names of them
BUCKET = 2**24  # elements that are gathered at a time, unless one tensor has more

Entries = dict[str, tuple[Parameter, str | None]]  # name of a tensor in a file -> its weight, and which moment of it


def weights_of(model: Module) -> Entries:
    """What unet.safetensors holds."""
    return {name: (weight, None) for name, weight in model.named_parameters()}


def moments_of(model: Module) -> Entries:
    """What optimizer.safetensors holds."""
    return {f"{name}.{moment}": (weight, moment) for name, weight in model.named_parameters() for moment in MOMENTS}


class PlainState:
    """What `single` and `ddp` hold: everything in every process, in a torch optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        """The whole tensors in float32 on the CPU, where `keep` is true: in rank 0; else none. A collective in ZeRO."""
        return {name: self._held(*entry).float().cpu() for name, entry in entries.items()} if keep else {}

    def put(self, weight: Parameter, moment: str | None, whole: Tensor) -> None:
        """Takes over what this process holds of a weight or moment; no other part of `whole` is read."""
        self._held(weight, moment).copy_(whole)

    def create_moments(self, step: int) -> None:
        """Makes the moments, as AdamW does itself in its first step, and lets it count on from `step`."""
        for master in self.masters():
            moments = {moment: torch.zeros_like(master, memory_format=torch.preserve_format) for moment in MOMENTS}
            self.optimizer.state[master] = {"step": torch.tensor(float(step), device=master.device), **moments}

    def masters(self) -> list[Tensor]:
        """The tensors that the optimizer updates in this process."""
        return [master for group in self.optimizer.param_groups for master in group["params"]]

    def _held(self, master: Tensor, moment: str | None) -> Tensor:
        return (master if moment is None else self.optimizer.state[master][moment]).detach()


class ZeroState(PlainState):
    """What DeepSpeed's ZeRO 1 and 2 hold: all weights end to end in float32, of which each process has a part."""

    def __init__(self, zero: Any, device: torch.device) -> None:
        """`zero`: DeepSpeed's optimizer, which wraps torch's. `device`: where collectives run."""
        super().__init__(zero.optimizer)
        self.zero, self.device = zero, device

    @override
    def gather(self, entries: Entries, keep: bool) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for names in self._buckets(entries):
            sizes = [self.shape(entries[name][0]).numel() for name in names]
            bucket = torch.zeros(sum(sizes), dtype=torch.float32, device=self.device)
            tensors = dict(zip(names, bucket.split(sizes)))
            for name, tensor in tensors.items():
                start, part = self.part(*entries[name])
                tensor[start : start + len(part)] = part
            distributed.reduce(bucket, dst=0)  # each element stands in one process, the others add zero
            if keep:
                shapes = {name: self.shape(entries[name][0]) for name in names}
                whole |= {name: tensor.view(shapes[name]).to("cpu", copy=True) for name, tensor in tensors.items()}
        return whole

    @override
    def put(self, weight: Parameter, moment: str | None, whole: Tensor) -> None:
        start, part = self.part(weight, moment)
        part.copy_(whole.flatten()[start : start + len(part)])

    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        """Where in a flattened weight this process's part begins, and the part of the master or moment; no copy."""
        mapping = weight._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # the weight lies in other processes
            return 0, torch.empty(0)
        address, master = mapping.hp_fragment_address, self.masters()[mapping.param_group_index]
        return mapping.lp_fragment_address.start, self._held(master, moment).narrow(0, address.start, address.numel)

    def shape(self, weight: Parameter) -> torch.Size:
        return weight.shape

    def _buckets(self, entries: Entries) -> Iterator[list[str]]:
        """The names, in their order, in parts of about BUCKET elements: one collective each instead of one a name."""
        names: list[str] = []
        size = 0
        for name, (weight, _) in entries.items():
            numel = self.shape(weight).numel()
            if names and size + numel > BUCKET:
                yield names
                names, size = [], 0
            names.append(name)
            size += numel
        yield names


class Zero3State(ZeroState):
    """What ZeRO 3 holds: of every weight an equal part in each process, the last one padded."""

    @override
    def part(self, weight: Parameter, moment: str | None) -> tuple[int, Tensor]:
        group, offset, numel = self.zero.grad_position[self.zero.get_param_id(weight)]
        start = numel * weight.ds_zero_partition_rank  # type: ignore[attr-defined]
        filled = max(0, min(numel, self.shape(weight).numel() - start))
        return start, self._held(self.masters()[group], moment).narrow(0, offset, filled)

    @override
    def masters(self) -> list[Tensor]:
        return self.zero.fp32_partitioned_groups_flat

    @override
    def shape(self, weight: Parameter) -> torch.Size:
        return weight.ds_shape  # type: ignore[attr-defined]  # the weight itself is empty outside of its layer


def state_of(strategy: Strategy) -> PlainState:
    """Where a strategy that has been set up holds the training state."""
    if not isinstance(strategy, DeepSpeedStrategy):
        return PlainState(strategy.optimizers[0])
    zero, device = strategy.deepspeed_engine.optimizer, strategy.root_device
    return Zero3State(zero, device) if strategy.zero_stage_3 else ZeroState(zero, device)


def resume(trainer: Trainer, model: Module, moments: dict[str, Tensor], step: int) -> None:
    """Puts trainer and optimizer where they were after `step` optimizer steps; the weights are there already.

    For a trainer whose strategy has been set up. Of `moments`, which may lie in a mapped file, each process reads what
    it will hold. The trainer begins with a step's first micro-batch: it may have another number of them than before.
    """
    state = state_of(trainer.strategy)
    state.create_moments(step)
    for name, entry in moments_of(model).items():
        state.put(*entry, moments[name])
    done = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    done.ready = done.completed = step
